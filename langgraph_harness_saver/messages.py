"""Lists of LangChain's messages, packed without a call for each: they are most of what most states hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import ormsgpack
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)
from pydantic import BaseModel

from langgraph_harness_saver.difference import header_size

MESSAGES, MESSAGE = "lc", "lc1"
"""The types that such a list, and a message by itself, are stored as."""

_CLASSES: tuple[type[BaseModel], ...] = (
    *(HumanMessage, AIMessage, ToolMessage, SystemMessage, RemoveMessage, ChatMessage, FunctionMessage),
    *(HumanMessageChunk, AIMessageChunk, ToolMessageChunk, SystemMessageChunk, ChatMessageChunk),
    FunctionMessageChunk,
)
"""Stored as their numbers: part of the format, so new ones come last. All are LangGraph's safe types."""

PLAIN_OPTIONS = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
"""Of `ormsgpack.packb`: takes exactly what pydantic's `model_dump` leaves as it is."""


def _dumps_its_fields(cls: type[BaseModel]) -> bool:
    special = cls.__pydantic_decorators__
    return (
        cls.model_dump is BaseModel.model_dump
        and not (special.field_serializers or special.model_serializers or special.computed_fields)
        and not any(field.exclude for field in cls.model_fields.values())
    )


FIELDS: dict[type, int] = {cls: len(cls.model_fields) for cls in _CLASSES if _dumps_its_fields(cls)}
"""How many fields LangChain's own messages have.

Of these `model_dump` copies what is plain data already, which is nearly all that messages hold. Only where
there is something else in one, a field too many or too few, pydantic has to be asked.
"""
_NUMBERS = {cls: (number, FIELDS[cls]) for number, cls in enumerate(_CLASSES) if cls in FIELDS}
NAMES: dict[type, tuple[str, ...]] = {
    cls: tuple(cls.model_fields)
    for cls in _CLASSES
    if cls in FIELDS
    and not (cls.__private_attributes__ or cls.__pydantic_post_init__)
    and cls.model_config.get("extra") == "allow"
}
"""The fields of messages that are nothing but their fields, which `restored` may give back."""

_set_fields, _set_given, _set_extra, _set_private = (
    BaseModel.__dict__[slot].__set__
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


def is_message(value: Any) -> bool:
    """Tell whether a value is a message of a class that `pack_messages` knows."""
    return type(value) in _NUMBERS


def pack_messages(value: Sequence[Any]) -> bytes | None:
    """Pack a list of messages as their classes' numbers and fields in turn; None if it isn't one."""
    items: list[Any] = []
    for message in value:
        known = _NUMBERS.get(type(message))
        if known is None:
            return None
        number, count = known
        fields = message.__dict__
        if len(fields) != count or message.__pydantic_extra__:
            return None
        items += (number, fields)
    try:
        return ormsgpack.packb(items, None, PLAIN_OPTIONS)
    except ormsgpack.MsgpackEncodeError:
        return None


def unpack_messages(data: bytes, build: Callable[[type[BaseModel], dict[str, Any]], Any]) -> list[Any]:
    """Undo `pack_messages`; `build` makes a message whose class has other fields now than it had.

    Raises:
        ValueError, TypeError, IndexError: The bytes are something else.
    """
    items = ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS)
    classes, fields = [_CLASSES[number] for number in items[::2]], items[1::2]
    if len(classes) != len(fields):
        raise ValueError("a message without fields")
    messages = restored(classes, fields)
    for position, (cls, names) in enumerate(zip(classes, map(tuple, fields), strict=True)):
        if names != NAMES.get(cls):
            messages[position] = build(cls, fields[position])
    return messages


def restored(classes: Sequence[type], fields: Sequence[dict[str, Any]]) -> list[Any]:
    """Return messages with just these fields, which were a message's before.

    They were validated when they were first made, so validating them again would change nothing; it takes
    5 µs a message where this takes 0.3, as the loops are C's.
    """
    messages: list[Any] = list(map(object.__new__, classes))
    for setter, values in (
        (_set_fields, fields),
        (_set_given, map(set, fields)),
        (_set_extra, [{} for _ in messages]),
        (_set_private, repeat(None)),
    ):
        deque(map(setter, messages, values), 0)
    return messages


def sizes_of(messages: list[Any]) -> list[int]:
    """Return how many bytes `pack_messages` takes for each; 0 where it doesn't pack one."""
    return [len(pack_messages([message]) or b"\0") - 1 for message in messages]


def header_of(count: int) -> bytes:
    """Return what the packed form of so many messages begins with."""
    items = 2 * count
    if items < 16:
        return bytes([0x90 | items])
    return b"\xdc" + items.to_bytes(2, "big") if items < 1 << 16 else b"\xdd" + items.to_bytes(4, "big")


def count_of(data: bytes) -> int:
    """Return how many messages a packed form says that it holds."""
    return (data[0] & 0x0F if data[0] < 0xDC else int.from_bytes(data[1 : header_size(data)], "big")) // 2
