"""Snapshots around functions and blocks of code."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import threading
import typing
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from helpers import thread
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from langgraph_harness_saver import CheckpointEngine, SnapshotConfig, SnapshotTrigger
from langgraph_harness_saver.errors import InvalidConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

TOOL, LLM = SnapshotTrigger.TOOL_CALL, SnapshotTrigger.LLM_CALL


@pytest.fixture(params=["memory", "sqlite"])
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


on_all_stores = pytest.mark.parametrize("store_kind", ["memory", "sqlite", "postgres", "redis"])


@pytest.fixture
def engine(saver: Any) -> CheckpointEngine:
    return CheckpointEngine(saver)


def taken(engine: CheckpointEngine, thread_id: str = "t") -> list[dict[str, Any]]:
    """Return the metadata of a thread's snapshots, oldest first, with what they hold."""
    found = []
    for item in engine.checkpointer.list(thread(thread_id)):
        read = engine.sync.get(item.config["configurable"]["checkpoint_id"], thread_id)
        held = {"state": read.state, "messages": read.messages, "tools_result": read.tools_result}
        found.append({**item.metadata, **held})
    return found[::-1]


def phases(engine: CheckpointEngine, thread_id: str = "t") -> list[tuple[Any, ...]]:
    return [(one.get("call"), one["phase"]) for one in taken(engine, thread_id)]


# --- functions ---------------------------------------------------------------------------------------


def functions(engine: CheckpointEngine) -> dict[str, Any]:
    """Return one function of each kind that doubles a number or fails, run to its end by `finish`."""
    on = engine.snapshot_on(TOOL)

    @on
    def double(x: int, **more: Any) -> int:
        assert not more
        return 2 * x if x else 1 // x

    @on
    async def double_async(x: int, **more: Any) -> int:
        assert not more
        await asyncio.sleep(0)
        return 2 * x if x else 1 // x

    @on
    def generate(x: int, **more: Any) -> Iterator[int]:
        assert not more
        yield x
        yield 2 * x if x else 1 // x
        return 2 * x

    @on
    async def generate_async(x: int, **more: Any) -> AsyncIterator[int]:
        assert not more
        yield x
        await asyncio.sleep(0)
        yield 2 * x if x else 1 // x

    return {one.__name__: one for one in (double, double_async, generate, generate_async)}


async def finish(made: Any) -> Any:
    if inspect.isawaitable(made):
        return await made
    if inspect.isasyncgen(made):
        return [item async for item in made]
    return list(made) if inspect.isgenerator(made) else made


KINDS = ["double", "double_async", "generate", "generate_async"]


@on_all_stores
@pytest.mark.parametrize("name", KINDS)
def test_before_and_after_every_kind_of_function(engine: CheckpointEngine, name: str) -> None:
    function = functions(engine)[name]
    here = {"_checkpoint_thread_id": "t", "_checkpoint_state": {"messages": ["hi"], "n": 1}}

    async def main() -> None:
        expected = [3, 6] if name.startswith("generate") else 6
        assert await finish(function(3, **here)) == expected
        with pytest.raises(ZeroDivisionError):
            await finish(function(0, **here))

    # Those that are no coroutines wait for the store within the running loop.
    asyncio.run(main())
    assert phases(engine) == [(name, "before"), (name, "after"), (name, "before"), (name, "error")]
    found = taken(engine)
    assert {one["trigger"] for one in found} == {"tool_call"}
    assert all(one["state"] == {"n": 1} and one["messages"][0].content == "hi" for one in found)
    assert "ZeroDivisionError" in found[3]["error"]
    assert [one["status"] for two in (found[1], found[3]) for one in two["tools_result"]] == [
        "success",
        "error",
    ]
    if name != "generate_async":
        assert found[1]["tools_result"][0]["content"] == 6
    assert found[0]["tools_result"] == []
    assert engine.snapshot_failures == 0


@pytest.mark.parametrize("name", KINDS)
def test_functions_stay_what_they_are(engine: CheckpointEngine, name: str) -> None:
    function = functions(engine)[name]
    assert function.__name__ == name
    assert list(inspect.signature(function).parameters) == ["x", "more"]
    assert typing.get_type_hints(function)["x"] is int
    assert inspect.iscoroutinefunction(function) == (name == "double_async")
    assert inspect.isgeneratorfunction(function) == (name == "generate")
    assert inspect.isasyncgenfunction(function) == (name == "generate_async")


def test_methods_of_all_sorts(engine: CheckpointEngine) -> None:
    on = engine.snapshot_on(TOOL)

    class Tools:
        factor = 2

        @on
        def method(self, x: int) -> int:
            return self.factor * x

        @on
        async def later(self, x: int) -> int:
            return self.factor * x

        @on
        @classmethod
        def outside(cls, x: int) -> int:
            return cls.factor * x

        @classmethod
        @on
        def inside(cls, x: int) -> int:
            return cls.factor * x

        @on
        @staticmethod
        def plain(x: int) -> int:
            return 2 * x

        @staticmethod
        @on
        def plainer(x: int) -> int:
            return 2 * x

        async def __call__(self, x: int) -> int:
            return self.factor * x

    async def main() -> None:
        tools = Tools()
        with engine.snapshot_scope("t"):
            for function in (tools.method, Tools.outside, tools.inside, Tools.plain, tools.plainer):
                assert function(3) == 6
            assert await tools.later(3) == 6
            assert await on(tools)(3) == 6
            assert on(functools.partial(tools.method, 3))() == 6

    asyncio.run(main())
    called = [call for call, phase in phases(engine) if phase == "after"]
    names = ["method", "outside", "inside", "plain", "plainer", "later", "Tools", "method", "partial"]
    assert called == names


def test_tools_are_made_of_it(engine: CheckpointEngine) -> None:
    @tool
    @engine.snapshot_on(TOOL)
    async def search(query: str) -> str:
        """Search."""
        return query.upper()

    async def main() -> None:
        async with engine.snapshot_scope("t", {"n": 1}):
            assert await search.ainvoke({"query": "x"}) == "X"

    asyncio.run(main())
    assert list(search.args) == ["query"]
    assert phases(engine) == [(None, "enter"), ("search", "before"), ("search", "after"), (None, "exit")]


def test_what_is_no_function_is_refused(engine: CheckpointEngine) -> None:
    @tool
    def search(query: str) -> str:
        """Search."""
        return query

    for wrong in (search, int, "name"):
        with pytest.raises(InvalidConfigError, match=r"snapshot_on takes a function, not .*right above"):
            engine.snapshot_on(TOOL)(wrong)
    with pytest.raises(InvalidConfigError, match=r"told for what: @engine\.snapshot_on"):
        engine.snapshot_on(len)
    with pytest.raises(InvalidConfigError, match="no trigger 'tool'"):
        engine.snapshot_on("tool")


def test_results_that_cannot_be_stored_are_told_of(engine: CheckpointEngine) -> None:
    lock = threading.Lock()
    assert engine.snapshot_on(TOOL)(lambda: lock)(_checkpoint_thread_id="t") is lock
    [answer] = taken(engine)[1]["tools_result"]
    assert answer["content"] == repr(lock)
    assert engine.snapshot_failures == 0


def test_a_state_s_own_tools_result_stays(engine: CheckpointEngine) -> None:
    state: dict[str, Any] = {"tools_result": []}

    @engine.snapshot_on(TOOL)
    def find() -> int:
        state["tools_result"].append("found")
        return 1

    find(_checkpoint_thread_id="t", _checkpoint_state=state)
    assert [one["tools_result"] for one in taken(engine)] == [[], ["found"]]


@pytest.mark.parametrize(
    "answer", [AIMessage("well", id="a"), {"role": "assistant", "content": "well"}, "well"]
)
def test_a_model_s_answer_is_added_to_the_messages(engine: CheckpointEngine, answer: Any) -> None:
    state = {"messages": [("user", "hi")]}
    call = engine.snapshot_on(LLM)(lambda: answer)
    call(_checkpoint_thread_id="t", _checkpoint_state=state)
    before, after = ([message.content for message in one["messages"]] for one in taken(engine))
    assert before == ["hi"]
    assert after == (["hi"] if answer == "well" else ["hi", "well"])
    state["messages"].append(answer)
    call(_checkpoint_thread_id="t", _checkpoint_state=state)
    assert [message.content for message in taken(engine)[3]["messages"]] == ["hi", "well"]
    assert len(state["messages"]) == 2


def test_other_triggers_leave_the_function_alone(saver: Any) -> None:
    engine = CheckpointEngine(saver, config=SnapshotConfig(triggers=[LLM]))
    assert engine.snapshot_on(TOOL)(lambda x: x)(1, _checkpoint_thread_id="t", _checkpoint_state={}) == 1
    assert taken(engine) == []


def test_without_a_thread_it_is_just_called(
    engine: CheckpointEngine, caplog: pytest.LogCaptureFixture
) -> None:
    function = engine.snapshot_on(TOOL)(lambda x: x)
    with caplog.at_level(logging.WARNING):
        assert [function(1), function(2)] == [1, 2]
    assert [r.getMessage() for r in caplog.records] == [
        "no snapshots of '<lambda>': it is called outside of a scope and without _checkpoint_thread_id"
    ]


def test_generators_are_driven_through_it(engine: CheckpointEngine) -> None:
    @engine.snapshot_on(TOOL)
    def echo() -> Any:
        got = "first"
        while True:
            try:
                got = yield got
            except KeyError as error:
                got = f"caught {error}"

    made = echo(_checkpoint_thread_id="t")
    assert [next(made), made.send("a"), made.throw(KeyError("k")), made.send("b")] == [
        "first",
        "a",
        "caught 'k'",
        "b",
    ]
    made.close()
    # It neither returned nor failed.
    assert phases(engine) == [("echo", "before")]


def test_async_generators_are_driven_through_it(engine: CheckpointEngine) -> None:
    closed = []

    @engine.snapshot_on(TOOL)
    async def echo() -> Any:
        got = "first"
        try:
            while got != "end":
                try:
                    got = yield got
                except KeyError as error:
                    got = f"caught {error}"
        finally:
            closed.append(got)

    async def main() -> None:
        made = echo(_checkpoint_thread_id="t")
        assert [await anext(made), await made.asend("a")] == ["first", "a"]
        assert await made.athrow(KeyError("k")) == "caught 'k'"
        with pytest.raises(StopAsyncIteration):
            await made.asend("end")
        other = echo(_checkpoint_thread_id="t")
        await anext(other)
        await other.aclose()
        assert closed == ["end", "first"]
        failing = echo(_checkpoint_thread_id="t")
        await anext(failing)
        with pytest.raises(ValueError, match="unhandled"):
            await failing.athrow(ValueError("unhandled"))

    asyncio.run(main())
    assert closed == ["end", "first", "first"]
    assert [phase for _, phase in phases(engine)] == ["before", "after", "before", "before", "error"]


def test_a_cancelled_call_is_recorded(engine: CheckpointEngine) -> None:
    started = asyncio.Event()

    @engine.snapshot_on(TOOL)
    async def hang() -> None:
        started.set()
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(hang(_checkpoint_thread_id="t"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert phases(engine) == [("hang", "before"), ("hang", "error")]
    assert taken(engine)[1]["error"].startswith("CancelledError")


# --- scopes ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def entered(scope: Any, door: str) -> AsyncIterator[Any]:
    if door == "sync":
        with scope as inside:
            yield inside
    else:
        async with scope as inside:
            yield inside


both_doors = pytest.mark.parametrize("way", ["sync", "async"])


@both_doors
@on_all_stores
def test_a_scope_is_taken_at_its_ends(engine: CheckpointEngine, way: str) -> None:
    state: dict[str, Any] = {"messages": [("user", "go")], "n": 1}

    async def main() -> None:
        async with entered(engine.snapshot_scope("t", state, tags="latest"), way) as scope:
            assert scope.thread_id == "t"
            state["n"] = 2
        with pytest.raises(KeyError):
            async with entered(engine.snapshot_scope("t", lambda: {"n": 3}), way):
                raise KeyError("lost")

    asyncio.run(main())
    found = taken(engine)
    assert [(one["phase"], one["state"]["n"]) for one in found] == [
        ("enter", 1),
        ("exit", 2),
        ("enter", 3),
        ("error", 3),
    ]
    assert {one["trigger"] for one in found} == {"task_boundary"}
    assert found[3]["error"] == "KeyError: 'lost'"
    assert engine.sync.get_tagged("latest", "t").state == {"n": 2}


@both_doors
def test_scopes_are_nested(saver: Any, engine: CheckpointEngine, way: str) -> None:
    other = CheckpointEngine(saver)
    on, on_other = engine.snapshot_on(TOOL), other.snapshot_on(TOOL)
    inner, outer, foreign = on(lambda: "inner"), on(lambda: "outer"), on_other(lambda: "foreign")
    inner.__wrapped__.__name__ = "inner"

    async def main() -> None:
        async with entered(engine.snapshot_scope("outer", {"at": "outer"}), way):
            async with entered(engine.snapshot_scope("inner", {"at": "inner"}), way):
                inner()
                async with entered(other.snapshot_scope("other", {"at": "other"}), way):
                    inner()
                    foreign()
                    inner(_checkpoint_thread_id="outer")
                    inner(_checkpoint_thread_id="inner", _checkpoint_state={"at": "given"})
            outer()

    asyncio.run(main())

    def states(thread_id: str) -> list[Any]:
        return [one["state"].get("at") for one in taken(engine, thread_id) if one.get("call")]

    assert states("inner") == ["inner"] * 4 + ["given"] * 2
    assert states("outer") == [None] * 2 + ["outer"] * 2
    assert states("other") == ["other"] * 2


def test_a_scope_holds_in_tasks_and_threads(engine: CheckpointEngine) -> None:
    @engine.snapshot_on(TOOL)
    async def later(name: str) -> str:
        await asyncio.sleep(0)
        return name

    @engine.snapshot_on(TOOL)
    def waiting(name: str) -> str:
        return name

    async def main() -> None:
        async with engine.snapshot_scope("t"):
            await asyncio.gather(later("a"), later("b"), asyncio.to_thread(waiting, "c"))
        await later("outside")

    asyncio.run(main())
    results = [one["tools_result"][0]["content"] for one in taken(engine) if one["phase"] == "after"]
    assert sorted(results) == ["a", "b", "c"]
    assert [one["step"] for one in taken(engine)] == list(range(8))


def test_a_scope_may_be_used_again_but_not_within_itself(engine: CheckpointEngine) -> None:
    scope = engine.snapshot_scope("t")
    with scope, pytest.raises(InvalidConfigError, match="entered already"), scope:
        pass
    with scope:
        pass
    numbered = engine.snapshot_on(TOOL)(lambda: 1)
    with engine.snapshot_scope(7, {"n": 1}):
        numbered(_checkpoint_thread_id=7)
    assert [one["state"] for one in taken(engine, "7")] == [{"n": 1}] * 4
    assert [phase for _, phase in phases(engine)] == ["enter", "exit"] * 2
    with pytest.raises(InvalidConfigError, match="a thread_id is needed"):
        engine.snapshot_scope(None)


@both_doors
def test_intervals_within_a_scope(saver: Any, way: str) -> None:
    engine = CheckpointEngine(saver, config=SnapshotConfig(interval_seconds=0.01))
    state = {"n": 0}

    def look() -> dict[str, int]:
        state["n"] += 1
        return state

    async def main() -> None:
        async with entered(engine.snapshot_scope("t", look), way):
            for _ in range(2000):
                if state["n"] > 3:
                    break
                await asyncio.sleep(0.005)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert not [one for one in threading.enumerate() if one.name == "harness-snapshots"]
    found = taken(engine)
    assert [one["phase"] for one in found] == ["enter", *["interval"] * (len(found) - 2), "exit"]
    assert len(found) >= 5
    assert [one["trigger"] for one in found[1:-1]] == ["interval"] * (len(found) - 2)
    assert [one["state"]["n"] for one in found] == list(range(1, len(found) + 1))


@both_doors
def test_no_intervals_unless_they_are_configured(saver: Any, way: str) -> None:
    engine = CheckpointEngine(saver, config=SnapshotConfig(triggers=["tool_call"], interval_seconds=0.001))

    async def main() -> None:
        async with entered(engine.snapshot_scope("t"), way):
            await asyncio.sleep(0.02)

    asyncio.run(main())
    assert taken(engine) == []


# --- a store that fails ------------------------------------------------------------------------------


@pytest.mark.parametrize("store_kind", ["sqlite", "postgres", "redis"])
def test_what_is_wrapped_outlives_the_store(
    engine: CheckpointEngine, make_saver: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    lost = CheckpointEngine(make_saver())
    made = functions(lost)

    async def main() -> list[Any]:
        async with lost.snapshot_scope("t", {"n": 1}):
            await lost.checkpointer.aclose()
            results = [await finish(made[name](3)) for name in KINDS]
            with pytest.raises(ZeroDivisionError):
                await finish(made["double_async"](0))
        with lost.snapshot_scope("t"):
            return results

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(main()) == [6, 6, [3, 6], [3, 6]]
    assert lost.snapshot_failures == 2 * 4 + 2 + 1 + 2
    assert len(caplog.records) == lost.snapshot_failures
    assert [one["phase"] for one in taken(engine)] == ["enter"]
