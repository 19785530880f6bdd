"""Values as events hold them: as JSON has them, and not too long."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, message_chunk_to_message

from langgraph_harness_saver.records import jsonable

MOST_BYTES = 1 << 20
"""How long an input or output may be, as JSON text; of longer ones the beginning is kept."""
PROMPT_BYTES = 1 << 14
"""The same for the messages that a model is given, of which the newest are kept: the older ones are in the
checkpoint, and each call of a long conversation would store all of them once more."""


def told(value: Any, most: int | None = MOST_BYTES) -> Any:
    """Return a value as JSON has it, as it is now; of one with more than `most` bytes the beginning."""
    try:
        plain = _plain(value)
        text = json.dumps(plain)
    except Exception as error:
        # Whatever an object does when it is looked at, the run that it is of goes on.
        plain = f"<{type(value).__name__}, which can't be shown: {type(error).__name__}>"
        text = plain
    return plain if most is None or len(text) <= most else _cut(plain, text, most)


def told_prompt(messages: Sequence[Any], most: int | None = PROMPT_BYTES) -> Any:
    """Return messages as JSON has them, the newest up to `most` bytes, and first how many are left out."""
    found: list[Any] = []
    size = 0
    for message in reversed(messages):
        plain = told(message, most)
        size += len(json.dumps(plain))
        if found and most is not None and size > most:
            return [{"omitted": len(messages) - len(found)}, *reversed(found)]
        found.append(plain)
    return found[::-1]


def told_message(message: BaseMessage) -> dict[str, Any]:
    """Return a message's type and whatever of it isn't as it is by default."""
    whole = message_chunk_to_message(message) if message.type.endswith("Chunk") else message
    fields = whole.model_dump(exclude_defaults=True)
    named = {"type": whole.type, "content": whole.content, **fields}
    return {
        name: jsonable(value)
        for name, value in named.items()
        if value not in (None, "", [], {}) or name == "content"
    }


def _plain(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return told_message(value)
    if isinstance(value, (list, tuple)) and any(isinstance(item, BaseMessage) for item in value):
        return [_plain(item) for item in value]
    return jsonable(value)


def _cut(plain: Any, text: str, most: int) -> str:
    beginning = plain if isinstance(plain, str) else text
    return f"{beginning[:most]}… ({len(text):,} bytes in all)"
