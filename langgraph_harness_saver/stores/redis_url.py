"""Where a Redis store connects to: URLs and other people's clients, in redis-py's words."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote

from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.stores.urls import did_you_mean, hosts_and_ports, port_of

Client: TypeAlias = "Redis | RedisCluster"

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
HEALTH_CHECK_SECONDS = 15
"""A connection that was idle for longer is asked whether it lives before it is used."""

_SCHEME = re.compile(r"(redis|rediss|valkey|valkeys|unix)(?:\+(\w+))?://", re.IGNORECASE)
_KINDS = ("", "cluster", "sentinel")
_PORTS = {"": 6379, "cluster": 6379, "sentinel": 26379}
_USAGE = (
    "use redis://user:password@host:6379/0, rediss:// for TLS, unix:///path/to/socket, "
    "redis+cluster://host1,host2 or redis+sentinel://host1,host2/service"
)


class Node(NamedTuple):
    """A server to ask first."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class RedisTarget:
    """Where to connect, and how."""

    connection: Mapping[str, Any] = field(repr=False)
    """What each connection is made of, in redis-py's words, but for its address."""
    nodes: tuple[Node, ...] = ()
    """The server, the nodes of a cluster that are asked for the others, or the sentinels."""
    path: str = ""
    """The Unix socket, where it is one."""
    cluster: bool = False
    service: str = ""
    """The name that sentinels know the master by, where they are asked for it."""
    sentinel: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What connections to sentinels are made of, and `min_other_sentinels`."""
    routing: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """How a cluster's nodes are found out."""
    tls: bool = False
    max_connections: int = 10
    """For each client; in a cluster for each node."""
    key_prefix: str | None = None
    """The one that the URL names."""
    given: Client | None = field(default=None, repr=False)
    """The caller's own client, which belongs to `home` and isn't ours to close."""
    home: asyncio.AbstractEventLoop | None = field(default=None, repr=False)

    def client(self) -> Client:
        """Return a client for the running event loop: the caller's on its own one, else a new one.

        It is to be closed unless it is `given`.
        """
        if self.given is not None and asyncio.get_running_loop() is self.home:
            return self.given
        return self.new_client()

    def new_client(self) -> Client:
        """Make a client that nobody else uses, and connect nothing yet.

        It tries nothing twice, and answers bytes. `aclose` closes all that it has opened.
        """
        if self.cluster:
            return self._new_cluster()
        if self.service:
            return _MasterClient(self)
        if self.path:
            place: dict[str, Any] = {"connection_class": UnixDomainSocketConnection, "path": self.path}
        else:
            ((host, port),) = self.nodes
            place = {"connection_class": self._connection_class(), "host": host, "port": port}
        pool = ConnectionPool(max_connections=self.max_connections, **self._for_connection(), **place)
        return Redis.from_pool(pool)

    def _new_cluster(self) -> RedisCluster:
        return RedisCluster(
            startup_nodes=[ClusterNode(node.host, node.port) for node in self.nodes],
            max_connections=self.max_connections,
            ssl=self.tls,
            retry=_retry_nothing(),
            **self.routing,
            **self.connection,
        )

    def _connection_class(self) -> type[Connection]:
        return SSLConnection if self.tls else Connection

    def _for_connection(self) -> dict[str, Any]:
        return {"retry": _retry_nothing(), **self.connection}

    def describe(self) -> str:
        """Name the place, for messages: without any secret."""
        if self.path:
            return f"{self.path}/{self.database}"
        places = ", ".join(map(str, self.nodes))
        if self.cluster:
            return f"the cluster at {places}"
        if self.service:
            return f"{self.service}/{self.database} of the sentinels at {places}"
        return f"{places}/{self.database}"

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(self.connection.get("db", 0))


class _MasterClient(Redis):
    """A client of whichever server the sentinels call the master; closes its connections to them too."""

    def __init__(self, target: RedisTarget) -> None:
        self._manager = Sentinel(  # type: ignore[no-untyped-call]
            target.nodes,
            min_other_sentinels=target.sentinel.get("min_other_sentinels", 0),
            sentinel_kwargs={
                "retry": _retry_nothing(),
                **{name: value for name, value in target.sentinel.items() if name != "min_other_sentinels"},
            },
        )
        pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            target.service,
            self._manager,
            max_connections=target.max_connections,
            ssl=target.tls,
            **target._for_connection(),
        )
        super().__init__(connection_pool=pool)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        try:
            # Not left to the argument: this pool is nobody else's.
            await super().aclose(close_connection_pool=True)
        finally:
            for sentinel in self._manager.sentinels:
                await sentinel.aclose()


def _retry_nothing() -> Retry:
    # The store itself tries again, and knows for how long.
    return Retry(NoBackoff(), 0)


def target_of(
    source: object,
    *,
    max_connections: int = 10,
    connect_timeout: float = CONNECT_SECONDS,
    timeout: float = ANSWER_SECONDS,
) -> RedisTarget:
    """Return where a URL or a client of redis-py leads to; connects nothing and reads no file.

    What the URL or the client itself says about connections and seconds wins.

    Raises:
        InvalidConfigError: It is neither, or it asks for what can't be had.
    """
    defaults = {
        "socket_connect_timeout": connect_timeout,
        "socket_timeout": timeout,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK_SECONDS,
        # Needs no HELLO, is cheaper to parse, and no reply of ours is any different.
        "protocol": 2,
    }
    target = _parse(source) if isinstance(source, str) else _of_client(source)
    if "max_connections" in target.connection:
        max_connections = target.connection["max_connections"]
    connection = {**defaults, **target.connection}
    connection.pop("max_connections", None)
    if target.path:
        del connection["socket_keepalive"]
    target = replace(target, connection=connection, max_connections=max_connections)
    if target.service:
        target = replace(target, sentinel=_sentinel_options(target))
    _check_supported(target)
    return target


def _sentinel_options(target: RedisTarget) -> dict[str, Any]:
    """Add what connections to sentinels have in common with those to servers: not the login."""
    tls = target.sentinel.get("ssl", target.tls)
    shared = ("socket_", "client_name", "protocol", *(("ssl_",) if tls else ()))
    found = {name: value for name, value in target.connection.items() if name.startswith(shared)}
    return {**found, "ssl": tls, **target.sentinel}


def _check_supported(target: RedisTarget) -> None:
    """Refuse what this redis-py doesn't know: only some versions and only some clients have it."""
    if not target.cluster:
        return
    known = set(inspect.signature(RedisCluster.__init__).parameters)
    for name in (*target.connection, *target.routing):
        if name not in known:
            raise InvalidConfigError(
                f"redis-py's cluster client has no option {name!r}, so it can't be honoured; leave it out"
            )


# --- URLs -----------------------------------------------------------------------------------------------


def _number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def _seconds(text: str) -> float | None:
    """Read seconds; none, or 0, is without end, as in redis-py."""
    return None if text.lower() in ("", "none", "0") else _number(text)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(text)
    return int(text)


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise ValueError(text)
    return int(text)


def _flag(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return known[text.lower()]


def _text(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


def _name(text: str) -> str:
    # What CLIENT SETNAME takes.
    if not re.fullmatch("[!-~]+", text):
        raise ValueError(text)
    return text


def _requirement(text: str) -> str:
    return {"none": "none", "optional": "optional", "required": "required"}[text.lower()]


def _tls_version(text: str) -> ssl.TLSVersion:
    known = {version.name.lower(): version for version in ssl.TLSVersion}
    word = text.lower().replace(".", "_")
    # A number is what redis-py takes.
    return known[word] if word in known else ssl.TLSVersion(int(text))


def _verify_flags(text: str) -> list[ssl.VerifyFlags]:
    return [ssl.VerifyFlags[name.strip()] for name in text.strip("[]").split(",")]


class _Option(NamedTuple):
    read: Callable[[str], Any]
    takes: str
    """What it takes, for messages."""


_A_FLAG = _Option(_flag, "true or false")
_A_TEXT = _Option(_text, "a text that isn't empty")
_SECONDS = _Option(_seconds, "a number of seconds, or none")
_FLAGS = _Option(_verify_flags, "names of ssl.VerifyFlags, separated by commas")

_CONNECTION = {
    "db": _Option(_count, "a whole number"),
    "username": _A_TEXT,
    "password": _Option(str, "a text"),
    "client_name": _Option(_name, "a text without spaces"),
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _A_FLAG,
    "socket_read_size": _Option(_positive, "a number of bytes"),
    "health_check_interval": _Option(_count, "a whole number of seconds"),
    "max_connections": _Option(_positive, "a whole number, 1 or more"),
}
_TLS = {
    "ssl_cert_reqs": _Option(_requirement, "none, optional or required"),
    "ssl_ca_certs": _A_TEXT,
    "ssl_ca_path": _A_TEXT,
    "ssl_ca_data": _A_TEXT,
    "ssl_certfile": _A_TEXT,
    "ssl_keyfile": _A_TEXT,
    "ssl_password": _A_TEXT,
    "ssl_check_hostname": _A_FLAG,
    "ssl_min_version": _Option(_tls_version, "TLSv1_2 or TLSv1_3"),
    "ssl_ciphers": _A_TEXT,
    "ssl_include_verify_flags": _FLAGS,
    "ssl_exclude_verify_flags": _FLAGS,
}
_OURS = {"key_prefix": _A_TEXT}
_CLUSTER = {
    "require_full_coverage": _A_FLAG,
    "dynamic_startup_nodes": _A_FLAG,
    "reinitialize_steps": _Option(_count, "a whole number"),
}
_SENTINEL = {
    "sentinel_username": _A_TEXT,
    "sentinel_password": _A_TEXT,
    "sentinel_ssl": _A_FLAG,
    "min_other_sentinels": _Option(_count, "a whole number"),
}
_OF_KIND = {"": {}, "cluster": _CLUSTER, "sentinel": _SENTINEL}
# What redis-py's own URLs know and nobody should believe it does, and the values that ask for nothing.
_RETRIES = ("the store itself tries again, for retry_seconds", ("false", "no", "0"))
_REPLICAS = ("a replica may not have yet what was acknowledged", ("false", "no", "0"))
_REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "decode_responses": ("the store reads and writes bytes", ("false", "no", "0")),
    "encoding": ("the store reads and writes bytes", ("utf-8", "utf8")),
    "encoding_errors": ("the store reads and writes bytes", ("strict",)),
    "protocol": ("the store speaks RESP2, which every server has", ("2",)),
    "legacy_responses": ("the store parses replies itself", ("true", "yes", "1")),
    "retry_on_timeout": _RETRIES,
    "retry_on_error": _RETRIES,
    "timeout": ("calls wait for one another's connections for retry_seconds", ("none",)),
    "single_connection_client": ("see max_connections", ("false", "no", "0")),
    "read_from_replicas": _REPLICAS,
    "load_balancing_strategy": _REPLICAS,
    "cluster_error_retry_attempts": _RETRIES,
}
_ELSEWHERE = {
    "user": "username",
    "pass": "password",
    "database": "db",
    "connect_timeout": "socket_connect_timeout",
    "application_name": "client_name",
    "ssl_ca_cert": "ssl_ca_certs",
    "ssl_ca_file": "ssl_ca_certs",
    "sslrootcert": "ssl_ca_certs",
    "pool_size": "max_connections",
    "prefix": "key_prefix",
}


def _parse(url: str) -> RedisTarget:
    # Secrets that come from files often end in a newline.
    url = url.strip()
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise InvalidConfigError(f"that is not a Redis URL; {_USAGE}")
    protocol, kind = scheme[1].lower(), (scheme[2] or "").lower()
    if kind not in _KINDS or (protocol == "unix" and kind):
        raise InvalidConfigError(f"there is no URL of the kind {scheme[0]!r}; {_USAGE}")
    rest, _, query = url[scheme.end() :].partition("?")
    if "#" in rest or "#" in query:
        raise InvalidConfigError('a Redis URL has a stray "#"; in a name or a password write # as %23')
    tls = protocol in ("rediss", "valkeys")
    place = _read(rest)
    connection = {**_options(query, kind, tls), **place.login}
    if tls:
        # Older versions of redis-py leave that out unless told.
        connection.setdefault("ssl_check_hostname", connection.get("ssl_cert_reqs") != "none")
    own = {name: connection.pop(name) for name in (*_OURS, *_SENTINEL, *_CLUSTER) if name in connection}
    base = RedisTarget(
        connection,
        tls=tls,
        key_prefix=own.get("key_prefix"),
    )
    if protocol == "unix":
        return replace(base, path=_socket_path(place))
    nodes = _nodes(place.hosts, _PORTS[kind])
    if kind == "cluster":
        _check_database_of_cluster(place.path, connection)
        routing = {name: own[name] for name in _CLUSTER if name in own}
        return replace(base, nodes=nodes, cluster=True, routing=routing)
    if kind == "sentinel":
        service, _, database = place.path.partition("/")
        sentinel = {name.removeprefix("sentinel_"): own[name] for name in _SENTINEL if name in own}
        base = replace(base, nodes=nodes, service=_service(service), sentinel=sentinel)
        return _with_database(base, database)
    if len(nodes) > 1:
        raise InvalidConfigError(
            "redis:// takes one host; several of a cluster go into redis+cluster://host1,host2, several "
            "sentinels into redis+sentinel://host1,host2/service"
        )
    return _with_database(replace(base, nodes=nodes), place.path)


class _Place(NamedTuple):
    """What stands before the question mark."""

    login: Mapping[str, str]
    hosts: str
    path: str


def _read(rest: str) -> _Place:
    place, _, path = rest.partition("/")
    login, _, hosts = place.rpartition("@")
    if "@" in path:
        raise InvalidConfigError(
            'a Redis URL has a stray "@"; in a name or a password write @ as %40, / as %2F'
        )
    user, _, password = login.partition(":")
    named = {"username": _decoded(user), "password": _decoded(password)}
    return _Place({name: text for name, text in named.items() if text}, hosts, _decoded(path))


def _decoded(text: str) -> str:
    """Undo percent-encoding; as in redis-py a % that begins no code stands for itself."""
    try:
        decoded = unquote(text, errors="strict")
    except ValueError:
        decoded = "\0"
    if "\0" in decoded:
        # Without its cause, which quotes the text.
        raise InvalidConfigError("a Redis URL is percent-encoded UTF-8: write % as %25") from None
    return decoded


def _options(query: str, kind: str, tls: bool) -> dict[str, Any]:
    known = {**_CONNECTION, **_TLS, **_OURS, **_OF_KIND[kind]}
    values: dict[str, Any] = {}
    for name, text in _pairs(query):
        if name in _REFUSED:
            _check_harmless(name, text)
        elif name not in known:
            raise InvalidConfigError(_unknown(name, kind, known))
        elif name in _TLS and not tls:
            raise InvalidConfigError(
                f"{name} is for TLS; write rediss:// instead of redis://, or leave it out"
            )
        else:
            values[name] = _value(name, text, known[name])
    return values


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    try:
        yield from parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        raise InvalidConfigError(
            "after its ? a Redis URL takes name=value&name=value; percent-encode what is special in a value"
        ) from None


def _check_harmless(name: str, text: str) -> None:
    reason, harmless = _REFUSED[name]
    if text.lower() not in harmless:
        raise InvalidConfigError(f"{name} can't be honoured: {reason}; leave it out")


def _unknown(name: str, kind: str, known: Mapping[str, Any]) -> str:
    if name in ("ssl", "tls"):
        return f"{name} is no option of a Redis URL; write rediss:// (or valkeys://) for TLS"
    elsewhere = next((f" it is for redis+{other}://;" for other, own in _OF_KIND.items() if name in own), "")
    near = elsewhere or did_you_mean(name, known, _ELSEWHERE)
    what = f"redis+{kind}://" if kind else "a Redis URL"
    return f"{what} has no option {name!r};{near} there are {', '.join(known)}"


def _value(name: str, text: str, option: _Option) -> Any:
    try:
        return option.read(text)
    except (KeyError, ValueError):
        # Not shown where it may be a secret.
        shown = "" if "pass" in name or name == "ssl_ca_data" else f", not {text!r}"
        raise InvalidConfigError(f"{name} in a Redis URL is {option.takes}{shown}") from None


def _socket_path(place: _Place) -> str:
    if place.hosts or not place.path:
        raise InvalidConfigError(
            "a socket is named by its whole path, after three slashes, unix:///run/redis/redis.sock; its "
            "database stands after that, ?db=1"
        )
    return f"/{place.path}"


def _nodes(hosts: str, default: int) -> tuple[Node, ...]:
    pairs = hosts_and_ports(hosts, "Redis")
    return tuple(Node(_decoded(host) or "localhost", port_of(port, default)) for host, port in pairs)


def _with_database(target: RedisTarget, path: str) -> RedisTarget:
    """Take the database from the path, if no option names it: there redis-py looks first, too."""
    path = path.strip("/")
    if not path or "db" in target.connection:
        return target
    # Not shown: it may be what follows a "/" in a password.
    if not re.fullmatch("[0-9]{1,9}", path):
        raise InvalidConfigError(
            "after the host of a Redis URL stands the number of its database, redis://host:6379/0; in a "
            "password write / as %2F"
        )
    return replace(target, connection={**target.connection, "db": int(path)})


def _service(name: str) -> str:
    if not name:
        raise InvalidConfigError(
            "sentinels want to know whose master they are asked for: redis+sentinel://host1,host2/mymaster"
        )
    return name


def _check_database_of_cluster(path: str, connection: dict[str, Any]) -> None:
    if path.strip("/") not in ("", "0") or connection.pop("db", 0) != 0:
        raise InvalidConfigError(
            "a Redis Cluster has database 0 only; leave the number out, and keep applications apart by "
            "their key_prefix"
        )


# --- Clients --------------------------------------------------------------------------------------------

# What a client's connections are made of and ours are, too; the rest is how redis-py works inside.
_TAKEN = {
    *(_CONNECTION.keys() - {"max_connections"}),
    *_TLS,
    *("credential_provider", "socket_keepalive_options"),
}
_OCSP = ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled")


def _of_client(client: Any) -> RedisTarget:
    """Read what a client of redis-py, or of valkey-py, is made of."""
    if hasattr(client, "nodes_manager"):
        target = _of_cluster(client)
    elif hasattr(client, "connection_pool"):
        target = _of_pool(client.connection_pool)
    else:
        raise InvalidConfigError(
            f"a {type(client).__name__} is no client of redis-py; pass a Redis or a RedisCluster, or a URL"
        )
    if not isinstance(client, (Redis, RedisCluster)) or _decodes(client):
        return target
    with suppress(RuntimeError):
        return replace(target, given=client, home=asyncio.get_running_loop())
    return target


def _decodes(client: Client) -> bool:
    """Tell whether replies come as texts, which checkpoints aren't, or one at a time."""
    if isinstance(client, RedisCluster):
        return bool(client.connection_kwargs.get("decode_responses"))
    pool = client.connection_pool
    return bool(pool.connection_kwargs.get("decode_responses")) or client.single_connection_client


def _of_cluster(client: Any) -> RedisTarget:
    manager = client.nodes_manager
    kwargs = manager.connection_kwargs
    nodes = tuple(Node(node.host, int(node.port)) for node in manager.startup_nodes.values())
    is_tls = _is_tls(kwargs.get("connection_class")) or bool(kwargs.get("ssl"))
    connection = _taken(kwargs, is_tls)
    connection.pop("db", None)
    return RedisTarget(connection, nodes=nodes, cluster=True, tls=is_tls)


def _of_pool(pool: Any) -> RedisTarget:
    kwargs, kind = pool.connection_kwargs, pool.connection_class
    is_tls = _is_tls(kind)
    base = RedisTarget(_taken(kwargs, is_tls), tls=is_tls)
    if hasattr(pool, "sentinel_manager"):
        return _of_sentinels(base, pool)
    if "path" in kwargs:
        return replace(base, path=kwargs["path"])
    if not kwargs.get("host", "localhost"):
        raise InvalidConfigError("the Redis client doesn't tell where it leads; pass a URL")
    return replace(base, nodes=(Node(kwargs.get("host", "localhost"), int(kwargs.get("port", 6379))),))


def _of_sentinels(base: RedisTarget, pool: Any) -> RedisTarget:
    manager = pool.sentinel_manager
    asked = [sentinel.connection_pool for sentinel in manager.sentinels]
    nodes = tuple(Node(p.connection_kwargs["host"], int(p.connection_kwargs["port"])) for p in asked)
    is_tls = _is_tls(asked[0].connection_class)
    sentinel = {
        **_taken(asked[0].connection_kwargs, is_tls),
        "ssl": is_tls,
        "min_other_sentinels": manager.min_other_sentinels,
    }
    return replace(base, nodes=nodes, service=_text_of(pool.service_name), sentinel=sentinel)


def _text_of(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _is_tls(kind: type | None) -> bool:
    return kind is not None and any("SSL" in cls.__name__ for cls in kind.__mro__)


def _taken(kwargs: Mapping[str, Any], is_tls: bool) -> dict[str, Any]:
    if any(kwargs.get(name) for name in _OCSP):
        raise InvalidConfigError(
            "the client checks certificates by OCSP, which redis-py's async clients can't; pass a URL, or a "
            "client without it"
        )
    wanted = _TAKEN if is_tls else _TAKEN - _TLS.keys()
    taken = {name: kwargs[name] for name in wanted if kwargs.get(name) is not None}
    if is_tls and kwargs.get("ssl_cert_reqs", "") is None:
        # To redis-py None is no requirement, while what isn't said is the strictest.
        taken["ssl_cert_reqs"] = "none"
    return taken
