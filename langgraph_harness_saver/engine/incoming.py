"""What callers hand over as messages and state, as the channels of a graph hold it."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages, message_chunk_to_message
from pydantic import BaseModel

from langgraph_harness_saver.channels import is_reserved
from langgraph_harness_saver.errors import InvalidConfigError

MESSAGES, TOOLS_RESULT = "messages", "tools_result"
SUMMARY_LENGTH = 100

_IDS = uuid.UUID("b7a3f0c2-5d0e-5c1b-9a55-8f6f0f6d2f11")


class Incoming(NamedTuple):
    """What a snapshot is made of; `role` is what the caller calls that of the last message."""

    messages: list[BaseMessage]
    state: dict[str, Any]
    tools_result: Any
    role: str | None = None

    @property
    def channels(self) -> dict[str, Any]:
        """The values by channel."""
        return {**self.state, MESSAGES: self.messages, TOOLS_RESULT: self.tools_result}

    @property
    def summary(self) -> str:
        """The beginning of the last message, or else how much state there is."""
        if not self.messages:
            return f"State: {len(self.state)} keys"
        last = self.messages[-1]
        text = str(last.text)[:SUMMARY_LENGTH]
        if not text and isinstance(last, AIMessage) and last.tool_calls:
            text = f"calls {', '.join(call['name'] for call in last.tool_calls)}"[:SUMMARY_LENGTH]
        return f"[{self.role or getattr(last, 'role', last.type)}] {text}"


def incoming(state: Any, messages: Any, tools_result: Any, thread_id: str) -> Incoming:
    """Take a state, and messages and tools_result that stand beside it or in it.

    Raises:
        InvalidConfigError: A key can't be a channel's name, one is given twice, or a message is none.
    """
    values = mapping_of(state)
    for name in values:
        if not isinstance(name, str):
            raise InvalidConfigError(f"the state's keys are names of channels, so text, not {name!r}")
        if is_reserved(name):
            raise InvalidConfigError(f"{name!r} can't be a key of the state: LangGraph uses that name itself")
    raw = listed(_one_of(values, MESSAGES, messages))
    answers = _one_of(values, TOOLS_RESULT, tools_result)
    found = [_message(item, place, thread_id) for place, item in enumerate(raw)]
    return Incoming(found, values, [] if answers is None else answers, _role(raw[-1]) if raw else None)


def mapping_of(state: Any) -> dict[str, Any]:
    """Return the top level of a state as a dict of its own: of a mapping, a pydantic model, a dataclass.

    Raises:
        InvalidConfigError: It is none of these.
    """
    if state is None:
        return {}
    if isinstance(state, (Mapping, BaseModel)):
        return dict(state)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    raise InvalidConfigError(
        f"a state is a mapping, a pydantic model or a dataclass, not a {type(state).__name__}"
    )


def listed(messages: Any) -> list[Any]:
    """Return a list of messages, of which a single one may stand for itself.

    Raises:
        InvalidConfigError: It is nothing of the kind.
    """
    if messages is None:
        return []
    pair = isinstance(messages, tuple) and len(messages) == 2 and all(isinstance(m, str) for m in messages)
    if pair or isinstance(messages, (str, Mapping, BaseMessage)):
        return [messages]
    if isinstance(messages, Iterable):
        return list(messages)
    raise InvalidConfigError(f"messages are a list, not a {type(messages).__name__}")


def _one_of(values: dict[str, Any], name: str, given: Any) -> Any:
    """Take what is given, or stands in the state."""
    inside = values.pop(name, None)
    if given is None or inside is None:
        return inside if given is None else given
    if given is inside or _equal(given, inside):
        return given
    raise InvalidConfigError(
        f"{name!r} is a key of the state, too, and holds something else: leave one of the two out"
    )


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError):
        # Arrays, for one, don't compare as a whole.
        return False


def _role(raw: Any) -> str | None:
    if isinstance(raw, Mapping):
        return raw.get("role")
    return str(raw[0]) if isinstance(raw, (tuple, list)) else None


def _message(given: Any, place: int, thread_id: str) -> BaseMessage:
    """Return a message as LangChain's, with an id.

    One that comes without gets one of its thread, place and contents, so that the next snapshot gives it the
    same.
    """
    try:
        [found] = convert_to_messages([given])
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise InvalidConfigError(
            f"messages[{place}] is no message: {reason}. Give LangChain's messages, dicts with role and "
            "content (of a tool's answer tool_call_id, too), or (role, text)"
        ) from error
    message = message_chunk_to_message(found)
    if message.id:
        return message
    made = uuid.uuid5(_IDS, f"{thread_id}\0{place}\0{vars(message)}")
    # The caller's own message stays as it is.
    return message.model_copy(update={"id": str(made)})
