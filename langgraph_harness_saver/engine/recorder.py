"""Hands events over to whoever stores them, without waiting."""

from __future__ import annotations

from dataclasses import dataclass

from langgraph_harness_saver.engine.events import Event


@dataclass(frozen=True, slots=True)
class EventCounts:
    """What became of the events that a process handed over through one saver."""

    recorded: int = 0
    """Handed over."""
    stored: int = 0
    failed: int = 0
    """Those that the store, or the conversion, refused; each failure is logged."""
    dropped: int = 0
    """Those that came while too many were waiting."""


class EventRecorder:
    """Takes events from any thread and stores them in the background; `engine.recorder` is one.

    It never raises, and waits for no store: what can't be stored is logged and counted. What was handed over
    is stored when the process ends in good order, when the saver is closed, and when `flush` has returned.
    """

    def record(self, event: Event) -> bool:
        """Hand an event over, its input and output as they are now; False if it was dropped."""
        raise NotImplementedError

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was handed over is stored; False if some of it isn't, after `timeout` seconds."""
        raise NotImplementedError

    async def aflush(self, timeout: float | None = None) -> bool:
        """Do what `flush` does."""
        raise NotImplementedError

    @property
    def counts(self) -> EventCounts:
        """What became of events so far."""
        raise NotImplementedError
