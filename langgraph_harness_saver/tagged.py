"""Listing by tag: what has no metadata of its own, found as if it were metadata."""

from __future__ import annotations

from collections.abc import AsyncIterator

from langgraph_harness_saver.core import Core, Selection, Stored
from langgraph_harness_saver.errors import InvalidConfigError

TAG = "harness_tag"
"""In a filter, and in the metadata of what it finds: a tag's name."""


def pages(core: Core, selection: Selection) -> AsyncIterator[list[Stored]]:
    """Yield pages of checkpoints, newest id first; with `TAG` in the filter, only the one of that name.

    Raises:
        InvalidConfigError: A tag is asked for without a thread, or its name is no text.
    """
    if not selection.filter or TAG not in selection.filter:
        return core.pages(selection)
    return _tagged(core, selection)


async def _tagged(core: Core, selection: Selection) -> AsyncIterator[list[Stored]]:
    wanted = dict(selection.filter or {})
    name = wanted.pop(TAG)
    if selection.thread_id is None or not isinstance(name, str):
        raise InvalidConfigError(
            f"a tag is a name within a thread: list(config, filter={{{TAG!r}: 'good'}}) needs a thread_id"
        )
    await core.store.open()
    for tag in await core.store.tags(selection.thread_id):
        if tag.name == name and selection.checkpoint_id in (None, tag.key.checkpoint_id):
            narrowed = selection._replace(filter=wanted or None, checkpoint_id=tag.key.checkpoint_id)
            found = [stored async for page in core.pages(narrowed) for stored in page]
            yield [
                stored._replace(metadata={**stored.metadata, TAG: name})
                for stored in found
                if stored.row.key.checkpoint_ns == tag.key.checkpoint_ns
            ]
