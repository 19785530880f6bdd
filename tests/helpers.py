"""What several test modules share: two doors to one API, and a view of results without ids and times."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import multiprocessing
import re
from collections import defaultdict
from enum import Enum
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from langgraph.types import Interrupt, StateSnapshot
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple
    from typing_extensions import Self

DOORS = ("sync", "async")
REDIS_KINDS = ("redis", "redis-oldest", "valkey", "redis-cluster")
USUAL = 100
"""The `max_examples` of Hypothesis' own profiles."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
STORES = ("memory", "sqlite", "postgres", "redis")
OTHER_VERSIONS = ("postgres-oldest", "redis-oldest", "valkey", "redis-cluster")
"""Servers of which another version, or another form, is tested as `postgres` or `redis`."""
IDS = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{32}\b")


# Children start from a process that has no threads and has imported what takes long.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["hypothesis", "langgraph.graph", "langgraph_harness_saver", "pytest"])


class Door:
    """Calls the sync or the async method of anything that has both.

    So a test is written once, as plain code. The async door keeps one event loop of its own.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = asyncio.new_event_loop() if name == "async" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.loop is not None:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    def call(self, target: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.loop is None:
            return getattr(target, method)(*args, **kwargs)
        return self.loop.run_until_complete(getattr(target, f"a{method}")(*args, **kwargs))

    def collect(self, target: Any, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        if self.loop is None:
            return list(getattr(target, method)(*args, **kwargs))
        return self.loop.run_until_complete(gather(getattr(target, f"a{method}")(*args, **kwargs)))


async def gather(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def thread(thread_id: Any, checkpoint_id: str | None = None, *, ns: str | None = None) -> RunnableConfig:
    parts = {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}
    return {"configurable": {key: value for key, value in parts.items() if value is not None}}


def id_of(config: RunnableConfig | None) -> str | None:
    return None if config is None else config["configurable"].get("checkpoint_id")


class Labels:
    """Names each id by when it first came up, so that two runs can be compared."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def __call__(self, match: re.Match[str]) -> str:
        return self.seen.setdefault(match.group(), f"<{len(self.seen) + 1}>")


def hide(match: re.Match[str]) -> str:
    return "<id>"


def view(value: Any, label: Callable[[re.Match[str]], str] = hide) -> Any:
    """Turn any result into plain data that compares by type and content, ids and times aside."""

    def look(item: Any) -> Any:
        return view(item, label)

    if value is None or type(value) is int:
        return value
    if type(value) is str:
        # Most are shorter than any id.
        return value if len(value) < 32 else IDS.sub(label, value)
    if isinstance(value, StateSnapshot):
        return view_snapshot(value, label)
    if isinstance(value, Interrupt):
        return ("Interrupt", look(value.value), look(value.id))
    if isinstance(value, BaseException):
        return look(repr(value))
    if isinstance(value, dict):
        return {look(key): look(value[key]) for key in sorted(value, key=str) if key not in TIMES}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return (type(value).__name__, *map(look, value))
    if isinstance(value, (list, tuple)):
        return type(value)(look(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return (type(value).__name__, sorted((look(item) for item in value), key=repr))
    if isinstance(value, BaseModel):
        return (type(value).__name__, look(dict(value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return (type(value).__name__, {name: look(getattr(value, name)) for name in names})
    if isinstance(value, Enum):
        return (type(value).__name__, value.name)
    return (type(value).__name__, look(repr(value)))


TIMES = ("ts", "timestamp", "created_at")


def view_snapshot(snapshot: StateSnapshot, label: Callable[[re.Match[str]], str]) -> dict[str, Any]:
    assert snapshot.created_at or not snapshot.metadata
    return {
        "at": view(address(snapshot.config), label),
        "values": view(snapshot.values, label),
        "next": snapshot.next,
        "parent": view(address(snapshot.parent_config), label),
        "metadata": view(snapshot.metadata, label),
        "tasks": [view(task, label) for task in snapshot.tasks],
        "interrupts": view(snapshot.interrupts, label),
    }


def address(config: RunnableConfig | None) -> list[Any] | None:
    if config is None:
        return None
    return [config["configurable"].get(key) for key in ("thread_id", "checkpoint_ns", "checkpoint_id")]


def view_stored(tuples: list[CheckpointTuple]) -> list[Any]:
    """Everything stored in a thread, by namespace; comparable between savers."""
    spaces: dict[str, list[CheckpointTuple]] = defaultdict(list)
    for item in sorted(tuples, key=lambda item: id_of(item.config) or ""):
        spaces[item.config["configurable"]["checkpoint_ns"]].append(item)
    # Parallel subgraphs of one name differ only in ids, hence the sort by content.
    return sorted(([view(ns), view_line(line)] for ns, line in spaces.items()), key=repr)


def view_line(line: list[CheckpointTuple]) -> list[Any]:
    order = {id_of(item.config): index for index, item in enumerate(line)}
    return [
        {
            "parent": None if item.parent_config is None else order[id_of(item.parent_config)],
            "values": view(item.checkpoint["channel_values"]),
            "versions": sorted(item.checkpoint["channel_versions"]),
            "seen": {node: sorted(seen) for node, seen in sorted(item.checkpoint["versions_seen"].items())},
            "updated": item.checkpoint.get("updated_channels"),
            "metadata": view(item.metadata),
            "writes": [(channel, view(value)) for _, channel, value in item.pending_writes or []],
        }
        for item in line
    ]


def name_of(value: Any) -> str:
    """Name a parameter alike in every process, as pytest-xdist wants it: no addresses, no order of hashes."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}({', '.join(sorted(map(repr, value)))})"
    return ADDRESS.sub("", repr(value))


each_store = pytest.mark.parametrize("store_kind", STORES, indirect=True)
"""Run a test on one server of a kind: for what the core does, whatever is below it."""


def spread(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Run a test in all ways on memory and SQLite, in a third of them on Postgres and Redis, else in a sixth.

    Every value of the first axis comes up on every store, and with other values of the others each time. One
    process runs a way on all stores, so that what they are compared with is made once.
    """
    first, *others = map(list, axes.values())
    ways = list(enumerate(itertools.product(*others)))
    shares = dict(zip((*STORES, *OTHER_VERSIONS), (1, 1, 3, 3, 6, 6, 6, 6), strict=True))
    cases = [
        pytest.param(kind, value, *way, marks=pytest.mark.xdist_group(f"{value} {way}"))
        for kind, share in shares.items()
        for number, value in enumerate(first)
        for index, way in ways
        if (number + index) % min(share, len(ways)) == 0
    ]
    names = ("store_kind", *axes)
    return pytest.mark.parametrize(names, cases, indirect=[n for n in ("store_kind", "door") if n in names])


def examples(count: int) -> int:
    """Say with how many examples to try a property: so many, or more with HYPOTHESIS_PROFILE=deep."""
    return max(count * settings().max_examples // USUAL, 1)


def url_of_prefix(server: Any, prefix: str) -> str:
    """Give the URL of a server of ours where keys begin so, and connections bear that name."""
    return server.url(client_name=prefix, key_prefix=prefix)
