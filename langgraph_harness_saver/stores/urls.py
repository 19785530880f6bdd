"""What URLs of servers have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from langgraph_harness_saver.errors import InvalidConfigError

_HOST = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]*))(?::(.*))?", re.DOTALL)


def hosts_and_ports(place: str, kind: str) -> list[tuple[str, str]]:
    """Split `host:port,[::1]:port`; each may be empty.

    Raises:
        InvalidConfigError: It is not of that form.
    """
    found = [_HOST.fullmatch(part) for part in place.split(",")]
    pairs = [(part[1] or part[2], part[3] or "") for part in found if part]
    if len(pairs) < len(found):
        raise InvalidConfigError(
            f"a host in a {kind} URL can't be read; an IPv6 address is written in brackets, [::1]:5432, "
            "and what is special in a password is percent-encoded"
        )
    return pairs


def port_of(text: str, default: int) -> int:
    """Read a port.

    Raises:
        InvalidConfigError: It is none.
    """
    if not text:
        return default
    # Not shown: with an unescaped "/" in a password this is a part of it.
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise InvalidConfigError(
            "the port is not a number from 1 to 65535; in a password write : as %3A, / as %2F and @ as %40"
        )
    return int(text)


def did_you_mean(name: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    """Return a question with the name that is likely meant, or nothing.

    `elsewhere` maps what others call it.
    """
    near = elsewhere.get(name) or next(iter(get_close_matches(name, known, 1)), None)
    return f" did you mean {near!r}?" if near else ""
