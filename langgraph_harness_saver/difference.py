"""Differences between two byte strings that are versions of one value."""

from __future__ import annotations

from typing import NamedTuple

_STEP = 1 << 16
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
    start, lead = (_header(old), _header(new)) if container else (0, 0)
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


def fits(size: int, change: Difference) -> bool:
    """Tell whether a difference can belong to a base of this size."""
    return (
        min(change.start, change.length, change.tail) >= 0
        and change.start + change.length + change.tail <= size
    )


def _header(data: bytes) -> int:
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
    done = 0
    while done < limit:
        step = min(_STEP, limit - done)
        if a[i + done : i + done + step] != b[j + done : j + done + step]:
            return done + _halve(a, i + done, b, j + done, step)
        done += step
    return limit


def _halve(a: bytes, i: int, b: bytes, j: int, differ_within: int) -> int:
    low, high = 0, differ_within
    while high - low > 1:
        middle = (low + high) // 2
        if a[i + low : i + middle] == b[j + low : j + middle]:
            low = middle
        else:
            high = middle
    return low


def _common_suffix(a: bytes, a_floor: int, b: bytes, b_floor: int) -> int:
    limit = min(len(a) - a_floor, len(b) - b_floor)
    done = 0
    while done < limit:
        step = min(_STEP, limit - done)
        i, j = len(a) - done - step, len(b) - done - step
        if a[i : i + step] != b[j : j + step]:
            return done + _halve_back(a, len(a) - done, b, len(b) - done, step)
        done += step
    return limit


def _halve_back(a: bytes, i: int, b: bytes, j: int, differ_within: int) -> int:
    low, high = 0, differ_within
    while high - low > 1:
        middle = (low + high) // 2
        if a[i - middle : i - low] == b[j - middle : j - low]:
            low = middle
        else:
            high = middle
    return low
