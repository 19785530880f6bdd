"""The parts of a family, loaded when a plan asks for them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from langgraph_harness_saver.rows import Change, Family
from langgraph_harness_saver.stores.base import Plan

REVISE_BYTES = 32 << 20
"""How many bytes of parts a revision loads at a time, if it needs any."""


class _Missing(Exception):  # noqa: N818
    """A plan has asked for a part that isn't loaded."""


class SizedParts(Mapping[bytes, bytes]):
    """The parts of a family, whose sizes are known without loading them."""

    @abstractmethod
    def size(self, part_id: bytes) -> int:
        """Return how many bytes a part has."""


def size_of_part(parts: Mapping[bytes, bytes], part_id: bytes) -> int:
    """Return how many bytes a part has, without loading it if it can be told so."""
    return parts.size(part_id) if isinstance(parts, SizedParts) else len(parts[part_id])


class LazyParts(SizedParts):
    """The parts of a family, of which some are loaded."""

    def __init__(self, sizes: Mapping[bytes, int]) -> None:
        self.sizes = sizes
        self.loaded: dict[bytes, bytes] = {}

    def __getitem__(self, part_id: bytes) -> bytes:
        if part_id in self.sizes and part_id not in self.loaded:
            raise _Missing(part_id)
        return self.loaded[part_id]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __contains__(self, part_id: object) -> bool:
        return part_id in self.sizes

    def size(self, part_id: bytes) -> int:
        return self.sizes[part_id]

    def next(self, wanted: bytes) -> list[bytes]:
        """Name the parts to load next, the wanted one among them."""
        chosen, size = [wanted], self.sizes[wanted]
        for part_id, more in self.sizes.items():
            if part_id not in self.loaded and part_id != wanted and size + more <= REVISE_BYTES:
                chosen.append(part_id)
                size += more
        return chosen


async def run_plan(
    plan: Plan, family: Family, load: Callable[[LazyParts, Sequence[bytes]], Awaitable[None]]
) -> Change:
    """Return what a plan makes of a family, whose parts `load` loads when it asks for them."""
    parts = family.parts
    assert isinstance(parts, LazyParts)
    loop = asyncio.get_running_loop()
    while True:
        try:
            # It takes its time where a thread is long.
            return await loop.run_in_executor(None, plan, family)
        except _Missing as missing:
            await load(parts, parts.next(missing.args[0]))
