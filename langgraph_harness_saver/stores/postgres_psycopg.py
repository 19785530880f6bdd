"""Where psycopg's connections and pools lead, as a connection string."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.stores.postgres_strings import PARAMETERS, keyword_string, read_settings

logger = logging.getLogger(__name__)


def conn_string_of(connection: object) -> str | None:
    """Return what leads to where a psycopg connection or pool leads; None if it isn't one.

    Raises:
        InvalidConfigError: It doesn't tell.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(connection).__mro__}
    if packages.isdisjoint({"psycopg", "psycopg2", "psycopg_pool"}):
        return None
    if hasattr(connection, "conninfo"):
        if getattr(connection, "_configure", None) is not None:
            logger.warning(
                "the pool's configure= is not called: connections are made anew from its conninfo. What it "
                "sets may go into the URL, as options=-cname=value, or into schema="
            )
        return _of_pool(connection)
    info = getattr(connection, "info", None)
    return None if info is None else _of_connection(info)


def _of_pool(pool: Any) -> str:
    conninfo, kwargs = _called(pool.conninfo), _called(pool.kwargs)
    settings = read_settings(conninfo or "")
    for name, value in (kwargs or {}).items():
        if name in PARAMETERS and value is not None:
            settings[name] = str(value)
    return keyword_string(settings)


def _called(value: Any) -> Any:
    if not callable(value):
        return value
    found = value()
    if inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()
        raise InvalidConfigError(
            "the psycopg pool computes where it connects in a coroutine; pass a URL, or an asyncpg pool "
            "whose `password` is a coroutine function"
        )
    logger.warning("the psycopg pool computes where it connects; what it says now is used from now on")
    return found


def _of_connection(info: Any) -> str:
    try:
        found = info.get_parameters() if hasattr(info, "get_parameters") else info.dsn_parameters
        settings = {**found, "password": info.password}
    except Exception as error:
        raise InvalidConfigError(
            "the psycopg connection doesn't tell where it leads, it may be closed; pass an open one or a URL"
        ) from error
    if settings.get("host"):
        # Psycopg looks the name up itself; after a failover it may mean another address.
        settings.pop("hostaddr", None)
    settings.pop("client_encoding", None)
    return keyword_string({name: value for name, value in settings.items() if value})
