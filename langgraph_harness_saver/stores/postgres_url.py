"""Where a Postgres store connects to: libpq's URLs and keywords, in asyncpg's words."""

from __future__ import annotations

import functools
import getpass
import inspect
import ipaddress
import logging
import os
import random
import re
import socket
import ssl
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.stores.urls import did_you_mean, hosts_and_ports, port_of

logger = logging.getLogger(__name__)

APPLICATION_NAME = "langgraph-harness-saver"

_SCHEME = re.compile(r"(?:postgres|postgresql)(?:\+\w+)?://", re.IGNORECASE)
_LOGIN = re.compile(r"([^@/:]*)(?::([^@/]*))?@")
_REST = re.compile(r"([^/?]*)(?:/([^?]*))?(?:\?(.*))?", re.DOTALL)
_KEYWORD = re.compile(r"\s*[A-Za-z_]+\s*=", re.ASCII)
_PAIR = re.compile(
    r"\s*([^\s=]*)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|(?![\s'])((?:[^\s\\]|\\.?)*))", re.ASCII | re.DOTALL
)
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_PASSFILE_LINE = re.compile(":".join([r"((?:[^:\\]|\\.)*)"] * 5))

# Every parameter that libpq has, old ones too, and the environment variable that stands in for it.
# PGCLIENTENCODING isn't here: it is meant for programs that show text, and Python's strings have none.
_PARAMETERS: dict[str, str | None] = {
    "application_name": "PGAPPNAME",
    "authtype": None,
    "channel_binding": "PGCHANNELBINDING",
    "client_encoding": None,
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "dbname": "PGDATABASE",
    "fallback_application_name": None,
    "gssdelegation": "PGGSSDELEGATION",
    "gssencmode": "PGGSSENCMODE",
    "gsslib": "PGGSSLIB",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "keepalives": None,
    "keepalives_count": None,
    "keepalives_idle": None,
    "keepalives_interval": None,
    "krbsrvname": "PGKRBSRVNAME",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "max_protocol_version": "PGMAXPROTOCOLVERSION",
    "min_protocol_version": "PGMINPROTOCOLVERSION",
    "oauth_client_id": None,
    "oauth_client_secret": None,
    "oauth_issuer": None,
    "oauth_scope": None,
    "options": "PGOPTIONS",
    "passfile": "PGPASSFILE",
    "password": "PGPASSWORD",
    "port": "PGPORT",
    "replication": None,
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "requiressl": None,
    "scram_client_key": None,
    "scram_server_key": None,
    "service": "PGSERVICE",
    "servicefile": "PGSERVICEFILE",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "sslcert": "PGSSLCERT",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcompression": "PGSSLCOMPRESSION",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslkey": "PGSSLKEY",
    "sslkeylogfile": None,
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslpassword": None,
    "sslrootcert": "PGSSLROOTCERT",
    "sslsni": "PGSSLSNI",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "tcp_user_timeout": None,
    "tty": None,
    "user": "PGUSER",
}
_ELSEWHERE = {"database": "dbname", "db": "dbname", "username": "user", "timeout": "connect_timeout"}
_SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
_TLS_VERSIONS = ("ssl_min_protocol_version", "ssl_max_protocol_version")
_TLS = (
    *("sslmode", "sslnegotiation", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl"),
    *_TLS_VERSIONS,
)
_PASSED_ON = ("target_session_attrs", "krbsrvname", "gsslib")
_VERIFYING = ("verify-ca", "verify-full")
_STRONG = ("require", *_VERIFYING)
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", *_STRONG),
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
_SOCKET_DIRS = ("/run/postgresql", "/var/run/postgresql", "/tmp")  # noqa: S108
_SERVICE_DIRS = ("/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc")
_USAGE = "use postgresql://user:password@host:5432/database, or host=localhost dbname=x password='a b'"


class Server(NamedTuple):
    """One place to try, and the name that its passwords and certificates go by."""

    target: str
    port: int
    name: str

    @property
    def is_socket(self) -> bool:
        """Whether it is a Unix socket's directory."""
        return self.target.startswith("/")

    def where(self, database: str) -> str:
        """Return a text for messages."""
        if self.is_socket:
            return f"{self.target}/.s.PGSQL.{self.port}"
        host = f"[{self.target}]" if ":" in self.target else self.target
        return f"{host}:{self.port}/{database}"


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
        return [{**kwargs, "ssl": context} for context in _contexts(self.tls)]

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
        """Look the password up in libpq's password file."""
        entries = list(_passfile_entries(self.passfile))
        found = {_matching_password(entries, server, self.database, self.user) for server in self.servers}
        if len(found) > 1:
            raise InvalidConfigError(
                "the password file has different passwords for these hosts, and asyncpg sends one to all; "
                "give the password with the URL, or one host"
            )
        return found.pop() or ""

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
    values = _settings(conn_string)
    _add_service(values)
    _add_environment(values)
    _check_values(values)
    servers = tuple(_servers(values))
    user = values.get("user") or _os_user()
    return ConnectOptions(
        servers=servers,
        user=user,
        password=values.get("password", ""),
        passfile=values.get("passfile", ""),
        database=values.get("dbname") or user,
        server_settings=_server_settings(values),
        tls=_tls(values, servers),
        others={name: values[name] for name in _PASSED_ON if values.get(name)},
        shuffled=values.get("load_balance_hosts") == "random",
        connect_timeout=_positive(values, "connect_timeout"),
        keepalives=_integer(values, "keepalives") != 0,
        keepalives_idle=_positive(values, "keepalives_idle"),
        keepalives_interval=_positive(values, "keepalives_interval"),
        keepalives_count=_positive(values, "keepalives_count"),
        tcp_user_timeout=_positive(values, "tcp_user_timeout"),
    )


def is_keyword_string(text: str) -> bool:
    """Tell whether a text is libpq's `host=localhost dbname=x` rather than a URL."""
    return _KEYWORD.match(text) is not None


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
    settings = _settings(conninfo or "")
    for name, value in (kwargs or {}).items():
        if name in _PARAMETERS and value is not None:
            settings[name] = str(value)
    return _keyword_string(settings)


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
    return _keyword_string({name: value for name, value in settings.items() if value})


def _keyword_string(settings: Mapping[str, str]) -> str:
    return " ".join(f"{name}='{_escaped(value)}'" for name, value in settings.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("'", r"\'")


def _settings(conn_string: str) -> dict[str, str]:
    """Read a connection string as it stands."""
    # Secrets that come from files often end in a newline.
    text = conn_string.strip()
    if "\0" in text:
        raise InvalidConfigError("a Postgres connection string holds no NUL; remove it")
    scheme = _SCHEME.match(text)
    pairs = list(_url_pairs(text[scheme.end() :]) if scheme else _keyword_pairs(text))
    _check_known(name for name, _ in pairs)
    return dict(_modern(name, value) for name, value in pairs)


def _modern(name: str, value: str) -> tuple[str, str]:
    if name == "requiressl":
        return "sslmode", "require" if value.startswith("1") else "prefer"
    return name, value


def _keyword_pairs(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        found = _PAIR.match(text, at)
        if found is None:
            raise InvalidConfigError(
                f'a Postgres connection string lacks a scheme, a "=" or a closing quote; {_USAGE}'
            )
        name, quoted, bare = found.groups()
        yield name, _ESCAPED.sub(r"\1", bare if quoted is None else quoted)
        at = found.end()


def _url_pairs(rest: str) -> Iterator[tuple[str, str]]:
    login = _LOGIN.match(rest)
    parts = _REST.fullmatch(rest, login.end() if login else 0)
    place, path, query = parts.groups() if parts else ("", "", "")
    # To libpq the password ends at the first "@" and a login at the first "/".
    if "@" in place or (login and "?" in login[1]) or (not login and "@" in (path or "")):
        raise InvalidConfigError(
            'a Postgres URL has a stray "@"; in a name or a password write @ as %40, / as %2F'
        )
    user, password = login.groups() if login else ("", "")
    hosts, ports = (",".join(part) for part in zip(*hosts_and_ports(place, "Postgres"), strict=True))
    named = {"user": user, "password": password, "host": hosts, "port": ports, "dbname": path}
    yield from ((name, _decoded(text)) for name, text in named.items() if text)
    yield from _query_pairs(query or "")


def _query_pairs(query: str) -> Iterator[tuple[str, str]]:
    for item in query.removesuffix("&").split("&") if query else ():
        if item.count("=") != 1:
            raise InvalidConfigError(
                "after its ? a Postgres URL takes name=value&name=value; in a value write = as %3D, & as %26"
            )
        name, value = (_decoded(part) for part in item.split("="))
        # As Java's driver has it; libpq knows that too.
        yield ("sslmode", "require") if (name, value) == ("ssl", "true") else (name, value)


def _decoded(text: str) -> str:
    """Undo percent-encoding as libpq does: a plus sign stays, and nothing is guessed."""
    text = text.strip(" ")
    try:
        if " " in text or re.search("%(?:00|(?![0-9A-Fa-f]{2}))", text):
            raise ValueError(text)
        return unquote(text, errors="strict")
    except ValueError:
        # Without its cause, which quotes the text.
        raise InvalidConfigError(
            "a Postgres URL is percent-encoded UTF-8: write % as %25 and a space as %20"
        ) from None


def _check_known(names: Iterable[str], place: str = "Postgres") -> None:
    before = ""
    for name in names:
        if name not in _PARAMETERS:
            raise InvalidConfigError(
                f"the end of {before} reads as another parameter; percent-encode it in a URL, else quote it"
                if before in _SECRETS
                else _unknown(name, place)
            )
        before = name


def _unknown(name: str, place: str) -> str:
    guess = did_you_mean(name, _PARAMETERS, _ELSEWHERE)
    return (
        f"{place} has no connection parameter {name!r};{guess} a setting of the server goes into "
        "options=-cname=value, with = as %3D in a URL, and a driver's own options are passed beside it"
    )


def _add_service(values: dict[str, str]) -> None:
    """Add what the service's section of the first file that has one says."""
    service = values.get("service", os.environ.get("PGSERVICE"))
    if not service:
        return
    files = list(_service_files(values))
    for file in files:
        found = _service_section(file, service)
        if found is not None:
            values.update({**found, **values})
            return
    raise InvalidConfigError(
        f"there is no service {service!r} in {', '.join(map(str, files))}; "
        "write a section for it or set PGSERVICEFILE"
    )


def _service_files(values: Mapping[str, str]) -> Iterator[Path]:
    named = values.get("servicefile", os.environ.get("PGSERVICEFILE"))
    yield Path(named) if named else _home(".pg_service.conf")
    system = os.environ.get("PGSYSCONFDIR")
    # Each build of libpq has its own.
    yield from (Path(folder) / "pg_service.conf" for folder in ([system] if system else _SERVICE_DIRS))


def _service_section(file: Path, service: str) -> dict[str, str] | None:
    # Not configparser: it would read a % in a password as a reference.
    lines = [line.strip() for line in _lines(file)]
    start = next((at for at, line in enumerate(lines) if line.startswith(f"[{service}]")), None)
    if start is None:
        return None
    pairs = []
    for line in lines[start + 1 :]:
        if line.startswith("["):
            break
        if line and not line.startswith("#"):
            pairs.append(_service_pair(file, line))
    _check_known((name for name, _ in pairs), str(file))
    return dict(_modern(name, value) for name, value in reversed(pairs))


def _service_pair(file: Path, line: str) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    if not equals or name in ("service", "servicefile"):
        raise InvalidConfigError(
            f"{file}: a service is described in lines name=value, without another service"
        )
    return name, value


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []


def _home(name: str) -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", "~")).expanduser() / "postgresql" / name
    # Doesn't raise where there is no home.
    return Path(os.path.expanduser("~")) / name


def _add_environment(values: dict[str, str]) -> None:
    for name, variable in _PARAMETERS.items():
        if variable is not None and variable in os.environ:
            values.setdefault(name, os.environ[variable])
    if os.environ.get("PGREQUIRESSL", "").startswith("1"):
        values.setdefault("sslmode", "require")


def _check_values(values: Mapping[str, str]) -> None:
    for name, choices in _CHOICES.items():
        if name in values and values[name] not in choices:
            raise InvalidConfigError(f"{_named(name)} is one of {', '.join(choices)}, not {values[name]!r}")
    for name, (reason, harmless) in _REFUSED.items():
        if values.get(name) and values[name] not in harmless:
            raise InvalidConfigError(f"{_named(name)} can't be honoured: {reason}; leave it out")
    for (name, value), reason in _WEAKER.items():
        if values.get(name) == value:
            logger.warning("%s=%s is ignored: %s", name, value, reason)
    encoding = re.sub("[^a-z0-9]", "", values.get("client_encoding", "").lower())
    if encoding not in ("", "auto", "utf8", "unicode"):
        raise InvalidConfigError("client_encoding is always UTF8 here; leave it out")


def _named(name: str) -> str:
    variable = _PARAMETERS[name]
    return f"{name} (or {variable})" if variable else name


def _servers(values: Mapping[str, str]) -> Iterator[Server]:
    names, addresses = _listed(values, "host"), _listed(values, "hostaddr")
    if addresses and names and len(addresses) != len(names):
        raise InvalidConfigError("host and hostaddr name different numbers of servers; name each in both")
    count = len(addresses or names) or 1
    ports = _listed(values, "port") or [""]
    if len(ports) not in (1, count):
        raise InvalidConfigError(f"there are {len(ports)} ports for {count} hosts; give one, or one for each")
    for at in range(count):
        name = names[at] if names else ""
        address = addresses[at] if addresses else ""
        yield from _one_server(name, address, port_of(ports[at % len(ports)], 5432))


def _one_server(name: str, address: str, port: int) -> Iterator[Server]:
    if name.startswith("@") and not address:
        raise InvalidConfigError(
            "asyncpg can't reach abstract sockets; use one with a path, host=/run/postgresql"
        )
    if name or address:
        yield Server(_checked_address(address) or name, port, name or address)
        return
    for default in ("localhost",) if sys.platform == "win32" else (*_SOCKET_DIRS, "localhost"):
        yield Server(default, port, "localhost")


def _checked_address(address: str) -> str:
    try:
        if address:
            ipaddress.ip_address(address)
    except ValueError:
        raise InvalidConfigError("hostaddr is the number of an IP address; a name goes into host") from None
    return address


def _listed(values: Mapping[str, str], name: str) -> list[str]:
    found = values.get(name)
    return [item.strip() for item in found.split(",")] if found else []


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


def _passfile_entries(given: str) -> Iterator[tuple[str, ...]]:
    file = Path(given) if given else _home("pgpass.conf" if sys.platform == "win32" else ".pgpass")
    # Path's own raise where the directory is closed to us.
    if not os.path.isfile(file):
        return
    if sys.platform != "win32" and file.stat().st_mode & 0o077:
        _warn_of_open_passfile(file)
        return
    for line in _lines(file):
        found = None if line.startswith("#") else _PASSFILE_LINE.match(line.rstrip("\r"))
        if found:
            yield found.groups()


@functools.cache
def _warn_of_open_passfile(file: Path) -> None:
    """Say so once, and not for every connection."""
    logger.warning("%s is ignored: others may read it; chmod 600 makes it private", file)


def _matching_password(
    entries: Iterable[tuple[str, ...]], server: Server, database: str, user: str
) -> str | None:
    host = "localhost" if server.name in _SOCKET_DIRS else server.name
    wanted = (host, str(server.port), database, user)
    for *patterns, password in entries:
        if all(
            pattern == "*" or _ESCAPED.sub(r"\1", pattern) == value
            for pattern, value in zip(patterns, wanted, strict=True)
        ):
            return _ESCAPED.sub(r"\1", password)
    return None


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
        raise InvalidConfigError(f"{_named(name)} is a whole number, not {text!r}")
    return int(text)


def _positive(values: Mapping[str, str], name: str) -> int | None:
    """Read a number of which 0 and less mean the system's own."""
    found = _integer(values, name)
    return found if found is not None and found > 0 else None


def _tls(values: Mapping[str, str], servers: Iterable[Server]) -> dict[str, str]:
    """Choose what applies, and refuse what would fail on every connection."""
    tls = {name: values[name] for name in _TLS if values.get(name)}
    if tls.get("sslrootcert") == "system":
        tls.setdefault("sslmode", "verify-full")
    mode = tls.get("sslmode", "prefer")
    _check_strength(tls, mode)
    # libpq leaves TLS away on Unix sockets, whatever the mode.
    if mode == "disable" or all(server.is_socket for server in servers):
        return {"sslmode": "disable"}
    if mode == "verify-full" and any(
        server.target != server.name for server in servers if not server.is_socket
    ):
        raise InvalidConfigError(
            "with a hostaddr asyncpg can't verify the name in host; leave hostaddr out, or use "
            "sslmode=verify-ca"
        )
    versions = {name: _tls_version(name, tls[name]) for name in _TLS_VERSIONS if name in tls}
    lowest, highest = (versions.get(name, "") for name in _TLS_VERSIONS)
    if highest and highest < (lowest or "TLSv1.2"):
        raise InvalidConfigError(
            "ssl_max_protocol_version is below ssl_min_protocol_version, which is TLSv1.2 unless you lower it"
        )
    return {**tls, **versions}


def _check_strength(tls: Mapping[str, str], mode: str) -> None:
    if tls.get("sslrootcert") == "system" and mode != "verify-full":
        raise InvalidConfigError(
            "sslrootcert=system goes with sslmode=verify-full only: anybody can get such a one"
        )
    if tls.get("sslnegotiation") == "direct" and mode not in _STRONG:
        raise InvalidConfigError("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full")


def _own_file(name: str) -> str | None:
    # Where asyncpg looks, on Windows too.
    file = os.path.join(os.path.expanduser("~"), ".postgresql", name)
    return file if os.path.exists(file) else None


def _tls_version(name: str, value: str) -> str:
    known = {version.lower(): version for version in ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")}
    if value.lower() not in known:
        raise InvalidConfigError(f"{_named(name)} is one of {', '.join(known.values())}, not {value!r}")
    return known[value.lower()]


def _contexts(tls: Mapping[str, str]) -> list[ssl.SSLContext | Literal[False]]:
    """Return how to connect, in the order that libpq tries it."""
    mode = tls.get("sslmode", "prefer")
    if mode == "disable":
        return [False]
    context = _context(tls, mode)
    if mode == "allow":
        return [False, context]
    return [context, False] if mode == "prefer" else [context]


def _context(tls: Mapping[str, str], mode: str) -> ssl.SSLContext:
    """Make what asyncpg makes, and for sslrootcert=system as well."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.minimum_version = _version(tls.get("ssl_min_protocol_version", "TLSv1.2"))
    if "ssl_max_protocol_version" in tls:
        context.maximum_version = _version(tls["ssl_max_protocol_version"])
    context.set_alpn_protocols(["postgresql"])
    # With a weaker mode nothing is verified.
    if mode not in _STRONG:
        context.verify_mode = ssl.CERT_NONE
    else:
        _load_roots(context, tls, mode)
        _load_revoked(context, tls)
    _load_own_certificate(context, tls)
    keys = os.environ.get("SSLKEYLOGFILE")
    if keys and not sys.flags.ignore_environment:
        with _naming("SSLKEYLOGFILE", keys):
            context.keylog_filename = keys
    return context


def _version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]


def _load_roots(context: ssl.SSLContext, tls: Mapping[str, str], mode: str) -> None:
    roots = tls.get("sslrootcert") or _own_file("root.crt")
    if roots == "system":
        context.load_default_certs()
    elif roots:
        with _naming(_named("sslrootcert"), roots):
            context.load_verify_locations(cafile=roots)
    elif mode in _VERIFYING:
        raise InvalidConfigError(
            f"sslmode={mode} needs to know whom to trust: add sslrootcert=/path/to/ca.pem, or "
            "sslrootcert=system for the authorities that this machine trusts"
        )
    else:
        context.verify_mode = ssl.CERT_NONE


def _load_revoked(context: ssl.SSLContext, tls: Mapping[str, str]) -> None:
    revoked = tls.get("sslcrl") or _own_file("root.crl")
    if revoked:
        with _naming(_named("sslcrl"), revoked):
            context.load_verify_locations(cafile=revoked)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN


def _load_own_certificate(context: ssl.SSLContext, tls: Mapping[str, str]) -> None:
    certificate = tls.get("sslcert") or _own_file("postgresql.crt")
    if certificate:
        key = tls.get("sslkey") or _own_file("postgresql.key")
        with _naming(f"{_named('sslcert')}, or its sslkey,", f"{certificate}, {key}" if key else certificate):
            # Without a password OpenSSL would ask whoever sits at the terminal.
            context.load_cert_chain(certificate, key, lambda: tls.get("sslpassword", ""))


@contextmanager
def _naming(what: str, file: str) -> Iterator[None]:
    """Say which file it was."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InvalidConfigError(f"{what} can't be used: {file}: {error}") from error
