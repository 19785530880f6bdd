"""Telling LangGraph's server about a thread that it didn't make."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.rows import Branch


async def publish(
    client: Any,
    thread_id: str,
    graph_id: str | None,
    head: Mapping[str, Any],
    record: Branch | None,
    tags: Mapping[str, str],
) -> dict[str, Any]:
    """Make a thread known to a server, or what it knows true; see `CheckpointEngine.publish`.

    `head` is the metadata of its latest checkpoint.
    """
    try:
        UUID(thread_id)
    except ValueError:
        raise InvalidConfigError(
            f"LangGraph's server takes only UUIDs for thread ids, not {thread_id!r}; branch the thread, and "
            "publish the branch"
        ) from None
    graph_id = (
        graph_id or (await _graph_of(client, record.source) if record else None) or head.get("graph_id")
    )
    if not graph_id:
        raise InvalidConfigError(
            f"the server can't tell which graph thread {thread_id!r} belongs to; name it: "
            f"publish(client, {thread_id!r}, 'agent')"
        )
    metadata: dict[str, Any] = {"graph_id": graph_id}
    if record is not None:
        metadata |= {"branch": record.name, "branched_from": record.source}
    # The server copies a thread's metadata into that of every checkpoint which its runs make from then on,
    # so these may not be taken for the checkpoints' own. Objects, not a list: the dev server finds what an
    # object holds, and in lists only what is equal.
    metadata["harness_summary"] = head.get("summary")
    metadata["harness_tags"] = {name: {"checkpoint_id": id} for name, id in tags.items()}
    threads = client.threads
    await _awaited(threads.create(thread_id=thread_id, metadata=metadata, if_exists="do_nothing"))
    told = await _awaited(threads.update(thread_id, metadata=metadata))
    return dict(told["metadata"])


async def _graph_of(client: Any, thread_id: str) -> str | None:
    """Return which graph a server's thread belongs to, None where the server doesn't know it."""
    for thread in await _awaited(client.threads.search(ids=[thread_id], limit=1)):
        if str(thread["thread_id"]) == thread_id:
            return thread["metadata"].get("graph_id")  # type: ignore[no-any-return]
    return None


async def _awaited(result: Any) -> Any:
    """Take what a sync client returns, or wait for what an async one does."""
    return await result if inspect.isawaitable(result) else result
