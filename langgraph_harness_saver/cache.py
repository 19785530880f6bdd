"""A bounded cache of checkpoints as bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from langgraph_harness_saver.forks import Forkable, renew_after_fork
from langgraph_harness_saver.rows import CheckpointKey
from langgraph_harness_saver.slots import Image

LINE_IMAGES = 2
"""What a thread goes on from is its latest checkpoint, or the one before while the next is under way."""


class ImageCache(Forkable):
    """Keeps the images used last, up to `max_bytes` of values in all, and few of each thread and namespace.

    What it says may be out of date: a store compares an image's rev before anything is built on it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[CheckpointKey, tuple[Image, int]] = OrderedDict()
        self._lines: dict[tuple[str, str], list[CheckpointKey]] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        renew_after_fork(self)

    def get(self, key: CheckpointKey) -> Image | None:
        """Return an image, which then counts as used."""
        with self._lock:
            found = self._images.get(key)
            if found is None:
                return None
            self._images.move_to_end(key)
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
            if key in self._images:
                self._remove(key)
            if size > self._max_bytes:
                return
            self._images[key] = (image, size)
            self._bytes += size
            line = self._lines.get(key[:2])
            if line is None:
                self._lines[key[:2]] = [key]
            else:
                line.append(key)
                if len(line) > LINE_IMAGES:
                    self._remove(line[0])
            while self._bytes > self._max_bytes:
                self._remove(next(iter(self._images)))

    def drop(self, key: CheckpointKey) -> None:
        """Forget an image."""
        with self._lock:
            self._remove(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._images.clear()
            self._lines.clear()
            self._bytes = 0

    def after_fork(self) -> None:
        """Take a new lock: another thread may have held the old one."""
        self._lock = threading.Lock()

    def _remove(self, key: CheckpointKey) -> None:
        found = self._images.pop(key, None)
        if found is not None:
            line = self._lines[key[:2]]
            line.remove(key)
            if not line:
                del self._lines[key[:2]]
            self._bytes -= found[1]
