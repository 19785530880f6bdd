"""Removes expired threads from the store soon after they have expired."""

from __future__ import annotations

import logging
import threading
import weakref

from langgraph_harness_saver.bridge import Bridge
from langgraph_harness_saver.core import Core
from langgraph_harness_saver.errors import HarnessError, StoreNotOpenError
from langgraph_harness_saver.forks import Forkable, renew_after_fork
from langgraph_harness_saver.stores.base import Store

logger = logging.getLogger(__name__)

SHORTEST, LONGEST = 0.1, 60.0


class Sweeper(Forkable):
    """A thread that sweeps a store from time to time, while somebody uses it and it has a TTL."""

    def __init__(self, store: Store, bridge: Bridge) -> None:
        self.core: Core | None = None
        """What knows how to delete threads that share bytes with others; without it these stay."""
        self._store = store
        self._bridge = bridge
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._stopping.set)
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the parent's thread."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = None

    def start(self) -> None:
        """Begin, if there is anything to do and it isn't done yet."""
        if self._thread is not None or self._store.ttl_seconds is None:
            return
        with self._lock:
            if self._thread is None and not self._stopping.is_set():
                interval = min(max(self._store.ttl_seconds / 4, SHORTEST), LONGEST)
                self._thread = threading.Thread(
                    target=_sweep,
                    args=(weakref.ref(self), self._stopping, interval),
                    name="harness-sweeper",
                    daemon=True,
                )
                self._thread.start()

    def stop(self) -> None:
        """End, for good: no sweep begins after this."""
        self._stopping.set()

    def sweep(self) -> None:
        """Sweep once; what goes wrong is logged, for there is no caller."""
        try:
            self._bridge.run((self.core or self._store).sweep())
        except StoreNotOpenError:
            self._stopping.set()
        except HarnessError:
            logger.exception("expired threads could not be removed; trying again later")


def _sweep(sweeper: weakref.ref[Sweeper], stopping: threading.Event, interval: float) -> None:
    # Holds the sweeper only while it works, so that a saver that is dropped takes its thread along.
    while not stopping.wait(interval):
        alive = sweeper()
        if alive is None:
            return
        alive.sweep()
        del alive
