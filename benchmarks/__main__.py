"""Ours beside LangGraph's savers, in one run on one machine: make bench, or python benchmarks --help."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from contenders import STORES, chosen
from measures import FULL, GROUPS, QUICK, Bench
from places import Places
from report import machine, save, show, write
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "wanted",
        nargs="*",
        help=f"stores ({', '.join(STORES)}) and groups ({', '.join(GROUPS)}); all if none",
    )
    parser.add_argument(
        "--url", help="a Postgres or Redis of yours, in which schemas or keys are made and dropped"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(".bench"), help="where results.json, README.md and the plots go"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often what varies is measured")
    parser.add_argument(
        "--whole", action="store_true", help="also 5,000 turns and a million checkpoints: ten minutes more"
    )
    found = parser.parse_args(words)
    if unknown := [word for word in found.wanted if word not in (*STORES, *GROUPS)]:
        parser.error(f"{', '.join(unknown)}: no store and no group")
    if found.rounds < 1:
        parser.error("--rounds: at least one")
    return found


def run(bench: Bench, groups: Sequence[str], rounds: int) -> None:
    """Run groups, showing how far they are."""
    columns = (TextColumn("{task.description:<50}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for name in groups:
            group = GROUPS[name]
            times = rounds if group.repeated else 1
            task = progress.add_task(name, total=times)

            def tell(who: str, task: Any = task, name: str = name) -> None:
                progress.update(task, description=f"{name}: {who}")

            bench.tell = tell
            for _ in range(times):
                group.work(bench)
                progress.advance(task)
            progress.update(task, description=name)


def servers_of(places: Places, stores: Sequence[str]) -> dict[str, str]:
    """Name the versions of the servers that are measured."""
    found = {}
    if "postgres" in stores:
        found["Postgres"] = places.server("postgres").execute("SHOW server_version")[0][0].split()[0]
    if "redis" in stores:
        found["Redis"] = places.server("redis").info("server")["redis_version"]
    return found


def main() -> None:
    """Measure, print, and write results.json and the plots."""
    wanted = arguments()
    stores = [store for store in STORES if store in wanted.wanted]
    if not stores:
        stores = (
            list(STORES)
            if wanted.url is None
            else ["redis" if wanted.url.startswith("redis") else "postgres"]
        )
    groups = [group for group in GROUPS if group in wanted.wanted] or list(GROUPS)
    contenders = chosen(stores)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        places = Places(Path(folder), stack, wanted.url)
        about = {**machine(), "servers": servers_of(places, [one.store for one in contenders])}
        bench = Bench(places, contenders, FULL if wanted.whole else QUICK)
        run(bench, groups, wanted.rounds)
    wanted.out.mkdir(parents=True, exist_ok=True)
    whole = save(wanted.out / "results.json", about, bench.found)
    show(whole)
    write(wanted.out / "README.md", whole)
    from plots import draw  # takes a second, and matplotlib

    draw(whole, wanted.out)
    print(f"results.json, README.md and the plots are in {wanted.out}")


if __name__ == "__main__":
    main()
