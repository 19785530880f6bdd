"""Workloads over any `BaseCheckpointSaver`."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import uuid6
from langgraph.graph import END, START, MessagesState, StateGraph

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


def english(rng: random.Random, size: int) -> str:
    """Return `size` bytes of words, common ones more often."""
    text = ""
    while len(text) < size:
        text += WORDS[int(len(WORDS) * rng.random() ** 2)] + " "
    return text[:size]


def chat_graph(saver: BaseCheckpointSaver[Any], rng: random.Random) -> Any:
    """Return a graph whose only node answers in 800 bytes."""

    def chat(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": [AIMessage(english(rng, 800))]}

    builder = StateGraph(MessagesState).add_node("chat", chat)
    return builder.add_edge(START, "chat").add_edge("chat", END).compile(checkpointer=saver)


def chat(graph: Any, rng: random.Random, turns: int, thread_id: str) -> None:
    """Say 200 bytes a turn."""
    for _ in range(turns):
        graph.invoke(
            {"messages": [HumanMessage(english(rng, 200))]}, {"configurable": {"thread_id": thread_id}}
        )


async def steps(saver: BaseCheckpointSaver[Any], clients: int, each: int) -> float:
    """Return steps per second: one aput and one aput_writes of 20 messages, one replaced a step."""
    rng = random.Random(7)
    texts = [english(rng, 300) for _ in range(400)]
    start = time.perf_counter()
    await asyncio.gather(*(_client(saver, texts, each) for _ in range(clients)))
    return clients * each / (time.perf_counter() - start)


async def _client(saver: BaseCheckpointSaver[Any], texts: list[str], each: int) -> None:
    config: Any = {"configurable": {"thread_id": str(uuid.uuid4()), "checkpoint_ns": ""}}
    messages: list[AnyMessage] = [HumanMessage(texts[i], id=str(uuid.uuid4())) for i in range(20)]
    version = None
    for step in range(each):
        messages = [*messages]
        messages[step % 20] = AIMessage(texts[step * 7 % len(texts)], id=str(uuid.uuid4()))
        version = saver.get_next_version(version, None)
        checkpoint: Any = {
            "v": 4,
            "id": str(uuid6(clock_seq=step)),
            "ts": "2026-11-20T12:00:00.000001+00:00",
            "channel_values": {"messages": messages},
            "channel_versions": {"messages": version},
            "versions_seen": {"chat": {"messages": version}},
            "updated_channels": ["messages"],
        }
        metadata: Any = {"source": "loop", "step": step, "parents": {}}
        config = await saver.aput(config, checkpoint, metadata, {"messages": version})
        await saver.aput_writes(config, [("messages", messages[step % 20])], str(uuid.uuid4()))
