"""What a user can set, and the store that it makes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from enum import Enum
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError
from typing_extensions import Self

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.retention import Retention
from langgraph_harness_saver.stores.base import Store
from langgraph_harness_saver.stores.memory import MemoryStore
from langgraph_harness_saver.stores.postgres_psycopg import conn_string_of
from langgraph_harness_saver.stores.postgres_strings import is_keyword_string
from langgraph_harness_saver.stores.sqlite import SQLiteStore

_SCHEMES = {
    "memory": "memory",
    "sqlite": "sqlite",
    "redis": "redis",
    "rediss": "redis",
    "valkey": "redis",
    "valkeys": "redis",
    "unix": "redis",
    "postgres": "postgres",
    "postgresql": "postgres",
}
_SECRET = re.compile(r"(\w*pass\w*|\w*pwd|\w*secret\w*|\w*token)=[^&#]*", re.IGNORECASE)
_EXAMPLES = "memory://, sqlite:///agents.db, redis://host:6379 or postgresql://user@host/database"


class CheckpointBackend(str, Enum):
    """The kinds of stores."""

    MEMORY = "memory"
    SQLITE = "sqlite"
    REDIS = "redis"
    POSTGRES = "postgres"


with warnings.catch_warnings():
    # `schema` is the name that Postgres users look for; pydantic has a deprecated method of that name.
    warnings.filterwarnings("ignore", message='Field name "schema"')

    class CheckpointerConfig(BaseSettings):
        """What a `HarnessCheckpointer` can be told.

        Each field is also read from an environment variable: HARNESS_SAVER_URL, HARNESS_SAVER_TTL_SECONDS
        and so on. What is passed wins.

        Raises:
            InvalidConfigError: A field is unknown or its value can't be used.
        """

        model_config = SettingsConfigDict(
            env_prefix="HARNESS_SAVER_",
            env_ignore_empty=True,
            extra="forbid",
            frozen=True,
            populate_by_name=True,
            hide_input_in_errors=True,
        )

        backend: CheckpointBackend = CheckpointBackend.MEMORY
        """The kind of store; taken from `url` where that is given."""
        url: str | None = Field(
            None,
            repr=False,
            validation_alias=AliasChoices("HARNESS_SAVER_URL", "HARNESS_SAVER_REDIS_URL"),
        )
        """Where the store is; not shown, as it may hold a password."""
        key_prefix: str = "harness"
        """What the names of a Redis store's keys begin with."""
        refresh_on_read: bool = False
        """Whether reading a thread, too, puts off its expiry; Redis only."""
        wait_replicas: int = Field(0, ge=0)
        """How many replicas of a Redis server must have a write before it is acknowledged."""
        wait_seconds: float = Field(1.0, gt=0)
        """How long replicas have for it."""
        ttl_seconds: float | None = Field(None, gt=0)
        """Seconds after its last write at which a thread expires; never, if None."""
        retention: Annotated[Retention, NoDecode, BeforeValidator(Retention.of)] = Retention()
        """Which checkpoints of a thread stay as others come: "keep_last_n:100"; all of them by default."""
        schema: str | None = None  # type: ignore[assignment]
        """The schema that a Postgres store's tables live in; the first of the search_path, if None."""
        create_schema: bool = True
        """Whether a Postgres store makes its tables where they are missing."""
        strict_msgpack: bool | None = None
        """True loads LangGraph's own types and the allow-listed ones only; None also plain data classes
        whose module is imported already; False all that LangGraph itself would."""
        allowed_msgpack_modules: tuple[tuple[str, ...], ...] = ()
        """Further types that may be loaded: ("module", "Name")."""
        cache_bytes: int = Field(64 << 20, ge=0)
        """How many bytes of checkpoints are kept in memory to write and read differences without a
        look-up."""
        share_listed: bool = True
        """Whether the checkpoints of one listing share the messages that they have in common; if not, listing
        takes several times as long, and memory that grows with the square of the messages."""
        pool_size: int = Field(10, ge=1)
        """How many connections a store may open, over all threads and event loops."""
        retry_seconds: float = Field(30.0, ge=0)
        """For how long a call is tried again when a server goes away."""
        prepared_statements: bool | None = None
        """False for a Postgres server behind a proxy that hands out connections anew, such as pgbouncer in
        transaction mode; found out, if None."""
        busy_timeout_seconds: float = Field(30.0, ge=0)
        """How long to wait for another process that is writing to the same SQLite file."""
        synchronous: Literal["full", "normal"] = "full"
        """Whether each commit to an SQLite file waits for the disk."""

        def __init__(self, **values: Any) -> None:
            if "redis_url" in values:
                values.setdefault("url", values.pop("redis_url"))
            _let_passed_win(values)
            if "allowed_msgpack_modules" in values:
                values["allowed_msgpack_modules"] = tuple(map(_named, values["allowed_msgpack_modules"]))
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise InvalidConfigError(explained(error, CheckpointerConfig)) from error
            except SettingsError as error:
                raise InvalidConfigError(
                    f"{error}; in an environment variable a list is written as JSON: "
                    'HARNESS_SAVER_ALLOWED_MSGPACK_MODULES=[["module", "Name"]]'
                ) from error

        @model_validator(mode="after")
        def _agree(self) -> Self:
            if self.url is None:
                if self.backend != CheckpointBackend.MEMORY:
                    raise ValueError(f"backend {self.backend.value!r} needs a url, such as {_EXAMPLES}")
                return self
            backend = backend_of(self.url)
            if "backend" in self.model_fields_set and self.backend != backend:
                raise ValueError(
                    f"backend {self.backend.value!r} doesn't go with the url {redacted(self.url)!r}"
                )
            object.__setattr__(self, "backend", backend)
            return self


def backend_of(url: str) -> CheckpointBackend:
    """Return the backend that a URL's scheme names.

    Raises:
        ValueError: There is none of that name.
    """
    if is_keyword_string(url):
        return CheckpointBackend.POSTGRES
    scheme, colon, _ = url.partition("://")
    name = _SCHEMES.get(scheme.lower().partition("+")[0])
    if not colon or name is None:
        raise ValueError(f"{redacted(url)!r} is not a URL of a store; use {_EXAMPLES}")
    return CheckpointBackend(name)


def make_store(config: CheckpointerConfig) -> Store:
    """Make the store that a configuration describes; nothing is opened yet.

    Raises:
        InvalidConfigError: The URL can't be used, or the store's driver is missing.
    """
    if config.backend == CheckpointBackend.MEMORY:
        return MemoryStore(ttl_seconds=config.ttl_seconds)
    if config.backend == CheckpointBackend.SQLITE:
        return SQLiteStore(
            sqlite_path(config.url or "sqlite://"),
            ttl_seconds=config.ttl_seconds,
            busy_timeout_seconds=config.busy_timeout_seconds,
            synchronous=config.synchronous,
            readers=max(1, config.pool_size - 1),
        )
    if config.backend == CheckpointBackend.REDIS:
        return make_redis_store(config, config.url)
    return make_postgres_store(config, config.url)


def store_of(conn: Any, config: CheckpointerConfig) -> tuple[CheckpointerConfig, Store]:
    """Return the store that a driver's connection, client or pool leads to, and the configuration.

    Raises:
        InvalidConfigError: It is none that is known.
    """
    if type(conn).__module__.startswith("asyncpg.pool"):
        return config, make_postgres_store(config, conn)
    if type(conn).__module__.partition(".")[0] in ("redis", "valkey"):
        return config, make_redis_store(config, conn)
    url = conn_string_of(conn)
    if url is None:
        raise InvalidConfigError(
            f"a {type(conn).__name__} is no store: give a CheckpointerConfig, an asyncpg pool, a psycopg "
            "connection or pool, a client of redis-py, or a URL to from_conn_string"
        )
    return config, make_postgres_store(config, url)


def make_postgres_store(config: CheckpointerConfig, source: Any) -> Store:
    """Make a store of a connection string, or of an asyncpg pool of the caller's.

    Raises:
        InvalidConfigError: The driver is missing, or the URL can't be used.
    """
    with _explained("asyncpg", "Postgres"):
        from langgraph_harness_saver.stores.postgres import PostgresStore
    return PostgresStore(
        source if isinstance(source, str) else None,
        pool=None if isinstance(source, str) else source,
        schema=config.schema,
        create_schema=config.create_schema,
        ttl_seconds=config.ttl_seconds,
        pool_size=config.pool_size,
        retry_seconds=config.retry_seconds,
        prepared_statements=config.prepared_statements,
    )


def make_redis_store(config: CheckpointerConfig, source: Any) -> Store:
    """Make a store of a URL, or of a client of the caller's.

    Raises:
        InvalidConfigError: The driver is missing, or the URL can't be used.
    """
    with _explained("redis", "Redis"):
        from langgraph_harness_saver.stores.redis import RedisStore
    return RedisStore(
        source,
        # A URL may name one, too.
        key_prefix=config.key_prefix if "key_prefix" in config.model_fields_set else None,
        ttl_seconds=config.ttl_seconds,
        refresh_on_read=config.refresh_on_read,
        pool_size=config.pool_size,
        retry_seconds=config.retry_seconds,
        wait_replicas=config.wait_replicas,
        wait_seconds=config.wait_seconds,
    )


@contextmanager
def _explained(driver: str, store: str) -> Iterator[None]:
    """Say what to install where a store's driver is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != driver:
            raise
        raise InvalidConfigError(
            f"the {store} store needs {driver}: pip install 'langgraph-harness-saver[{store.lower()}]'"
        ) from error


def sqlite_path(url: str) -> str | None:
    """Return the path in `sqlite:///relative` or `sqlite:////absolute`; None for a private database.

    Raises:
        InvalidConfigError: The URL has a host or a query.
    """
    rest = url.partition("://")[2]
    if rest in ("", "/", "/:memory:"):
        return None
    if not rest.startswith("/") or "?" in rest:
        raise InvalidConfigError(
            f"{redacted(url)!r} is not an SQLite URL: it takes three slashes and a path, sqlite:///agents.db "
            "or sqlite:////var/lib/agents.db, and options are passed beside it"
        )
    return unquote(rest[1:])


def redacted(url: str) -> str:
    """Return a URL without its password."""
    head, at, tail = url.rpartition("@")
    scheme, colon, login = head.partition("://")
    shown = f"{scheme}{colon}{login.partition(':')[0]}{at}{tail}" if at else url
    return _SECRET.sub(r"\1=...", shown)


def _named(allowed: Any) -> Any:
    return (allowed.__module__, allowed.__name__) if isinstance(allowed, type) else allowed


def _let_passed_win(values: dict[str, Any]) -> None:
    """Keep the environment's backend from contradicting a URL that is passed, and the other way round."""
    if values.get("url") is not None and "backend" not in values:
        with suppress(ValueError):
            # What is wrong with the URL is told when it is validated.
            values["backend"] = backend_of(values["url"])
    elif values.get("backend") == CheckpointBackend.MEMORY:
        values.setdefault("url", None)


def explained(error: ValidationError, model: type[BaseModel]) -> str:
    """Tell what is wrong with the values given to a model, and which options there are."""
    told = []
    for item in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        told.append(f"{name}: {message}" if name else message)
        if item["type"] == "extra_forbidden":
            told[-1] = unknown(name, list(model.model_fields))
    return "; ".join(told)


def unknown(name: str, options: list[str]) -> str:
    """Say that there is no option of a name, and which there are."""
    near = get_close_matches(name, options, 1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no option {name!r}; {guess}there are {', '.join(options)}"
