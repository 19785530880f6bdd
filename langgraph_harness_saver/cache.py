"""A bounded cache of checkpoints as bytes, and of what was written to channels."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

from langgraph_harness_saver.forks import Forkable, renew_after_fork
from langgraph_harness_saver.rows import CheckpointKey
from langgraph_harness_saver.slots import Image
from langgraph_harness_saver.written import Log


class Place(NamedTuple):
    """Names what was written to a channel."""

    thread_id: str
    checkpoint_ns: str
    channel: str
    kind: str = "log"
    """Tells it from the key of a checkpoint, which has nothing here."""


LINE_IMAGES = 2
"""What a thread goes on from is its latest checkpoint, or the one before while the next is under way."""


class ImageCache(Forkable):
    """Keeps the images used last, up to `max_bytes` of values in all, and few of each thread and namespace.

    In the same bytes, what large writes channels were given last. What it says may be out of date: a store
    compares an image's rev before anything is built on it, and looks for the parts that a write names.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._known: OrderedDict[CheckpointKey | Place, tuple[Any, int]] = OrderedDict()
        self._lines: dict[tuple[str, str], list[CheckpointKey]] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        renew_after_fork(self)

    def get(self, key: CheckpointKey) -> Image | None:
        """Return an image, which then counts as used."""
        found: Image | None = self._get(key)
        return found

    def log(self, place: Place) -> Log | None:
        """Return what was written to a channel last, which then counts as used."""
        found: Log | None = self._get(place)
        return found

    def _get(self, key: CheckpointKey | Place) -> Any:
        with self._lock:
            found = self._known.get(key)
            if found is None:
                return None
            self._known.move_to_end(key)
            return found[0]

    def latest(self, thread_id: str, checkpoint_ns: str) -> Image | None:
        """Return the image that was added last for a thread and namespace."""
        with self._lock:
            line = self._lines.get((thread_id, checkpoint_ns))
            key = line[-1] if line else None
        return self.get(key) if key else None

    def add(self, image: Image) -> None:
        """Keep an image, instead of an older one of the same checkpoint."""
        key, size = image.key, image.size
        with self._lock:
            if not self._add(key, image, size):
                return
            line = self._lines.get(key[:2])
            if line is None:
                self._lines[key[:2]] = [key]
            else:
                line.append(key)
                if len(line) > LINE_IMAGES:
                    self._remove(line[0])
            self._shrink()

    def add_log(self, place: Place, log: Log) -> None:
        """Keep what was written to a channel, instead of what was before."""
        with self._lock:
            if self._add(place, log, log.size):
                self._shrink()

    def drop(self, key: CheckpointKey) -> None:
        """Forget an image."""
        with self._lock:
            self._remove(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._known.clear()
            self._lines.clear()
            self._bytes = 0

    def after_fork(self) -> None:
        """Take a new lock: another thread may have held the old one."""
        self._lock = threading.Lock()

    def _add(self, key: CheckpointKey | Place, value: Image | Log, size: int) -> bool:
        if key in self._known:
            self._remove(key)
        if size > self._max_bytes:
            return False
        self._known[key] = (value, size)
        self._bytes += size
        return True

    def _shrink(self) -> None:
        while self._bytes > self._max_bytes:
            self._remove(next(iter(self._known)))

    def _remove(self, key: CheckpointKey | Place) -> None:
        found = self._known.pop(key, None)
        if found is None:
            return
        self._bytes -= found[1]
        if isinstance(key, CheckpointKey):
            line = self._lines[key[:2]]
            line.remove(key)
            if not line:
                del self._lines[key[:2]]
