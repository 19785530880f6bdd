"""Every way to say where checkpoints are kept and how."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from helpers import thread
from pydantic import ValidationError

from langgraph_harness_saver import (
    CheckpointBackend,
    CheckpointerConfig,
    CheckpointGC,
    HarnessCheckpointer,
    InvalidConfigError,
)
from langgraph_harness_saver.config import sqlite_path
from langgraph_harness_saver.server import from_environment
from langgraph_harness_saver.stores.memory import MemoryStore
from langgraph_harness_saver.stores.redis import RedisStore
from langgraph_harness_saver.stores.sqlite import SQLiteStore

connect = HarnessCheckpointer.from_conn_string


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_memory_is_the_default() -> None:
    saver = HarnessCheckpointer()
    assert isinstance(saver.backend, MemoryStore)
    assert saver.config == CheckpointerConfig()
    assert saver.config.backend is CheckpointBackend.MEMORY


@pytest.mark.parametrize("url", ["memory://", "MEMORY://"])
def test_memory_url(url: str) -> None:
    assert isinstance(connect(url).backend, MemoryStore)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite://", None),
        ("sqlite:///", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///agents.db", "agents.db"),
        ("SQLite:///agents.db", "agents.db"),
        ("sqlite:///folder/agents.db", "folder/agents.db"),
        ("sqlite:////var/lib/agents.db", "/var/lib/agents.db"),
        ("sqlite:///with%20space.db", "with space.db"),
        ("sqlite:///snow☃.db", "snow☃.db"),
        ("sqlite+pysqlite:///agents.db", "agents.db"),
    ],
)
def test_sqlite_urls(url: str, path: str | None) -> None:
    saver = connect(url)
    assert isinstance(saver.backend, SQLiteStore)
    assert sqlite_path(url) == path
    assert saver.config.backend is CheckpointBackend.SQLITE


def test_private_databases_are_apart() -> None:
    with connect("sqlite://") as one, connect("sqlite://") as other:
        one.put_writes(thread("t", "c"), [("a", 1)], "task")
        one.setup()
        other.setup()
        assert one.backend is not other.backend


def test_relative_path_is_relative_to_the_directory(tmp_path: Path) -> None:
    with connect("sqlite:///agents.db") as saver:
        saver.setup()
    assert (tmp_path / "agents.db").is_file()


@pytest.mark.parametrize("url", ["sqlite://host/agents.db", "sqlite://agents.db", "sqlite:///a.db?mode=ro"])
def test_sqlite_url_that_means_something_else(url: str) -> None:
    with pytest.raises(InvalidConfigError, match="three slashes and a path"):
        connect(url)


@pytest.mark.parametrize("url", ["mysql://host/db", "agents.db", "", "sqlite:agents.db", "/var/lib/a.db"])
def test_unknown_scheme(url: str) -> None:
    for make in (connect, lambda url: CheckpointerConfig(url=url)):
        with pytest.raises(InvalidConfigError, match=r"not a URL of a store; use .*sqlite:///agents\.db"):
            make(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "rediss://localhost",
        "valkey://localhost",
        "valkeys://localhost",
        "unix:///run/redis.sock",
        "redis+cluster://one,two",
        "redis+sentinel://one,two/service",
    ],
)
def test_urls_of_redis(url: str) -> None:
    assert CheckpointerConfig(url=url).backend == "redis"
    assert isinstance(connect(url).backend, RedisStore)


def test_options_reach_a_redis_store() -> None:
    saver = connect("redis://localhost", key_prefix="mine", ttl_seconds=60, refresh_on_read=True)
    store = saver.backend
    assert isinstance(store, RedisStore)
    assert (store.prefix, store.ttl_seconds, store.refresh_on_read) == ("mine", 60, True)


def test_the_prefix_of_a_url_of_redis() -> None:
    prefixes = [
        connect(url, **options).backend.prefix
        for url, options in (
            ("redis://localhost", {}),
            ("redis://localhost?key_prefix=other", {}),
            ("redis://localhost?key_prefix=other", {"key_prefix": "mine"}),
        )
    ]
    assert prefixes == ["harness", "other", "mine"]
    with pytest.raises(InvalidConfigError, match="brace"):
        connect("redis://localhost", key_prefix="{tag}")


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("redis://localhost", "redis", "redis"), ("postgresql://localhost", "asyncpg", "postgres")],
)
def test_a_missing_driver(url: str, package: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from langgraph_harness_saver import HarnessCheckpointer
HarnessCheckpointer.from_conn_string({url!r})
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert f"pip install 'langgraph-harness-saver[{extra}]'" in done.stderr


def test_options_reach_the_store() -> None:
    saver = connect(
        "sqlite:///agents.db",
        ttl_seconds=60,
        busy_timeout_seconds=1.5,
        synchronous="normal",
        pool_size=3,
        retry_seconds=5,
        prepared_statements=False,
        cache_bytes=1000,
        key_prefix="mine",
        refresh_on_read=True,
        wait_replicas=2,
        wait_seconds=3,
        schema="public",
        create_schema=False,
        share_listed=False,
        retention="keep_last_n:5",
    )
    assert saver.backend.ttl_seconds == 60
    assert saver.config.model_dump(exclude={"url"}) == {
        "backend": CheckpointBackend.SQLITE,
        "key_prefix": "mine",
        "refresh_on_read": True,
        "wait_replicas": 2,
        "wait_seconds": 3.0,
        "ttl_seconds": 60.0,
        "retention": {"policy": CheckpointGC.KEEP_LAST_N, "param": 5},
        "schema": "public",
        "create_schema": False,
        "strict_msgpack": None,
        "allowed_msgpack_modules": (),
        "cache_bytes": 1000,
        "share_listed": False,
        "pool_size": 3,
        "retry_seconds": 5.0,
        "prepared_statements": False,
        "busy_timeout_seconds": 1.5,
        "synchronous": "normal",
    }


def test_store_of_ones_own() -> None:
    store = MemoryStore()
    saver = HarnessCheckpointer(CheckpointerConfig(ttl_seconds=9), backend=store)
    assert saver.backend is store
    assert store.ttl_seconds == 9


def test_ttl_of_a_store_of_ones_own_stays() -> None:
    store = MemoryStore(ttl_seconds=5)
    HarnessCheckpointer(CheckpointerConfig(ttl_seconds=9), backend=store)
    assert store.ttl_seconds == 5


ENVIRONMENT = {
    "HARNESS_SAVER_URL": "sqlite:///env.db",
    "HARNESS_SAVER_TTL_SECONDS": "12.5",
    "HARNESS_SAVER_POOL_SIZE": "2",
    "HARNESS_SAVER_STRICT_MSGPACK": "true",
    "HARNESS_SAVER_SYNCHRONOUS": "normal",
    "HARNESS_SAVER_ALLOWED_MSGPACK_MODULES": '[["my.module", "Name"]]',
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.usefixtures("environment")
def test_environment_is_read() -> None:
    saver = HarnessCheckpointer()
    assert isinstance(saver.backend, SQLiteStore)
    saver.setup()
    saver.close()
    assert Path("env.db").is_file()
    assert saver.config.backend is CheckpointBackend.SQLITE
    assert saver.config.ttl_seconds == saver.backend.ttl_seconds == 12.5
    assert saver.config.pool_size == 2
    assert saver.config.strict_msgpack is True
    assert saver.config.synchronous == "normal"
    assert saver.config.allowed_msgpack_modules == (("my.module", "Name"),)


@pytest.mark.usefixtures("environment")
def test_what_is_passed_wins_over_the_environment() -> None:
    saver = connect("memory://", ttl_seconds=3)
    assert isinstance(saver.backend, MemoryStore)
    assert saver.config.ttl_seconds == 3
    assert saver.config.pool_size == 2
    assert CheckpointerConfig(redis_url="redis://localhost").url == "redis://localhost"


def test_environment_with_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_SAVER_POOL_SIZE", "many")
    with pytest.raises(InvalidConfigError, match=r"pool_size.*integer"):
        HarnessCheckpointer()


def test_backend_from_the_environment_needs_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_SAVER_BACKEND", "sqlite")
    with pytest.raises(InvalidConfigError, match="needs a url, such as"):
        HarnessCheckpointer()


@pytest.mark.parametrize("name", ["HARNESS_SAVER_URL", "HARNESS_SAVER_REDIS_URL", "harness_saver_url"])
def test_url_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "redis://localhost")
    assert CheckpointerConfig().url == "redis://localhost"


def test_foreign_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URL", "redis://localhost")
    monkeypatch.setenv("REDIS_URL", "redis://localhost")
    monkeypatch.setenv("SCHEMA", "other")
    monkeypatch.setenv("HARNESS_SAVER_UNHEARD_OF", "x")
    config = CheckpointerConfig()
    assert config.url is None
    assert config.schema is None


def test_a_server_is_told_of_variables_that_nothing_reads(monkeypatch, tmp_path, caplog) -> None:
    (tmp_path / ".env").write_text("HARNESS_SAVER_TTL_SECOND=60\nHARNESS_SAVER_POOL_SIZE=3\nOTHER_TTL=1\n")
    monkeypatch.setenv("HARNESS_SAVER_URI", "memory://")
    monkeypatch.setenv("HARNESS_SAVER_REDIS_URL", "")
    with from_environment() as saver:
        assert saver.config.pool_size == 3
    ttl, uri = caplog.messages
    assert ttl.startswith("HARNESS_SAVER_TTL_SECOND is ignored: there is no option 'ttl_second';")
    assert uri.startswith("HARNESS_SAVER_URI is ignored: there is no option 'uri'; did you mean 'url'?")


def test_redis_url_is_url() -> None:
    config = CheckpointerConfig(redis_url="redis://localhost")
    assert config.url == "redis://localhost"
    assert config.backend is CheckpointBackend.REDIS


def test_unknown_option_names_the_known_ones() -> None:
    for make in (lambda: connect("memory://", ttl=3), lambda: CheckpointerConfig(ttl=3)):
        with pytest.raises(InvalidConfigError, match=r"no option 'ttl'; there are .*ttl_seconds"):
            make()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ttl_seconds": 0}, "ttl_seconds.*greater than 0"),
        ({"ttl_seconds": "soon"}, "ttl_seconds.*number"),
        ({"synchronous": "off"}, "synchronous.*'full' or 'normal'"),
        ({"pool_size": 0}, "pool_size.*greater than"),
        ({"cache_bytes": -1}, "cache_bytes.*greater than"),
        ({"backend": "oracle"}, "backend.*'memory'"),
        ({"ttl_seconds": 0, "pool_size": 0}, "ttl_seconds.*; pool_size"),
    ],
)
def test_impossible_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidConfigError, match=told):
        CheckpointerConfig(**options)


def test_backend_and_url_that_disagree() -> None:
    with pytest.raises(InvalidConfigError, match=r"'redis' doesn't go with the url 'sqlite:///agents\.db'"):
        CheckpointerConfig(backend="redis", url="sqlite:///agents.db")
    with pytest.raises(InvalidConfigError, match="doesn't go with the url"):
        connect("sqlite:///agents.db", backend="memory")


def test_backend_and_url_that_agree() -> None:
    config = CheckpointerConfig(backend="sqlite", url="sqlite:///agents.db")
    assert isinstance(HarnessCheckpointer(config).backend, SQLiteStore)
    assert connect("sqlite://", backend=CheckpointBackend.SQLITE).config.backend == "sqlite"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://:hunter2@host/0?no_option=1", {}),
        ("rediss://user:hunter2@host:port/0", {}),
        ("postgres://user:hunter2@host/db?no_option=1", {}),
        ("postgres://user:hunter2@host:port/db", {}),
        ("host=host password=hunter2 no_option=1", {}),
        ("postgres://user:hunter2@host/db", {"backend": "sqlite"}),
        ("postgres://user:hunter2@host/db", {"ttl_seconds": -1}),
        ("postgres://user:hunter2@host/db", {"no_option": 1}),
        ("postgres://user:p@hunter2@host/db", {"backend": "sqlite"}),
        ("postgres://host/db?user=me&password=hunter2", {"backend": "sqlite"}),
        ("mysql://user:hunter2@host/db", {}),
        ("mysql://host/db?password=hunter2", {}),
        ("sqlite://user:hunter2@host/a.db", {}),
    ],
)
def test_passwords_are_not_told(url: str, options: dict[str, Any]) -> None:
    for make in (lambda: connect(url, **options), lambda: make_from_config(url, options)):
        with pytest.raises(InvalidConfigError) as caught:
            make()
        # The whole of it, causes too, is what ends in a log.
        assert "hunter2" not in "".join(traceback.format_exception(caught.value)[-1:])
        assert "hunter2" not in "".join(messages(caught.value))


def make_from_config(url: str, options: dict[str, Any]) -> HarnessCheckpointer:
    return HarnessCheckpointer(CheckpointerConfig(url=url, **options))


def messages(error: BaseException | None) -> list[str]:
    """Return the messages that a traceback shows."""
    if error is None:
        return []
    shown = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [str(error), *messages(shown)]


def test_printed_config_tells_no_password() -> None:
    config = CheckpointerConfig(url="postgres://user:hunter2@host/db")
    assert config.url == "postgres://user:hunter2@host/db"
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(config)


def test_config_is_frozen() -> None:
    config = CheckpointerConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.ttl_seconds = 3.0
    assert config.ttl_seconds is None
    assert CheckpointerConfig(ttl_seconds=3) == CheckpointerConfig(ttl_seconds=3.0)


def test_backends_are_strings() -> None:
    assert [backend.value for backend in CheckpointBackend] == ["memory", "sqlite", "redis", "postgres"]
    assert CheckpointBackend("sqlite") == "sqlite"
