"""Differences between two byte strings that are versions of one value."""

from __future__ import annotations

from typing import NamedTuple

LINK_BYTES = 64
"""What reading one more difference is held to cost, in bytes."""
_STEP = 1 << 16
_NEAR = 1 << 8
"""Where so few bytes differ, an exclusive or of two numbers finds the first sooner than further halving."""
_PROBE = 512
_ARRAY16, _ARRAY32, _MAP16, _MAP32 = 0xDC, 0xDD, 0xDE, 0xDF


class Difference(NamedTuple):
    """Rebuilds a value: `lead + base[start:start + length] + middle + base[len(base) - tail:]`."""

    lead: bytes
    start: int
    length: int
    middle: bytes
    tail: int


def difference(old: bytes, new: bytes, container: bool) -> Difference:
    """Return a difference that makes `new` of `old`.

    With `container`, both are msgpack, so the header of an outermost array or map, which holds its
    length (https://github.com/msgpack/msgpack/blob/master/spec.md), is kept out of the comparison:
    appending an item changes nothing else.
    """
    start, lead = (header_size(old), header_size(new)) if container else (0, 0)
    length = _common_prefix(old, start, new, lead)
    tail = _common_suffix(old, start + length, new, lead + length)
    if 2 * (length + tail) < len(new):
        slid = old.find(new[lead : lead + _PROBE], start) if len(new) - lead >= _PROBE else -1
        if slid > start:
            start = slid
            length = _common_prefix(old, start, new, lead)
            tail = _common_suffix(old, start + length, new, lead + length)
    return Difference(new[:lead], start, length, new[lead + length : len(new) - tail], tail)


def apply(base: bytearray, change: Difference) -> None:
    """Turn a base into the next value, in place: appending to it costs what is appended."""
    end = len(base)
    base[change.start + change.length : end - change.tail] = change.middle
    base[: change.start] = change.lead


def inverse(base: bytearray, change: Difference) -> Difference:
    """Return what makes this base again of what a change, which fits, makes of it."""
    end = len(base) - change.tail
    middle = bytes(base[change.start + change.length : end])
    return Difference(bytes(base[: change.start]), len(change.lead), change.length, middle, change.tail)


def fits(size: int, change: Difference) -> bool:
    """Tell whether a difference can belong to a base of this size."""
    return (
        min(change.start, change.length, change.tail) >= 0
        and change.start + change.length + change.tail <= size
    )


def header_size(data: bytes) -> int:
    """Return how long the header of an outermost array or map is, if these bytes are msgpack."""
    first = data[0] if data else 0
    if first in (_ARRAY16, _MAP16):
        size = 3
    elif first in (_ARRAY32, _MAP32):
        size = 5
    else:
        size = 1 if 0x80 <= first <= 0x9F else 0
    return min(size, len(data))


def _common_prefix(a: bytes, i: int, b: bytes, j: int) -> int:
    """Count equal bytes from `a[i]` and `b[j]` on: strides first, then halves of the first that differs."""
    limit = min(len(a) - i, len(b) - j)
    done, step = 0, min(_STEP, limit)
    while a.startswith(b[j + done : j + done + step], i + done):
        done += step
        if done == limit:
            return limit
        step = min(_STEP, limit - done)
    while step > _NEAR:
        half = step >> 1
        if a.startswith(b[j + done : j + done + half], i + done):
            done += half
            step -= half
        else:
            step = half
    i, j = i + done, j + done
    differing = int.from_bytes(a[i : i + step], "big") ^ int.from_bytes(b[j : j + step], "big")
    return done + step - (differing.bit_length() + 7) // 8


def _common_suffix(a: bytes, a_floor: int, b: bytes, b_floor: int) -> int:
    limit = min(len(a) - a_floor, len(b) - b_floor)
    i, j = len(a), len(b)
    done, step = 0, min(_STEP, limit)
    while a.endswith(b[j - done - step : j - done], 0, i - done):
        done += step
        if done == limit:
            return limit
        step = min(_STEP, limit - done)
    while step > _NEAR:
        half = step >> 1
        if a.endswith(b[j - done - half : j - done], 0, i - done):
            done += half
            step -= half
        else:
            step = half
    i, j = i - done, j - done
    differing = int.from_bytes(a[i - step : i], "little") ^ int.from_bytes(b[j - step : j], "little")
    return done + step - (differing.bit_length() + 7) // 8
