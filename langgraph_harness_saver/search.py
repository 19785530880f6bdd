"""What packed metadata holds wherever a filter matches, for databases to look for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from langgraph_harness_saver.envelope import pack

MAX_FORMS = 4
"""How many are returned at most, as `harness_may_match` looks for no more."""


def forms_of(wanted: Mapping[str, Any]) -> list[list[bytes]]:
    """Return what stands, of each up to three one, in metadata that `contains` is true of.

    If `pack_metadata` took no serializer for that. It is for finding candidates, which are compared with the
    exact values afterwards: in others these bytes may stand elsewhere.
    """
    return list(islice(_of_mapping(wanted), MAX_FORMS))


def _of_mapping(wanted: Mapping[Any, Any]) -> Iterator[list[bytes]]:
    for name, item in wanted.items():
        key = _packed(name) if type(name) is str else None
        if key is None:
            continue
        if forms := _of_value(item):
            yield [key + form for form in forms]
        else:
            yield [key]
            yield from _within(item)


def _within(wanted: Any) -> Iterator[list[bytes]]:
    if isinstance(wanted, Mapping):
        yield from _of_mapping(wanted)
    elif isinstance(wanted, (list, tuple)):
        for item in wanted:
            if isinstance(item, Mapping):
                yield from _of_mapping(item)
            elif forms := _of_value(item):
                yield forms


def _of_value(value: Any) -> list[bytes]:
    """Return how what equals a value may be packed; nothing if that isn't known."""
    kind = type(value)
    if kind is int or kind is float:
        equal = _equal_numbers(value)
    elif value is None or kind in (bool, str, bytes):
        equal = [value]
    else:
        return []
    return [form for form in map(_packed, equal) if form is not None]


def _equal_numbers(value: float) -> list[float]:
    if value == 0:
        return [0, 0.0, -0.0]
    if value != value:
        # A NaN is packed with its bits, and matches any other.
        return []
    try:
        other = float(value) if isinstance(value, int) else int(value)
    except OverflowError:
        return [value]
    return [value, other] if other == value else [value]


def _packed(value: Any) -> bytes | None:
    try:
        return pack(value)
    except TypeError:
        return None
