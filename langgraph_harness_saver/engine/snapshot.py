"""One checkpoint as people and programs look at it: messages, state, what runs next."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, messages_from_dict, messages_to_dict
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from typing_extensions import Self

from langgraph_harness_saver.channels import is_routing
from langgraph_harness_saver.engine.routing import PendingInterrupt, interrupts, next_of
from langgraph_harness_saver.errors import SerializationError
from langgraph_harness_saver.records import jsonable

_MESSAGES, _TOOLS_RESULT = "messages", "tools_result"


@dataclass(frozen=True, slots=True)
class SnapshotMetadata:
    """Which checkpoint a snapshot shows, and how it came to be."""

    thread_id: str
    checkpoint_id: str
    checkpoint_ns: str = ""
    step: int | None = None
    """LangGraph's count of supersteps: -1 for the first input."""
    parent_checkpoint_id: str | None = None
    created_at: str | None = None
    """ISO 8601."""
    tags: tuple[str, ...] = ()
    summary: str | None = None
    """What the metadata calls `summary`."""
    source: str | None = None
    """`input`, `loop`, `update` or `fork`."""
    run_id: str | None = None
    trigger: str | None = None
    """What `CheckpointEngine.snapshot` took it for; None for a graph's."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One checkpoint, decoded.

    `messages` is the channel of that name, where it holds messages; `state` is every other channel but those
    which only say what runs next. `tools_result` is the channel of that name, as `CheckpointEngine.snapshot`
    stores it, or else what tools answered to the last message that called any: per answer tool_call_id, name,
    args, content and status. `next` names the nodes that run next, `next_node` the first of them, or is
    empty.
    """

    metadata: SnapshotMetadata
    messages: list[BaseMessage] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    tools_result: Any = field(default_factory=list)
    next: tuple[str, ...] = ()
    interrupts: tuple[PendingInterrupt, ...] = ()

    @property
    def next_node(self) -> str:
        """The first of `next`, or an empty string."""
        return self.next[0] if self.next else ""

    @classmethod
    def of(
        cls,
        found: CheckpointTuple,
        tags: Iterable[str] = (),
        next: Sequence[str] | None = None,
        *,
        live: bool = True,
    ) -> Self:
        """Make the snapshot of a checkpoint.

        Args:
            found: The checkpoint.
            tags: Its tags.
            next: What runs next, where a graph has told it.
            live: Show what is left to do, as is right for a thread's head: no nodes that have finished, no
                interrupts that were answered. Else show the whole step that followed.
        """
        values = {
            channel: value.value if isinstance(value, _DeltaSnapshot) else value
            for channel, value in found.checkpoint["channel_values"].items()
            if not is_routing(channel)
        }
        messages: list[BaseMessage] = values.pop(_MESSAGES) if _are_messages(values.get(_MESSAGES)) else []
        answers = values.pop(_TOOLS_RESULT) if _TOOLS_RESULT in values else _tools_result(messages)
        return cls(
            metadata=_metadata_of(found, tags),
            messages=messages,
            state=values,
            tools_result=answers,
            next=next_of(found, live=live) if next is None else tuple(next),
            interrupts=interrupts(found.pending_writes, live=live),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it.

        Messages are told as `langchain_core.messages.messages_to_dict` does. What JSON has no form for is
        told so: tuples and sets as lists, bytes in base64, models and dataclasses as objects, NaN and
        infinity as text, dates as ISO 8601, keys that aren't text and anything else by `repr`.
        """
        return {
            "metadata": jsonable(self.metadata),
            "messages": jsonable(messages_to_dict(self.messages)),
            "state": jsonable(self.state),
            "tools_result": jsonable(self.tools_result),
            "next_node": jsonable(self.next_node),
            "next": jsonable(self.next),
            "interrupts": [jsonable(interrupt._asdict()) for interrupt in self.interrupts],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_dict`, as far as JSON could hold the values.

        Raises:
            SerializationError: It isn't what `to_dict` returns, or holds messages of a kind that
                langchain_core doesn't know.
        """
        try:
            metadata = {**data["metadata"], "tags": tuple(data["metadata"].get("tags", ()))}
            return cls(
                metadata=SnapshotMetadata(**metadata),
                messages=messages_from_dict(list(data["messages"])),
                state=dict(data["state"]),
                tools_result=copy.copy(data["tools_result"]),
                next=tuple(data["next"]) if "next" in data else _one(data["next_node"]),
                interrupts=tuple(PendingInterrupt(**item) for item in data.get("interrupts", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SerializationError(
                f"this is not a snapshot ({type(error).__name__}: {error}); "
                "pass what Snapshot.to_dict returned"
            ) from error


def text_of(value: Any) -> str | None:
    """Return metadata's free text, whatever was put there."""
    return value if value is None or isinstance(value, str) else str(value)


def _metadata_of(found: CheckpointTuple, tags: Iterable[str]) -> SnapshotMetadata:
    place, metadata = found.config["configurable"], found.metadata
    parent = found.parent_config
    known: Mapping[str, Any] = metadata
    return SnapshotMetadata(
        thread_id=str(place["thread_id"]),
        checkpoint_id=place["checkpoint_id"],
        checkpoint_ns=place.get("checkpoint_ns", ""),
        step=known.get("step"),
        parent_checkpoint_id=parent["configurable"]["checkpoint_id"] if parent else None,
        created_at=found.checkpoint["ts"],
        tags=tuple(tags),
        summary=text_of(known.get("summary")),
        source=known.get("source"),
        run_id=text_of(known.get("run_id")),
        trigger=text_of(known.get("trigger")),
    )


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, BaseMessage) for item in value)


def _tools_result(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    answers: list[ToolMessage] = []
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answers.append(message)
        elif isinstance(message, AIMessage) and message.tool_calls:
            calls = {call["id"]: call for call in message.tool_calls}
            return [_answer(answer, calls.get(answer.tool_call_id, {})) for answer in reversed(answers)]
    return []


def _answer(answer: ToolMessage, call: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tool_call_id": answer.tool_call_id,
        "name": answer.name or call.get("name"),
        "args": call.get("args"),
        "content": answer.content,
        "status": answer.status,
    }


def _one(name: str) -> tuple[str, ...]:
    return (name,) if name else ()
