"""Workloads over any `BaseCheckpointSaver`: plain functions, which know nothing of who is measured."""

from __future__ import annotations

import asyncio
import operator
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import uuid6
from langgraph.graph import END, START, MessagesState, StateGraph, add_messages
from typing_extensions import TypedDict

COMMON = """
the of and to in a is that for it as was with be by on not he this are or his from at which but have
an had they you were their one all we can her has there been if more when will would who so no out
up said what its about than into them only other time new some could these two may first then do any
like my now over such our man me even most made after also did many before must through back years
where much your way well down should because each just those people how too little state good very
make world still see own work long here get both between life being under never day same another
know while last might us great old year off come since against go came right used take three house
graph checkpoint thread agent tool answer question model message branch version history memory
storage difference
"""
WORDS = COMMON.split()

Saver = BaseCheckpointSaver[Any]


def english(rng: random.Random, size: int) -> str:
    """Return `size` bytes of words, common ones more often."""
    text = ""
    while len(text) < size:
        text += WORDS[int(len(WORDS) * rng.random() ** 2)] + " "
    return text[:size]


# --- puts, one after the other -------------------------------------------------------------------------


def new_thread() -> Any:
    """Return the config of a thread that nobody has yet."""
    return {"configurable": {"thread_id": str(uuid.uuid4()), "checkpoint_ns": ""}}


def next_put(saver: Saver, version: Any, step: int, values: dict[str, Any], changed: str) -> tuple[Any, ...]:
    """Return the checkpoint, metadata and new versions of a step that changes one channel."""
    version = saver.get_next_version(version, None)
    checkpoint: Any = {
        "v": 4,
        "id": str(uuid6(clock_seq=step)),
        "ts": "2026-11-20T12:00:00.000001+00:00",
        "channel_values": values,
        "channel_versions": {changed: version},
        "versions_seen": {"chat": {changed: version}},
        "updated_channels": [changed],
    }
    return checkpoint, {"source": "loop", "step": step, "parents": {}}, {changed: version}


async def steps(saver: Saver, clients: int, each: int) -> float:
    """Return steps per second: one aput and one aput_writes of 20 messages, one replaced a step."""
    rng = random.Random(7)
    texts = [english(rng, 300) for _ in range(400)]
    start = time.perf_counter()
    await asyncio.gather(*(_client(saver, texts, each) for _ in range(clients)))
    return clients * each / (time.perf_counter() - start)


async def _client(saver: Saver, texts: list[str], each: int) -> None:
    config = new_thread()
    messages: list[AnyMessage] = [HumanMessage(texts[i], id=str(uuid.uuid4())) for i in range(20)]
    version = None
    for step in range(each):
        messages = [*messages]
        messages[step % 20] = AIMessage(texts[step * 7 % len(texts)], id=str(uuid.uuid4()))
        put = next_put(saver, version, step, {"messages": messages}, "messages")
        version = put[2]["messages"]
        config = await saver.aput(config, *put)
        await saver.aput_writes(config, [("messages", messages[step % 20])], str(uuid.uuid4()))


async def put_async(saver: Saver, calls: int) -> float:
    """Return the seconds that one aput and one aget_tuple take together, of a small state."""
    config, seconds = new_thread(), 0.0
    for step in range(calls):
        put = next_put(saver, None, step, {"count": step}, "count")
        start = time.perf_counter()
        config = await saver.aput(config, *put)
        await saver.aget_tuple(config)
        seconds += time.perf_counter() - start
    return seconds / calls


def put_sync(saver: Saver, calls: int) -> float:
    """Do what `put_async` does through the other door."""
    config, seconds = new_thread(), 0.0
    for step in range(calls):
        put = next_put(saver, None, step, {"count": step}, "count")
        start = time.perf_counter()
        config = saver.put(config, *put)
        saver.get_tuple(config)
        seconds += time.perf_counter() - start
    return seconds / calls


# --- graphs --------------------------------------------------------------------------------------------


def chat_graph(saver: Saver, rng: random.Random) -> Any:
    """Return a graph whose only node answers in 800 bytes."""

    def chat(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": [AIMessage(english(rng, 800))]}

    builder = StateGraph(MessagesState).add_node("chat", chat)
    return builder.add_edge(START, "chat").add_edge("chat", END).compile(checkpointer=saver)


async def chat(saver: Saver, turns: int, config: Any = None, done: int = 0) -> float:
    """Return the seconds that turns of 200 and 800 bytes take, from turn `done` on."""
    rng = random.Random(done)
    graph = chat_graph(saver, rng)
    config = config or new_thread()
    start = time.perf_counter()
    for _ in range(turns):
        await graph.ainvoke({"messages": [HumanMessage(english(rng, 200))]}, config)
    return time.perf_counter() - start


async def graphs(saver: Saver, at_once: int, turns: int) -> float:
    """Return turns per second of several chats at once."""
    start = time.perf_counter()
    await asyncio.gather(*(chat(saver, turns) for _ in range(at_once)))
    return at_once * turns / (time.perf_counter() - start)


class Library(TypedDict):
    """A document that is loaded once, and a small counter."""

    document: str
    count: int


async def document(saver: Saver, size: int, turns: int) -> None:
    """Load a document, then run that many small steps."""

    def count(state: Library) -> dict[str, int]:
        return {"count": state["count"] + 1}

    builder = StateGraph(Library).add_node("count", count).add_edge(START, "count")
    builder.add_conditional_edges("count", lambda state: "count" if state["count"] < turns else END)
    graph = builder.compile(checkpointer=saver)
    text = english(random.Random(3), size)
    await graph.ainvoke({"document": text, "count": 0}, {**new_thread(), "recursion_limit": turns + 10})


class Entries(TypedDict):
    """A dict with many entries, whose reducer takes single ones."""

    table: Annotated[dict[str, str], operator.or_]
    count: int


class WholeEntries(TypedDict):
    """A dict with many entries, which a node can only return whole."""

    table: dict[str, str]
    count: int


async def entries(saver: Saver, size: int, turns: int, *, whole: bool = False) -> None:
    """Keep a dict of that many entries in one channel, and change one of them a step.

    With `whole` the node returns all of them, so that its write holds them as well.
    """
    rng = random.Random(4)

    def change(state: Any) -> dict[str, Any]:
        new = {f"key-{rng.randrange(size)}": english(rng, 40)}
        return {"table": {**state["table"], **new} if whole else new, "count": state["count"] + 1}

    builder = StateGraph(WholeEntries if whole else Entries).add_node("change", change)
    builder.add_edge(START, "change")
    builder.add_conditional_edges("change", lambda state: "change" if state["count"] < turns else END)
    table = {f"key-{number}": english(rng, 40) for number in range(size)}
    config = {**new_thread(), "recursion_limit": turns + 10}
    await builder.compile(checkpointer=saver).ainvoke({"table": table, "count": 0}, config)


# --- lists that do more than grow ----------------------------------------------------------------------

Edit = Callable[[list[AnyMessage], random.Random], list[AnyMessage]]


def _said(rng: random.Random, size: int = 500) -> AnyMessage:
    return AIMessage(english(rng, size), id=str(uuid.UUID(int=rng.getrandbits(128), version=4)))


def trimmed(messages: list[AnyMessage], rng: random.Random) -> list[AnyMessage]:
    """Drop two in front, add two behind."""
    return [*messages[2:], _said(rng), _said(rng)]


def edited(messages: list[AnyMessage], rng: random.Random) -> list[AnyMessage]:
    """Say one in the middle otherwise, as two."""
    at = rng.randrange(len(messages))
    return [*messages[:at], _said(rng, 300), _said(rng, 200), *messages[at + 2 :]]


def removed(messages: list[AnyMessage], rng: random.Random) -> list[AnyMessage]:
    """Take one out of the middle by a RemoveMessage, and add one."""
    gone = RemoveMessage(id=str(messages[rng.randrange(len(messages))].id))
    return add_messages(messages, [gone, _said(rng)])  # type: ignore[return-value, arg-type]


def summarised(messages: list[AnyMessage], rng: random.Random) -> list[AnyMessage]:
    """Add ten; of more than a hundred, put a summary in place of all but the last ten."""
    kept = [_said(rng, 1000), *messages[-10:]] if len(messages) > 100 else messages
    return [*kept, *(_said(rng) for _ in range(10))]


EDITS: dict[str, Edit] = {
    "trimmed in front": trimmed,
    "edited in the middle": edited,
    "RemoveMessage": removed,
    "summarised": summarised,
}


def versions_of_list(edit: Edit, length: int, count: int) -> Iterator[list[AnyMessage]]:
    """Yield a list of messages as it is after each of `count` edits."""
    rng = random.Random(5)
    messages = [_said(rng) for _ in range(length)]
    for _ in range(count):
        messages = edit(messages, rng)
        yield messages


async def edits(saver: Saver, edit: Edit, length: int, count: int) -> None:
    """Store each version of a list."""
    config, version = new_thread(), None
    for step, messages in enumerate(versions_of_list(edit, length, count)):
        put = next_put(saver, version, step, {"messages": messages}, "messages")
        version = put[2]["messages"]
        config = await saver.aput(config, *put)


# --- reading -------------------------------------------------------------------------------------------


async def seconds_of(work: Callable[[], Awaitable[Any]], times: int) -> float:
    """Return the median of the seconds that something takes."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[times // 2]


async def latest(saver: Saver, config: Any, times: int) -> float:
    """Return the seconds that the latest state takes."""
    return await seconds_of(lambda: saver.aget_tuple(config), times)


async def history(saver: Saver, config: Any, checkpoints: int) -> float:
    """Return the seconds that all of a thread's checkpoints take, kept in a list."""
    start = time.perf_counter()
    found = [one async for one in saver.alist(config)]
    seconds = time.perf_counter() - start
    if len(found) != checkpoints:
        raise RuntimeError(f"{len(found)} checkpoints where {checkpoints} were stored")
    return seconds


async def fill(saver: Saver, threads: int, each: int, clients: int = 64) -> list[Any]:
    """Store many threads of small checkpoints; return their configs."""
    configs = [new_thread() for _ in range(threads)]
    text = english(random.Random(6), 100)

    async def client(mine: list[Any]) -> None:
        for config in mine:
            for step in range(each):
                put = next_put(saver, None, step, {"text": text, "count": step}, "count")
                config = await saver.aput(config, *put)

    await asyncio.gather(*(client(configs[i::clients]) for i in range(clients)))
    return configs


async def probe(saver: Saver, configs: list[Any]) -> dict[str, float]:
    """Return the median seconds of a get, a put and a list, on threads that nothing is cached of."""
    taken: dict[str, list[float]] = {"put": [], "get": [], "list(limit=10)": []}

    async def timed(name: str, work: Awaitable[Any]) -> Any:
        start = time.perf_counter()
        result = await work
        taken[name].append(time.perf_counter() - start)
        return result

    async def ten(config: Any) -> None:
        async for _ in saver.alist(config, limit=10):
            pass

    for config in configs:
        found = await timed("get", saver.aget_tuple(config))
        put = next_put(saver, None, 10_000, {"text": "x", "count": 0}, "count")
        await timed("put", saver.aput(found.config, *put))
        await timed("list(limit=10)", ten(config))
    return {name: sorted(some)[len(some) // 2] for name, some in taken.items()}


async def serve(saver: Saver, threads: int, turns: int) -> None:
    """Keep that many chats alive, each saying something in its turn."""
    rng = random.Random(8)
    graph = chat_graph(saver, rng)
    configs = [new_thread() for _ in range(threads)]
    for _ in range(turns):
        for config in configs:
            await graph.ainvoke({"messages": [HumanMessage(english(rng, 200))]}, config)
