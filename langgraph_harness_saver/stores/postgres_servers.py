"""Which servers a Postgres connection string names, and in which order they are tried."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.stores.urls import port_of

SOCKET_DIRS = ("/run/postgresql", "/var/run/postgresql", "/tmp")  # noqa: S108


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


def servers_of(values: Mapping[str, str]) -> Iterator[Server]:
    """Yield the servers that settings name, else those of libpq's defaults, in their order."""
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
    for default in ("localhost",) if sys.platform == "win32" else (*SOCKET_DIRS, "localhost"):
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
