"""The plots that README shows."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from report import describe

mpl.use("svg")
import matplotlib.pyplot as plt

PLOTS = {
    "bytes": (r"bytes a turn at (\d+) turns", "turns", "KB a turn, everything counted", 1e-3),
    "steps": (r"steps/s, (\d+) clients?", "clients at once", "steps a second", 1.0),
    "history": (r"seconds to list (\d+) checkpoints", "checkpoints", "ms to list them all", 1e3),
}
"""By file: the cases, what is on either axis, and by what the figures are multiplied."""


def draw(whole: dict[str, Any], folder: Path) -> None:
    """Write those plots whose figures are there."""
    # Without these a file would differ from its former self where nothing in it does.
    mpl.rcParams.update({"svg.hashsalt": "harness", "svg.fonttype": "none", "font.size": 9})
    for name, (pattern, *rest) in PLOTS.items():
        lines: dict[str, dict[int, float]] = {}
        for case, by_name in whole["results"].items():
            if match := re.fullmatch(pattern, case):
                for who, values in by_name.items():
                    lines.setdefault(who, {})[int(match[1])] = statistics.median(values)
        if lines:
            _plot(folder / f"{name}.svg", lines, *rest, caption=_caption(whole["about"]))


def _caption(about: dict[str, Any]) -> str:
    parts = describe(about).split(", ")
    middle = len(parts) // 2
    return f"{about['cpu']}, {about['cores']} cores\n{', '.join(parts[:middle])}\n{', '.join(parts[middle:])}"


def _plot(
    path: Path, lines: dict[str, dict[int, float]], across: str, up: str, factor: float, *, caption: str
) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for who, points in lines.items():
        style = "-" if who.startswith("ours") else ":" if who.startswith("limit") else "--"
        places = sorted(points)
        heights = [points[place] * factor for place in places]
        axes.plot(places, heights, style, marker="o", markersize=3, label=who)
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    ticks = sorted({place for points in lines.values() for place in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.text(0.01, 0.01, caption, fontsize=5.5, color="gray", va="bottom")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
