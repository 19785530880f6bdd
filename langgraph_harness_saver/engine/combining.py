"""Putting together what both sides made of a value, by its type: where no reducer says how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from langgraph_harness_saver.engine.compare import same, token
from langgraph_harness_saver.engine.sides import MISSING, Clash, Three


def combined(three: Three) -> Any:
    """Put values together that both sides changed; raise `Clash` where they don't tell how."""
    _, base, ours, theirs = three
    messages = [by_id(value) for value in ([] if base is MISSING else base, ours, theirs)]
    known = [found for found in messages if found is not None]
    if len(known) == 3:
        return _combined_messages(*known)
    kind: Any = type(ours)
    if kind not in (list, dict, set, frozenset) or type(theirs) is not kind:
        raise Clash("both sides changed it")
    if base is MISSING:
        raise Clash("both sides set it, and nothing was there before that would tell what each added")
    if type(base) is not kind:
        raise Clash("both sides changed it")
    if kind is list:
        return _combined_lists(base, ours, theirs)
    return _combined_dicts(base, ours, theirs) if kind is dict else _combined_sets(base, ours, theirs)


def _combined_lists(base: list[Any], ours: list[Any], theirs: list[Any]) -> list[Any]:
    suffix = suffix_of(base, theirs)
    if suffix is None:
        raise Clash("both sides changed it, and theirs doesn't only append to the list")
    return [*ours, *suffix]


def suffix_of(base: Any, value: Any) -> list[Any] | None:
    """Return what a list has after all of the base's items; None if it isn't one that begins with these."""
    if type(base) is list and type(value) is list and same(value[: len(base)], base):
        return value[len(base) :]
    return None


def _combined_sets(base: Any, ours: Any, theirs: Any) -> Any:
    before, here, there = ({token(item): item for item in part} for part in (base, ours, theirs))
    _check_keys(ours, theirs)
    kept = [item for key, item in here.items() if key in there or key not in before]
    added = [item for key, item in there.items() if key not in here and key not in before]
    return type(ours)([*kept, *added])


def _combined_dicts(
    base: Mapping[Any, Any], ours: Mapping[Any, Any], theirs: Mapping[Any, Any], path: str = ""
) -> dict[Any, Any]:
    _check_keys(base, ours, theirs)
    return {
        key: value
        for key in dict.fromkeys([*ours, *theirs])
        if (value := _combined_item((base, ours, theirs), key, f"{path}[{key!r}]")) is not MISSING
    }


def _check_keys(*parts: Any) -> None:
    keys = [key for part in parts for key in part]
    if len({token(key) for key in keys}) > len(set(keys)):
        raise Clash("both sides changed it, and have keys that are equal, but not of the same type")


def _combined_item(parts: Sequence[Mapping[Any, Any]], key: Any, path: str) -> Any:
    base, ours, theirs = (part.get(key, MISSING) for part in parts)
    if same(theirs, base) or same(ours, theirs):
        return ours
    if same(ours, base):
        return theirs
    if type(base) is type(ours) is type(theirs) is dict:
        return _combined_dicts(base, ours, theirs, path)
    raise Clash(f"both sides changed {path}")


def _combined_messages(base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> list[Any]:
    if [key for key in theirs if key in base] != [key for key in base if key in theirs]:
        raise Clash("both sides changed it, and theirs put its messages into another order")
    kept = {
        key: value
        for key in dict.fromkeys([*ours, *theirs])
        if (value := _combined_item((base, ours, theirs), key, f"message {key!r}")) is not MISSING
    }
    # What theirs put before a message that is still there goes before it, all else to the end.
    before: dict[str | None, list[str]] = {}
    following = None
    for key in reversed(theirs):
        if key in ours and key in kept:
            following = key
        elif key in kept:
            before.setdefault(following, []).append(key)
    order = [new for key in (*ours, None) if key is None or key in kept for new in _with(key, before)]
    return [kept[key] for key in order]


def _with(key: str | None, before: Mapping[str | None, list[str]]) -> list[str]:
    return [*reversed(before.get(key, [])), *([] if key is None else [key])]


def by_id(value: Any) -> dict[str, Any] | None:
    """Return messages by id, if they all are messages with an id of their own."""
    if type(value) is not list or not all(isinstance(item, BaseMessage) and item.id for item in value):
        return None
    found = {item.id: item for item in value}
    return found if len(found) == len(value) else None
