"""Connections to a Postgres server, for every event loop that asks for one."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg

from langgraph_harness_saver.errors import (
    HarnessError,
    InvalidConfigError,
    StoreError,
    StoreUnavailableError,
)
from langgraph_harness_saver.stores.lanes import (
    CLOSE_SECONDS,
    CONNECT_SECONDS,
    PROBE_AFTER,
    PROBE_SECONDS,
    STATEMENT_SECONDS,
    Lanes,
    hang_up,
)
from langgraph_harness_saver.stores.postgres_errors import (
    DRIVER_ERRORS,
    is_lost,
    is_never_there,
    is_transient,
    is_without_tls,
    translate,
)
from langgraph_harness_saver.stores.postgres_url import ConnectOptions

logger = logging.getLogger(__name__)

T = TypeVar("T")
Connection = Any

ARRAYS = {
    "bool": (1000, 16),
    "bytea": (1001, 17),
    "float8": (1022, 701),
    "int2": (1005, 21),
    "int4": (1007, 23),
    "int8": (1016, 20),
    "text": (1009, 25),
    "uuid": (2951, 2950),
}
"""The numbers of an array type and of what it holds, as pg_type.dat has them in every Postgres."""
Work = Callable[["Statements"], Awaitable[T]]


class Pool(Lanes[Connection]):
    """At most `size` connections over all event loops, each used on the loop that it was made on.

    With `given`, a pool of the caller's, its connections are used instead and it is not closed.
    """

    def __init__(
        self, options: ConnectOptions | None, given: asyncpg.Pool[Any] | None, size: int, retry_seconds: float
    ) -> None:
        super().__init__("the given pool" if options is None else options.where, size, retry_seconds)
        self.explicit = False
        """Whether every statement needs a transaction around it."""
        self.kind = "READ COMMITTED"
        """How a transaction begins."""
        self.cached = True
        """Whether a statement may stay prepared on its connection."""
        self._options = options
        self._given = given
        self._reached = False
        self._skips = 0

    # --- calls -------------------------------------------------------------------------------------

    async def run(self, work: Work[T], *, fresh: bool = False) -> T:
        """Return what `work` makes of a connection; it may be called again, on another one.

        With `fresh` it is one that nobody has used, without prepared statements, and is closed afterwards.

        Raises:
            StoreError: It did not succeed within `retry_seconds`, or never would.
        """
        return await self.keep_trying(lambda deadline: self.attempt(work, deadline, fresh=fresh))

    async def attempt(self, work: Work[T], deadline: float, *, fresh: bool = False) -> T:
        """Do what `run` does, once."""
        try:
            if not fresh and self._given is None:
                return await self._with_own(work, deadline)
            async with self._fresh(deadline) if fresh else self._borrowed(deadline) as connection:
                return await work(Statements(connection, deadline, self, explicit=fresh))
        except HarnessError:
            raise
        except (*DRIVER_ERRORS, ValueError) as error:
            raise translate(error, self.where) from error

    def is_at_fault(self, error: StoreError) -> bool:
        """Tell whether an error is of the connection or the server, and not of what was sent."""
        return isinstance(error, StoreUnavailableError) or is_transient(error.__cause__)

    def is_worth_another(self, error: StoreError, deadline: float) -> bool:
        """Tell whether a failed attempt is to be repeated."""
        cause = error.__cause__
        if isinstance(cause, asyncpg.InterfaceError) and self._given is not None and self._given.is_closing():
            return False
        if self._closed or asyncio.get_running_loop().time() >= deadline or not is_transient(cause):
            return False
        # A server that has never answered is more likely misspelt than restarting.
        return self._reached or not is_never_there(cause)

    async def _with_own(self, work: Work[T], deadline: float) -> T:
        lane = self._lanes.get(asyncio.get_running_loop()) or await self.lane()
        connection = await self.acquire(lane, deadline)
        sound = False
        try:
            result = await work(Statements(connection, deadline, self))
            sound = True
            return result
        except Exception as error:
            sound = not is_lost(error)
            raise
        finally:
            # One that was cancelled or timed out may still be at work.
            self.release(lane, connection, sound=sound and not connection.is_in_transaction())

    @asynccontextmanager
    async def _fresh(self, deadline: float) -> AsyncIterator[Connection]:
        if self._given is not None:
            async with self._borrowed(deadline) as connection:
                yield connection
            return
        connection, _ = await self.seat(await self.lane(), deadline)
        try:
            if connection is not None:
                await self.close_one(connection)
            connection = await self._connect(deadline, cached=False)
            yield connection
        finally:
            try:
                if connection is not None:
                    await self.close_one(connection)
            finally:
                self.vacate()

    @asynccontextmanager
    async def _borrowed(self, deadline: float) -> AsyncIterator[Connection]:
        given, loop = self._given, asyncio.get_running_loop()
        assert given is not None
        if getattr(given, "_loop", loop) is not loop:
            raise InvalidConfigError(
                "an asyncpg pool works on the event loop that it was made on, and this call is on another: "
                "call the saver's async methods there, or give it a URL: then it serves any thread and loop"
            )
        connection = await given.acquire(timeout=max(deadline - loop.time(), STATEMENT_SECONDS))
        try:
            yield connection
        finally:
            await given.release(connection)

    # --- connections -------------------------------------------------------------------------------

    async def connect(self, deadline: float) -> Connection:
        return await self._connect(deadline, cached=self.cached)

    async def _connect(self, deadline: float, *, cached: bool) -> Connection:
        assert self._options is not None
        loop = asyncio.get_running_loop()
        attempts = await loop.run_in_executor(None, self._options.attempts)
        connection = await self._first_of(attempts, deadline, cached=cached)
        with suppress(OSError):
            # If it has ended already, its user will notice.
            keep_alive(connection, self._options)
        self._reached = True
        return connection

    async def _first_of(
        self, attempts: Sequence[Mapping[str, Any]], deadline: float, *, cached: bool
    ) -> Connection:
        """Connect with TLS or without it, as the URL wants it tried."""
        assert self._options is not None
        each = (self._options.connect_timeout or CONNECT_SECONDS) * len(self._options.servers)
        errors: list[Exception] = []
        loop = asyncio.get_running_loop()
        end = max(deadline, loop.time() + STATEMENT_SECONDS)
        for attempt in attempts[self._skips :]:
            options = {**attempt, "timeout": max(min(end - loop.time(), each), 1)}
            if not cached:
                options["statement_cache_size"] = 0
            try:
                connection = await asyncpg.connect(**options)
                know_arrays(connection)
                return connection
            except DRIVER_ERRORS as error:
                errors.append(error)
                if isinstance(error, asyncio.TimeoutError):
                    break
                if is_without_tls(error) and len(attempts) > 1:
                    self._skips = 1
        # Without TLS a server may refuse whoever has just been refused for the password.
        told = [error for error in errors if isinstance(error, asyncpg.InvalidPasswordError)]
        raise (told or errors)[-1]

    def is_closed(self, connection: Connection) -> bool:
        return bool(connection.is_closed())

    async def is_alive(self, connection: Connection, idle_since: float) -> bool:
        if connection.is_closed():
            return False
        if asyncio.get_running_loop().time() - idle_since < PROBE_AFTER:
            return True
        try:
            await connection.execute("SELECT 1", timeout=PROBE_SECONDS)
        except DRIVER_ERRORS as error:
            logger.debug("%s: an idle connection was dead: %s", self.where, error)
            return False
        return True

    async def close_one(self, connection: Connection) -> None:
        try:
            await connection.close(timeout=CLOSE_SECONDS)
        except DRIVER_ERRORS:
            connection.terminate()

    def hang_up(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        hang_up(_transport(connection), connection.terminate, loop)


def know_arrays(connection: Connection) -> None:
    """Tell the driver of the arrays that we send, which it would ask each connection's server about.

    Their numbers are fixed, and that takes three statements, which cost more than connecting does.
    """
    same = {"ns": "pg_catalog", "kind": b"b", "elemdelim": ","}
    others = dict.fromkeys(("basetype", "range_subtype", "attrtypoids", "attrnames"))
    # asyncpg has no public way to it; without it it asks.
    with suppress(AttributeError, KeyError, TypeError):
        connection._protocol.get_settings().register_data_types(
            [
                {**same, **others, "oid": oid, "name": f"_{name}", "elemtype": element}
                for name, (oid, element) in ARRAYS.items()
            ]
        )


def keep_alive(connection: Connection, options: ConnectOptions) -> None:
    """Have the system find out when the other end is gone."""
    found = _socket(connection)
    if found is None or found.family == getattr(socket, "AF_UNIX", None):
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(options.keepalives))
    for name, value in options.socket_options().items():
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _socket(connection: Connection) -> Any:
    transport = _transport(connection)
    return transport.get_extra_info("socket") if transport is not None else None


def _transport(connection: Connection) -> Any:
    # asyncpg has no public way to it.
    return getattr(connection, "_transport", None)


class Statements:
    """A connection on which each statement has a time limit, and a transaction of its own if need be."""

    def __init__(
        self, connection: Connection, deadline: float, pool: Pool, *, explicit: bool = False
    ) -> None:
        self.connection = connection
        self._deadline = deadline
        self._pool = pool
        self._explicit = explicit or pool.explicit

    @property
    def seconds(self) -> float:
        """What a statement that starts now has."""
        return max(self._deadline - asyncio.get_running_loop().time(), STATEMENT_SECONDS)

    async def fetch(self, query: str, *values: Any) -> list[Any]:
        """Return the rows of a statement, which is a transaction unless it stands in one."""
        if self._explicit and not self.connection.is_in_transaction():
            async with self.transaction():
                return await self.fetch(query, *values)
        rows: list[Any] = await self.connection.fetch(query, *values, timeout=self.seconds)
        return rows

    async def first(self, query: str, *values: Any) -> Any:
        """Return the first value of the first row, None if there is no row."""
        rows = await self.fetch(query, *values)
        return rows[0][0] if rows else None

    async def script(self, text: str) -> None:
        """Run several statements."""
        await self.connection.execute(text, timeout=self.seconds)

    @asynccontextmanager
    async def transaction(self, kind: str | None = None) -> AsyncIterator[None]:
        """Begin a transaction of that kind, whatever the server's default is, and end it.

        Unlike asyncpg's own it never waits longer than a statement may take.
        """
        await self.script(f"BEGIN ISOLATION LEVEL {kind or self._pool.kind}")
        try:
            yield
        except Exception as error:
            if not is_lost(error):
                await self.script("ROLLBACK")
            raise
        await self.script("COMMIT")
