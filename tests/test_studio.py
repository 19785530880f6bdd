"""docs/studio.md: every command is run as written, and prints what it says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dev_server import SITE, environment, reason_not_to_run
from test_readme import ROOT

pytestmark = pytest.mark.skipif(reason_not_to_run() is not None, reason=reason_not_to_run() or "")

DOC = (ROOT / "docs" / "studio.md").read_text(encoding="utf-8")
BLOCKS = dict(reversed(re.findall(r"^```(sh|python)\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)))
ADDRESS = re.compile(r"API: .*?(http://127\.0\.0\.1:\d+)")
COPIED = ("langgraph_harness_saver", "examples", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture
def checkout(tmp_path):
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.db*")
            )
        else:
            shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    return tmp_path


def start(checkout: Path, log: Path) -> subprocess.Popen[bytes]:
    """Run the commands in a shell; pip takes from the tests' environment what that has already."""
    packages = next(Path(path) for path in sys.path if Path(path).name == "site-packages")
    commands = BLOCKS["sh"].replace("cd examples", f"export PYTHONPATH={checkout / 'site'}\ncd examples")
    variables = {
        "PATH": f"{checkout}/studio-venv/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "BROWSER": "true",
    }
    with open(log, "wb") as output:
        return subprocess.Popen(
            ["bash", "-e", "-c", commands],
            cwd=checkout,
            env=environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(shell: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 240
    while time.monotonic() < end and shell.poll() is None:
        text = log.read_text(encoding="utf-8", errors="replace")
        if "Application started up" in text:
            return ADDRESS.search(text)[1]
        time.sleep(0.2)
    raise AssertionError(log.read_text(encoding="utf-8", errors="replace")[-8000:])


def test_five_minutes(checkout, tmp_path):
    log = tmp_path / "shell.log"
    shell = start(checkout, log)
    try:
        url = wait_for(shell, log)
        sample = BLOCKS["python"].replace("http://127.0.0.1:2024", url)
        done = subprocess.run(
            [sys.executable, "-c", sample], capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        os.killpg(shell.pid, signal.SIGINT)
        try:
            shell.wait(20)
        finally:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGKILL)
    assert done.returncode == 0, done.stderr + log.read_text(encoding="utf-8", errors="replace")[-4000:]
    assert done.stdout.splitlines() == re.findall(r"^print\(.*\) +# (.+)$", BLOCKS["python"], re.MULTILINE)
    studio = checkout / "examples" / "studio"
    assert (studio / "studio.db").is_file()
    assert not (studio / "notes.txt").exists(), (studio / "notes.txt").read_text(encoding="utf-8")
    assert "BlockingError" not in log.read_text(encoding="utf-8", errors="replace")
