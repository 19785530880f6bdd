"""The examples and the samples of docs/time-travel.md run, and show what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import ROOT

EXAMPLES = ROOT / "examples" / "time_travel"
SAMPLES = re.findall(
    r"^```python\n(.*?)^```",
    (ROOT / "docs" / "time-travel.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)
SAYS = {
    "explore_alternatives": ["train: 200", "fast-forward", "'price': 200", "merged", "(branch: car)"],
    "undo_a_tool_call": ["before: Done: deleted", "next is 'model'", "after: Done: archived"],
    "find_the_step": ["went wrong at step 74", "balance", "written by: spend"],
}


def run(program: Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "NO_COLOR": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_examples_show_what_they_say(name, tmp_path):
    shown = run(EXAMPLES / f"{name}.py", tmp_path)
    for text in SAYS[name]:
        assert text in shown


def test_samples_of_time_travel_print_what_they_promise(tmp_path):
    program = tmp_path / "samples.py"
    program.write_text("\n".join(SAMPLES), encoding="utf-8")
    shown = run(program, tmp_path)
    promised = re.findall(r"^print\(.*\)\s+# (.+)$|^# (\[.+)$", "\n".join(SAMPLES), re.MULTILINE)
    lines = iter(shown.splitlines())
    assert len(promised) == 6
    for line in promised:
        assert "".join(line) in lines
