"""Deleting a thread with all that came of it: in one piece, whatever has gone or expired before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from helpers import thread
from test_engine_travel import STORES, rows_left
from test_processes import arguments_of

from langgraph_harness_saver import CheckpointEngine

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH = 4


@pytest.fixture(params=STORES)
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def family(saver: Any) -> dict[str, str]:
    """A thread, two branches of it, a branch of the first, and one of that; with their thread ids."""
    for number in range(LENGTH):
        config, checkpoint, metadata, versions = arguments_of("root", number)
        saver.put(config, checkpoint, metadata, versions)
    engine, last = CheckpointEngine(saver).sync, f"{LENGTH - 1:08d}"
    made = {"root": "root"}
    for name, source in (("a", "root"), ("b", "root"), ("c", "a"), ("d", "c")):
        made[name] = engine.branch(last, name, made[source])
    return made


def left(saver: Any, family: dict[str, str]) -> set[str]:
    return {name for name, thread_id in family.items() if list(saver.list(thread(thread_id)))}


def test_all_that_came_of_it_goes_in_one_piece(saver, place, family, monkeypatch):
    engine, store, calls = CheckpointEngine(saver).sync, saver.backend, []

    def noting(name: str, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return method(*args, **kwargs)

        return call

    for name in ("revise", "delete_thread"):
        monkeypatch.setattr(store, name, noting(name, getattr(store, name)))
    assert engine.delete_thread(family["a"], branches=True) == 3
    assert calls == ["revise"]
    assert left(saver, family) == {"root", "b"}
    assert [record.name for record in engine.list_branches("root")] == ["b"]
    assert saver.get_tuple(thread(family["b"])).checkpoint["channel_values"]
    assert engine.delete_thread("root", branches=True) == LENGTH + 1
    assert rows_left(place, saver) == 0


@pytest.mark.parametrize("gone", [["root"], ["a"], ["a", "c"], ["root", "b"]], ids="+".join)
def test_what_is_in_between_may_have_gone_before(saver, place, family, gone):
    engine = CheckpointEngine(saver).sync
    for name in gone:
        engine.delete_thread(family[name])
    there = family.keys() - set(gone)
    count = sum(LENGTH if name == "root" else 1 for name in there)
    assert engine.delete_thread("root", branches=True) == count
    assert rows_left(place, saver) == 0
    assert engine.delete_thread("root", branches=True) == 0


def test_what_has_expired_goes_too_and_does_not_count(make_saver: Callable[..., Any], place):
    saver = make_saver(ttl_seconds=100)
    clock = [1_000_000.0]
    saver.backend.clock = lambda: clock[0]
    engine = CheckpointEngine(saver).sync
    config, checkpoint, metadata, versions = arguments_of("root", 0)
    saver.put(config, checkpoint, metadata, versions)
    made = engine.branch(checkpoint["id"], "a", "root")
    clock[0] += 80
    config, checkpoint, metadata, versions = arguments_of("root", 1)
    config["configurable"]["thread_id"] = made
    saver.put(config, checkpoint, metadata, versions)
    clock[0] += 40
    assert engine.delete_thread("root", branches=True) == 2
    assert rows_left(place, saver) == 0
