"""Tables and JSON: medians, ratios to the peers, spread, and the drivers' own limits beside them."""

from __future__ import annotations

import json
import os
import platform
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from contenders import MEMORY, POSTGRES, SQLITE
from measures import DICT, FULL_COPIES, LIMIT
from rich.console import Console
from rich.table import Table

Found = dict[str, dict[str, list[float]]]
DISTRIBUTIONS = (
    "langgraph-harness-saver",
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-postgres",
    "langgraph-checkpoint-sqlite",
    "asyncpg",
    "psycopg",
    "redis",
)


class Figure(NamedTuple):
    """What ours is to reach: at least, or at most, so many times what the peer does."""

    case: str
    ours: str
    peer: str
    factor: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.factor:g}x"

    def reached(self, ratio: float) -> bool:
        """Tell whether a ratio is good enough."""
        return ratio >= self.factor if self.at_least else ratio <= self.factor


ONE, MANY, AT_ONCE = "steps/s, 1 client", "steps/s, 64 clients", "turns/s of 40 graphs at once"
CHAT, LIST = "seconds for a chat of 200 turns", "seconds to list 450 checkpoints"
WARM = "seconds for the latest of 300 messages, warm"
COLD = "seconds for the latest of 300 messages, nothing cached"
FIGURES = [
    Figure(ONE, "ours, Postgres", POSTGRES, 1.8, at_least=True),
    Figure(MANY, "ours, Postgres", POSTGRES, 8, at_least=True),
    Figure(AT_ONCE, "ours, Postgres", MEMORY, 0.65, at_least=True),
    Figure(CHAT, "ours, Postgres", MEMORY, 1.6),
    Figure(MANY, "ours, SQLite", SQLITE, 5, at_least=True),
    Figure(CHAT, "ours, SQLite", MEMORY, 1.4),
    Figure(MANY, "ours, Redis", POSTGRES, 6, at_least=True),
    Figure(ONE, "ours, memory", MEMORY, 0.9, at_least=True),
    Figure(MANY, "ours, memory", MEMORY, 0.9, at_least=True),
    Figure("bytes of memory after 200 turns", "ours, memory", MEMORY, 0.05),
    *(Figure(WARM, f"ours, {store}", MEMORY, 1.3) for store in ("Postgres", "SQLite", "Redis", "memory")),
    Figure(COLD, "ours, Postgres", POSTGRES, 1),
    Figure(LIST, "ours, Postgres", POSTGRES, 0.2),
    *(
        Figure(case, name, peer, 0.03)
        for case in (DICT, f"{DICT}, returned whole")
        for name, peer in (("ours, Postgres", POSTGRES), ("ours, SQLite", SQLITE))
    ),
    *(
        Figure(f"bytes of a list {kind}", f"ours, {store}", FULL_COPIES, 1.01)
        for kind in ("trimmed in front", "edited in the middle", "RemoveMessage", "summarised")
        for store in ("Postgres", "SQLite")
    ),
]
BOUNDS = [
    *(
        (f"bytes a turn at {turns} turns", store, 5000.0)
        for turns in (200, 1000, 5000)
        for store in ("Postgres", "SQLite")
    ),
    *(("bytes of a 5 MB document and 500 small steps", store, 10e6) for store in ("Postgres", "SQLite")),
]
"""Bytes that ours may take at most, by case and store."""


def machine() -> dict[str, Any]:
    """Describe what this runs on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in DISTRIBUTIONS},
    }


def save(path: Path, about: dict[str, Any], found: Found) -> dict[str, Any]:
    """Write what was found to `path`, beside what a former run on this machine found of other cases."""
    former = json.loads(path.read_text()) if path.exists() else {}
    if former.get("about", {}).get("cpu") != about["cpu"]:
        former = {}
    results = {case: {**former.get("results", {}).get(case, {}), **some} for case, some in found.items()}
    # Servers that this run had no use for were there before.
    servers = {**former.get("about", {}).get("servers", {}), **about["servers"]}
    whole = {
        "about": {**about, "servers": servers},
        "results": {**former.get("results", {}), **results},
    }
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return whole


def shown(case: str, value: float) -> str:
    """Write a figure with its unit."""
    if case.startswith("seconds"):
        return (
            f"{value:.2f} s"
            if value >= 1
            else f"{value * 1e3:.2f} ms"
            if value >= 1e-3
            else f"{value * 1e6:.0f} µs"
        )
    if case.startswith("bytes"):
        return f"{value / 1e6:,.1f} MB" if value >= 1e6 else f"{value / 1e3:,.1f} KB"
    return f"{value:,.0f}"


def spread(values: list[float]) -> str:
    """Write how far rounds lie apart, as a part of their median."""
    if len(values) < 2:
        return ""
    return f"±{(max(values) - min(values)) / 2 / statistics.median(values):.0%}"


def tables(found: Found) -> list[Table]:
    """Return a table of all that was measured, and one of what ours is held to."""
    everything = Table("what", "who", "median", "spread", title="all that was measured")
    for case, by_name in found.items():
        for position, (name, values) in enumerate(by_name.items()):
            everything.add_row(
                "" if position else case, name, shown(case, statistics.median(values)), spread(values)
            )
        everything.add_section()
    beside = Table(*COLUMNS, title="ours beside others")
    for row in ratios(found):
        beside.add_row(*row)
    return [everything, beside]


COLUMNS = ("what", "ours", "compared with", "ratio", "driver alone", "aim", "")


def ratios(found: Found) -> list[tuple[str, ...]]:
    """Return a row of COLUMNS per figure: peer, ours, their ratio, the driver's limit, and the aim."""
    rows: list[tuple[str, ...]] = []
    for figure in FIGURES:
        by_name = found.get(figure.case, {})
        if figure.ours not in by_name or figure.peer not in by_name:
            continue
        own, peer = (statistics.median(by_name[name]) for name in (figure.ours, figure.peer))
        limit = by_name.get(f"{LIMIT}, {figure.ours.split()[-1].lower()}")
        rows.append(
            (
                figure.case,
                f"{figure.ours.split()[-1]} {shown(figure.case, own)} {spread(by_name[figure.ours])}",
                f"{figure.peer} {shown(figure.case, peer)} {spread(by_name[figure.peer])}",
                f"{own / peer:.2f}x",
                shown(figure.case, statistics.median(limit)) if limit else "",
                str(figure),
                "reached" if figure.reached(own / peer) else "MISSED",
            )
        )
    for case, store, bound in BOUNDS:
        values = found.get(case, {}).get(f"ours, {store}")
        if values:
            own = statistics.median(values)
            reached = "reached" if own <= bound else "MISSED"
            rows.append((case, f"{store} {shown(case, own)}", "", "", "", f"≤ {shown(case, bound)}", reached))
    return [*rows, *_grown(found)]


def _grown(found: Found) -> list[tuple[str, ...]]:
    """Compare a full database with a nearly empty one."""
    rows = []
    for case, by_name in found.items():
        call, _, place = case.removeprefix("seconds for ").partition(", ")
        empty = found.get(f"seconds for {call}, nearly empty", {})
        if place.endswith("checkpoints"):
            for name, values in by_name.items():
                if name in empty:
                    own, few = statistics.median(values), statistics.median(empty[name])
                    reached = "reached" if own <= 1.5 * few else "MISSED"
                    own_text, few_text = f"{name} {shown(case, own)}", f"nearly empty {shown(case, few)}"
                    rows.append((case, own_text, few_text, f"{own / few:.2f}x", "", "≤ 1.5x", reached))
    return rows


def write(path: Path, whole: dict[str, Any]) -> None:
    """Write the table of figures, and all that was measured, as Markdown."""
    about, found = whole["about"], whole["results"]
    lines = [
        "# What was measured",
        "",
        f"By `make bench` on {about['cpu']}, {about['cores']} cores, servers included; {describe(about)}.",
        "Medians of interleaved rounds; ± is half of what lies between the extremes. “Driver alone” writes",
        "as many bytes in as many commits and does nothing else.",
        "",
        *_markdown(COLUMNS, ratios(found)),
        "",
        "## All",
        "",
        *_markdown(
            ("what", "who", "median", "spread"),
            [
                (case, name, shown(case, statistics.median(values)), spread(values))
                for case, by_name in found.items()
                for name, values in by_name.items()
            ],
        ),
        "",
    ]
    path.write_text("\n".join(lines))


def _markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [columns, ("---",) * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def show(whole: dict[str, Any]) -> None:
    """Print the tables."""
    about = whole["about"]
    console = Console()
    if not console.is_terminal:
        console.width = 150
    for table in tables(whole["results"]):
        console.print(table)
    console.print(f"{about['cpu']}, {about['cores']} cores; {describe(about)}")


def describe(about: dict[str, Any]) -> str:
    """Name the versions in one line."""
    versions = {**about["servers"], "Python": about["python"], **about["versions"]}
    return ", ".join(f"{name} {version}" for name, version in versions.items())
