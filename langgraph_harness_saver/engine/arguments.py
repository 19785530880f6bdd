"""What callers may name threads and checkpoints by."""

from __future__ import annotations

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


def _text(given: Any, name: str) -> str:
    if isinstance(given, dict):
        raise InvalidConfigError(f'a {name} is text, not a config: pass config["configurable"]["{name}"]')
    if given is None:
        raise InvalidConfigError(f"a {name} is needed, not None")
    return str(given)
