"""Lists of LangChain's messages, packed without a call for each: they are most of what most states hold."""

from __future__ import annotations

from collections.abc import Callable
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

MESSAGES = "lc"
"""The type that such a list is stored as."""

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


def pack_messages(value: list[Any]) -> bytes | None:
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
    """Undo `pack_messages`; `build` makes a message of its class and fields.

    Raises:
        ValueError, IndexError: The bytes are something else.
    """
    items = ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS)
    return [build(_CLASSES[number], fields) for number, fields in zip(items[::2], items[1::2], strict=True)]
