"""Metadata as JSON that a database can search, where it can be had as such."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import ormsgpack

_UNFIT = re.compile("[\x00\x1a\ud800-\udfff]")
"""What `jsonb` has no form for, and the sign that stands for it here."""
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring
_WORDS = {None: "null", False: "false", True: "true"}
MAX_BITS = 1024
MAX_DEPTH = 64
MAX_LENGTH = 8192


def searchable(value: Mapping[str, Any]) -> str | None:
    """Return JSON of which `jsonb`'s `@>` is true wherever `contains` is true of the values.

    It is for finding candidates, which are compared with the exact values afterwards. None if there is no
    such JSON, so that everything is a candidate.
    """
    try:
        text = _flat(value) or _encode(_plain(value, MAX_DEPTH))
    except TypeError:
        return None
    return text if len(text) <= MAX_LENGTH else None


def searchable_metadata(data: bytes) -> str | None:
    """Return `searchable` of metadata as `Codec.pack_metadata` stores it; None if that took a serializer."""
    if data[:1] != b"\x00":
        return None
    try:
        value = ormsgpack.unpackb(data[1:])
    except ValueError:
        return None
    return searchable(value) if isinstance(value, dict) else None


def _flat(value: Mapping[str, Any]) -> str | None:
    """Return the JSON of what needs no other form, as most metadata; None if there is anything else."""
    items = []
    for name, item in value.items():
        kind = type(item)
        if type(name) is not str or not (name.isascii() and name.isprintable()):
            return None
        if kind is str and item.isascii() and item.isprintable():
            text = _quoted(item)
        elif kind is int and item.bit_length() <= MAX_BITS:
            text = str(item)
        elif item is None or kind is bool:
            text = _WORDS[item]
        elif kind is dict and not item:
            text = "{}"
        else:
            return None
        items.append(f"{_quoted(name)}:{text}")
    return f"{{{','.join(items)}}}"


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return _fit(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        # No float is as large, so none is equal to it.
        return value if value.bit_length() <= MAX_BITS else f"\x1a{value:x}"
    if kind is float:
        return _number(value)
    if depth and kind is dict:
        return {_key(name): _plain(item, depth - 1) for name, item in value.items()}
    if depth and kind in (list, tuple):
        return [_plain(item, depth - 1) for item in value]
    raise TypeError(f"{kind} has no form in JSON")


def _key(name: Any) -> str:
    if type(name) is not str:
        raise TypeError("JSON's names are strings")
    return _fit(name)


def _fit(text: str) -> str:
    return text if text.isascii() and text.isprintable() else _UNFIT.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\x1a{ord(match.group()):04x}"


def _number(value: float) -> Any:
    if value != value or value in (float("inf"), float("-inf")):
        return f"\x1a{value}"
    # 1.0 equals 1, also where its shortest decimal form is another number.
    return int(value) if value.is_integer() else value
