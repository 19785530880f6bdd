"""Where Redis stores connect to: URLs, callers' clients, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
import sys
import threading
import warnings
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
import servers
from helpers import thread
from langgraph.checkpoint.base import empty_checkpoint
from servers import RedisSentinels, RedisServer
from test_postgres_url import papers  # noqa: F401
from test_stores import count_redis

from langgraph_harness_saver import CheckpointerConfig, HarnessCheckpointer
from langgraph_harness_saver.bridge import Bridge
from langgraph_harness_saver.errors import (
    InvalidConfigError,
    SchemaError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from langgraph_harness_saver.stores.redis import RedisStore
from langgraph_harness_saver.stores.redis_errors import (
    DRIVER_ERRORS,
    code_of,
    is_lost,
    is_never_there,
    is_transient,
    translate,
)
from langgraph_harness_saver.stores.redis_url import Node, RedisTarget, target_of
from langgraph_harness_saver.testing import StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from helpers import Door
    from servers import Redis, RedisCluster
    from test_postgres_url import Papers

    from langgraph_harness_saver.stores.base import Store

pytest_plugins = ["servers"]

DOCS = (Path(__file__).parent.parent / "docs" / "redis.md").read_text(encoding="utf-8")
RULE = re.search(r"^ACL SETUSER agents on >password (.+)$", DOCS, re.MULTILINE)[1].split()


@asynccontextmanager
async def connected(source: Any, **options: Any) -> AsyncIterator[Any]:
    client = target_of(source, **options).new_client()
    try:
        yield client
    finally:
        await client.aclose()


async def ask(source: Any, *command: Any) -> Any:
    async with connected(source, connect_timeout=5) as client:
        return await client.execute_command(*(command or ("PING",)))


async def error_of(source: Any, *command: Any) -> BaseException:
    """Ask, and give redis-py's error."""
    with pytest.raises(DRIVER_ERRORS) as caught:
        await ask(source, *command)
    return caught.value


# --- What URLs mean -------------------------------------------------------------------------------------


def nodes_of(url: str) -> list[tuple[str, int]]:
    return [tuple(node) for node in target_of(url).nodes]


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("redis://", [("localhost", 6379)]),
        ("redis://h", [("h", 6379)]),
        ("redis://h/", [("h", 6379)]),
        ("REDIS://h:1", [("h", 1)]),
        (" redis://h:1/0\n", [("h", 1)]),
        ("rediss://h:1", [("h", 1)]),
        ("valkey://h", [("h", 6379)]),
        ("valkeys://h:2", [("h", 2)]),
        ("redis://[::1]:7", [("::1", 7)]),
        ("redis://u:p@[fe80::1%25eth0]", [("fe80::1%eth0", 6379)]),
        ("redis+cluster://a,b:2,[::1]:3", [("a", 6379), ("b", 2), ("::1", 3)]),
        ("valkeys+cluster://a", [("a", 6379)]),
        ("redis+sentinel://a,b:2/s", [("a", 26379), ("b", 2)]),
        ("redis://:p@w@h", [("h", 6379)]),
    ],
)
def test_nodes(url: str, nodes: list[tuple[str, int]]) -> None:
    assert nodes_of(url) == nodes


@pytest.mark.parametrize(
    ("url", "path", "db"),
    [
        ("unix:///run/redis.sock", "/run/redis.sock", 0),
        ("unix:///a%20b?db=3", "/a b", 3),
        ("unix://user:word@/run/s?db=1", "/run/s", 1),
    ],
)
def test_sockets(url: str, path: str, db: int) -> None:
    target = target_of(url)
    assert (target.path, target.database, target.nodes) == (path, db, ())
    assert target.describe() == f"{path}/{db}"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("redis://h/2", {"db": 2}),
        ("redis://h?db=2", {"db": 2}),
        ("redis://h/1?db=2", {"db": 2}),
        ("redis+sentinel://h/s/4", {"db": 4}),
        ("redis+cluster://h/0?db=0", {}),
        ("redis://u@h", {"username": "u"}),
        ("redis://:p@h", {"password": "p"}),
        ("redis://u:@h", {"username": "u"}),
        ("redis://u:p%40%2F%3A%20%25@h", {"username": "u", "password": "p@/: %"}),
        ("redis://u:a:b%zz@h", {"username": "u", "password": "a:b%zz"}),
        ("redis://h?username=u&password=p%2B%26", {"username": "u", "password": "p+&"}),
        ("redis://v:w@h?username=u&password=p", {"username": "v", "password": "w"}),
        ("redis://h?client_name=me", {"client_name": "me"}),
        ("redis://h?socket_timeout=1.5&socket_connect_timeout=2", {"socket_timeout": 1.5}),
        ("redis://h?socket_timeout=none", {"socket_timeout": None}),
        ("redis://h?socket_timeout=0", {"socket_timeout": None}),
        ("redis://h?socket_keepalive=no&socket_read_size=9", {"socket_keepalive": False}),
        ("redis://h?health_check_interval=0", {"health_check_interval": 0}),
        ("rediss://h?ssl_cert_reqs=NONE", {"ssl_cert_reqs": "none"}),
        ("rediss://h?ssl_check_hostname=false", {"ssl_check_hostname": False}),
        ("rediss://h?ssl_min_version=TLSv1.3", {"ssl_min_version": ssl.TLSVersion.TLSv1_3}),
        ("rediss://h?ssl_min_version=771", {"ssl_min_version": ssl.TLSVersion.TLSv1_2}),
        (
            "rediss://h?ssl_include_verify_flags=VERIFY_X509_STRICT",
            {"ssl_include_verify_flags": [ssl.VerifyFlags.VERIFY_X509_STRICT]},
        ),
    ],
)
def test_options(url: str, wanted: dict[str, Any]) -> None:
    connection = target_of(url).connection
    assert {name: connection.get(name, "not there") for name in wanted} == wanted
    assert connection["protocol"] == 2
    assert "decode_responses" not in connection


def test_what_is_not_said_is_ours() -> None:
    target = target_of("redis://h", max_connections=3, connect_timeout=4, timeout=5)
    assert target.max_connections == 3
    assert target.connection["socket_connect_timeout"] == 4
    assert target.connection["socket_timeout"] == 5
    # CLIENT SETNAME is one more command that a user, or a service, may not have.
    assert "client_name" not in target.connection
    assert target.key_prefix is None
    target = target_of("redis://h?max_connections=7&key_prefix=mine", max_connections=3)
    assert (target.max_connections, target.key_prefix) == (7, "mine")


def test_harmless_options_are_ignored() -> None:
    url = "redis://h?decode_responses=false&protocol=2&encoding=UTF-8&retry_on_timeout=no"
    assert target_of(url) == target_of("redis://h")


def test_sentinels_options() -> None:
    url = (
        "rediss+sentinel://u:p@h/s?sentinel_password=q&min_other_sentinels=2&socket_timeout=3&ssl_ca_certs=f"
    )
    target = target_of(url)
    assert target.service == "s"
    wanted = {"password": "q", "min_other_sentinels": 2, "socket_timeout": 3, "ssl": True}
    assert {name: target.sentinel[name] for name in wanted} == wanted
    assert target.sentinel["ssl_ca_certs"] == "f"
    # The servers' login is none of the sentinels' business.
    assert "username" not in target.sentinel
    plain = target_of(f"{url}&sentinel_ssl=false").sentinel
    assert plain["ssl"] is False
    assert "ssl_ca_certs" not in plain


def test_clusters_options() -> None:
    target = target_of("redis+cluster://h?dynamic_startup_nodes=no&require_full_coverage=yes")
    assert target.cluster
    assert target.routing == {"dynamic_startup_nodes": False, "require_full_coverage": True}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://u:hush@h:1/2", "h:1/2"),
        ("redis://:hush@[::1]", "[::1]:6379/0"),
        ("redis+cluster://:hush@a,b", "the cluster at a:6379, b:6379"),
        ("redis+sentinel://:hush@a/s/1?sentinel_password=hush", "s/1 of the sentinels at a:26379"),
        ("unix://:hush@/run/s", "/run/s/0"),
    ],
)
def test_targets_are_described_without_secrets(url: str, said: str) -> None:
    target = target_of(url)
    assert target.describe() == said
    assert "hush" not in repr(target)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://h", "not a Redis URL"),
        ("redis:h", "not a Redis URL"),
        ("redis+what://h", "no URL of the kind 'redis\\+what://'"),
        ("unix+cluster:///s", "no URL of the kind"),
        ("redis://a,b", "takes one host; .* redis\\+cluster://"),
        ("redis://h/x", "number of its database"),
        ("redis://u:p/w@h", 'stray "@"'),
        ("redis://u:p#w@h", 'stray "#"'),
        ("redis://u:p/word", "port is not a number"),
        ("redis://h:0", "port is not a number"),
        ("redis://u:%ff@h", "percent-encoded UTF-8"),
        ("redis://u:%00@h", "percent-encoded UTF-8"),
        ("redis://::1", "port is not a number"),
        ("redis://[::1", "IPv6"),
        ("redis://h?db", "name=value"),
        ("redis://h?db=x", "db in a Redis URL is a whole number, not 'x'"),
        ("redis://h?socket_timeout=-1", "socket_timeout in a Redis URL is a number of seconds"),
        ("redis://h?socket_timeout=nan", "a number of seconds"),
        ("redis://h?max_connections=0", "1 or more"),
        ("redis://h?socket_keepalive=perhaps", "true or false"),
        ("redis://h?client_name=a+b", "without spaces"),
        ("rediss://h?ssl_cert_reqs=maybe", "none, optional or required"),
        ("rediss://h?ssl_min_version=2", "TLSv1_2 or TLSv1_3"),
        ("rediss://h?ssl_password=", "ssl_password in a Redis URL is a text that isn't empty$"),
        ("redis://h?ssl_ca_certs=f", "rediss://"),
        ("redis://h?ssl=true", "write rediss://"),
        ("redis://h?passwort=x", "did you mean 'password'.* there are db, username, password"),
        ("redis://h?prefix=x", "did you mean 'key_prefix'"),
        ("redis://h?sentinel_password=x", "it is for redis\\+sentinel://"),
        ("redis://h?decode_responses=True", "decode_responses can't be honoured: .* bytes"),
        ("redis://h?protocol=3", "RESP2"),
        ("redis://h?retry_on_timeout=yes", "retry_seconds"),
        ("redis://h?timeout=3", "timeout can't be honoured: .* retry_seconds"),
        ("redis+cluster://h?read_from_replicas=true", "a replica may not have yet"),
        ("redis+cluster://h/1", "database 0 only"),
        ("redis+cluster://h?db=1", "database 0 only"),
        ("rediss+cluster://h?ssl_password=x", "cluster client has no option 'ssl_password'"),
        ("redis+sentinel://h", "whose master"),
        ("redis+sentinel://h/s/x", "number of its database"),
        ("unix://", "three slashes"),
        ("unix://run/s", "three slashes"),
    ],
)
def test_urls_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidConfigError, match=said) as caught:
        target_of(url)
    for secret in ("p/w", "p#w", "word", "%ff"):
        assert secret not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("source", [None, 3, object()])
def test_what_is_no_client_is_refused(source: object) -> None:
    with pytest.raises(InvalidConfigError, match="no client of redis-py"):
        target_of(source)


# --- Connections ----------------------------------------------------------------------------------------


@pytest.fixture(params=["redis", "redis-oldest", "valkey"])
def server(request: pytest.FixtureRequest) -> Redis:
    return servers.redis_of(request.param, request)


@pytest.fixture(scope="module")
def password_server() -> Iterator[RedisServer]:
    servers.skip_without_redis()
    with RedisServer(password="p@ss:w/rd %") as server:
        yield server


async def test_connecting(server: Redis) -> None:
    name = servers.new_name()
    url = server.url(client_name=name)
    async with connected(url) as client:
        assert await client.ping() is True
        assert await client.echo("x") == b"x"
        ((entry),) = server.connections(name)
        assert entry["db"] == "0"
    assert server.left_connections(name) == []


async def test_a_database(server: Redis) -> None:
    key = servers.new_name()
    async with connected(server.url("3")) as three, connected(server.url()) as zero:
        await three.set(key, "x")
        assert await zero.get(key) is None
        await three.delete(key)


async def test_other_schemes(server: Redis) -> None:
    url = server.url()
    if not url.startswith("redis://"):
        pytest.skip("HARNESS_TEST_REDIS_URL has its own scheme")
    assert await ask(url.replace("redis", "valkey", 1)) is True


async def test_a_socket(password_server: RedisServer) -> None:
    path, password = quote(str(password_server.socket)), quote(password_server.password, safe="")
    assert await ask(f"unix://:{password}@{path}?db=1", "SET", "a", "b") is True
    assert password_server.keys("a", database=1) == [b"a"]


async def test_users(own_redis: RedisServer) -> None:
    url = own_redis.create_user("poor", "p@ss:w/rd", "~mine*", "+get", "+set", "+ping")
    assert await ask(url, "SET", "mine:1", "x") is True
    for command, said in (
        (("SET", "yours", "x"), "permission"),
        (("DEL", "mine:1"), "permissions to run the 'del' command"),
    ):
        error = await error_of(url, *command)
        assert code_of(error) == "NOPERM"
        assert not is_transient(error)
        told = translate(error, "here")
        assert type(told) is StoreError
        assert said in str(told)
        assert "ACL SETUSER" in str(told)


@pytest.mark.parametrize(
    ("login", "code", "said"),
    [
        ("", "NOAUTH", "wants a password"),
        (":wrong@", "WRONGPASS", "check user and password"),
        ("who:p%40ss%3Aw%2Frd%20%25@", "WRONGPASS", "check user and password"),
    ],
)
async def test_wrong_passwords(password_server: RedisServer, login: str, code: str, said: str) -> None:
    error = await error_of(f"redis://{login}127.0.0.1:{password_server.port}")
    assert code_of(error) == code
    assert not is_transient(error)
    assert not is_never_there(error)
    told = translate(error, "here")
    assert type(told) is StoreError
    assert said in str(told)


async def test_a_password_where_there_is_none(server: Redis) -> None:
    error = await error_of(server.url(password="x"))
    assert not is_transient(error)
    assert "leave the password out" in str(translate(error, "here"))


async def test_the_wrong_database(server: Redis) -> None:
    error = await error_of(server.url("999999"))
    assert not is_transient(error)
    assert "use 0, or raise its setting databases" in str(translate(error, "here"))


async def test_nobody_is_there() -> None:
    port = servers.free_port()
    for url, said in (
        (f"redis://127.0.0.1:{port}", "nothing listens there"),
        (f"redis://localhost:{port}", "nothing listens there"),
        (f"redis+cluster://127.0.0.1:{port}", "nothing listens there"),
        ("redis://no-such-host.invalid", "no host of that name"),
        ("redis+cluster://no-such-host.invalid", "no host of that name"),
        ("unix:///no/such/socket", "no such socket"),
        (f"redis+sentinel://127.0.0.1:{port}/s", "no sentinel that answers"),
    ):
        error = await error_of(url)
        assert is_never_there(error), url
        assert is_lost(error), url
        told = translate(error, target_of(url).describe())
        assert isinstance(told, StoreUnavailableError), url
        assert said in str(told), url


async def test_a_server_that_does_not_answer(own_redis: RedisServer) -> None:
    async with connected(own_redis.url(), timeout=0.2) as client:
        await client.ping()
        own_redis.pause()
        with pytest.raises(DRIVER_ERRORS) as caught:
            await client.ping()
        own_redis.resume()
        assert is_lost(caught.value)
        assert "no answer in time" in str(translate(caught.value, "here"))
        assert await client.ping() is True


async def test_a_server_that_ends(own_redis: RedisServer) -> None:
    async with connected(own_redis.url()) as client:
        await client.set("a", "b")
        own_redis.kill()
        with pytest.raises(DRIVER_ERRORS) as caught:
            await client.get("a")
        assert is_lost(caught.value)
        own_redis.start()
        assert await client.get("a") == b"b"


async def test_closing_leaves_nothing_open(server: Redis) -> None:
    name = servers.new_name()
    client = target_of(server.url(client_name=name)).new_client()
    await asyncio.gather(*(client.ping() for _ in range(3)))
    await client.aclose()
    await client.aclose()
    assert server.left_connections(name) == []


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_redis(papers: Papers) -> Iterator[RedisServer]:  # noqa: F811
    """A server with a certificate for localhost, of the newest version that can do TLS."""
    servers.skip_without_redis()
    for version in reversed(servers.redis_available()):
        server = RedisServer(version, tls=papers.folder, password="secret")
        try:
            server.start()
        except RuntimeError:
            continue
        else:
            yield server
            return
        finally:
            server.close()
    pytest.skip("no Redis here that was built with TLS")


def tls_url(server: RedisServer, host: str = "localhost", **params: Any) -> str:
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in params.items())
    return f"rediss://:secret@{host}:{server.port}?{query}"


async def test_tls(tls_redis: RedisServer, papers: Papers) -> None:  # noqa: F811
    ca = papers.folder / "ca"
    assert await ask(tls_url(tls_redis, ssl_ca_certs=ca)) is True
    assert await ask(tls_url(tls_redis, ssl_ca_data=ca.read_text(), ssl_min_version="TLSv1_3")) is True
    assert await ask(tls_url(tls_redis, "127.0.0.1", ssl_ca_certs=ca, ssl_check_hostname="no")) is True
    assert await ask(tls_url(tls_redis, "127.0.0.1", ssl_cert_reqs="none")) is True
    own = {"ssl_certfile": papers.folder / "certificate", "ssl_keyfile": papers.folder / "key"}
    assert await ask(tls_url(tls_redis, ssl_ca_certs=ca, **own)) is True


async def test_strangers_are_refused(tls_redis: RedisServer, papers: Papers) -> None:  # noqa: F811
    ca, stranger = papers.folder / "ca", papers.folder / "stranger"
    for url, said in (
        (tls_url(tls_redis, ssl_ca_certs=stranger), "whom to trust"),
        (tls_url(tls_redis), "whom to trust"),
        (tls_url(tls_redis, "127.0.0.1", ssl_ca_certs=ca), "the certificate is for this host"),
        (tls_url(tls_redis, ssl_ca_certs=papers.folder / "nowhere"), "one can't be read"),
    ):
        error = await error_of(url)
        assert not is_transient(error), url
        assert not is_never_there(error) or "nowhere" in url
        told = translate(error, "here")
        assert type(told) is StoreError, url
        assert said in str(told), url


async def test_only_one_side_does_tls(tls_redis: RedisServer, password_server: RedisServer) -> None:
    error = await error_of(f"redis://localhost:{tls_redis.port}")
    assert "rediss://" in str(translate(error, "here"))
    # It waits for the end of the line.
    error = await error_of(f"rediss://127.0.0.1:{password_server.port}?socket_connect_timeout=0.5")
    assert "or has none (redis://)" in str(translate(error, "here"))


# --- What servers say -----------------------------------------------------------------------------------


async def test_a_full_server(server: Redis) -> None:
    if not isinstance(server, RedisServer):
        pytest.skip("that is somebody's server")
    # As a script, too: Redis 6.2 tells it in other words.
    with RedisServer(server.version, settings={"maxmemory": "100kb"}) as small:
        for command in (("SET", "a", "x"), ("EVAL", "return redis.call('SET', KEYS[1], 'x')", 1, "a")):
            error = await error_of(small.url(), *command)
            assert code_of(error) == "OOM", error
            assert not is_transient(error)
            told = translate(error, "here")
            assert isinstance(told, StoreFullError)
            assert "Raise maxmemory" in str(told)


async def test_a_replica(server: Redis) -> None:
    if not isinstance(server, RedisServer):
        pytest.skip("that is somebody's server")
    with RedisServer(server.version) as master, RedisServer(server.version, replica_of=master) as replica:
        replica.wait_until_synced()
        for command in (("SET", "a", "x"), ("EVAL", "return redis.call('SET', KEYS[1], 'x')", 1, "a")):
            error = await error_of(replica.url(), *command)
            assert code_of(error) == "READONLY", error
            assert is_lost(error)
            assert "this is a replica" in str(translate(error, "here"))
        master.kill()
        replica.execute("CONFIG", "SET", "replica-serve-stale-data", "no")
        servers.wait_for(lambda: replica.info("replication")["master_link_status"] == "down", 10)
        error = await error_of(replica.url(), "GET", "a")
        assert code_of(error) == "MASTERDOWN"
        assert is_lost(error)


async def test_too_few_replicas(own_redis: RedisServer) -> None:
    own_redis.execute("CONFIG", "SET", "min-replicas-to-write", "1")
    error = await error_of(own_redis.url(), "SET", "a", "x")
    assert code_of(error) == "NOREPLICAS"
    assert is_transient(error)
    assert not is_lost(error)


async def test_a_busy_server(own_redis: RedisServer) -> None:
    own_redis.execute("CONFIG", "SET", "lua-time-limit", "1")
    async with connected(own_redis.url()) as hog:
        endless = asyncio.ensure_future(hog.eval("while true do end", 0))
        await asyncio.sleep(0.2)
        error = await error_of(own_redis.url(), "GET", "a")
        assert code_of(error) == "BUSY"
        assert is_transient(error)
        assert "SCRIPT KILL" in str(translate(error, "here"))
        own_redis.execute("SCRIPT", "KILL")
        with pytest.raises(redis.ResponseError):
            await endless


async def test_too_many_clients(own_redis: RedisServer) -> None:
    url = own_redis.url()
    own_redis.settings["maxclients"] = 1
    own_redis.restart()
    with own_redis.client() as client:
        client.ping()
        error = await error_of(url)
        assert is_lost(error)
        assert isinstance(translate(error, "here"), StoreUnavailableError)


async def test_keys_of_somebody_elses(own_redis: RedisServer) -> None:
    own_redis.execute("SET", "a", "x")
    error = await error_of(own_redis.url(), "HGET", "a", "x")
    assert isinstance(translate(error, "here"), SchemaError)


async def test_commands_that_are_not_there(own_redis: RedisServer) -> None:
    error = await error_of(own_redis.url(), "NOSUCH", "a")
    assert not is_transient(error)
    assert "6.2 or newer" in str(translate(error, "here"))


async def test_scripts_that_are_not_there(own_redis: RedisServer) -> None:
    error = await error_of(own_redis.url(), "EVALSHA", "0" * 40, 0)
    assert code_of(error) == "NOSCRIPT"
    assert not is_transient(error)


@pytest.mark.parametrize("said", ["LOADING Redis is loading the dataset in memory", "TRYAGAIN Multiple keys"])
def test_what_is_hard_to_bring_about(said: str) -> None:
    from redis._parsers.base import BaseParser

    error = BaseParser.parse_error(said)
    assert code_of(error) == said.split()[0]
    assert is_transient(error)
    assert isinstance(translate(error, "here"), StoreUnavailableError)


# --- Clusters -------------------------------------------------------------------------------------------


async def test_a_cluster(redis_cluster: RedisCluster) -> None:
    prefix = servers.new_name()
    async with connected(redis_cluster.url(client_name=prefix)) as client:
        for n in range(20):
            await client.set(f"{prefix}:{n}", str(n))
        assert await client.get(f"{prefix}:7") == b"7"
    assert len(redis_cluster.keys(prefix)) == 20
    redis_cluster.drop(prefix)
    assert redis_cluster.keys(prefix) == []
    assert redis_cluster.left_connections(prefix) == []


async def test_a_cluster_is_found_from_any_of_its_nodes(redis_cluster: RedisCluster) -> None:
    gone = servers.free_port()
    url = f"redis+cluster://127.0.0.1:{gone},127.0.0.1:{redis_cluster.nodes[1].port}"
    assert await ask(url, "GET", servers.new_name()) is None


async def test_a_plain_client_of_a_cluster(redis_cluster: RedisCluster) -> None:
    node = redis_cluster.nodes[0]
    keys = (f"k{n}" for n in range(100))
    key = next(key for key in keys if redis_cluster.master_of(redis_cluster.slot_of(key)) is not node)
    error = await error_of(node.url(), "GET", key)
    assert code_of(error) == "MOVED"
    error = await error_of(node.url("1"))
    assert not is_transient(error)
    assert "use 0" in str(translate(error, "here"))


async def test_a_cluster_client_of_a_plain_server(server: Redis) -> None:
    error = await error_of(server.url().replace("redis", "redis+cluster", 1), "GET", "x")
    assert not is_transient(error)
    assert "write redis:// instead of redis+cluster://" in str(translate(error, "here"))


async def test_a_cluster_that_wants_a_password() -> None:
    servers.skip_without_redis()
    with servers.RedisCluster(password="hush") as cluster:
        assert await ask(cluster.url(), "SET", "a", "b") is True
        error = await error_of(cluster.url(password="wrong"), "GET", "a")
        assert not is_transient(error)
        assert "check user and password" in str(translate(error, "here"))


async def test_a_cluster_loses_a_node(own_redis_cluster: RedisCluster) -> None:
    cluster = own_redis_cluster
    owner = cluster.master_of(cluster.slot_of("a"))
    async with connected(cluster.url()) as client:
        await client.set("a", "b")
        owner.kill()
        with pytest.raises(DRIVER_ERRORS) as caught:
            await client.get("a")
        assert is_transient(caught.value)
        owner.start()
        servers.wait_for(lambda: owner.execute("CLUSTER INFO")["cluster_state"] == "ok", 30)
        assert await client.get("a") is None


# --- Sentinels ------------------------------------------------------------------------------------------


async def test_sentinels_name_the_master() -> None:
    servers.skip_without_redis()
    with RedisSentinels(sentinels=3, password="p", sentinel_password="q") as group:
        gone = servers.free_port()
        url = group.url(client_name="here").replace("@", f"@127.0.0.1:{gone},", 1)
        async with connected(url) as client:
            await client.set("a", "b")
            assert group.master.execute("GET", "a") == b"b"
            before = group.fail_over()
            await until_written(client, "c")
            assert group.master is not before
            assert group.master.execute("GET", "c") == b"c"
            # The sentinels, too.
            assert [len(sentinel.connections("here")) for sentinel in group.sentinels] != [0, 0, 0]
        for server in (*group.servers, *group.sentinels):
            assert server.left_connections("here") == []
        for url in (group.url().replace("q", "wrong"), group.url().replace("mymaster", "nobody")):
            error = await error_of(url, "GET", "a")
            assert is_never_there(error)
            assert "no sentinel that answers knows a living master" in str(translate(error, "here"))


async def test_a_master_is_killed() -> None:
    servers.skip_without_redis()
    with RedisSentinels(down_after_ms=500) as group:
        async with connected(group.url()) as client:
            await client.set("a", "b")
            before = group.master
            before.kill()
            await until_written(client, "c")
            assert group.master is not before
            assert await client.get("c") == b"c"


async def until_written(client: Any, key: str) -> None:
    """Write as a store would, which tries again what is transient."""
    end = asyncio.get_running_loop().time() + 60
    while True:
        try:
            await client.set(key, key)
        except DRIVER_ERRORS as error:
            if not is_transient(error) or asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(0.1)
        else:
            return


# --- Callers' clients -----------------------------------------------------------------------------------


def with_kwargs(port: int, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, "password": "p@ss:w/rd %", "db": 2, **more}


@pytest.mark.parametrize("package", [redis, redis.asyncio])
@pytest.mark.parametrize("decoding", [False, True])
async def test_callers_clients(password_server: RedisServer, package: Any, decoding: bool) -> None:
    client = package.Redis(**with_kwargs(password_server.port, decode_responses=decoding, client_name="me"))
    target = target_of(client)
    assert target.nodes == (Node("127.0.0.1", password_server.port),)
    assert target.connection["client_name"] == "me"
    assert target.database == 2
    assert (target.given is client) == (package is redis.asyncio and not decoding)
    key = servers.new_name()
    async with connected(client) as own:
        await own.set(key, b"\xff")
        assert await own.get(key) == b"\xff"
    assert password_server.keys(key, database=2) == [key.encode()]
    if package is redis:
        client.close()
    else:
        await client.aclose()


async def test_a_callers_client_is_used_on_its_own_loop_only(server: Redis) -> None:
    client = redis.asyncio.Redis.from_url(server.url())
    target = target_of(client)
    assert target.client() is client

    async def elsewhere() -> bool:
        other = target.client()
        try:
            return other is not client and await other.ping()
        finally:
            await other.aclose()

    assert await asyncio.to_thread(asyncio.run, elsewhere())
    assert await client.ping() is True
    await client.aclose()


def test_without_a_loop_nobody_knows_whose_a_client_is(server: Redis) -> None:
    assert target_of(redis.asyncio.Redis.from_url(server.url())).given is None


async def test_one_connection_is_not_shared(server: Redis) -> None:
    async with redis.asyncio.Redis.from_url(server.url(), single_connection_client=True) as client:
        assert target_of(client).given is None


async def test_clients_of_sockets(password_server: RedisServer) -> None:
    options = {"unix_socket_path": str(password_server.socket), "password": password_server.password}
    with redis.Redis(**options) as client:
        assert target_of(client).path == str(password_server.socket)
        assert await ask(client) is True


async def test_clients_with_tls(tls_redis: RedisServer) -> None:
    for package in (redis, redis.asyncio):
        client = package.Redis.from_url(tls_redis.url())
        assert target_of(client).tls
        assert await ask(client) is True


async def test_a_client_that_verifies_nothing(tls_redis: RedisServer) -> None:
    for package in (redis, redis.asyncio):
        client = package.Redis(
            host="127.0.0.1", port=tls_redis.port, password="secret", ssl=True, ssl_cert_reqs=None
        )
        assert await ask(client) is True


async def test_credentials_come_from_where_the_client_has_them(password_server: RedisServer) -> None:
    provider = redis.UsernamePasswordCredentialProvider("default", password_server.password)
    options = {"host": "127.0.0.1", "port": password_server.port, "credential_provider": provider}
    assert await ask(redis.Redis(**options)) is True


async def test_clients_of_clusters(redis_cluster: RedisCluster) -> None:
    key = servers.new_name()
    port = redis_cluster.nodes[0].port
    with redis.RedisCluster(host="127.0.0.1", port=port) as client:
        assert target_of(client).cluster
        assert await ask(client, "GET", key) is None
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=port, decode_responses=True) as client:
        assert target_of(client).given is None
        assert await ask(client, "GET", key) is None
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=port) as client:
        assert target_of(client).client() is client


async def test_clients_of_sentinels(redis_sentinels: RedisSentinels) -> None:
    places = [("127.0.0.1", sentinel.port) for sentinel in redis_sentinels.sentinels]
    for module in (redis.sentinel, redis.asyncio.sentinel):
        manager = module.Sentinel(places)
        target = target_of(manager.master_for(servers.SERVICE, db=1))
        assert (target.service, target.database) == (servers.SERVICE, 1)
        async with connected(manager.master_for(servers.SERVICE, db=1)) as own:
            assert await own.set("a", "b") is True
    assert redis_sentinels.master.keys("a", database=1) == [b"a"]


def test_clients_that_check_revocation_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = redis.Redis(host="h", ssl=True)
    client.connection_pool.connection_kwargs["ssl_validate_ocsp"] = True
    with pytest.raises(InvalidConfigError, match="OCSP"):
        target_of(client)


def test_targets_do_not_change() -> None:
    assert isinstance(target_of("redis://h"), RedisTarget)
    assert target_of("redis://h") == target_of("redis://h")


# --- Savers ---------------------------------------------------------------------------------------------


def put(door: Door, saver: HarnessCheckpointer) -> Any:
    """Put a checkpoint into the saver's thread, and give its config."""
    config = thread("t", ns="")
    return door.call(
        saver, "put", config, empty_checkpoint(), {"source": "input", "step": -1, "parents": {}}, {}
    )


def works(door: Door, saver: HarnessCheckpointer) -> bool:
    door.call(saver, "setup")
    config = put(door, saver)
    found = door.call(saver, "get_tuple", thread("t"))
    door.call(saver, "delete_thread", "t")
    return found.config == config and door.call(saver, "get_tuple", thread("t")) is None


@contextmanager
def opened(door: Door, source: Any, **options: Any) -> Iterator[HarnessCheckpointer]:
    if isinstance(source, str):
        saver = HarnessCheckpointer.from_conn_string(source, **options)
    else:
        saver = HarnessCheckpointer(source, config=CheckpointerConfig(**options))
    try:
        yield saver
    finally:
        door.call(saver, "close")


def test_savers_on_any_kind_of_server(
    door: Door, password_server: RedisServer, tls_redis: RedisServer, redis_cluster: RedisCluster
) -> None:
    password = quote(password_server.password, safe="")
    prefix = servers.new_name()
    for url in (
        password_server.url("3", key_prefix=prefix),
        f"unix://:{password}@{quote(str(password_server.socket))}?db=2&key_prefix={prefix}",
        tls_redis.url(key_prefix=prefix),
        redis_cluster.url(key_prefix=prefix),
    ):
        with opened(door, url) as saver:
            assert works(door, saver), url
    redis_cluster.drop(prefix)


def test_savers_of_sync_clients(
    door: Door, password_server: RedisServer, redis_cluster: RedisCluster
) -> None:
    prefix = servers.new_name()
    with password_server.client(db=5, decode_responses=True) as client:
        with opened(door, client, key_prefix=prefix) as saver:
            assert works(door, saver)
        assert client.ping()
    assert password_server.keys(prefix, database=5) != []
    with redis_cluster.client() as client, opened(door, client, key_prefix=prefix) as saver:
        assert works(door, saver)
    redis_cluster.drop(prefix)


async def test_savers_of_async_clients(password_server: RedisServer, redis_cluster: RedisCluster) -> None:
    prefix = servers.new_name()
    kwargs = with_kwargs(password_server.port, client_name=prefix)
    clients = [
        redis.asyncio.Redis(**kwargs),
        redis.asyncio.Redis(**kwargs, decode_responses=True),
        redis.asyncio.RedisCluster(host="127.0.0.1", port=redis_cluster.nodes[0].port),
    ]
    for client in clients:
        saver = HarnessCheckpointer(client, config=CheckpointerConfig(key_prefix=prefix))
        await saver.asetup()
        await saver.aput(thread("t", ns=""), empty_checkpoint(), {}, {})
        assert await saver.aget_tuple(thread("t")) is not None
        await saver.adelete_thread("t")
        # Another loop than the client's.
        assert await asyncio.to_thread(saver.get_tuple, thread("t")) is None
        await saver.aclose()
        assert await client.ping()
        await client.aclose()
    assert password_server.left_connections(prefix) == []
    redis_cluster.drop(prefix)


def test_a_saver_outlives_failovers(door: Door, redis_sentinels: RedisSentinels) -> None:
    group = redis_sentinels
    with opened(door, group.url(), retry_seconds=60) as saver:
        put(door, saver)
        for lose in (group.fail_over, kill_master):
            before = group.master
            lose() if lose == group.fail_over else lose(group)
            config = put(door, saver)
            assert group.master is not before
            assert door.call(saver, "get_tuple", thread("t")).config == config
            assert group.keys("harness") != []


def kill_master(group: RedisSentinels) -> None:
    before = group.master
    before.kill()
    group.wait_for_another(before)


@pytest.mark.parametrize(
    ("login", "error", "said"),
    [
        (":wrong@", StoreError, "check user and password"),
        ("", StoreError, "wants a password"),
        ("poor:word@", StoreError, "ACL SETUSER"),
    ],
)
def test_a_saver_says_what_is_wrong(
    door: Door, password_server: RedisServer, login: str, error: type[StoreError], said: str
) -> None:
    if "poor" not in password_server.users:
        password_server.create_user("poor", "word", "~harness*", "+info", "+hsetnx", "+hmget")
    with opened(door, f"redis://{login}127.0.0.1:{password_server.port}") as saver:
        with pytest.raises(error, match=said) as caught:
            put(door, saver)
        assert isinstance(caught.value.__cause__, redis.RedisError)


def test_a_full_server_says_so_and_can_be_read(door: Door, own_redis: RedisServer) -> None:
    with opened(door, own_redis.url()) as saver:
        config = put(door, saver)
        own_redis.execute("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreFullError, match="Raise maxmemory"):
            put(door, saver)
        assert door.call(saver, "get_tuple", thread("t")).config == config
        own_redis.execute("CONFIG", "SET", "maxmemory", "0")
        put(door, saver)


def test_a_saver_tries_again_until_a_server_takes_writes(door: Door, own_redis: RedisServer) -> None:
    with opened(door, own_redis.url(), retry_seconds=60) as saver:
        put(door, saver)
        own_redis.execute("CONFIG", "SET", "min-replicas-to-write", "1")
        later = threading.Timer(0.5, own_redis.execute, ["CONFIG", "SET", "min-replicas-to-write", "0"])
        later.start()
        config = put(door, saver)
        assert door.call(saver, "get_tuple", thread("t")).config == config
        later.join()
    with opened(door, own_redis.url(), retry_seconds=0.1) as saver:
        own_redis.execute("CONFIG", "SET", "min-replicas-to-write", "1")
        with pytest.raises(StoreUnavailableError, match="min-replicas-to-write"):
            put(door, saver)


# --- What docs/redis.md says ----------------------------------------------------------------------------


class TestLeastPrivilege(StoreContract):
    """Runs the contract as the user that the documentation describes."""

    @pytest.fixture(params=["redis", "redis-oldest", "valkey", "redis-cluster"])
    def store(self, request: pytest.FixtureRequest) -> Iterator[Store]:
        self.server = servers.redis_of(request.param, request)
        masters = self.server.masters()
        if not all(isinstance(server, RedisServer) for server in masters):
            pytest.skip("that is somebody's server")
        self.prefix = servers.new_name()
        rule = [word.replace("~harness*", f"~{self.prefix}*") for word in RULE]
        if len(masters) > 1:
            rule += ["+cluster|slots", "+asking"]
        for server in masters:
            server.create_user(self.prefix, "word", *rule)
        self.url = self.server.url(user=self.prefix, password="word", key_prefix=self.prefix)
        store = RedisStore(self.url)
        bridge = Bridge(store.io)
        bridge.run(store.open())
        yield store
        bridge.run(store.close())
        bridge.close()
        denied = [entry for server in masters for entry in server.execute("ACL LOG")]
        own = {entry["object"] for entry in denied if entry["username"] == self.prefix}
        # With these redis-py says what it is; before 7.2 there is no such command to allow.
        assert own <= {"client", "client|setinfo"}
        for server in masters:
            server.drop_user(self.prefix)
        self.server.drop(self.prefix)

    def raw_rows(self, store: Store) -> int:
        return count_redis(self.server, self.prefix)

    def reopen(self, store: Store) -> Store:
        return RedisStore(self.url)


def test_samples_run(own_redis: RedisServer, tmp_path: Path) -> None:
    samples = re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    assert len(samples) == 2
    for sample in samples:
        script = tmp_path / "sample.py"
        here = sample.replace("localhost:6379", f"127.0.0.1:{own_redis.port}")
        script.write_text(here.replace("port=6379", f"port={own_redis.port}"), encoding="utf-8")
        run = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.returncode == 0, run.stderr


def test_every_option_is_documented() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        target_of("redis+sentinel://h/s?nothing=like+it")
    listed = re.search("there are (.+)$", str(caught.value))[1].split(", ")
    assert len(listed) > 25
    rare = {"ssl_include_verify_flags", "ssl_exclude_verify_flags"}
    assert [name for name in listed if f"`{name}`" not in DOCS and name not in rare] == []
