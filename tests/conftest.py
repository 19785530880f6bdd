"""The stores that every test runs on: one row each, and fixtures that open them."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import servers
from helpers import DOORS, USUAL, Door, url_of_prefix
from hypothesis import HealthCheck, settings
from schemas import all_schemas, schemas_of  # noqa: F401
from servers import (  # noqa: F401
    own_postgres,
    own_redis,
    own_redis_cluster,
    pgbouncer,
    postgres_server,
    postgres_servers,
    postgres_url,
    redis_cluster,
    redis_sentinels,
    redis_server,
    redis_servers,
)

from langgraph_harness_saver import CheckpointerConfig, HarnessCheckpointer

# Tests share the machine, so none has a deadline, and what makes examples may be slow.
settings.register_profile(
    "usual", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
# A change is checked by the same histories each time; new ones are looked for on purpose.
settings.register_profile("deep", settings.get_profile("usual"), derandomize=False, max_examples=40 * USUAL)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))

pytest.register_assert_rewrite("langgraph_harness_saver.testing")

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


class Place(ABC):
    """Where one test's data lives, and every saver that was opened on it."""

    outlives_saver: ClassVar[bool] = True

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder = folder
        self.opened: list[Any] = []
        self.begin(request)

    def begin(self, request: pytest.FixtureRequest) -> None:  # noqa: B027
        """Find the server that the data lives on, where there is one."""

    @property
    @abstractmethod
    def url(self) -> str: ...

    def open(self, **options: Any) -> Any:
        """Open a saver on this data; another one on the same data each time."""
        saver = self.connect(**options)
        self.opened.append(saver)
        return saver

    def connect(self, **options: Any) -> Any:
        return HarnessCheckpointer.from_conn_string(self.url, **options)

    def restart(self, saver: Any) -> Any:
        """Give what a new process would see after the one with `saver` has ended."""
        if self.outlives_saver:
            saver.close()
        return self.open()

    def close(self) -> None:
        for saver in reversed(self.opened):
            saver.close()

    def left_open(self) -> list[Any]:
        return []

    def end(self) -> None:  # noqa: B027
        """Leave nothing behind."""


class MemoryPlace(Place):
    outlives_saver = False
    url = "memory://"

    def connect(self, *, serde: Any = None, **options: Any) -> Any:
        backend = self.opened[0].backend if self.opened else None
        return HarnessCheckpointer(CheckpointerConfig(**options), backend=backend, serde=serde)


class SqlitePlace(Place):
    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'agents.db'}"

    def left_open(self) -> list[str]:
        return [path for path in open_files() if path.startswith(str(self.folder))]


class PostgresPlace(Place):
    """A schema of its own, on the newest server at hand."""

    kind = "postgres"

    def begin(self, request: pytest.FixtureRequest) -> None:
        self.server = servers.server_of(self.kind, request)
        self.schemas = schemas_of(self.server, request)
        self.address = self.schemas.take()

    @property
    def url(self) -> str:
        return self.address

    def left_open(self) -> list[Any]:
        return self.schemas.left_connections(self.address)

    def end(self) -> None:
        self.schemas.give_back(self.address)


class OldestPostgresPlace(PostgresPlace):
    """The same on the oldest server at hand."""

    kind = "postgres-oldest"


class RedisPlace(Place):
    """Keys of its own, on the newest Redis at hand."""

    kind = "redis"

    def begin(self, request: pytest.FixtureRequest) -> None:
        self.server = servers.redis_of(self.kind, request)
        self.prefix = servers.new_name()

    @property
    def url(self) -> str:
        return url_of_prefix(self.server, self.prefix)

    def left_open(self) -> list[Any]:
        return self.server.left_connections(self.prefix)

    def end(self) -> None:
        self.server.drop(self.prefix)


class OldestRedisPlace(RedisPlace):
    """The same on the oldest Redis at hand."""

    kind = "redis-oldest"


class ValkeyPlace(RedisPlace):
    """The same on a Valkey."""

    kind = "valkey"


class RedisClusterPlace(RedisPlace):
    """The same on a cluster."""

    kind = "redis-cluster"


PLACES: dict[str, type[Place]] = {
    "memory": MemoryPlace,
    "sqlite": SqlitePlace,
    "postgres": PostgresPlace,
    "postgres-oldest": OldestPostgresPlace,
    "redis": RedisPlace,
    "redis-oldest": OldestRedisPlace,
    "valkey": ValkeyPlace,
    "redis-cluster": RedisClusterPlace,
}


@pytest.fixture(params=list(PLACES))
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_place(
    store_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], Place]]:
    """Make empty places; at the end close them, and fail if anything stays open."""
    places: list[Place] = []
    threads = set(threading.enumerate())

    def make() -> Place:
        folder = tmp_path / f"place{len(places)}"
        folder.mkdir()
        places.append(PLACES[store_kind](folder, request))
        return places[-1]

    yield make
    for place in places:
        place.close()
    assert [left for place in places for left in place.left_open()] == []
    for place in places:
        place.end()
    assert wait_until_gone(threads) == []


@pytest.fixture
def place(make_place: Callable[[], Place]) -> Place:
    return make_place()


@pytest.fixture
def make_saver(place: Place) -> Callable[..., Any]:
    """Open one more saver on the same data."""
    return place.open


@pytest.fixture
def saver(make_saver: Callable[..., Any]) -> Any:
    return make_saver()


@pytest.fixture
def store_url(place: Place) -> str:
    return place.url


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    with Door(request.param) as door:
        yield door


def open_files() -> list[str]:
    """Name the files that this process holds open; nothing where the system doesn't tell."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        return []
    return [os.path.realpath(entry) for entry in descriptors.iterdir()]


def wait_until_gone(before: set[threading.Thread], seconds: float = 2.0) -> list[str]:
    """Name the threads that started since and are still there after a while.

    Those of an executor belong to whoever made the event loop.
    """
    end = time.monotonic() + seconds
    while True:
        started = [thread for thread in threading.enumerate() if thread not in before]
        left = [t.name for t in started if not t.name.startswith(("asyncio_", "ThreadPoolExecutor"))]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.01)


def pytest_collection_finish() -> None:
    """Keep thousands of collected tests out of the collector's way, whom many of them call."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Skip what LangGraph itself can't do: `interrupt()` within an async run before Python 3.11."""
    try:
        return (yield)
    except (RuntimeError, KeyError) as error:
        lacking = ("Called get_config outside of a runnable context", "__pregel_scratchpad")
        if sys.version_info < (3, 11) and any(each in str(error) for each in lacking):
            pytest.skip("LangGraph's interrupt() doesn't work within async runs before Python 3.11")
        raise
