"""What Redis' errors mean, and what to do about them."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl

from redis import exceptions as rd
from redis.asyncio.sentinel import MasterNotFoundError

from langgraph_harness_saver.errors import SchemaError, StoreError, StoreFullError, StoreUnavailableError

DRIVER_ERRORS = (
    OSError,
    asyncio.TimeoutError,
    rd.RedisError,
    rd.RedisClusterException,
)
"""What redis-py raises."""
# Errors that redis-py has classes for, and takes the word from that a server's reply begins with.
_CODES: dict[type[BaseException], str] = {
    rd.AuthenticationError: "WRONGPASS",
    rd.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
    rd.AskError: "ASK",
    rd.BusyLoadingError: "LOADING",
    rd.ClusterCrossSlotError: "CROSSSLOT",
    rd.ClusterDownError: "CLUSTERDOWN",
    rd.MasterDownError: "MASTERDOWN",
    rd.MovedError: "MOVED",
    rd.NoPermissionError: "NOPERM",
    rd.NoScriptError: "NOSCRIPT",
    rd.OutOfMemoryError: "OOM",
    rd.ReadOnlyError: "READONLY",
    rd.TryAgainError: "TRYAGAIN",
}
# After a failover the old connections lead to a replica.
_LOST_CODES = {"LOADING", "MASTERDOWN", "READONLY"}
_TRANSIENT_CODES = {"ASK", "BUSY", "CLUSTERDOWN", "MOVED", "NOREPLICAS", "TRYAGAIN"} | _LOST_CODES
_FULL_CODES = {"MISCONF", "OOM"}
_LOGIN_ERRORS = (rd.AuthenticationError, rd.AuthorizationError)
_HINTS = {
    "ASK": "the slot was moving to another server of the cluster all the time; try again",
    "BUSY": (
        "a script of somebody's has kept the server busy for longer than its lua-time-limit; wait, or end "
        "it with SCRIPT KILL"
    ),
    "CLUSTERDOWN": "the cluster has slots that no server serves; look at CLUSTER INFO and CLUSTER NODES",
    "CROSSSLOT": (
        "something between us and the servers cuts keys apart: connect to the cluster itself, with "
        "redis+cluster://"
    ),
    "LOADING": "the server is still reading its data from disk, and it was tried again for retry_seconds",
    "MASTERDOWN": "this is a replica that has lost its master; connect to the master",
    "MISCONF": (
        "the server can't write its snapshots to disk and so takes nothing more; what hinders it is in its "
        "log, often a full disk. What was to be written isn't there"
    ),
    "MOVED": "the slot was moving to another server of the cluster all the time; try again",
    "NOAUTH": "the server wants a password: redis://user:password@host, or redis://:password@host",
    "NOPERM": (
        "let this user read and write all keys that begin with key_prefix, and run the commands that "
        "docs/redis.md lists: ACL SETUSER name ~harness* ..."
    ),
    "NOREPLICAS": "fewer replicas are connected than min-replicas-to-write asks for",
    "NOSCRIPT": (
        "the server forgets scripts at once: does something between us and it send each call elsewhere?"
    ),
    "OOM": (
        "what was to be written isn't there. Raise maxmemory, let threads expire (ttl_seconds), prune them, "
        "or delete some; don't let Redis evict checkpoints (maxmemory-policy noeviction)"
    ),
    "READONLY": (
        "this is a replica; name the master, or ask sentinels for it (redis+sentinel://host1,host2/service), "
        "or the service's primary endpoint"
    ),
    "TRYAGAIN": "the slot was moving to another server of the cluster all the time; try again",
    "WRONGPASS": "check user and password in the URL; a user's name goes before the colon, user:password@",
}
_CODE = re.compile(r"-?([A-Z]{3,})(?= |$)")
# Redis 6.2 quotes what a script's own commands were answered.
_IN_SCRIPT = re.compile(r": -([A-Z]{3,}) ")
# In the words of older and newer versions of redis-py.
_TO_SOCKET = re.compile(r"connecting to (?:unix[^/]*)?/")


def code_of(error: BaseException | None) -> str:
    """Return the word that a server's error begins with; empty if no server has said it."""
    error = _inmost(error)
    if isinstance(error, _LOGIN_ERRORS) and "required" in str(error).lower():
        return "NOAUTH"
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    if not isinstance(error, rd.ResponseError):
        return ""
    text = str(error)
    quoted = _IN_SCRIPT.search(text)
    if quoted:
        return quoted[1]
    # Of what scripts were refused, redis-py leaves the word away that came before.
    begun = _CODE.match(text)
    return begun[1] if begun else "ERR"


def is_lost(error: BaseException | None) -> bool:
    """Tell whether a connection is of no more use, and another one may be."""
    error = _inmost(error)
    if code_of(error):
        return code_of(error) in _LOST_CODES
    if _tls_error(error) is not None or _file_error(error) is not None:
        return False
    if isinstance(error, (*_LOGIN_ERRORS, rd.MaxConnectionsError)):
        return False
    return isinstance(error, (rd.ConnectionError, rd.TimeoutError, OSError, asyncio.TimeoutError))


def is_transient(error: BaseException | None) -> bool:
    """Tell whether the same call may succeed if it is made again."""
    error = _inmost(error)
    uncovered = isinstance(error, (rd.SlotNotCoveredError, rd.MaxConnectionsError))
    if isinstance(error, rd.RedisClusterException) and "slots are not covered" in str(error):
        return True
    return uncovered or is_lost(error) or code_of(error) in _TRANSIENT_CODES


def is_never_there(error: BaseException | None) -> bool:
    """Tell whether there is no server at all."""
    error = _inmost(error)
    nowhere = (ConnectionRefusedError, socket.gaierror, FileNotFoundError)
    origin = _origin(error)
    refused = isinstance(origin, OSError) and "Connect call failed" in str(origin)
    return isinstance(error, MasterNotFoundError) or isinstance(origin, nowhere) or refused


def translate(error: BaseException, where: str) -> StoreError:
    """Return our error for one of the driver's or the system's, which becomes its cause.

    Not left to `raise ... from`: what a server answers to one of several commands is raised elsewhere.
    """
    told = _translated(_inmost(error) or error, where)
    told.__cause__ = error
    return told


def _translated(error: BaseException, where: str) -> StoreError:
    code = code_of(error)
    if is_transient(error):
        return StoreUnavailableError(f"{where}: {_said(error)}; {_HINTS.get(code) or _lost_hint(error)}")
    if code in _FULL_CODES:
        return StoreFullError(f"{where}: {_said(error)}; {_HINTS[code]}")
    if code == "WRONGTYPE":
        return SchemaError(
            f"{where}: {_said(error)}; keys of somebody else's begin with the same key_prefix, choose another"
        )
    if "without any password configured" in str(error):
        return StoreError(f"{where}: {_said(error)}; leave the password out of the URL")
    return StoreError(f"{where}: {_said(error)}; {_HINTS.get(code) or _hint(error)}")


def _inmost(error: BaseException | None) -> BaseException | None:
    """Return why a cluster's client doesn't reach any node."""
    while type(error) is rd.RedisClusterException and error.__cause__ is not None:
        error = error.__cause__
    return error


def _origin(error: BaseException | None) -> BaseException | None:
    """Return what the system has said, which redis-py puts in words of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    origin = _origin(error)
    # One that comes too early says that the server went away.
    is_final = isinstance(origin, ssl.SSLError) and not isinstance(origin, ssl.SSLEOFError)
    return origin if isinstance(origin, ssl.SSLError) and is_final else None


def _file_error(error: BaseException | None) -> OSError | None:
    """Return what was wrong with a file of certificates; a missing socket's name stands in the message."""
    origin = _origin(error)
    unreadable = isinstance(origin, (FileNotFoundError, PermissionError, IsADirectoryError))
    if isinstance(origin, OSError) and unreadable and not _TO_SOCKET.search(str(error)):
        return origin
    return None


def _said(error: BaseException) -> str:
    if isinstance(error, (asyncio.TimeoutError, rd.TimeoutError)):
        return "no answer in time"
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _lost_hint(error: BaseException) -> str:
    if isinstance(error, MasterNotFoundError):
        return (
            "no sentinel that answers knows a living master of that name; check hosts and service in the "
            "URL, and sentinel_password if they want one"
        )
    origin = _origin(error)
    if isinstance(origin, socket.gaierror):
        return "there is no host of that name; check the URL"
    if isinstance(origin, FileNotFoundError):
        return "there is no such socket: is the server running, and the path right?"
    if is_never_there(error):
        return "nothing listens there: is the server running, and the port right?"
    if isinstance(error, rd.MaxConnectionsError):
        return "all connections were taken all the time; raise pool_size"
    if "max number of clients" in str(error):
        return "lower pool_size, or raise the server's maxclients"
    if isinstance(error, (rd.SlotNotCoveredError, rd.RedisClusterException)):
        return _HINTS["CLUSTERDOWN"]
    return (
        "the server went away or was too slow, and it was tried again for retry_seconds; if it has never "
        "answered, check whether it wants TLS (rediss://) or has none (redis://)"
    )


def _hint(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, _LOGIN_ERRORS):
        return "check what gives the credentials"
    if _file_error(error) is not None:
        return "check ssl_ca_certs, ssl_certfile and ssl_keyfile in the URL: one can't be read"
    if _tls_error(error) is not None:
        return (
            "check ssl_ca_certs in the URL, which says whom to trust, and that the certificate is for this "
            "host; a server without TLS wants redis://"
        )
    if "DB index is out of range" in text or "SELECT is not allowed in cluster mode" in text:
        return "the server has no such database; use 0, or raise its setting databases"
    if "luster support disabled" in text or "luster mode is not enabled" in text:
        return "this is no Redis Cluster; write redis:// instead of redis+cluster://"
    if "unknown command" in text.lower():
        return (
            "the store needs Redis 6.2 or newer, or a Valkey, and all commands that docs/redis.md lists; "
            "services may have switched some of them off"
        )
    return "what Redis said is in __cause__"
