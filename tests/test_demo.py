"""`make demo` kills, resumes, redoes nothing, and refuses files it cannot read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

DEMO = Path(__file__).parent.parent / "examples" / "demo"
TEXT = "# Lamps\n\nA lamp gives light. Lamps need power, and power costs money.\n\n" * 60


def run_demo(file: Path, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the driver without pauses."""
    return subprocess.run(
        [sys.executable, str(DEMO), str(file), "--dir", str(directory)],
        env={**os.environ, "DEMO_PACE": "0", "COLUMNS": "80", "NO_COLOR": "1", "PYTHONUTF8": "1", **env},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def journal(directory: Path) -> list[dict[str, object]]:
    lines = (directory / "tool-calls.log").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    file = directory / "lamps.md"
    file.write_text(TEXT, encoding="utf-8")
    run = run_demo(file, directory / "run")
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, directory / "run"


def test_it_is_killed_and_another_process_finishes(finished):
    output, directory = finished
    assert "SIGKILL in the middle of it" in output
    assert "graph.invoke(None, config)" in output
    assert {entry["worker"] for entry in journal(directory)} == {1, 2}


def test_what_was_finished_is_not_redone(finished):
    _, directory = finished
    entries = journal(directory)
    done = Counter(entry["call_id"] for entry in entries if entry["event"] == "done")
    starts = Counter(entry["call_id"] for entry in entries if entry["event"] == "start")
    assert set(done.values()) == {1}
    assert starts.keys() == done.keys()
    assert [call for call, count in starts.items() if count > 1] == ["read_part 4"]


def test_the_sibling_of_the_killed_call_keeps_its_result(finished):
    _, directory = finished
    assert [entry["worker"] for entry in journal(directory) if entry["call_id"] == "read_part 3"] == [1, 1]


def test_it_prints_history_cost_and_answer(finished):
    output, directory = finished
    history = output.partition("History")[2].partition("Cost")[0].splitlines()
    steps = [line.split() for line in history if line.strip()[:1].isdigit()]
    assert [int(step[0]) for step in steps] == list(range(len(steps)))
    assert len(steps) > 10
    assert {step[-1] for step in steps} == {"1", "2"}
    assert "as full copies" in output
    assert "lamps" in (directory / "summary.md").read_text(encoding="utf-8").lower()


def test_it_prints_in_a_narrow_terminal_without_unicode(tmp_path):
    file = tmp_path / "word.txt"
    file.write_text("word", encoding="utf-8")
    run = run_demo(file, tmp_path / "run", COLUMNS="40", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert run.returncode == 0, run.stderr
    assert max(map(len, run.stdout.splitlines())) <= 40


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        (b"\x7fELF\0\0", "binary"),
        (b"caf\xe9 au lait", "UTF-8"),
    ],
)
def test_files_that_it_cannot_read(tmp_path, content, reason):
    file = tmp_path / "input"
    if content is not None:
        file.write_bytes(content)
    run = run_demo(file, tmp_path / "run")
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert reason in run.stderr


def test_a_directory_that_it_cannot_use(tmp_path):
    file = tmp_path / "word.txt"
    file.write_text("word", encoding="utf-8")
    run = run_demo(file, file)
    assert run.returncode == 2
    assert run.stderr.startswith(f"demo: cannot use {file}")


def test_a_finished_call_that_starts_again_is_a_failure(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    from journal import Entry, redone

    once = [Entry(1, "start", "a"), Entry(1, "done", "a"), Entry(1, "start", "b"), Entry(2, "start", "b")]
    assert redone(once) == []
    assert redone([*once, Entry(2, "start", "a")]) == ["a"]
