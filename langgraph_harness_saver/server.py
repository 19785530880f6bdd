"""A checkpointer for LangGraph's server, which `langgraph.json` names:

"checkpointer": {"path": "langgraph_harness_saver.server.checkpointer"}
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from langgraph_harness_saver.checkpointer import HarnessCheckpointer
from langgraph_harness_saver.config import CheckpointerConfig, unknown

logger = logging.getLogger(__name__)


class _DotEnvConfig(CheckpointerConfig):
    # That file holds other programs' variables, too.
    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore")

    def __init__(self) -> None:
        super().__init__()


Factory = Callable[[], AbstractAsyncContextManager[HarnessCheckpointer]]


def shared(make: Callable[[], HarnessCheckpointer]) -> Factory:
    """Return what `langgraph.json` can name, of a function that makes a saver.

    The server asks for a checkpointer once on every event loop that it has, and ends only what it asked for
    first. So all of them get one saver, with one cache and `pool_size` connections; the first closes it.
    `make` runs in a thread: it may read files and import drivers.
    """
    lock = threading.Lock()
    made: list[HarnessCheckpointer] = []

    def enter() -> tuple[HarnessCheckpointer, bool]:
        with lock:
            if made:
                return made[0], False
            made.append(make())
            return made[0], True

    @asynccontextmanager
    async def checkpointer() -> AsyncIterator[HarnessCheckpointer]:
        saver, first = await asyncio.to_thread(enter)
        if not first:
            yield saver
            return
        try:
            await saver.asetup()
            yield saver
        finally:
            made.clear()
            await saver.aclose()

    return checkpointer


def from_environment() -> HarnessCheckpointer:
    """Make a saver of the HARNESS_SAVER_* variables of the environment, and of `.env`, if there is one here.

    One that nothing reads is warned of.

    Raises:
        InvalidConfigError: A variable can't be used, or the store's driver is missing.
    """
    _warn_of_unknown_variables()
    return HarnessCheckpointer(_DotEnvConfig())


def _warn_of_unknown_variables() -> None:
    # No code of the user's could be told of a misspelt one, and no error would ever come of it.
    prefix = CheckpointerConfig.model_config["env_prefix"].lower()
    sources = EnvSettingsSource(_DotEnvConfig), DotEnvSettingsSource(_DotEnvConfig)
    found = {name for source in sources for name in source.env_vars if name.startswith(prefix)}
    options = [*CheckpointerConfig.model_fields]
    for name in sorted(one.removeprefix(prefix) for one in found):
        if name not in (*options, "redis_url"):
            logger.warning("%s is ignored: %s", (prefix + name).upper(), unknown(name, options))


checkpointer = shared(from_environment)
"""The saver that the environment describes; see `from_environment`."""
