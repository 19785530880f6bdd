"""What the checkpoints of one listing share, and that nobody can tell from what they hold."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from langgraph_harness_saver import HarnessCheckpointer
from langgraph_harness_saver.messages import count_of, header_of, pack_messages

KINDS = (
    lambda rng, text: HumanMessage(text, id=str(rng.random())),
    lambda rng, text: AIMessage(text, tool_calls=[{"name": "f", "args": {"x": [1]}, "id": "1"}]),
    lambda rng, text: ToolMessage(text, tool_call_id="1", artifact={"rows": [1, {"a": 2}]}),
    # Not packed with the others: the whole list is the serializer's.
    lambda rng, text: HumanMessage(text, id="\ud800") if rng.random() < 0.05 else HumanMessage(text),
)


def message(rng: random.Random) -> AnyMessage:
    # Few texts, so that messages are often equal to others.
    return rng.choice(KINDS)(
        rng, rng.choice("abc") * rng.choice((1, 30, 300, 70_000 if rng.random() < 0.02 else 9))
    )


def changed(messages: list[AnyMessage], rng: random.Random) -> list[AnyMessage]:
    """Make the next version of a list, as graphs do and as they don't."""
    at, until = sorted((rng.randrange(len(messages) + 1), rng.randrange(len(messages) + 1)))
    new = [message(rng) for _ in range(rng.choice((0, 1, 1, 2, 9)))]
    return rng.choice(
        (
            [*messages, *new],
            [*messages, *new],
            [*messages[:at], *new, *messages[at:]],
            [*messages[:at], *new, *messages[until:]],
            [*messages[at:], *new],
            [*messages[at:], *messages[:at]],
            messages[::-1],
            new,
            messages,
        )
    )


def written(saver: HarnessCheckpointer, versions: list[list[AnyMessage]]) -> Any:
    config: Any = {"configurable": {"thread_id": str(uuid.uuid4()), "checkpoint_ns": ""}}
    version = None
    for step, messages in enumerate(versions):
        version = saver.get_next_version(version, None)
        checkpoint = empty_checkpoint()
        checkpoint["id"] = str(uuid6(clock_seq=step))
        checkpoint["channel_values"] = {"messages": messages, "count": step}
        checkpoint["channel_versions"] = {"messages": version, "count": version}
        config = saver.put(config, checkpoint, {"step": step}, {"messages": version, "count": version})
    return {"configurable": {"thread_id": config["configurable"]["thread_id"]}}


def conversation(length: int) -> list[list[AnyMessage]]:
    said = [HumanMessage(f"message {i}", id=str(i), additional_kwargs={"deep": [i]}) for i in range(length)]
    return [said[: i + 1] for i in range(length)]


def messages_of(found: CheckpointTuple) -> list[AnyMessage]:
    return found.checkpoint["channel_values"]["messages"]  # type: ignore[no-any-return]


@pytest.fixture(params=["memory://", "sqlite://"])
def saver(request: pytest.FixtureRequest) -> Any:
    with HarnessCheckpointer.from_conn_string(request.param) as saver:
        yield saver


@pytest.mark.parametrize("seed", range(12))
def test_each_checkpoint_is_as_it_was_stored_whatever_became_of_the_list(saver, seed):
    rng = random.Random(seed)
    versions: list[list[AnyMessage]] = [[message(rng) for _ in range(rng.choice((0, 5, 40)))]]
    while len(versions) < 60:
        versions.append(changed(versions[-1], rng))
    config = written(saver, versions)
    listed = [*saver.list(config)]
    for found, expected in zip(listed, versions[::-1], strict=True):
        assert [type(one) for one in messages_of(found)] == [type(one) for one in expected]
        assert [vars(one) for one in messages_of(found)] == [vars(one) for one in expected]
        assert found == saver.get_tuple(found.config)


async def test_a_listing_holds_each_message_once(saver):
    config = written(saver, conversation(40))
    for listed in ([*saver.list(config)], [one async for one in saver.alist(config)]):
        held = {id(one) for found in listed for one in messages_of(found)}
        assert len(held) == 40
        assert len({id(messages_of(found)) for found in listed}) == 40


def test_what_is_changed_on_the_way_is_not_changed_in_what_comes(saver):
    versions = conversation(30)
    config = written(saver, versions)
    for position, found in enumerate(saver.list(config)):
        expected = versions[-1 - position]
        assert messages_of(found) == expected
        messages_of(found)[position % len(expected)].additional_kwargs["deep"].append("changed")
        messages_of(found)[0].content = "changed"
        messages_of(found).append(HumanMessage("another"))
    assert [messages_of(found) for found in saver.list(config)] == versions[::-1]
    assert messages_of(saver.get_tuple(config)) == versions[-1]


def test_two_listings_share_nothing(saver):
    config = written(saver, conversation(5))
    first, second = [*saver.list(config)], [*saver.list(config)]
    messages_of(first[0])[0].content = "changed"
    assert messages_of(second[0])[0].content == "message 0"


def test_without_sharing_each_checkpoint_has_its_own():
    with HarnessCheckpointer.from_conn_string("memory://", share_listed=False) as saver:
        listed = [*saver.list(written(saver, conversation(10)))]
        assert len({id(one) for found in listed for one in messages_of(found)}) == 55
        messages_of(listed[0])[0].content = "changed"
        assert messages_of(listed[1])[0].content == "message 0"


def test_several_threads_at_once(saver):
    threads = [written(saver, conversation(20)) for _ in range(3)]
    listed = [*saver.list(None)]
    assert len(listed) == 60
    for config in threads:
        mine = [
            one
            for one in listed
            if one.config["configurable"]["thread_id"] == config["configurable"]["thread_id"]
        ]
        assert [messages_of(one) for one in mine] == conversation(20)[::-1]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 32_767, 32_768, 40_000])
def test_the_header_of_a_packed_list(count):
    packed = pack_messages([HumanMessage("x")] * count)
    assert packed is not None
    assert packed.startswith(header_of(count) + b"\x00")
    assert count_of(packed) == count
