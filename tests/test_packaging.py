"""What is installed, and what an import costs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import langgraph_harness_saver

ROOT = Path(__file__).parent.parent
IMPORTED = "import json, sys; import langgraph_harness_saver; print(json.dumps(sorted(sys.modules)))"


def test_public_names() -> None:
    for name in langgraph_harness_saver.__all__:
        assert getattr(langgraph_harness_saver, name).__name__ == name
    assert sorted(langgraph_harness_saver.__all__) == langgraph_harness_saver.__all__
    assert {"HarnessCheckpointer", "CheckpointerConfig", "CheckpointBackend", "CheckpointRecord"} <= set(
        langgraph_harness_saver.__all__
    )


def test_star_import_gives_what_is_public() -> None:
    names: dict[str, object] = {}
    exec("from langgraph_harness_saver import *", names)
    assert names.keys() - {"__builtins__"} == set(langgraph_harness_saver.__all__)


def test_typed() -> None:
    assert resources.files(langgraph_harness_saver).joinpath("py.typed").is_file()


def test_the_engine_s_names_are_the_package_s_too() -> None:
    from langgraph_harness_saver import engine

    for name in engine.__all__:
        assert getattr(langgraph_harness_saver, name) is getattr(engine, name)
    assert set(langgraph_harness_saver.__all__) <= set(dir(langgraph_harness_saver))
    with pytest.raises(AttributeError, match="has no attribute 'Engine'"):
        langgraph_harness_saver.Engine  # type: ignore[attr-defined]  # noqa: B018


def test_contract_suite_imports() -> None:
    from langgraph_harness_saver.testing import StoreContract

    assert isinstance(StoreContract, type)


def test_import_brings_no_driver_and_no_graph() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTED], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    modules = json.loads(done.stdout)
    roots = {name.partition(".")[0] for name in modules}
    assert "langgraph_harness_saver.engine" not in modules
    assert roots.isdisjoint({"asyncpg", "psycopg", "redis", "pytest", "hypothesis", "rich", "numpy"})
    parts = {name.split(".")[1] for name in modules if name.startswith("langgraph.")}
    # langgraph-checkpoint brings both.
    assert parts <= {"checkpoint", "store", "cache"}


def test_version_is_that_of_the_project_file() -> None:
    try:
        installed = metadata.version("langgraph-harness-saver")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed, run from its directory")
    project = ROOT / "pyproject.toml"
    if not project.is_file():
        pytest.skip("tests without the project")
    assert f'\nversion = "{installed}"\n' in project.read_text()
