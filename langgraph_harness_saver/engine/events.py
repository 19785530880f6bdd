"""What happened inside a step: tool and LLM calls, and whatever else is noted while a node runs.

An event hangs on the root checkpoint that its step ran from, beside the graph's own line of checkpoints and
never on it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from typing_extensions import Self

from langgraph_harness_saver.errors import SerializationError
from langgraph_harness_saver.ids import pack_id, unpack_id
from langgraph_harness_saver.rows import EventRow


class _Ids(threading.local):
    last = 0


_ids = _Ids()


def new_event_id() -> str:
    """Return an id that sorts after those made before: nanoseconds and chance, 32 hexadecimal digits."""
    _ids.last = max(time.time_ns(), _ids.last + 1)
    return f"{_ids.last:016x}{os.urandom(8).hex()}"


def now_text() -> str:
    """Return the time as LangGraph writes it: ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat()


@dataclass(frozen=True, slots=True)
class Event:
    """One call inside a node, or another thing noted while it ran.

    `thread_id` and `root_checkpoint_id` say what it hangs on; `checkpoint_ns` and `checkpoint_id` name the
    checkpoint that its task ran from, in a subgraph the subgraph's own. All values are such as JSON has.
    """

    kind: str
    """`tool_call`, `llm_call`, or another `SnapshotTrigger`'s value."""
    name: str
    """The tool's or model's name, or of whatever was called."""
    thread_id: str
    root_checkpoint_id: str
    checkpoint_ns: str = ""
    checkpoint_id: str = ""
    """The root checkpoint's where no other is known."""
    node: str | None = None
    step: int | None = None
    """The superstep that the task belongs to, one more than its checkpoint's."""
    task_id: str | None = None
    attempt: int = 1
    """Counts the attempts of the node, or of what retries the call within it."""
    phase: str | None = None
    """None for a whole call; `before`, `after` or `error` where its ends are noted apart."""
    paused: bool = False
    """Whether it asked for an interrupt: it begins again when its thread is resumed."""
    error: str | None = None
    """The error's type and message, where there was one that isn't an interrupt."""
    input: Any = None
    output: Any = None
    usage: dict[str, Any] | None = None
    """Of LLM calls: input_tokens, output_tokens, total_tokens and what else the model tells."""
    model: str | None = None
    started_at: str = field(default_factory=now_text)
    """ISO 8601, UTC."""
    duration: float | None = None
    """Seconds; None for what has no end of its own."""
    tool_call_id: str | None = None
    run_id: str | None = None
    """LangChain's id of the call."""
    parent_run_id: str | None = None
    graph_run_id: str | None = None
    """The run of the graph, where its config names one."""
    tags: tuple[str, ...] = ()
    summary: str | None = None
    id: str = field(default_factory=new_event_id)
    """Orders events by when they began; an event that is recorded again under its id is the same one."""

    @property
    def key(self) -> bytes:
        """Its id as stores hold it, 16 bytes.

        Raises:
            SerializationError: It is no 32 hexadecimal digits.
        """
        try:
            return bytes.fromhex(self.id) if len(self.id) == 32 else bytes.fromhex("?")
        except ValueError as error:
            raise SerializationError(
                f"{self.id!r} can't be an event's id; leave it out for a new one"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**values, "tags": list(self.tags)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_dict`.

        Raises:
            SerializationError: It isn't what `to_dict` returns.
        """
        try:
            return cls(**{**data, "tags": tuple(data.get("tags", ()))})
        except TypeError as error:
            raise SerializationError(
                f"this is not an event ({error}); pass what Event.to_dict returned"
            ) from error


_FACTS = tuple(
    one.name
    for one in fields(Event)
    if one.name not in ("thread_id", "root_checkpoint_id", "input", "output", "id")
)
"""What of an event is read without its values, in the order in which it is stored: new fields come last."""
_IDS = ("checkpoint_id", "task_id", "run_id", "parent_run_id", "graph_run_id")


def facts_of(event: Event) -> list[Any]:
    """Return what is stored of an event besides its place, its id and its values."""
    return [
        pack_id(value) if name in _IDS and isinstance(value, str) else value
        for name, value in ((name, getattr(event, name)) for name in _FACTS)
    ]


def event_of(row: EventRow, facts: Sequence[Any], values: Sequence[Any] | None) -> Event:
    """Return the event that is stored in a row; without its input and output where they weren't read."""
    known: dict[str, Any] = {
        name: unpack_id(value) if name in _IDS and value is not None else value
        for name, value in zip(_FACTS, facts, strict=False)
    }
    known["tags"] = tuple(known.get("tags") or ())
    given, came = values or (None, None)
    known.update(thread_id=row.thread_id, root_checkpoint_id=row.checkpoint_id, id=row.event_id.hex())
    return Event(**known, input=given, output=came)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run of a graph code is: what an event of it hangs on."""

    thread_id: str
    root_checkpoint_id: str
    checkpoint_ns: str = ""
    checkpoint_id: str = ""
    node: str | None = None
    step: int | None = None
    task_id: str | None = None
    attempt: int = 1
    graph_run_id: str | None = None

    def event(self, kind: str, name: str, **values: Any) -> Event:
        """Make an event that happened here; `values` are `Event`'s other fields."""
        return Event(kind, name, **{**{one.name: getattr(self, one.name) for one in fields(self)}, **values})
