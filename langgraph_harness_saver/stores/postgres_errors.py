"""What Postgres' errors mean, and what to do about them."""

from __future__ import annotations

import asyncio
import socket
import ssl

import asyncpg
from asyncpg import exceptions as pg

from langgraph_harness_saver.errors import SchemaError, StoreError, StoreUnavailableError

DRIVER_ERRORS = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What asyncpg raises."""
_LOST: tuple[type[BaseException], ...] = (
    OSError,
    asyncio.TimeoutError,
    # What it says of a connection whose end it is just reading.
    asyncpg.InternalClientError,
    pg.PostgresConnectionError,
    pg.ConnectionDoesNotExistError,
    pg.ConnectionFailureError,
    pg.AdminShutdownError,
    pg.CrashShutdownError,
    pg.CannotConnectNowError,
    pg.TooManyConnectionsError,
    pg.IdleSessionTimeoutError,
    pg.IdleInTransactionSessionTimeoutError,
    # After a failover the old connections lead to a standby.
    pg.ReadOnlySQLTransactionError,
    pg.TargetServerAttributeNotMatched,
)
_CONTENDED = (pg.DeadlockDetectedError, pg.SerializationError, pg.LockNotAvailableError)
_SCHEMA = (
    pg.UndefinedTableError,
    pg.UndefinedFunctionError,
    pg.UndefinedColumnError,
    pg.InvalidSchemaNameError,
    pg.UndefinedObjectError,
)
_PROXY = (pg.InvalidSQLStatementNameError, pg.DuplicatePreparedStatementError)


def is_lost(error: BaseException | None) -> bool:
    """Tell whether a connection is of no more use, and another one may be."""
    if isinstance(error, ssl.SSLError) or is_without_tls(error):
        return False
    if isinstance(error, pg.InterfaceError):
        return "connection" in str(error) and "closed" in str(error)
    return isinstance(error, _LOST)


def is_without_tls(error: BaseException | None) -> bool:
    """Tell whether a server has said that it doesn't do TLS."""
    return isinstance(error, ConnectionError) and "rejected SSL upgrade" in str(error)


def is_transient(error: BaseException | None) -> bool:
    """Tell whether the same call may succeed if it is made again."""
    return is_lost(error) or isinstance(error, _CONTENDED)


def is_never_there(error: BaseException | None) -> bool:
    """Tell whether there is no server at all, or none that a pooler would lead to."""
    nowhere = (ConnectionRefusedError, socket.gaierror, FileNotFoundError, pg.ProtocolViolationError)
    return isinstance(error, nowhere)


def translate(error: BaseException, where: str) -> StoreError:
    """Return our error for one of the driver's or the system's."""
    if is_lost(error):
        return StoreUnavailableError(f"{where}: {_said(error)}; {_lost_hint(error)}")
    if isinstance(error, _SCHEMA):
        return SchemaError(
            f"{where}: {_said(error)}; the tables are missing or not ours. Call setup() as a role that may "
            "create them, or run what `python -m langgraph_harness_saver ddl postgres` prints"
        )
    return StoreError(f"{where}: {_said(error)}; {_hint(error)}")


def _said(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _lost_hint(error: BaseException) -> str:
    if isinstance(error, pg.TooManyConnectionsError):
        return "lower pool_size, raise the server's max_connections, or put pgbouncer in between"
    if isinstance(error, socket.gaierror):
        return "there is no host of that name; check the URL"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there: is the server running, and the port right?"
    if isinstance(error, FileNotFoundError):
        return "there is no such socket: is the server running, and the directory right?"
    if isinstance(error, pg.ProtocolViolationError):
        return "that is what a pooler says; check user, password and database in the URL"
    if isinstance(error, pg.ReadOnlySQLTransactionError):
        return "this is a standby; name all hosts in the URL, with target_session_attrs=read-write"
    if isinstance(error, pg.TargetServerAttributeNotMatched):
        return "no host has what target_session_attrs asks for"
    return "the server went away or was too slow, and it was tried again for retry_seconds"


def _hint(error: BaseException) -> str:
    if isinstance(error, pg.InvalidPasswordError):
        return "check user and password in the URL, or the password file"
    if isinstance(error, pg.InvalidAuthorizationSpecificationError):
        return "the server doesn't let this user in from here; check the user in the URL, and pg_hba.conf"
    if isinstance(error, pg.InvalidCatalogNameError):
        return "create it (createdb), or name another in the URL"
    if isinstance(error, pg.InsufficientPrivilegeError):
        return "grant it to this role, or use another role in the URL"
    if isinstance(error, _PROXY):
        return (
            "something between us and the server, such as pgbouncer in transaction mode, hands out its "
            "connections anew: pass prepared_statements=False, or, for a pool of your own, make it with "
            "statement_cache_size=0"
        )
    if isinstance(error, _CONTENDED):
        return "others were working on the same rows all the time; try again"
    if isinstance(error, (pg.DiskFullError, pg.OutOfMemoryError, pg.InsufficientResourcesError)):
        return "the server has run out of room; nothing was half-written"
    if is_without_tls(error):
        return "the server doesn't do TLS: configure it there, or leave sslmode out"
    if isinstance(error, ssl.SSLError):
        return "check sslmode and sslrootcert in the URL"
    if isinstance(error, pg.ProgramLimitExceededError):
        return "an id or a namespace may have some 2,000 bytes; use a shorter one"
    if isinstance(error, asyncpg.DataError):
        return "the value is none that Postgres can hold; nothing was stored"
    return "what Postgres said is in __cause__"
