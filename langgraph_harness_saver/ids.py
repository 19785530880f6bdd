"""Short forms of ids: most are UUIDs, but any string is one."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_UUID = re.compile(r"\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_DASHES = (8, 13, 18, 23)
_DIGITS = "0123456789abcdef"


@lru_cache(1024)
def pack_id(text: str) -> Any:
    """Return a canonical UUID as 16 bytes, and any other id as it is."""
    return bytes.fromhex(text.replace("-", "")) if len(text) == 36 and _UUID.match(text) else text


def unpack_id(packed: Any) -> str:
    """Undo `pack_id`."""
    return _text(packed) if isinstance(packed, bytes) else str(packed)


@lru_cache(1024)
def id_key(text: str) -> bytes:
    """Return bytes that sort as the id's own UTF-8 does: 17 for a canonical UUID.

    A UUID's text sorts as its number. Another string stands right after the greatest UUID below it,
    and there in the order of its text.
    """
    packed = pack_id(text)
    if isinstance(packed, bytes):
        return b"\x01" + packed
    floor = _uuid_below(text)
    encoded = text.encode("utf-8", "surrogatepass")
    if floor < 0:
        return b"\x00" + encoded
    return b"\x01" + floor.to_bytes(16, "big") + b"\x01" + encoded


def id_of_key(key: bytes) -> str:
    """Undo `id_key`."""
    if len(key) == 17 and key[0] == 1:
        return _text(key[1:])
    return key[1 if key[0] == 0 else 18 :].decode("utf-8", "surrogatepass")


def _text(packed: bytes) -> str:
    h = packed.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def _uuid_below(text: str) -> int:
    """Return the greatest UUID whose text sorts below, as a number; negative if there is none."""
    digits = ""
    for position in range(36):
        char = text[position : position + 1]
        if position in _DASHES:
            if char == "-":
                continue
            return _last(digits) if char > "-" else _first(digits) - 1
        if char and char in _DIGITS:
            digits += char
            continue
        lower = [digit for digit in _DIGITS if digit < char]
        return _last(digits + lower[-1]) if lower else _first(digits) - 1
    return int(digits, 16)


def _first(digits: str) -> int:
    return int(digits.ljust(32, "0"), 16)


def _last(digits: str) -> int:
    return int(digits.ljust(32, "f"), 16)
