"""Lists of messages are stored without a call for each, and read back as LangGraph's serializer would."""

from __future__ import annotations

import pickle
from collections import UserList
from datetime import datetime
from typing import Any

import ormsgpack
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from test_serde import MESSAGES as EXAMPLES

from langgraph_harness_saver.codec import Codec
from langgraph_harness_saver.errors import SerializationError
from langgraph_harness_saver.messages import _CLASSES, MESSAGE, MESSAGES, pack_messages
from langgraph_harness_saver.serde import HarnessSerializer

USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}


class Mine(HumanMessage):
    """A class of a user's."""


def stored(value: Any, serde: SerializerProtocol | None = None) -> tuple[str, Any]:
    """Return the type that a value is stored as, and what comes back."""
    codec = Codec(serde or HarnessSerializer())
    type_, data = codec._dump(value, "a value", "t")
    return type_, codec._load((type_, data), "a value", "t")


def test_every_kind_of_message_comes_back_as_langgraph_would_give_it():
    examples = [*EXAMPLES, HumanMessage("x"), ToolMessage("x", tool_call_id="c")]
    plain = [message for message in examples if pack_messages([message])]
    assert {type(message) for message in plain} == set(_CLASSES)
    for message in plain:
        type_, again = stored([message])
        expected = JsonPlusSerializer().loads_typed(JsonPlusSerializer().dumps_typed([message]))
        assert type_ == MESSAGES
        assert again == expected
        assert [vars(one) for one in again] == [vars(one) for one in expected]
        assert type(again[0]) is type(message)
        alone, single = stored(message)
        assert (alone, type(single), vars(single)) == (MESSAGE, type(message), vars(expected[0]))


def test_a_conversation_comes_back():
    call = {"name": "search", "args": {"query": "x", "deep": [1, 2.5, None, True]}, "id": "call_1"}
    conversation: list[AnyMessage] = [
        HumanMessage(
            [{"type": "text", "text": "hé\0"}, {"type": "image_url", "image_url": {"url": "x"}}], id="1"
        ),
        AIMessage("", id="2", tool_calls=[call], usage_metadata=USAGE, response_metadata={"n": 1}),
        ToolMessage("found", tool_call_id="call_1", artifact={"rows": [b"\x00\xff"]}, status="error"),
        RemoveMessage(id="1"),
        HumanMessage("x" * 70_000, name="me"),
    ]
    type_, again = stored(conversation)
    assert type_ == MESSAGES
    assert again == conversation
    assert [type(message) for message in again] == [type(message) for message in conversation]


@pytest.mark.parametrize(
    "other",
    [
        "text",
        None,
        ("ai", "text"),
        {"role": "user", "content": "x"},
        Mine("x"),
        HumanMessage("\ud800"),
        HumanMessage("x", additional_kwargs={"at": datetime(2026, 1, 1)}),
        ToolMessage("x", tool_call_id="1", artifact={1, 2}),
        HumanMessage("x", another="field"),
    ],
    ids=repr,
)
def test_whatever_else_a_list_holds_the_serializer_writes(other):
    type_, again = stored([HumanMessage("before", id="1"), other])
    assert type_ == "msgpack"
    assert again == [HumanMessage("before", id="1"), other] or other == ("ai", "text")


@pytest.mark.parametrize(
    "other", [Mine("x"), HumanMessage("\ud800"), HumanMessage("x", another="field")], ids=repr
)
def test_whatever_else_a_message_by_itself_is_the_serializer_writes(other):
    assert stored(other) == ("msgpack", other)


def test_bytes_of_more_than_a_message_are_not_taken_for_one():
    packed = pack_messages([HumanMessage("x"), HumanMessage("y")])
    with pytest.raises(SerializationError):
        Codec(HarnessSerializer())._load((MESSAGE, packed), "a value", "t")


def test_lists_that_are_none_and_empty_ones_are_the_serializer_s():
    class Special(list[Any]):
        pass

    assert [stored(value)[0] for value in ([], (HumanMessage("x"),), Special([HumanMessage("x")]))] == [
        "msgpack"
    ] * 3
    with pytest.raises(SerializationError):
        stored(UserList([HumanMessage("x")]))


def test_a_message_with_a_field_too_many_or_too_few_is_the_serializer_s():
    more, less = HumanMessage("x", id="1"), HumanMessage("x", id="1")
    vars(more)["cached"] = "x"
    del vars(less)["name"]
    assert stored([more]) == ("msgpack", [HumanMessage("x", id="1")])
    assert stored([less])[0] == "msgpack"


def test_what_is_changed_afterwards_is_not_changed_in_what_is_stored():
    message = AIMessage("x", id="1", response_metadata={"deep": [1]})
    codec = Codec(HarnessSerializer())
    typed = codec._dump([message], "a value", "t")
    message.response_metadata["deep"].append(2)
    first, second = (codec._load(typed, "a value", "t")[0] for _ in range(2))
    assert first.response_metadata == {"deep": [1]}
    assert first.response_metadata["deep"] is not second.response_metadata["deep"]


def test_a_message_with_other_fields_than_its_class_has_now_is_validated():
    fields = vars(HumanMessage("x", id="1"))
    older = {name: value for name, value in fields.items() if name != "response_metadata"}
    packed = ormsgpack.packb([0, fields, 0, older, 0, {**fields, "content": 5, "former": 1}])
    first, second, third = Codec(HarnessSerializer())._load((MESSAGES, packed), "a value", "t")
    assert (first, second) == (HumanMessage("x", id="1"), HumanMessage("x", id="1"))
    assert (third.content, third.former) == (5, 1)


def test_a_message_that_was_read_is_as_good_as_one_that_was_made():
    made = AIMessage("x", id="1")
    read, other = stored([made, made])[1]
    assert read.model_fields_set == made.model_copy(update=vars(made)).model_fields_set
    read.former = 1
    read.additional_kwargs["k"] = 1
    assert (read.model_dump()["former"], read.model_copy().former, pickle.loads(pickle.dumps(read))) == (
        1,
        1,
        read,
    )
    assert other == made
    assert other.model_dump() == made.model_dump()


def test_langgraph_s_own_serializer_may_read_and_write_them_too():
    value = [HumanMessage("x", id="1"), AIMessage("y", id="2")]
    assert stored(value, JsonPlusSerializer()) == (MESSAGES, value)
    ours = Codec(HarnessSerializer())
    assert Codec(JsonPlusSerializer())._load(ours._dump(value, "a value", "t"), "a value", "t") == value


def test_another_serializer_writes_messages_itself():
    class Pickles:
        def dumps_typed(self, value: Any) -> tuple[str, bytes]:
            return "pickle", pickle.dumps(value)

        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            return pickle.loads(data[1])

    class Derived(HarnessSerializer):
        pass

    value = [HumanMessage("x", id="1")]
    assert stored(value, Pickles()) == ("pickle", value)
    assert stored(value, Derived()) == ("msgpack", value)
    # One that encrypts writes with what it wraps, and the codec encrypts.
    assert stored(value, EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16))[0] == MESSAGES


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x91\x00", b"\x92\x63\x80", b"\x92\xa1a\x80", b"\x05", b"\x92\x00\x05"]
)
def test_what_is_no_list_of_messages_is_an_error(data):
    with pytest.raises(SerializationError, match="channel 'messages' of thread 't'"):
        Codec(HarnessSerializer())._load((MESSAGES, data), "channel 'messages'", "t")
