"""Values of the checkpoints of one listing, each message decoded once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import Any, NamedTuple

from langgraph_harness_saver.codec import Codec
from langgraph_harness_saver.difference import difference
from langgraph_harness_saver.errors import SerializationError
from langgraph_harness_saver.messages import MESSAGES, count_of, header_of, pack_messages, sizes_of
from langgraph_harness_saver.slots import Blob, Image

MAX_LINES = 64
"""A listing of many threads goes to and fro between them."""


class _Messages(NamedTuple):
    """A list as it is stored, its messages, and how many bytes of the stored form each takes."""

    data: bytes
    items: list[Any]
    sizes: list[int]


class Listing:
    """Makes channel values; the lists are fresh, their messages shared with the checkpoint before.

    A history of n messages holds n of them so, and not n² / 2. Whatever was done to messages meanwhile, each
    checkpoint is as it was stored when it is handed out: what is shared is compared with the stored bytes.
    """

    def __init__(self, codec: Codec, *, share: bool) -> None:
        """Decode with `codec`; without `share`, no two checkpoints have a message in common."""
        self._codec = codec
        self._share = share
        self._last: dict[tuple[str, str, str], _Messages] = {}

    def values(self, image: Image) -> dict[str, Any]:
        """Return the values of all channels."""
        return {channel: self._value(image, channel, blob) for channel, blob in image.blobs.items()}

    def _value(self, image: Image, channel: str, blob: Blob) -> Any:
        thread_id, checkpoint_ns, _ = image.key
        if blob.type != MESSAGES or not self._share:
            return self._codec.value(blob, channel, thread_id)
        line = (thread_id, checkpoint_ns, channel)
        last = self._last.pop(line, None)
        found = self._partly(last, blob, channel, thread_id) if last else None
        if found is None:
            items = self._codec.value(blob, channel, thread_id)
            found = _Messages(blob.data, items, sizes_of(items))
        if len(self._last) >= MAX_LINES:
            del self._last[next(iter(self._last))]
        self._last[line] = found
        # The caller's list is the caller's.
        return [*found.items]

    def _partly(self, last: _Messages, blob: Blob, channel: str, thread_id: str) -> _Messages | None:
        """Decode what the last list doesn't have; None where the two can't be told to be made of the same."""
        change = difference(last.data, blob.data, container=True)
        ends = [*accumulate(last.sizes, initial=len(header_of(len(last.sizes))))]
        first = bisect_left(ends, change.start)
        front = bisect_right(ends, change.start + change.length) - 1
        back = bisect_left(ends, len(last.data) - change.tail)
        if ends[-1] != len(last.data) or ends[first] != change.start or front < first:
            return None
        begin, end = len(change.lead) + ends[front] - ends[first], len(blob.data) - (ends[-1] - ends[back])
        missing = count_of(blob.data) - (front - first) - (len(last.items) - back)
        if end < begin or missing < 0 or pack_messages(last.items) != last.data:
            return None
        # They begin where a message does; if so many of them fill the gap, what follows does as well.
        between = blob._replace(data=header_of(missing) + blob.data[begin:end])
        try:
            new = self._codec.value(between, channel, thread_id)
        except SerializationError:
            return None
        items = [*last.items[first:front], *new, *last.items[back:]]
        return _Messages(blob.data, items, [*last.sizes[first:front], *sizes_of(new), *last.sizes[back:]])
