"""What callers may name threads and checkpoints by."""

from __future__ import annotations

import operator
from typing import Any

from langgraph_harness_saver.errors import InvalidConfigError


def thread_name(thread_id: Any) -> str:
    """Return a thread's id as the saver stores it, which is as text.

    Raises:
        InvalidConfigError: It can't be one.
    """
    if isinstance(thread_id, bool):
        raise InvalidConfigError(
            f"{thread_id} stands where a thread_id is meant; pass options by name, as in "
            "rewind(checkpoint_id, discard_later=True)"
        )
    return _text(thread_id, "thread_id")


def checkpoint_name(checkpoint_id: Any) -> str:
    """Return a checkpoint's id as text; see `thread_name`."""
    return _text(checkpoint_id, "checkpoint_id")


def page(limit: Any, offset: Any = 0, *, least: int = 0) -> tuple[int | None, int]:
    """Return how many of a list are asked for, None for all, and how many are passed over.

    Raises:
        InvalidConfigError: These aren't numbers, or less than 0, or `limit` is less than `least`.
    """
    if limit is not None:
        limit = whole_number(limit, "limit", least)
    return limit, whole_number(offset, "offset", 0)


def whole_number(given: Any, name: str, least: int | None = None) -> int:
    """Return a number as it is.

    Raises:
        InvalidConfigError: It is none, or less than `least`.
    """
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise InvalidConfigError(f"{name} is a whole number, not {given!r}")
    number = operator.index(given)
    if least is not None and number < least:
        raise InvalidConfigError(f"{name} is at least {least}, not {number}")
    return number


def _text(given: Any, name: str) -> str:
    if isinstance(given, dict):
        raise InvalidConfigError(f'a {name} is text, not a config: pass config["configurable"]["{name}"]')
    if given is None:
        raise InvalidConfigError(f"a {name} is needed, not None")
    if isinstance(given, (bytes, bytearray, list, tuple, set)):
        raise InvalidConfigError(f"a {name} is text, not {given!r}")
    return str(given)
