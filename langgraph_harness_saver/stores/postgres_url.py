"""Where a Postgres store connects to: libpq's URLs and keywords, in asyncpg's words."""

from __future__ import annotations

import getpass
import logging
import os
import random
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.stores.postgres_files import add_service, stored_password
from langgraph_harness_saver.stores.postgres_servers import Server, servers_of
from langgraph_harness_saver.stores.postgres_strings import PARAMETERS, named, read_settings
from langgraph_harness_saver.stores.postgres_tls import STRONG, contexts, tls_of

logger = logging.getLogger(__name__)

APPLICATION_NAME = "langgraph-harness-saver"

_PASSED_ON = ("target_session_attrs", "krbsrvname", "gsslib")
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", *STRONG),
    "sslnegotiation": ("postgres", "direct"),
    "channel_binding": ("disable", "prefer", "require"),
    "target_session_attrs": (
        *("any", "read-write", "read-only"),
        *("primary", "standby", "prefer-standby"),
    ),
    "load_balance_hosts": ("disable", "random"),
    "gsslib": ("gssapi", "sspi"),
}
_OAUTH = ("asyncpg has no OAuth", ())
_SCRAM = ("asyncpg logs in with passwords, not with SCRAM keys: use password", ())
# What asyncpg can't do and nobody should believe it does, and the values that ask for nothing.
_REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "replication": ("a store uses ordinary connections", ("false", "off", "no", "0")),
    "require_auth": ("asyncpg lets the server choose how to log in: use sslmode=verify-full", ()),
    "requirepeer": ("asyncpg doesn't ask who the server runs as", ()),
    "gssencmode": ("asyncpg can't encrypt with GSSAPI: use sslmode", ("disable", "prefer")),
    "gssdelegation": ("asyncpg doesn't delegate credentials", ("0",)),
    "sslcrldir": ("asyncpg reads one file of revoked certificates: use sslcrl", ()),
    "sslcertmode": ("asyncpg sends a client certificate wherever it finds one", ("allow",)),
    "sslkeylogfile": ("use the environment variable SSLKEYLOGFILE", ()),
    "min_protocol_version": ("asyncpg speaks protocol 3.0", ("3.0",)),
    "oauth_client_id": _OAUTH,
    "oauth_client_secret": _OAUTH,
    "oauth_issuer": _OAUTH,
    "oauth_scope": _OAUTH,
    "scram_client_key": _SCRAM,
    "scram_server_key": _SCRAM,
}
# Hosted databases hand these out, so that they can't be refused.
_WEAKER = {
    (
        "channel_binding",
        "require",
    ): "asyncpg has no channel binding; sslmode=verify-full guards the connection",
    ("sslsni", "0"): "asyncpg tells the server's name when it starts TLS",
}


@dataclass(frozen=True)
class ConnectOptions:
    """A connection string, understood as libpq would."""

    servers: tuple[Server, ...]
    user: str
    password: str = field(repr=False)
    """The one that was given; empty if it has to be looked for in the password file."""
    passfile: str
    """Empty for the usual one."""
    database: str
    server_settings: Mapping[str, str]
    tls: Mapping[str, str] = field(repr=False)
    others: Mapping[str, str]
    shuffled: bool = False
    connect_timeout: float | None = None
    """Seconds for each server."""
    keepalives: bool = True
    keepalives_idle: int | None = None
    keepalives_interval: int | None = None
    keepalives_count: int | None = None
    tcp_user_timeout: int | None = None
    """Milliseconds."""

    @property
    def where(self) -> str:
        """Name the servers, for messages."""
        return ", ".join(server.where(self.database) for server in self.servers)

    def attempts(self) -> list[dict[str, Any]]:
        """Return what `asyncpg.connect` takes, but for its timeout: first with TLS and then without, or so.

        Reads the password file and certificates, for which asyncpg would hold up the event loop. They may
        have changed since the last time.

        Raises:
            InvalidConfigError: A certificate can't be used, or a password isn't to be had.
        """
        kwargs = self._kwargs()
        return [{**kwargs, "ssl": context} for context in contexts(self.tls)]

    def _kwargs(self) -> dict[str, Any]:
        servers = random.sample(self.servers, len(self.servers)) if self.shuffled else self.servers
        return {
            "host": [server.target for server in servers],
            "port": [server.port for server in servers],
            "user": self.user,
            # Not None: asyncpg would look for one itself, and misread escapes in the password file.
            "password": self.password or self._stored_password(),
            "database": self.database,
            "server_settings": dict(self.server_settings),
            "direct_tls": self.tls.get("sslnegotiation") == "direct",
            **self.others,
        }

    def _stored_password(self) -> str:
        return stored_password(self.passfile, self.servers, self.database, self.user)

    def socket_options(self) -> dict[str, int]:
        """Map options of TCP sockets, as the `socket` module calls them, to their values."""
        # Apple's name is the other one.
        idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
        found = {"TCP_USER_TIMEOUT": self.tcp_user_timeout}
        if self.keepalives:
            found[idle] = self.keepalives_idle
            found["TCP_KEEPINTVL"] = self.keepalives_interval
            found["TCP_KEEPCNT"] = self.keepalives_count
        return {name: value for name, value in found.items() if value is not None}


def parse(conn_string: str) -> ConnectOptions:
    """Understand a URL or a keyword string, with libpq's service file, environment and defaults.

    Reads no other file, so that a store can be made on an event loop.

    Raises:
        InvalidConfigError: libpq would refuse it, or asyncpg can't do what it asks for.
    """
    values = read_settings(conn_string)
    add_service(values)
    _add_environment(values)
    _check_values(values)
    servers = tuple(servers_of(values))
    user = values.get("user") or _os_user()
    return ConnectOptions(
        servers=servers,
        user=user,
        password=values.get("password", ""),
        passfile=values.get("passfile", ""),
        database=values.get("dbname") or user,
        server_settings=_server_settings(values),
        tls=tls_of(values, servers),
        others={name: values[name] for name in _PASSED_ON if values.get(name)},
        shuffled=values.get("load_balance_hosts") == "random",
        connect_timeout=_positive(values, "connect_timeout"),
        keepalives=_integer(values, "keepalives") != 0,
        keepalives_idle=_positive(values, "keepalives_idle"),
        keepalives_interval=_positive(values, "keepalives_interval"),
        keepalives_count=_positive(values, "keepalives_count"),
        tcp_user_timeout=_positive(values, "tcp_user_timeout"),
    )


def _add_environment(values: dict[str, str]) -> None:
    for name, variable in PARAMETERS.items():
        if variable is not None and variable in os.environ:
            values.setdefault(name, os.environ[variable])
    if os.environ.get("PGREQUIRESSL", "").startswith("1"):
        values.setdefault("sslmode", "require")


def _check_values(values: Mapping[str, str]) -> None:
    for name, choices in _CHOICES.items():
        if name in values and values[name] not in choices:
            raise InvalidConfigError(f"{named(name)} is one of {', '.join(choices)}, not {values[name]!r}")
    for name, (reason, harmless) in _REFUSED.items():
        if values.get(name) and values[name] not in harmless:
            raise InvalidConfigError(f"{named(name)} can't be honoured: {reason}; leave it out")
    for (name, value), reason in _WEAKER.items():
        if values.get(name) == value:
            logger.warning("%s=%s is ignored: %s", name, value, reason)
    encoding = re.sub("[^a-z0-9]", "", values.get("client_encoding", "").lower())
    if encoding not in ("", "auto", "utf8", "unicode"):
        raise InvalidConfigError("client_encoding is always UTF8 here; leave it out")


def _os_user() -> str:
    try:
        if sys.platform == "win32":
            return getpass.getuser()
        import pwd

        # Not getpass, which believes the environment.
        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError, OSError) as error:
        raise InvalidConfigError(
            "the system doesn't know who we are; name the user: postgresql://user@host/"
        ) from error


def _server_settings(values: Mapping[str, str]) -> dict[str, str]:
    fallback = values.get("fallback_application_name", APPLICATION_NAME)
    found = {
        "application_name": values.get("application_name", fallback),
        "options": values.get("options", ""),
    }
    return {name: value for name, value in found.items() if value}


def _integer(values: Mapping[str, str], name: str) -> int | None:
    text = values.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch("[+-]?[0-9]{1,10}", text) or abs(int(text)) >= 1 << 31:
        raise InvalidConfigError(f"{named(name)} is a whole number, not {text!r}")
    return int(text)


def _positive(values: Mapping[str, str], name: str) -> int | None:
    """Read a number of which 0 and less mean the system's own."""
    found = _integer(values, name)
    return found if found is not None and found > 0 else None
