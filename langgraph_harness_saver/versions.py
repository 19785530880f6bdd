"""Channel versions: made to be unique, packed to be small."""

from __future__ import annotations

import os
import re
from random import Random
from typing import Any

_UNIQUE = re.compile(r"\A[0-9]{32}\.(?:[0-9a-f]{16}|[0-9]\.[0-9]{8,})\Z")

_LEAD = "0" * 14
"""What 32 digits begin with whose number, below 10^18, isn't too large for msgpack."""


_random = Random()
"""Seeded by the system, like `random`'s own, but nobody's `random.seed` makes it repeat itself."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def next_version(current: Any) -> str:
    """Return a version that follows `current` and that no other fork will ever get.

    It has the form of LangGraph's own savers, 32 digits, a point and a random part, because LangGraph's
    server puts versions of that form on the same threads and versions are compared as strings.
    """
    random = f"{_random.getrandbits(64):016x}"
    if not isinstance(current, str):
        return f"{int(current or 0) + 1:032}.{random}"
    digits = current.partition(".")[0]
    if digits.isdecimal() and digits.isascii():
        following = f"{int(digits) + 1:0{len(digits)}}.{random}"
        if following > current:
            return following
    # Of another saver's making, in a form whose order only text knows.
    return f"{current}.{random}"


def is_unique(version: Any) -> bool:
    """Tell whether a version has a random part, so that equal versions mean equal values."""
    return isinstance(version, str) and _UNIQUE.match(version) is not None


def pack_version(version: Any) -> Any:
    """Return a shorter form of a version of ours, and any other as it is."""
    # Below a number that msgpack could not hold, which no thread comes near.
    if isinstance(version, str) and version[:14] == _LEAD and version[32:33] == "." and version.isascii():
        digits, tail = version[:32], version[33:]
        if digits.isdecimal() and tail:
            return [int(digits), _hex(tail) or tail]
    return version


def _hex(text: str) -> bytes | None:
    """Return the bytes that 16 lower-case hexadecimal digits stand for; None for any other text."""
    if len(text) != 16:
        return None
    try:
        packed = bytes.fromhex(text)
    except ValueError:
        return None
    return packed if packed.hex() == text else None


def unpack_version(packed: Any) -> Any:
    """Undo `pack_version`."""
    if isinstance(packed, list):
        number, tail = packed
        return f"{number:032}.{tail.hex() if isinstance(tail, bytes) else tail}"
    return packed
