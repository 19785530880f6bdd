"""The header of a checkpoint: everything but its values, and where these are stored."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from langgraph_harness_saver.envelope import pack_any, unpack
from langgraph_harness_saver.ids import pack_id, unpack_id
from langgraph_harness_saver.rows import CheckpointKey
from langgraph_harness_saver.versions import pack_version, unpack_version

_OWN = frozenset(("v", "ts", "id", "channel_values", "channel_versions", "versions_seen"))
_TEXT = frozenset((str,))
PLAIN_VERSIONS, PLAIN_FIELDS = 16, 6
_EPOCH = datetime(1970, 1, 1)
_SECOND, _MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)

Places = Mapping[str, tuple[CheckpointKey, int]]
"""Where each channel's value is stored: key and slot."""


class Header(NamedTuple):
    """A checkpoint's fields but `id` and `channel_values`; `extra` holds those that LangGraph may add."""

    v: Any
    ts: Any
    versions: Mapping[str, Any]
    seen: Mapping[str, Mapping[str, Any]]
    extra: Mapping[str, Any] | None

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> Header:
        """Take the header of a checkpoint."""
        extra = {}
        for name in checkpoint:
            if name not in _OWN:
                value = checkpoint[name]
                extra[name] = value[:] if type(value) is list else copy.copy(value)
        return cls(
            checkpoint.get("v"),
            checkpoint.get("ts"),
            dict(checkpoint["channel_versions"]),
            {node: dict(seen) for node, seen in checkpoint["versions_seen"].items()},
            extra,
        )


_NO_HEADER = Header(None, None, {}, {}, None)


def pack_header(
    header: Header, places: Places, old: Header | None, old_places: Places, key: CheckpointKey
) -> bytes:
    """Pack a header as what differs from `old`, or whole where that is None."""
    before = old or _NO_HEADER
    # Distinct versions, numbered: one step gives most of its channels the same.
    table: dict[Any, int] = {}
    versions, seen = {}, {}
    for channel, version in header.versions.items():
        there = before.versions.get(channel, before)
        if there is not version and _new(version, there):
            versions[channel] = _number(version, table)
    for node, channels in header.seen.items():
        known = before.seen.get(node)
        if known is None or _any_new(channels, known):
            seen[node] = {channel: _number(version, table) for channel, version in channels.items()}
    moved = {}
    for channel, place in places.items():
        there = old_places.get(channel)
        if there is not place and there != place:
            moved[channel] = place[1] if place[0] is key else _pack_place(place, key)
    gone = None
    if old and not (
        before.versions.keys() <= header.versions.keys()
        and before.seen.keys() <= header.seen.keys()
        and old_places.keys() <= places.keys()
    ):
        gone = [
            [c for c in before.versions if c not in header.versions],
            [n for n in before.seen if n not in header.seen],
            [c for c in old_places if c not in places],
        ]
    return pack_any(
        [
            header.v,
            _pack_time(header.ts),
            [pack_version(one if type(one) is str else one[1]) for one in table],
            versions,
            seen,
            moved,
            gone,
            header.extra,
        ]
    )


def pack_plain_header(header: Header, places: Places, key: CheckpointKey) -> bytes:
    """Pack a small header whole and as it is, which takes no thought; `unpack_header` reads it."""
    placed = {c: place[1] if place[0] is key else _pack_place(place, key) for c, place in places.items()}
    return pack_any([*header, placed])


def is_small(header: Header) -> bool:
    """Tell whether a header takes some hundred bytes however it is packed."""
    return len(header.versions) + sum(map(len, header.seen.values())) <= PLAIN_VERSIONS


def unpack_header(
    data: bytes, old: Header | None, old_places: Places, key: CheckpointKey
) -> tuple[Header, dict[str, tuple[CheckpointKey, int]]]:
    """Undo `pack_header`, given the same `old`, or `pack_plain_header`."""
    fields = unpack(data)
    if len(fields) == PLAIN_FIELDS:
        placed = {channel: _unpack_place(place, key) for channel, place in fields[5].items()}
        return Header(*fields[:5]), placed
    v, ts, packed, versions, seen, moved, gone, extra = fields
    table = [unpack_version(version) for version in packed]
    before = old or _NO_HEADER
    all_versions = {**before.versions, **{c: table[i] for c, i in versions.items()}}
    all_seen = {**before.seen, **{n: {c: table[i] for c, i in s.items()} for n, s in seen.items()}}
    places = {**old_places, **{c: _unpack_place(p, key) for c, p in moved.items()}}
    if gone:
        mappings: tuple[dict[str, Any], ...] = (all_versions, all_seen, places)
        for mapping, names in zip(mappings, gone, strict=True):
            for name in names:
                del mapping[name]
    return Header(v, _unpack_time(ts), all_versions, all_seen, extra), places


def pack_alias(ts: Any, changes: Mapping[str, Any]) -> bytes:
    """Pack what a copy of a checkpoint has otherwise: its time, where it isn't None, and extra fields."""
    return pack_any([None if ts is None else [_pack_time(ts)], dict(changes)])


def unpack_alias(data: bytes, old: Header) -> Header:
    """Return the header of a copy, given that of the original."""
    ts, changes = unpack(data)
    return old._replace(
        ts=_unpack_time(ts[0]) if ts else old.ts,
        extra={**(old.extra or {}), **changes} if changes else old.extra,
    )


def header_time(data: bytes, *, is_alias: bool) -> list[Any] | None:
    """Return the time in a packed header or alias, in a list; None where an alias has none of its own."""
    packed = unpack(data)
    if len(packed) == PLAIN_FIELDS:
        return [packed[1]]
    times = packed[0] if is_alias else packed[1:2]
    return [_unpack_time(times[0])] if times else None


def merge_aliases(first: bytes, second: bytes) -> bytes:
    """Return what a copy of a copy has otherwise than the original."""
    (old_ts, old_changes), (ts, changes) = unpack(first), unpack(second)
    return pack_any([ts or old_ts, {**old_changes, **changes}])


def _new(version: Any, old: Any) -> bool:
    # 1, 1.0 and True are equal and yet different versions.
    return version != old or type(version) is not type(old)


def _any_new(seen: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    if seen != old:
        return True
    # What equals a text is one.
    return not _TEXT.issuperset(map(type, seen.values())) and any(_new(v, old[c]) for c, v in seen.items())


def _number(version: Any, table: dict[Any, int]) -> int:
    told_apart = version if type(version) is str else (type(version), version)
    return table.setdefault(told_apart, len(table))


def _pack_place(place: tuple[CheckpointKey, int], key: CheckpointKey) -> Any:
    held_by, slot = place
    if held_by is key or held_by == key:
        return slot
    if held_by[:2] == key[:2]:
        return [pack_id(held_by.checkpoint_id), slot]
    return [*held_by, slot]


def _unpack_place(packed: Any, key: CheckpointKey) -> tuple[CheckpointKey, int]:
    if isinstance(packed, int):
        return key, packed
    if len(packed) == 2:
        return CheckpointKey(key[0], key[1], unpack_id(packed[0])), packed[1]
    return CheckpointKey(*packed[:3]), packed[3]


def _pack_time(ts: Any) -> Any:
    # An ISO time in UTC, which is what LangGraph writes, as microseconds since 1970.
    if isinstance(ts, str):
        if len(ts) == 32 and ts[19] == "." and ts.endswith("+00:00"):
            second, fraction = _second(ts[:19]), ts[20:26]
            if second is not None and fraction.isdecimal() and fraction.isascii() and fraction != "000000":
                return second * 1_000_000 + int(fraction)
        return ts
    return ts if not isinstance(ts, int) else [ts]


@lru_cache(64)
def _second(text: str) -> int | None:
    """Return the second since 1970 that an ISO time without a zone names in UTC, if it is written so."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment - _EPOCH) // _SECOND if moment.isoformat() == text else None


def _unpack_time(packed: Any) -> Any:
    if isinstance(packed, int):
        return (_EPOCH + packed * _MICROSECOND).isoformat() + "+00:00"
    return packed[0] if isinstance(packed, list) else packed
