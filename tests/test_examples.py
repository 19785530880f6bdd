"""The examples and the samples of docs run, and show what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import ROOT

EXAMPLES = {
    path.stem: path
    for folder in ("snapshots", "time_travel")
    for path in (ROOT / "examples" / folder).glob("*.py")
}
SAYS = {
    "explore_alternatives": ["train: 200", "fast-forward", "'price': 200", "merged", "(branch: car)"],
    "undo_a_tool_call": ["before: Done: deleted", "next is 'model'", "after: Done: archived"],
    "survive_a_crash": [
        "ended with 9\ngoing on after ['fetch', 'clean']\nresult of count",
        " 5  tool_call      [ai] clean is done\n 6  task_boundary",
        "finished: {'done': ['fetch', 'clean', 'count']}",
    ],
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


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_show_what_they_say(name, tmp_path):
    shown = run(EXAMPLES[name], tmp_path)
    for text in SAYS[name]:
        assert text in shown


@pytest.mark.parametrize(
    ("page", "count"), [("time-travel", 6), ("snapshots", 9), ("retention", 4), ("events", 7)]
)
def test_samples_of_docs_print_what_they_promise(page, count, tmp_path):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    samples = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    program = tmp_path / "samples.py"
    program.write_text(samples, encoding="utf-8")
    shown = run(program, tmp_path)
    promised = re.findall(r"^print\(.*\)\s+# (.+)$|^# (.+)$", samples, re.MULTILINE)
    lines = iter(shown.splitlines())
    assert len(promised) == count
    for line in promised:
        assert "".join(line) in lines
