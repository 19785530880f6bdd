"""One SQLite file: connections, group commit, and what errors mean."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from langgraph_harness_saver.errors import SchemaError, StoreError, StoreNotOpenError
from langgraph_harness_saver.forks import Forkable, renew_after_fork
from langgraph_harness_saver.stores.base import door
from langgraph_harness_saver.stores.sql import migrations, queries

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

SCHEMA_MAJOR = 1
PAGE_BYTES = 512
"""Small pages: a commit writes whole ones, and each table and index begins with one."""
VACUUM_PAGES = 1 << 14
CACHE_KIB = 8192
WAL_BYTES = 1 << 22

SQL = queries("sqlite")
_MIGRATIONS = migrations("sqlite")
"""Each leads to the next minor version, the first to 0; a release works with every newer one."""


class SQLiteFile(Forkable):
    """A file, or without a path a private database in memory, and the connections to it.

    One connection writes, and commits together what has queued up while it was busy; others read beside
    it (https://www.sqlite.org/wal.html).
    """

    def __init__(
        self, path: str | None, timeout: float, synchronous: Literal["full", "normal"], readers: int
    ) -> None:
        # The working directory may change between one connection and the next.
        self.path = None if path is None else str(Path(path).expanduser().absolute())
        self.writer: sqlite3.Connection | None = None
        self._timeout = timeout
        self._synchronous = synchronous
        self._readers = readers
        self._closed = False
        self._renew()
        renew_after_fork(self)

    def _renew(self) -> None:
        self._ready = self.writer is not None
        self._queue: deque[_Call[Any]] = deque()
        self._draining = False
        self._vacuum = False
        self._idle: deque[sqlite3.Connection] = deque()
        self._lock = threading.RLock()
        self._reads = threading.Condition()
        self._reading_now = 0
        self._seats = threading.BoundedSemaphore(self._readers)
        self._start_lock = threading.Lock()
        self._write_thread: ThreadPoolExecutor | None = None
        self._read_threads: ThreadPoolExecutor | None = None

    def before_fork(self) -> None:
        """Close the file: a child may inherit nothing of it (https://www.sqlite.org/howtocorrupt.html, 2.6).

        Parent and child open it again when they need it.
        """
        self._lock.acquire()
        self._reads.acquire()
        while self._reading_now:
            self._reads.wait()
        if self.path is not None:
            self._disconnect()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._reads.release()
        self._lock.release()

    def after_fork(self) -> None:
        """Leave the parent's threads, and those who wait for them, alone."""
        self._renew()

    # --- opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and migrate, once."""
        if self._ready and not self._closed:
            return
        if self._closed:
            raise self._not_open()
        await self._aside(self._open, self._writing())

    def _open(self) -> None:
        with self._lock:
            if self._ready:
                return
            with self._translated():
                connection = self._connect()
                try:
                    self._prepare(connection)
                except BaseException:
                    connection.close()
                    raise
                self.writer = connection
            self._ready = True

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path or ":memory:",
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        done = self._migrated(connection)
        if done >= len(_MIGRATIONS):
            return
        if not done:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._use_wal(connection)
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._migrate(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        # The busy handler isn't called for this one, so processes that start together have to retry.
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _migrate(self, connection: sqlite3.Connection) -> None:
        # Another process may have come first.
        for _, text in _MIGRATIONS[self._migrated(connection) :]:
            for statement in filter(str.strip, text.split(";\n")):
                connection.execute(statement)

    def _migrated(self, connection: sqlite3.Connection) -> int:
        """Return how many migrations the file has had."""
        if connection.execute(SQL["has_schema"]).fetchone() is None:
            return 0
        versions = connection.execute(SQL["schema"]).fetchall()
        if len(versions) != 1:
            raise SchemaError(
                f"{self.path} has a table harness_schema without a version in it; restore the file from a "
                "backup, or use another"
            )
        if versions[0][0] != SCHEMA_MAJOR:
            newer = "written by a newer version. Upgrade langgraph-harness-saver, or use another file"
            why = newer if versions[0][0] > SCHEMA_MAJOR else "no version has written that; use another file"
            raise SchemaError(
                f"{self.path} has schema version {versions[0][0]}, and this one knows {SCHEMA_MAJOR}: {why}"
            )
        return int(versions[0][1]) + 1

    async def close(self) -> None:
        """Commit what is queued and close every connection."""
        if not self._closed:
            self._closed = True
            await self._aside(self._close, None)

    def _close(self) -> None:
        with self._lock:
            self._drain()
            with self._reads:
                while self._reading_now:
                    self._reads.wait()
            self._disconnect()
        for threads in (self._write_thread, self._read_threads):
            if threads is not None:
                threads.shutdown(wait=False)

    def _disconnect(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        self._ready = False

    # --- calls -------------------------------------------------------------------------------------

    async def _aside(self, work: Callable[[], T], threads: ThreadPoolExecutor | None) -> T:
        """Run blocking work here in the sync door, else in a thread."""
        if door.sync:
            return work()
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def _writing(self) -> ThreadPoolExecutor:
        with self._start_lock:
            if self._write_thread is None:
                self._write_thread = ThreadPoolExecutor(1, "harness-sqlite-write")
            return self._write_thread

    def _reading(self) -> ThreadPoolExecutor:
        with self._start_lock:
            if self._read_threads is None:
                self._read_threads = ThreadPoolExecutor(self._readers, "harness-sqlite-read")
            return self._read_threads

    async def write(self, work: Work[T]) -> T:
        """Run work in the next group commit, in a transaction that its failing undoes."""
        await self.open()
        if door.sync:
            call = _Call(work)
            self._queue.append(call)
            with self._lock:
                if not call.done:
                    self._drain()
            return call.result()
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        self._queue.append(_Call(work, waiting))
        # Not at once: whoever is ready now comes along. A thread that began with the first of them would take
        # the interpreter from the others for each of its statements.
        if not self._draining:
            loop.call_soon(self._start_draining)
        return await waiting  # type: ignore[no-any-return]

    def _start_draining(self) -> None:
        if self._queue and not self._draining:
            self._draining = True
            self._writing().submit(self._drain_all)

    def _drain_all(self) -> None:
        while True:
            with self._lock:
                self._drain()
            self._draining = False
            # What was queued before that line may have relied on this thread.
            if not self._queue:
                return
            self._draining = True

    def _drain(self) -> None:
        """Commit everything that is queued; the lock is held."""
        calls: list[_Call[Any]] = []
        try:
            while self._queue:
                calls.append(self._queue.popleft())
            with self._translated():
                if calls:
                    self._commit(calls)
        except BaseException as error:
            for call in calls:
                call.fail(error)
        finally:
            _deliver(calls)
        if self._vacuum:
            self._give_back()

    def _commit(self, calls: Sequence[_Call[Any]]) -> None:
        writer = self._connected()
        try:
            writer.execute("BEGIN IMMEDIATE")
            if not self._all_succeed(writer, calls):
                # Once more, so that only those fail that have to.
                writer.execute("ROLLBACK")
                writer.execute("BEGIN IMMEDIATE")
                for call in calls:
                    self._run(writer, call)
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise

    def _all_succeed(self, connection: sqlite3.Connection, calls: Sequence[_Call[Any]]) -> bool:
        """Run calls without a savepoint for each, of which few are ever gone back to."""
        try:
            for call in calls:
                call.value = call.work(connection)
        except Exception:
            if len(calls) == 1 or not connection.in_transaction:
                raise
            logger.debug("a call of %d failed; they are run one by one", len(calls), exc_info=True)
            return False
        return True

    def _connected(self) -> sqlite3.Connection:
        """Return the writer, which a fork may have closed since the store was opened; the lock is held."""
        if self.writer is None and not self._closed:
            self._open()
        if self.writer is None:
            raise self._not_open()
        return self.writer

    def _not_open(self) -> StoreNotOpenError:
        return StoreNotOpenError(f"the store of {self.path or 'memory'} is closed; make a new saver")

    def _run(self, connection: sqlite3.Connection, call: _Call[Any]) -> None:
        """Run one call so that, failing, it leaves the others of its batch untouched."""
        connection.execute("SAVEPOINT call")
        try:
            with self._translated():
                call.value = call.work(connection)
        except Exception as error:
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO call")
            call.fail(error)
        connection.execute("RELEASE call")

    def vacuum(self) -> None:
        """Give free pages back after this commit."""
        self._vacuum = True

    def _give_back(self) -> None:
        """Return freed pages to the file system, some at a time."""
        self._vacuum = False
        if self.path is None or self.writer is None:
            return
        try:
            # Whoever else is reading or writing is not waited for.
            self.writer.execute("PRAGMA busy_timeout = 0")
            # Gives a row without columns per page, at which `execute` would stop.
            self.writer.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
            self._vacuum = bool(self.writer.execute("PRAGMA freelist_count").fetchone()[0])
            self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            # What the callers asked for is committed; the space is given back another time.
            logger.info("%s: free pages are given back later: %s", self.path, error)
            self._vacuum = True
        finally:
            self.writer.execute(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads, on one snapshot."""
        await self.open()
        return await self._aside(lambda: self._read_here(work), None if door.sync else self._reading())

    def _read_here(self, work: Work[T]) -> T:
        with self._translated(), self._reader() as connection:
            try:
                connection.execute("BEGIN")
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        if self.path is None:
            with self._lock:
                yield self._connected()
            return
        with self._seats:
            with self._reads:
                self._reading_now += 1
            try:
                with self._pooled() as connection:
                    yield connection
            finally:
                with self._reads:
                    self._reading_now -= 1
                    self._reads.notify_all()

    @contextmanager
    def _pooled(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        finally:
            if self._closed or connection.in_transaction:
                connection.close()
            else:
                self._idle.append(connection)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translate(error, self.path) from error


class _Call(Generic[T]):
    """Work for the writer, and what became of it."""

    __slots__ = ("_error", "done", "value", "waiting", "work")

    def __init__(self, work: Work[T], waiting: asyncio.Future[T] | None = None) -> None:
        self.work = work
        self.waiting = waiting
        self.value: T
        self.done = False
        self._error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        self._error = self._error or error

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self.value

    def resolve(self) -> None:
        # A caller that was cancelled doesn't ask any more.
        if self.waiting is None or self.waiting.done():
            return
        if self._error is not None:
            self.waiting.set_exception(self._error)
        else:
            self.waiting.set_result(self.value)


def _deliver(calls: Sequence[_Call[Any]]) -> None:
    """Wake the callers, those of one event loop together."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Call[Any]]] = defaultdict(list)
    for call in calls:
        call.done = True
        if call.waiting is not None:
            by_loop[call.waiting.get_loop()].append(call)
    for loop, some in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, some)
        except RuntimeError:
            # The loop has been closed in the meantime: there is no caller left to tell.
            logger.debug("%d calls were committed whose event loop is closed", len(some))


def _resolve(calls: Sequence[_Call[Any]]) -> None:
    for call in calls:
        call.resolve()


def _translate(error: sqlite3.Error, path: str | None) -> StoreError:
    said = str(error)
    where = path or "the private SQLite database"
    if "not a database" in said:
        return SchemaError(f"{where} is not an SQLite database; name another file, or move this one away")
    hint = "what SQLite said is in __cause__"
    if path and "unable to open" in said:
        hint = _why_not_opened(Path(path).absolute())
    elif "readonly" in said:
        hint = "this user may not write to the file or its directory; change their permissions"
    elif "locked" in said or "busy" in said:
        hint = "another process has kept it locked; end that one, or raise busy_timeout_seconds"
    elif "full" in said:
        hint = "make room on the disk and try again; nothing was half-written"
    elif "malformed" in said or "corrupt" in said:
        hint = "restore it from a backup, or save what is left with the `.recover` command of sqlite3"
    return StoreError(f"{where}: {said}; {hint}")


def _why_not_opened(path: Path) -> str:
    if path.is_dir():
        return "that is a directory; name a file in it"
    if not path.parent.exists():
        return f"{path.parent} does not exist; create it"
    if not path.parent.is_dir():
        return f"{path.parent} is a file, not a directory; name another path"
    return f"may this user write to {path.parent}?"
