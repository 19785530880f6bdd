"""What libpq reads from files beside a connection string: services, and passwords."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.stores.postgres_servers import SOCKET_DIRS, Server
from langgraph_harness_saver.stores.postgres_strings import check_known, modern, unescaped

logger = logging.getLogger(__name__)

_PASSFILE_LINE = re.compile(":".join([r"((?:[^:\\]|\\.)*)"] * 5))
_SERVICE_DIRS = ("/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc")


def add_service(values: dict[str, str]) -> None:
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
    check_known((name for name, _ in pairs), str(file))
    return dict(modern(name, value) for name, value in reversed(pairs))


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


def stored_password(passfile: str, servers: Iterable[Server], database: str, user: str) -> str:
    """Look a password up in libpq's password file, the usual one if `passfile` is empty; "" if none is there.

    Raises:
        InvalidConfigError: The servers have different ones.
    """
    entries = list(_passfile_entries(passfile))
    found = {_matching_password(entries, server, database, user) for server in servers}
    if len(found) > 1:
        raise InvalidConfigError(
            "the password file has different passwords for these hosts, and asyncpg sends one to all; "
            "give the password with the URL, or one host"
        )
    return found.pop() or ""


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
    host = "localhost" if server.name in SOCKET_DIRS else server.name
    wanted = (host, str(server.port), database, user)
    for *patterns, password in entries:
        if all(
            pattern == "*" or unescaped(pattern) == value
            for pattern, value in zip(patterns, wanted, strict=True)
        ):
            return unescaped(password)
    return None
