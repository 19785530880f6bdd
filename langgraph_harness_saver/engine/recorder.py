"""Hands events over to what stores them, without waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langgraph_harness_saver.engine.events import Event, facts_of
from langgraph_harness_saver.engine.told import MOST_BYTES, told
from langgraph_harness_saver.errors import SerializationError
from langgraph_harness_saver.eventlog import EventCounts
from langgraph_harness_saver.rows import Noted

if TYPE_CHECKING:
    from langgraph_harness_saver.checkpointer import HarnessCheckpointer


class EventRecorder:
    """Takes events from any thread and stores them in the background; `engine.recorder` is one.

    It never raises, and waits for no store: what can't be stored is logged and counted. What was handed over
    is stored when the process ends in good order, when the saver is closed, and when `flush` has returned.
    """

    def __init__(self, checkpointer: HarnessCheckpointer) -> None:
        self._checkpointer = checkpointer

    def record(self, event: Event, most_bytes: int | None = MOST_BYTES) -> bool:
        """Hand an event over, its input and output as they are now; False if it was dropped.

        They are taken as JSON has them; of one with more than `most_bytes` the beginning.
        """
        return self.hand_over(event, [told(event.input, most_bytes), told(event.output, most_bytes)])

    def hand_over(self, event: Event, values: list[Any]) -> bool:
        """Hand an event over whose input and output are such as JSON has already."""
        saver = self._checkpointer
        core = saver._core
        try:
            dumped = core.codec.dump_event(values, event.thread_id)
        except SerializationError:
            # A serializer may know less than JSON does.
            dumped = core.codec.dump_event([repr(value) for value in values], event.thread_id)
        noted = Noted(event.thread_id, event.root_checkpoint_id, event.key, facts_of(event), dumped)
        return saver.event_log.add(core, noted, saver)

    def latest(self, thread_id: str, checkpoint_ns: str) -> str | None:
        """Return the id of the checkpoint that this process has stored or read last, if it still knows."""
        image = self._checkpointer._core.cache.latest(thread_id, checkpoint_ns)
        return image.key.checkpoint_id if image else None

    def drop(self, error: Exception) -> None:
        """Log and count an event that couldn't be made."""
        self._checkpointer.event_log.drop(repr(error))

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was handed over is stored; False if some of it isn't, after `timeout` seconds."""
        return self._checkpointer.event_log.flush(timeout)

    async def aflush(self, timeout: float | None = None) -> bool:
        """Do what `flush` does."""
        return await self._checkpointer.event_log.aflush(timeout)

    @property
    def counts(self) -> EventCounts:
        """What became of events so far."""
        return self._checkpointer.event_log.counts
