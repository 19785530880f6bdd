"""LangGraph's own conformance suite, FULL, through the async door and through the sync one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import validate
from langgraph.checkpoint.conformance.capabilities import Capability
from langgraph.checkpoint.conformance.initializer import RegisteredCheckpointer
from langgraph.checkpoint.conformance.report import ProgressCallbacks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class SyncDoor(BaseCheckpointSaver):
    """Answers async calls with the sync methods of another saver.

    `threaded` calls them from a worker thread, as an executor does; else they run where a running event loop
    stands, as they do when sync code is called from async code.
    """

    def __init__(self, inner: BaseCheckpointSaver, *, threaded: bool) -> None:
        super().__init__(serde=inner.serde)
        self.inner = inner
        self.threaded = threaded

    async def hand_over(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.threaded:
            return await asyncio.to_thread(call, *args, **kwargs)
        return call(*args, **kwargs)

    async def aput(self, config, checkpoint, metadata, new_versions):
        return await self.hand_over(self.inner.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(self, config, writes, task_id, task_path=""):
        return await self.hand_over(self.inner.put_writes, config, writes, task_id, task_path)

    async def aget_tuple(self, config):
        return await self.hand_over(self.inner.get_tuple, config)

    async def alist(self, config, *, filter=None, before=None, limit=None):
        found = self.inner.list(config, filter=filter, before=before, limit=limit)
        for item in await self.hand_over(list, found):
            yield item

    async def adelete_thread(self, thread_id):
        return await self.hand_over(self.inner.delete_thread, thread_id)

    async def adelete_for_runs(self, run_ids):
        return await self.hand_over(self.inner.delete_for_runs, run_ids)

    async def acopy_thread(self, source_thread_id, target_thread_id):
        return await self.hand_over(self.inner.copy_thread, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids, *, strategy="keep_latest"):
        return await self.hand_over(self.inner.prune, thread_ids, strategy=strategy)

    async def aget_delta_channel_history(self, *, config, channels):
        return await self.hand_over(self.inner.get_delta_channel_history, config=config, channels=channels)

    def get_next_version(self, current, channel):
        return self.inner.get_next_version(current, channel)


DOORS: dict[str, Callable[[Any], BaseCheckpointSaver]] = {
    "async": lambda saver: saver,
    "sync in a thread": lambda saver: SyncDoor(saver, threaded=True),
    "sync inside the loop": lambda saver: SyncDoor(saver, threaded=False),
}


@pytest.mark.parametrize("entrance", DOORS)
async def test_langgraph_conformance_is_full(entrance, make_place):
    async def factory() -> AsyncIterator[BaseCheckpointSaver]:
        # The suite names some threads itself, so each capability wants an empty store.
        yield DOORS[entrance](make_place().open())

    failures: list[str] = []

    def note(capability: str, test: str, passed: bool, error: str | None) -> None:
        if not passed:
            failures.append(f"{capability}.{test}: {error}")

    registered = RegisteredCheckpointer(name=entrance, factory=factory)
    report = await validate(registered, progress=ProgressCallbacks(on_test_result=note))

    assert not failures, "\n".join(failures)
    assert set(report.results) == {capability.value for capability in Capability}
    for name, result in report.results.items():
        assert result.detected, name
        assert result.passed, name
        assert result.tests_passed > 0, name
        assert result.tests_skipped == 0, name
    assert report.conformance_level() == "FULL"
