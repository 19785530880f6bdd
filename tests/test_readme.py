"""The README's samples run, and print what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from langgraph_harness_saver import CheckpointerConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def promised(samples: list[str]) -> list[str]:
    """List what the samples' comments say that they print."""
    return re.findall(r"^print\(.*\)  # (.+)$", "\n".join(samples), re.MULTILINE)


def test_samples_print_what_they_promise(tmp_path):
    assert len(promised(SAMPLES)) >= 4
    script = tmp_path / "samples.py"
    script.write_text("\n".join(SAMPLES), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == promised(SAMPLES)


def test_first_sample_is_ten_lines():
    assert (
        len([line for line in SAMPLES[0].splitlines() if line and not line.startswith(("from", "print"))])
        <= 10
    )


def test_options_table_lists_every_option():
    cells = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", README, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"\w+", cell)]
    assert sorted(listed) == sorted(CheckpointerConfig.model_fields)


def test_local_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
