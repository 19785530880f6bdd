"""LangGraph's dev server on each store, driven through its SDK as Studio does.

The server looks for work every half second, so all scenarios of a store run at once, on one server; each test
then tells how its own went.
"""

from __future__ import annotations

import asyncio
import functools
import re
import sqlite3
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import servers
from conftest import PLACES
from dev_server import DevServer, reason_not_to_run
from langgraph.types import Command
from server_graphs import nested, steps

from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.engine import CheckpointEngine
from langgraph_harness_saver.errors import CheckpointNotFoundError, InvalidConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(reason_not_to_run() is not None, reason=reason_not_to_run() or "")

KINDS = ("memory", "sqlite", "redis", "postgres")
SCENARIOS: dict[str, Any] = {}


def scenario(function: Any) -> Any:
    """Make a test of a coroutine that runs beside all the others."""
    SCENARIOS[function.__name__] = function

    @functools.wraps(function)
    def test(served):
        served.tell(function.__name__)

    del test.__wrapped__
    return test


class Served:
    """A server on a store, and what the scenarios came to."""

    def __init__(self, place: Any, server: DevServer) -> None:
        self.place = place
        self.server = server
        self.outcomes: dict[str, BaseException | None] = {}

    def run(self, scenarios: dict[str, Any] | None = None) -> None:
        # Where pytest's own event loop isn't.
        with ThreadPoolExecutor(1) as threads:
            threads.submit(asyncio.run, self._all(scenarios or SCENARIOS)).result()
        while self.place is not None and self.place.opened:
            self.place.opened.pop().close()

    async def _all(self, scenarios: dict[str, Any]) -> None:
        from langgraph_sdk import get_client

        self.client = get_client(url=self.server.url, timeout=60)
        # Where a checkpointer waits, as any with a disk does, the dev server takes the wrong thread off its
        # list when two are deleted at once.
        self.deleting = asyncio.Lock()
        done = await asyncio.gather(
            *(asyncio.wait_for(run(self), 120) for run in scenarios.values()), return_exceptions=True
        )
        self.outcomes = dict(zip(scenarios, done, strict=True))
        await self.client.aclose()

    def tell(self, name: str) -> None:
        outcome = self.outcomes[name]
        if outcome is not None:
            raise outcome

    # --- what Studio does ------------------------------------------------------------------------------

    async def thread(self, **options: Any) -> str:
        return (await self.client.threads.create(**options))["thread_id"]

    async def ran(self, graph: str, values: Any, **options: Any) -> str:
        thread_id = await self.thread()
        await self.go(thread_id, graph, values, **options)
        return thread_id

    async def go(self, thread_id: str, graph: str, values: Any = None, **options: Any) -> Any:
        return await self.client.runs.wait(thread_id, graph, input=values, **options)

    async def values(self, thread_id: str, **options: Any) -> Any:
        return (await self.client.threads.get_state(thread_id, **options))["values"]

    async def history(self, thread_id: str, **options: Any) -> list[Any]:
        return await self.client.threads.get_history(thread_id, **{"limit": 100, **options})

    async def rerun(self, thread_id: str, graph: str, checkpoint: Any, **options: Any) -> Any:
        """Do what "re-run from here" does."""
        copy = await self.client.threads.update_state(
            thread_id, None, as_node="__copy__", checkpoint=checkpoint
        )
        return await self.go(thread_id, graph, checkpoint=copy["checkpoint"], **options)

    async def until(self, thread_id: str, run_id: str, *statuses: str) -> str:
        for _ in range(400):
            status = (await self.client.runs.get(thread_id, run_id))["status"]
            if status in statuses:
                return status
            await asyncio.sleep(0.05)
        raise AssertionError(f"the run stays {status}")

    async def until_waiting(self, thread_id: str, log: list[str]) -> None:
        for _ in range(400):
            if (await self.values(thread_id) or {}).get("log") == log:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(await self.values(thread_id))


# The tests of one server have an order, so one process runs them all.
EACH = [pytest.param(kind, marks=pytest.mark.xdist_group(f"server on {kind}")) for kind in KINDS]


@pytest.fixture(scope="module", params=EACH)
def served(request, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(f"server-{request.param}")
    place = PLACES[request.param](folder, request)
    with DevServer(folder / "app", HARNESS_SAVER_URL=place.url) as server:
        one = Served(place, server)
        one.run()
        yield one
    place.close()
    place.end()


LOG = ["in", "a", "b", "c"]


def at(state: Any) -> Any:
    return state["checkpoint"]


# --- threads and runs ----------------------------------------------------------------------------------


@scenario
async def test_threads_are_created_searched_and_copied(served):
    mark = str(uuid.uuid4())
    thread_id = await served.thread(metadata={"mark": mark})
    await served.go(thread_id, "steps", {"log": ["in"]})
    assert [t["thread_id"] for t in await served.client.threads.search(metadata={"mark": mark})] == [
        thread_id
    ]
    found = await served.client.threads.search(metadata={"mark": mark}, status="idle")
    assert found[0]["values"] == {"log": LOG}
    copy = (await served.client.threads.copy(thread_id))["thread_id"]
    assert len(await served.client.threads.search(metadata={"mark": mark})) == 2
    before, after = await served.history(thread_id), await served.history(copy)
    assert [state["values"] for state in before] == [state["values"] for state in after]
    assert {state["metadata"]["thread_id"] for state in after} == {copy}
    await served.go(copy, "steps", {"log": ["more"]})
    assert await served.values(copy) == {"log": [*LOG, "more", "a", "b", "c"]}
    assert await served.values(thread_id) == {"log": LOG}


@scenario
async def test_runs_are_streamed_and_joined(served):
    thread_id = await served.thread()
    modes = ["values", "updates", "messages-tuple", "debug", "checkpoints", "tasks"]
    events = [
        (event.event, event.data)
        async for event in served.client.runs.stream(
            thread_id, "steps", input={"log": ["in"]}, stream_mode=modes, stream_resumable=True
        )
    ]
    assert [data["log"] for event, data in events if event == "values"] == [LOG[:n] for n in (1, 2, 3, 4)]
    stored = [state["checkpoint"]["checkpoint_id"] for state in await served.history(thread_id)]
    streamed = [
        data["config"]["configurable"]["checkpoint_id"] for event, data in events if event == "checkpoints"
    ]
    assert streamed == stored[::-1]
    run = await served.client.runs.create(thread_id, "steps", input={"log": ["again"]})
    assert await served.client.runs.join(thread_id, run["run_id"]) == {"log": [*LOG, "again", "a", "b", "c"]}
    run = await served.client.runs.create(thread_id, "chat", input={"messages": "hi"}, stream_mode="values")
    joined = [part async for part in served.client.runs.join_stream(thread_id, run["run_id"])]
    assert joined
    assert [run["status"] for run in await served.client.runs.list(thread_id)] == ["success"] * 3


@scenario
async def test_a_cancelled_run_keeps_what_it_did(served):
    thread_id = await served.ran("slow", {"log": ["first"], "text": 0})
    run = await served.client.runs.create(thread_id, "slow", input={"log": ["second"], "text": 100})
    await served.until_waiting(thread_id, ["first", "begin", "waited", "second", "begin"])
    await served.client.runs.cancel(thread_id, run["run_id"], wait=True)
    assert await served.until(thread_id, run["run_id"], "interrupted")
    state = await served.client.threads.get_state(thread_id)
    assert (state["values"]["log"][-1], state["next"]) == ("begin", ["wait"])
    await served.client.threads.update_state(thread_id, {"text": 0}, as_node="begin")
    assert (await served.go(thread_id, "slow"))["log"][-2:] == ["begin", "waited"]


@scenario
async def test_a_run_cancelled_with_rollback_leaves_no_trace(served):
    thread_id = await served.ran("slow", {"log": ["first"], "text": 0})
    before = await served.history(thread_id)
    run = await served.client.runs.create(thread_id, "slow", input={"log": ["second"], "text": 100})
    await served.until_waiting(thread_id, ["first", "begin", "waited", "second", "begin"])
    await served.client.runs.cancel(thread_id, run["run_id"], wait=True, action="rollback")
    # The server says that the run has ended, and only then deletes what it had stored.
    for _ in range(400):
        if len(await served.history(thread_id)) == len(before):
            break
        await asyncio.sleep(0.05)
    assert await served.history(thread_id) == before
    assert await served.client.runs.list(thread_id, status="running") == []
    result = await served.go(thread_id, "slow", {"log": ["third"], "text": 0})
    assert result["log"] == ["first", "begin", "waited", "third", "begin", "waited"]


@scenario
async def test_an_answer_is_rolled_back_with_the_run_that_gave_it(served):
    thread_id = await served.ran("approved", {"text": 60})
    before = await served.history(thread_id)
    run = await served.client.runs.create(thread_id, "approved", command={"resume": "yes"})
    await served.until_waiting(thread_id, ["answer: yes"])
    await served.client.runs.cancel(thread_id, run["run_id"], wait=True, action="rollback")
    for _ in range(400):
        if await served.history(thread_id) == before:
            break
        await asyncio.sleep(0.05)
    assert await served.history(thread_id) == before
    [asked] = (await served.client.threads.get_state(thread_id))["interrupts"]
    assert asked["value"] == "which colour?"
    answer = {"resume": "no", "update": {"text": 0}}
    assert (await served.go(thread_id, "approved", command=answer))["log"] == ["answer: no", "waited"]

    thread_id = await served.ran("nested", {"log": ["in"]})
    before = await served.client.threads.get_state(thread_id, subgraphs=True)
    run = await served.client.runs.create(thread_id, "nested", command={"resume": "red"})
    assert (await served.client.runs.join(thread_id, run["run_id"]))["log"][-1] == "after"
    await served.client.runs.delete(thread_id, run["run_id"])
    assert await served.client.threads.get_state(thread_id, subgraphs=True) == before
    result = await served.go(thread_id, "nested", command={"resume": "blue"})
    assert result["log"] == [*INSIDE, "answer: blue", "finish", "after"]


@scenario
async def test_an_interrupt_is_answered(served):
    thread_id = await served.thread()
    asked = await served.go(thread_id, "nested", {"log": ["in"]})
    assert asked["__interrupt__"][0]["value"] == "which colour?"
    assert (await served.client.threads.get(thread_id))["status"] == "interrupted"
    answered = await served.go(thread_id, "nested", command={"resume": "red"})
    assert answered == {"log": ["in", "before", "in", "before", "prepare", "answer: red", "finish", "after"]}
    assert (await served.client.threads.get(thread_id))["status"] == "idle"


@scenario
async def test_breakpoints_stop_before_and_after(served):
    thread_id = await served.thread()
    await served.go(thread_id, "steps", {"log": ["in"]}, interrupt_before=["b"])
    assert (await served.client.threads.get_state(thread_id))["next"] == ["b"]
    await served.go(thread_id, "steps", interrupt_after=["b"])
    state = await served.client.threads.get_state(thread_id)
    assert (state["next"], state["values"]["log"]) == (["c"], LOG[:3])
    assert await served.go(thread_id, "steps") == {"log": LOG}
    other = await served.ran("steps", {"log": ["in"]}, interrupt_before="*")
    for node in "abc":
        assert (await served.client.threads.get_state(other))["next"] == [node]
        await served.go(other, "steps", interrupt_before="*")
    assert await served.values(other) == {"log": LOG}


# --- state and history ---------------------------------------------------------------------------------


@scenario
async def test_state_is_read_at_every_checkpoint(served):
    thread_id = await served.ran("steps", {"log": ["in"]})
    history = await served.history(thread_id)
    assert [state["values"].get("log") for state in history] == [LOG, LOG[:3], LOG[:2], LOG[:1], []]
    assert [state["next"] for state in history] == [[], ["c"], ["b"], ["a"], ["__start__"]]
    for state, parent in zip(history, [*history[1:], None], strict=True):
        assert await served.client.threads.get_state(thread_id, checkpoint=at(state)) == state
        by_id = await served.client.threads.get_state(thread_id, checkpoint_id=state["checkpoint_id"])
        assert by_id["values"] == state["values"]
        if parent is not None:
            assert state["parent_checkpoint"] == at(parent)


@scenario
async def test_state_of_a_subgraph_is_read_while_it_waits(served):
    thread_id = await served.ran("nested", {"log": ["in"]})
    [task] = (await served.client.threads.get_state(thread_id, subgraphs=True))["tasks"]
    assert task["state"]["values"]["log"] == ["in", "before", "prepare"]
    assert task["state"]["next"] == ["ask"]
    assert task["interrupts"][0]["value"] == "which colour?"
    [task] = (await served.client.threads.get_state(thread_id))["tasks"]
    inside = await served.client.threads.get_state(thread_id, checkpoint=task["checkpoint"])
    assert inside["values"]["log"] == ["in", "before", "prepare"]
    within = await served.history(thread_id, checkpoint=task["checkpoint"])
    assert [state["next"] for state in within] == [["ask"], ["prepare"], ["__start__"]]


@scenario
async def test_history_is_limited_and_filtered(served):
    thread_id = await served.thread()
    turns = [await served.client.runs.create(thread_id, "steps", input={"log": [n]}) for n in "12"]
    for run in turns:
        await served.client.runs.join(thread_id, run["run_id"])
    history = await served.history(thread_id)
    assert len(history) == 10
    assert await served.history(thread_id, limit=3) == history[:3]
    assert await served.history(thread_id, before=at(history[2]), limit=4) == history[3:7]
    for run, states in zip(turns, (history[5:], history[:5]), strict=True):
        assert await served.history(thread_id, metadata={"run_id": run["run_id"]}) == states
    inputs = [state for state in history if state["metadata"]["source"] == "input"]
    assert await served.history(thread_id, metadata={"source": "input"}) == inputs
    assert await served.history(thread_id, metadata={"source": "input", "step": -1}) == inputs[1:]
    assert await served.history(thread_id, metadata={"source": "nothing"}) == []


@scenario
async def test_history_comes_up_to_a_thousand(served):
    updates = [{"updates": [{"values": {"log": [str(n)]}, "as_node": "c"}]} for n in range(1010)]
    thread_id = await served.thread(graph_id="steps", supersteps=updates)
    history = await served.history(thread_id, limit=1000)
    assert len(history) == 1000
    assert [len(state["values"]["log"]) for state in history[::100]] == list(range(1010, 10, -100))
    rest = await served.history(thread_id, limit=1000, before=at(history[-1]))
    assert [len(state["values"]["log"]) for state in rest] == list(range(10, 0, -1))


# --- time travel ---------------------------------------------------------------------------------------


@scenario
async def test_state_is_updated_at_the_head_and_at_an_old_checkpoint(served):
    thread_id = await served.ran("steps", {"log": ["in"]})
    await served.client.threads.update_state(thread_id, {"log": ["by hand"]}, as_node="a")
    assert await served.go(thread_id, "steps") == {"log": [*LOG, "by hand", "b", "c"]}
    history = await served.history(thread_id)
    old = next(state for state in history if state["values"].get("log") == LOG[:2])
    fork = await served.client.threads.update_state(
        thread_id, {"log": ["forked"]}, as_node="a", checkpoint=at(old)
    )
    state = await served.client.threads.get_state(thread_id)
    assert state["checkpoint"]["checkpoint_id"] == fork["checkpoint"]["checkpoint_id"]
    assert state["parent_checkpoint"] == at(old)
    assert await served.go(thread_id, "steps") == {"log": ["in", "a", "forked", "b", "c"]}
    assert len(await served.history(thread_id)) == len(history) + 3


@scenario
async def test_a_thread_runs_again_from_every_checkpoint(served):
    async def again(number: int) -> None:
        thread_id = await served.ran("steps", {"log": ["in"]})
        state = (await served.history(thread_id))[number]
        result = await served.rerun(thread_id, "steps", at(state))
        assert result == {"log": LOG}, number
        [copy] = await served.history(thread_id, metadata={"source": "fork"})
        assert copy["values"] == state["values"]
        # Where nothing is left to do, nothing is done.
        assert len(await served.history(thread_id)) == 6 + number

    await asyncio.gather(*map(again, range(5)))


ASKED = ["in", "before"]
INSIDE = [*ASKED, *ASKED, "prepare"]


@scenario
async def test_an_interrupt_asks_again_from_every_checkpoint(served):
    async def again(number: int) -> None:
        thread_id = await served.ran("nested", {"log": ["in"]})
        await served.go(thread_id, "nested", command={"resume": "red"})
        history = await served.history(thread_id)
        state = history[number]
        result = await served.rerun(thread_id, "nested", at(state))
        if number < 2:
            assert result == {"log": [*INSIDE, "answer: red", "finish", "after"]}, number
            return
        assert result["__interrupt__"][0]["value"] == "which colour?", number
        result = await served.go(thread_id, "nested", command={"resume": "blue"})
        assert result == {"log": [*INSIDE, "answer: blue", "finish", "after"]}, number

    await asyncio.gather(*map(again, range(5)))


@scenario
async def test_a_waiting_interrupt_is_asked_again(served):
    thread_id = await served.ran("nested", {"log": ["in"]})
    state = await served.client.threads.get_state(thread_id)
    result = await served.rerun(thread_id, "nested", at(state))
    assert result["__interrupt__"][0]["value"] == "which colour?"
    result = await served.go(thread_id, "nested", command={"resume": "blue"})
    assert result == {"log": [*INSIDE, "answer: blue", "finish", "after"]}


@scenario
async def test_a_subgraph_runs_again_from_each_of_its_checkpoints(served):
    async def again(number: int) -> None:
        thread_id = await served.ran("nested", {"log": ["in"]})
        [task] = (await served.client.threads.get_state(thread_id))["tasks"]
        state = (await served.history(thread_id, checkpoint=task["checkpoint"]))[number]
        fork = await served.client.threads.update_state(
            thread_id, None, as_node="__copy__", checkpoint=at(state)
        )
        result = await served.go(thread_id, "nested", checkpoint=fork["checkpoint"])
        assert result["__interrupt__"][0]["value"] == "which colour?", number
        result = await served.go(thread_id, "nested", command={"resume": "blue"})
        assert result == {"log": [*INSIDE, "answer: blue", "finish", "after"]}, number

    await asyncio.gather(*map(again, range(3)))


@scenario
async def test_a_subgraph_that_remembers_runs_again(served):
    async def again(number: int) -> None:
        thread_id = await served.ran("remembers", {"log": ["in"]})
        await served.go(thread_id, "remembers", {"log": ["more"]})
        history = await served.history(thread_id)
        result = await served.rerun(thread_id, "remembers", at(history[number]))
        assert result == await served.values(thread_id, checkpoint=at(history[0])), number

    await asyncio.gather(*map(again, range(5)))


@scenario
async def test_a_message_is_edited_and_an_answer_regenerated(served):
    thread_id = await served.ran("chat", {"messages": [{"role": "human", "content": "one", "id": "h1"}]})
    await served.go(thread_id, "chat", {"messages": [{"role": "human", "content": "two", "id": "h2"}]})

    def texts(values: Any) -> list[str]:
        return [message["content"] for message in values["messages"]]

    assert texts(await served.values(thread_id)) == ["one", "1: one", "two", "3: two"]
    history = await served.history(thread_id)
    edited = next(state for state in history if texts(state["values"]) == ["one", "1: one", "two"])
    first = next(state for state in history if state["checkpoint"] == edited["parent_checkpoint"])
    result = await served.go(
        thread_id,
        "chat",
        {"messages": [{"role": "human", "content": "2", "id": "h2"}]},
        checkpoint=first["parent_checkpoint"],
    )
    assert texts(result) == ["one", "1: one", "2", "3: 2"]
    fork = await served.client.threads.update_state(
        thread_id,
        {"messages": [{"role": "human", "content": "zwei", "id": "h2"}]},
        as_node="__start__",
        checkpoint=at(edited),
    )
    result = await served.go(thread_id, "chat", checkpoint=fork["checkpoint"])
    assert texts(result) == ["one", "1: one", "zwei", "3: zwei"]
    result = await served.go(thread_id, "chat", checkpoint=at(edited))
    assert texts(result) == ["one", "1: one", "two", "3: two"]
    assert texts(await served.values(thread_id)) == texts(result)


# --- several runs of a thread --------------------------------------------------------------------------


async def begun(served: Served, seconds: float) -> tuple[str, Any]:
    thread_id = await served.thread()
    run = await served.client.runs.create(thread_id, "slow", input={"log": ["first"], "text": seconds})
    await served.until_waiting(thread_id, ["first", "begin"])
    return thread_id, run


SECOND = {"log": ["second"], "text": 0}


@scenario
async def test_a_second_run_is_rejected(served):
    from langgraph_sdk.errors import ConflictError

    thread_id, run = await begun(served, 100)
    with pytest.raises(ConflictError):
        await served.client.runs.create(thread_id, "slow", input=SECOND, multitask_strategy="reject")
    await served.client.runs.cancel(thread_id, run["run_id"], wait=True)
    assert await served.values(thread_id) == {"log": ["first", "begin"], "text": 100}


@scenario
async def test_a_second_run_is_enqueued(served):
    thread_id = await served.thread()
    run = await served.client.runs.create(thread_id, "slow", input={"log": ["first"], "text": 1})
    await served.go(thread_id, "slow", SECOND, multitask_strategy="enqueue")
    # Where each run has a loop of its own, the server may lose the last of what it streams to who waits.
    values = await served.values(thread_id)
    assert values["log"] == ["first", "begin", "waited", "second", "begin", "waited"]
    assert await served.until(thread_id, run["run_id"], "success")


@scenario
async def test_a_second_run_interrupts(served):
    thread_id, run = await begun(served, 100)
    result = await served.go(thread_id, "slow", SECOND, multitask_strategy="interrupt")
    assert result["log"] == ["first", "begin", "second", "begin", "waited"]
    assert await served.until(thread_id, run["run_id"], "interrupted")


@scenario
async def test_a_second_run_rolls_back(served):
    thread_id, run = await begun(served, 100)
    result = await served.go(thread_id, "slow", SECOND, multitask_strategy="rollback")
    assert result["log"] == ["second", "begin", "waited"]
    assert {s["metadata"]["run_id"] for s in await served.history(thread_id)} != {run["run_id"]}
    assert await served.history(thread_id, metadata={"run_id": run["run_id"]}) == []


# --- deleting ------------------------------------------------------------------------------------------


@scenario
async def test_a_run_is_deleted_with_its_checkpoints(served):
    thread_id = await served.thread()
    runs = []
    for turn in "123":
        run = await served.client.runs.create(thread_id, "steps", input={"log": [turn]})
        await served.client.runs.join(thread_id, run["run_id"])
        runs.append(run["run_id"])
    values = await served.values(thread_id)
    await served.client.runs.delete(thread_id, runs[1])
    assert await served.history(thread_id, metadata={"run_id": runs[1]}) == []
    history = await served.history(thread_id)
    assert {state["metadata"]["run_id"] for state in history} == {runs[0], runs[2]}
    assert await served.values(thread_id) == values
    await served.client.runs.delete(thread_id, runs[2])
    assert await served.values(thread_id) == {"log": ["1", "a", "b", "c"]}
    await served.go(thread_id, "steps", {"log": ["4"]})
    assert await served.values(thread_id) == {"log": ["1", "a", "b", "c", "4", "a", "b", "c"]}


@scenario
async def test_a_thread_is_deleted(served):
    from langgraph_sdk.errors import NotFoundError

    thread_id = await served.ran("nested", {"log": ["in"]})
    async with served.deleting:
        await served.client.threads.delete(thread_id)
    with pytest.raises(NotFoundError):
        await served.client.threads.get_state(thread_id)
    await served.client.threads.create(thread_id=thread_id, metadata={"graph_id": "nested"})
    assert await served.history(thread_id) == []
    assert not (await served.values(thread_id)).get("log")


@scenario
async def test_threads_are_pruned(served):
    some = [await served.ran("steps", {"log": ["in"]}) for _ in range(2)]
    async with served.deleting:
        assert await served.client.threads.prune(some, strategy="delete") == {"pruned_count": 2}
    for thread_id in some:
        await served.client.threads.create(thread_id=thread_id, metadata={"graph_id": "steps"})
        assert await served.history(thread_id) == []


# --- values --------------------------------------------------------------------------------------------

FOUND = ["begin", "x11", "x12", "y11", "y12", "z11", "z12", "gather"]


@scenario
async def test_parallel_writers_of_a_delta_channel_are_forked_and_copied(served):
    thread_id = await served.ran("fan", {})
    assert await served.values(thread_id) == {"found": FOUND, "seen": ["x1", "y1", "z1"], "rounds": 1}
    history = await served.history(thread_id)
    assert [state["values"].get("found", []) for state in history] == [FOUND, FOUND[:-1], FOUND[:1], [], []]
    copy = (await served.client.threads.copy(thread_id))["thread_id"]
    assert [s["values"] for s in await served.history(copy)] == [s["values"] for s in history]

    async def again(state: Any) -> None:
        thread_id = (await served.client.threads.copy(copy))["thread_id"]
        states = await served.history(thread_id)
        number = history.index(state)
        result = await served.rerun(thread_id, "fan", at(states[number]))
        assert result["found"] == FOUND, number

    await asyncio.gather(*map(again, history[:-1]))
    await served.client.threads.update_state(
        copy, {"found": ["more"]}, as_node="gather", checkpoint=at(history[1]) | {"thread_id": copy}
    )
    assert (await served.values(copy))["found"] == [*FOUND[:-1], "more"]
    result = await served.go(copy, "fan", {})
    assert result["found"] == [
        *FOUND[:-1],
        "more",
        "begin",
        "x21",
        "x22",
        "y21",
        "y22",
        "z21",
        "z22",
        "gather",
    ]


@scenario
async def test_many_rounds_of_a_delta_channel_are_read_back(served):
    thread_id = await served.ran("loop", {}, config={"recursion_limit": 300})
    history = await served.history(thread_id, limit=200)
    assert [len(state["values"].get("found", [])) for state in history] == [*range(100, -1, -1), 0]
    copy = (await served.client.threads.copy(thread_id))["thread_id"]
    assert await served.values(copy) == await served.values(thread_id)


TEXT = "nul \x00, äöü, 漢字, 👩‍🚀, \u2028"
SHOWN = TEXT.replace("\x00", "\ufffd")


@scenario
async def test_text_of_any_kind_comes_back(served):
    thread_id = await served.thread(metadata={"text": TEXT})
    await served.go(
        thread_id, "steps", {"log": [TEXT], "text": {TEXT: [TEXT, None, 1e300]}}, metadata={"note": TEXT}
    )
    state = await served.client.threads.get_state(thread_id)
    # Answers have another sign in place of NUL, whatever the checkpointer.
    assert state["values"] == {"log": [SHOWN, "a", "b", "c"], "text": {SHOWN: [SHOWN, None, 1e300]}}
    assert state["metadata"]["note"] == SHOWN
    assert len(await served.history(thread_id, metadata={"note": TEXT})) == 5
    assert await served.history(thread_id, metadata={"note": TEXT + "!"}) == []
    found = await served.client.threads.search(metadata={"text": TEXT})
    assert [thread["thread_id"] for thread in found] == [thread_id]
    copy = (await served.client.threads.copy(thread_id))["thread_id"]
    assert await served.values(copy) == state["values"]
    stored = needs_a_store(served).get_tuple({"configurable": {"thread_id": copy}})
    assert stored.checkpoint["channel_values"]["text"] == {TEXT: [TEXT, None, 1e300]}
    assert stored.metadata["note"] == TEXT


# --- other processes, and the engine -------------------------------------------------------------------


def needs_a_store(served: Served) -> HarnessCheckpointer:
    """Open the server's store here, which is another process."""
    if served.place.url.startswith("memory"):
        pytest.skip("memory is of one process")
    return served.place.open()


@scenario
async def test_a_thread_is_shared_with_another_process(served):
    saver = needs_a_store(served)
    own = nested.copy(update={"checkpointer": saver})
    thread_id = await served.ran("nested", {"log": ["in"]})
    config = {"configurable": {"thread_id": thread_id}}
    assert (await own.aget_state(config)).values == await served.values(thread_id)
    done = await own.ainvoke(Command(resume="red"), config)
    assert done == await served.values(thread_id) == {"log": [*INSIDE, "answer: red", "finish", "after"]}
    assert (await served.go(thread_id, "nested", {"log": ["more"]}))["__interrupt__"]
    assert (await own.aget_state(config, subgraphs=True)).tasks[0].state.next == ("ask",)

    thread_id = str(uuid.uuid4())
    config = {"configurable": {"thread_id": thread_id}}
    await own.ainvoke({"log": ["in"]}, config)
    await served.thread(thread_id=thread_id, graph_id="nested")
    [task] = (await served.client.threads.get_state(thread_id, subgraphs=True))["tasks"]
    assert task["state"]["next"] == ["ask"]
    await served.go(thread_id, "nested", command={"resume": "blue"})
    mine = [state async for state in own.aget_state_history(config)]
    assert [state.values for state in mine] == [s["values"] for s in await served.history(thread_id)]
    assert mine[0].values == {"log": [*INSIDE, "answer: blue", "finish", "after"]}


@scenario
async def test_a_branch_is_published_as_a_thread(served):
    saver = needs_a_store(served)
    engine = CheckpointEngine(saver, nested)
    thread_id = await served.ran("nested", {"log": ["in"]})
    [question] = [s for s in await served.history(thread_id) if s["next"] == ["child"]]
    await served.go(thread_id, "nested", command={"resume": "red"})
    branch = await engine.branch(question["checkpoint_id"], "blue", thread_id)
    await engine.tag(question["checkpoint_id"], "question", branch)
    told = await engine.publish(served.client, branch)
    assert (told["graph_id"], told["branch"], told["branched_from"]) == ("nested", "blue", thread_id)
    found = await served.client.threads.search(metadata={"branch": "blue", "branched_from": thread_id})
    assert [thread["thread_id"] for thread in found] == [branch]
    tagged = {"branched_from": thread_id, "harness_tags": {"question": {}}}
    [thread] = await served.client.threads.search(metadata=tagged)
    assert thread["metadata"]["harness_tags"]["question"] == {"checkpoint_id": question["checkpoint_id"]}
    assert {state["metadata"]["thread_id"] for state in await served.history(branch)} == {branch}
    assert await served.go(branch, "nested")
    assert (await served.client.threads.get_state(branch))["next"] == ["child"]
    result = await served.go(branch, "nested", command={"resume": "blue"})
    assert result == {"log": [*INSIDE, "answer: blue", "finish", "after"]}
    assert (await served.values(thread_id))["log"][-3] == "answer: red"
    await engine.untag(question["checkpoint_id"], "question", branch)
    await engine.publish(served.client, branch)
    assert await served.client.threads.search(metadata=tagged) == []
    async with served.deleting:
        await served.client.threads.delete(thread_id)
    assert await served.values(branch) == result
    assert await served.client.threads.get_state(branch, checkpoint_id=question["checkpoint_id"])


@scenario
async def test_what_another_process_made_is_published(served):
    saver = needs_a_store(served)
    engine = CheckpointEngine(saver)
    thread_id = str(uuid.uuid4())
    await engine.snapshot(thread_id, state={"log": ["one"]}, summary="first", next_node="b")
    with pytest.raises(InvalidConfigError, match="which graph"):
        await engine.publish(served.client, thread_id)
    told = await engine.publish(served.client, thread_id, "steps")
    assert told == {"graph_id": "steps", "harness_summary": "first", "harness_tags": {}}
    [first] = await engine.list_checkpoints(thread_id)
    branch = await engine.branch(first.checkpoint_id, "other", thread_id)
    assert (await engine.publish(served.client, branch))["graph_id"] == "steps"
    assert await served.go(branch, "steps") == {"log": ["one", "b", "c"]}
    assert await served.go(thread_id, "steps") == {"log": ["one", "b", "c"]}
    for wanted in ({"summary": "first"}, {"trigger": "manual"}):
        [state] = await served.history(thread_id, metadata=wanted)
        assert state["values"] == {"log": ["one"]}
    [thread] = await served.client.threads.search(metadata={"harness_summary": "first"}, ids=[thread_id])
    assert thread["thread_id"] == thread_id
    await engine.snapshot("no uuid", state={"log": ["one"]})
    with pytest.raises(InvalidConfigError, match="only UUIDs"):
        await engine.publish(served.client, "no uuid", "steps")
    with pytest.raises(CheckpointNotFoundError):
        await engine.publish(served.client, str(uuid.uuid4()), "steps")
    saver.delete_thread("no uuid")


@scenario
async def test_a_rewind_is_the_threads_state(served):
    engine = CheckpointEngine(needs_a_store(served), steps)
    thread_id = await served.ran("steps", {"log": ["in"]})
    target = (await served.history(thread_id))[2]
    made = await engine.rewind(target["checkpoint_id"], thread_id)
    state = await served.client.threads.get_state(thread_id)
    assert state["checkpoint_id"] == made.checkpoint.metadata.checkpoint_id
    assert (state["values"], state["next"]) == ({"log": LOG[:2]}, ["b"])
    assert await served.history(thread_id, metadata={"rewound_from": target["checkpoint_id"]}) == [state]
    assert await served.go(thread_id, "steps") == {"log": LOG}


@scenario
async def test_history_is_filtered_by_tag(served):
    engine = CheckpointEngine(needs_a_store(served), steps)
    thread_id = await served.ran("steps", {"log": ["in"]})
    state = (await served.history(thread_id))[2]
    await engine.tag(state["checkpoint_id"], "good", thread_id)
    [found] = await served.history(thread_id, metadata={"harness_tag": "good"})
    assert (found["checkpoint"], found["values"]) == (state["checkpoint"], state["values"])
    assert found["metadata"] == {**state["metadata"], "harness_tag": "good"}
    assert await served.history(thread_id, metadata={"harness_tag": "good", "step": 99}) == []
    assert await served.history(thread_id, metadata={"harness_tag": "bad"}) == []


@scenario
async def test_runs_without_a_thread_leave_nothing_behind(served):
    mark = {"mark": str(uuid.uuid4())}

    async def run(graph: str, values: Any, **options: Any) -> Any:
        return await served.client.runs.wait(None, graph, input=values, metadata=mark, **options)

    async def gone() -> None:
        for _ in range(400):
            if not await served.client.threads.search(metadata=mark):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the thread stays")

    for graph, values, key, expected in (
        ("nested", {"log": ["in"]}, "log", ["in", "before"]),
        ("steps", {"log": ["in"]}, "log", LOG),
        ("fan", {}, "found", FOUND),
    ):
        async with served.deleting:
            assert (await run(graph, values))[key] == expected
            await gone()
    await run("steps", {"log": ["in"]}, on_completion="keep")
    [kept] = await served.client.threads.search(metadata=mark)
    assert len(await served.history(kept["thread_id"])) == 5


# --- what the server itself does, whatever the checkpointer: docs/studio.md lists it -------------------


async def limit_before(served: Served) -> None:
    """An id for `before`, which the SDK's signature allows, is refused."""
    from langgraph_sdk.errors import UnprocessableEntityError

    thread_id = await served.ran("steps", {"log": ["in"]})
    head = (await served.client.threads.get_state(thread_id))["checkpoint_id"]
    with pytest.raises(UnprocessableEntityError):
        await served.history(thread_id, before=head)


async def limit_prune(served: Served) -> None:
    """The dev server doesn't prune all but the latest."""
    from langgraph_sdk.errors import UnprocessableEntityError

    thread_id = await served.ran("steps", {"log": ["in"]})
    with pytest.raises(UnprocessableEntityError):
        await served.client.threads.prune([thread_id], strategy="keep_latest")


async def limit_nul(served: Served) -> None:
    """Answers have U+FFFD in place of NUL."""
    thread_id = await served.ran("steps", {"log": ["\x00"]})
    assert (await served.values(thread_id))["log"][0] == "\ufffd"


async def limit_memory(served: Served) -> None:
    """A run that isn't told where it starts takes what a subgraph with a memory did later for its result."""
    thread_id = await served.ran("remembers", {"log": ["in"]})
    await served.go(thread_id, "remembers", {"log": ["more"]})
    history = await served.history(thread_id)
    await served.client.threads.update_state(thread_id, None, as_node="__copy__", checkpoint=at(history[4]))
    result = await served.go(thread_id, "remembers")
    assert len(result["log"]) > len(history[0]["values"]["log"])


LIMITS = (limit_before, limit_prune, limit_nul, limit_memory)


@scenario
async def test_limits_are_there_with_our_checkpointer(served):
    await asyncio.gather(*(limit(served) for limit in LIMITS))


def test_limits_are_there_with_the_servers_own_checkpointer(tmp_path):
    with DevServer(tmp_path, checkpointer=None) as server:
        own = Served(None, server)
        # Not together: the server drops a connection on which it has failed, whoever else is waiting there.
        together = {limit.__name__: limit for limit in (*LIMITS, stock_answer)}
        for scenarios in (together, {"before": stock_before}):
            own.run(scenarios)
            for name in scenarios:
                own.tell(name)


async def stock_before(served: Served) -> None:
    """What Studio asks when it turns a page of the history fails with the server's own checkpointer."""
    from langgraph_sdk.errors import InternalServerError

    thread_id = await served.ran("steps", {"log": ["in"]})
    head = await served.client.threads.get_state(thread_id)
    with pytest.raises(InternalServerError):
        await served.history(thread_id, before=at(head))


async def stock_answer(served: Served) -> None:
    """What a run has answered stays when it is deleted: the next answer is ignored."""
    thread_id = await served.ran("nested", {"log": ["in"]})
    run = await served.client.runs.create(thread_id, "nested", command={"resume": "red"})
    await served.client.runs.join(thread_id, run["run_id"])
    await served.client.runs.delete(thread_id, run["run_id"])
    result = await served.go(thread_id, "nested", command={"resume": "blue"})
    assert result["log"][-3:] == ["answer: red", "finish", "after"]


WAITING = """
import asyncio
from langgraph.checkpoint.memory import InMemorySaver

class Waiting(InMemorySaver):
    async def adelete_thread(self, thread_id):
        await asyncio.sleep(0.2)
        await super().adelete_thread(thread_id)

checkpointer = Waiting()
"""


def test_a_server_loses_count_of_threads_where_its_checkpointer_waits(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING, encoding="utf-8")

    async def limit_deleting(served: Served) -> None:
        threads = [await served.thread() for _ in range(3)]
        done = await asyncio.gather(
            *(served.client.threads.delete(thread_id) for thread_id in threads[:2]), return_exceptions=True
        )
        left = [thread["thread_id"] for thread in await served.client.threads.search()]
        assert (done, left) != ([None, None], threads[2:])

    with DevServer(tmp_path, checkpointer="./waiting.py:checkpointer") as server:
        own = Served(None, server)
        own.run({"limit": limit_deleting})
        own.tell("limit")


# --- the server's life: these come last, in this order -------------------------------------------------

TROUBLE = re.compile(r"\[(warning|error|critical) *\]|Traceback|BlockingError|Exception|Task was destroyed")
EXPECTED = re.compile(
    r"\[warning +\] (GET|POST|DELETE) \S+ (404|409|422) "
    # A run without a thread has no checkpointer, and the server asks for durability all the same.
    "|`durability` has no effect when no checkpointer is present"
    # Its store's task, and the contexts that it doesn't leave, on isolated loops.
    r"|Task was destroyed but it is pending!$"
    r"|coroutine method 'aclose' of '_yield_\w+' was never awaited"
)


def check_log(server: DevServer) -> None:
    log = re.sub(r"\x1b\[[0-9;]*m", "", server.log())
    assert "Using custom checkpointer: HarnessCheckpointer" in log
    assert "missing a" not in log
    assert [line for line in log.splitlines() if TROUBLE.search(line) and not EXPECTED.search(line)] == []
    assert server.notes() == ""


def left_in(place: Any) -> dict[str, int]:
    """Count what a store holds, by table or by kind of key; not which version of its schema."""
    if place.url.startswith("redis"):
        keys = place.server.keys(place.prefix)
        # A deletion is remembered for some seconds.
        stay = [key for key in keys if not 0 <= place.server.execute("TTL", key) <= 10]
        return dict(
            Counter(key.rpartition(b":")[2].decode() for key in stay if not key.endswith(b":version"))
        )
    if place.url.startswith("postgres"):
        schema = servers.schema_of(place.url)
        names = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
        counts = {
            name: place.server.execute(f'SELECT count(*) FROM "{schema}"."{name}"')[0][0]
            for (name,) in place.server.execute(names, (schema,))
        }
    else:
        with closing(sqlite3.connect(place.url.removeprefix("sqlite:///"))) as connection:
            names = "SELECT name FROM sqlite_master WHERE type = 'table'"
            counts = {
                name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
                for (name,) in connection.execute(names).fetchall()
            }
    return {name: count for name, count in counts.items() if count and name != "harness_schema"}


def test_the_log_tells_of_no_trouble(served):
    check_log(served.server)


def test_a_restarted_server_on_isolated_loops_has_all_threads(served):
    before = asyncio.run(everything(served))
    assert served.server.stop() == 0
    assert served.place.left_open() == []
    check_log(served.server)
    served.server.env["BG_JOB_ISOLATED_LOOPS"] = "true"
    served.server.start()
    if served.place.outlives_saver:
        assert asyncio.run(everything(served)) == before
    some = {name: SCENARIOS[name] for name in ISOLATED}
    served.run(some)
    for name in some:
        served.tell(name)


# On isolated loops the dev server cancels a run only once its node has come to an end; so does its own.
ISOLATED = (
    "test_threads_are_created_searched_and_copied",
    "test_runs_are_streamed_and_joined",
    "test_an_interrupt_is_answered",
    "test_a_thread_runs_again_from_every_checkpoint",
    "test_a_second_run_is_enqueued",
    "test_parallel_writers_of_a_delta_channel_are_forked_and_copied",
    "test_runs_without_a_thread_leave_nothing_behind",
)


async def everything(served: Served) -> dict[str, Any]:
    """Read the latest states of all threads."""
    from langgraph_sdk import get_client

    async with get_client(url=served.server.url) as client:
        threads = await client.threads.search(limit=1000)
        states = await asyncio.gather(*(client.threads.get_state(t["thread_id"]) for t in threads))
        return {thread["thread_id"]: state for thread, state in zip(threads, states, strict=True)}


def test_deleted_threads_leave_nothing_behind(served):
    async def delete() -> None:
        from langgraph_sdk import get_client

        async with get_client(url=served.server.url) as client:
            # One at a time, see `Served.deleting`.
            for thread in await client.threads.search(limit=1000):
                await client.threads.delete(thread["thread_id"])

    if served.place.outlives_saver:
        assert left_in(served.place) != {}
    asyncio.run(delete())
    assert served.server.stop() == 0
    assert served.place.left_open() == []
    check_log(served.server)
    assert "Starting queue with isolated loops" in served.server.log()
    if served.place.outlives_saver:
        assert left_in(served.place) == {}


# --- other ways to configure ---------------------------------------------------------------------------

FACTORY = """
from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.server import shared

checkpointer = shared(lambda: HarnessCheckpointer.from_conn_string("sqlite:///own.db", ttl_seconds=2))
"""

PLAIN = """
from langgraph_harness_saver import HarnessCheckpointer

checkpointer = HarnessCheckpointer()
"""


def test_a_factory_of_ones_own_and_threads_that_expire(tmp_path):
    (tmp_path / "own.py").write_text(FACTORY, encoding="utf-8")

    async def expire(served: Served) -> None:
        thread_id = await served.ran("nested", {"log": ["in"]})
        assert len(await served.history(thread_id)) == 3
        for _ in range(100):
            if not await served.history(thread_id) and not left_in(place):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(left_in(place))

    place = SimpleNamespace(url=f"sqlite:///{tmp_path / 'own.db'}", opened=[])
    with DevServer(tmp_path, checkpointer="./own.py:checkpointer") as server:
        served = Served(place, server)
        served.run({"expire": expire})
        served.tell("expire")
        assert server.stop() == 0
        check_log(server)


def test_two_servers_share_one_postgres(request, tmp_path):
    """One of them has a saver as it is, on isolated loops, the other ours and a file of variables."""
    place = PLACES["postgres"](tmp_path, request)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / ".env").write_text(f"HARNESS_SAVER_URL={place.url}\nOTHER=1\n", encoding="utf-8")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "own.py").write_text(PLAIN, encoding="utf-8")
    first = DevServer(
        tmp_path / "one",
        checkpointer="./own.py:checkpointer",
        HARNESS_SAVER_URL=place.url,
        BG_JOB_ISOLATED_LOOPS="true",
    )
    second = DevServer(tmp_path / "two", config={"env": ".env"})

    async def both(served: Served) -> None:
        from langgraph_sdk import get_client

        threads = await asyncio.gather(*(served.ran("nested", {"log": ["in"]}) for _ in range(8)))
        async with get_client(url=second.url) as client:

            async def answer(thread_id: str) -> None:
                await client.threads.create(thread_id=thread_id, graph_id="nested")
                assert (await client.threads.get_state(thread_id))["next"] == ["child"]
                result = await client.runs.wait(thread_id, "nested", command={"resume": "red"})
                assert await served.values(thread_id) == result
                await served.go(thread_id, "nested", {"log": ["more"]})
                there = await client.threads.get_history(thread_id, limit=100)
                assert there == await served.history(thread_id)

            await asyncio.gather(*map(answer, threads))

    with first, second:
        served = Served(place, first)
        served.run({"both": both})
        served.tell("both")
        for server in (first, second):
            assert server.stop() == 0
            check_log(server)
    assert place.left_open() == []
    place.end()
