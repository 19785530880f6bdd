"""What the stores' forms of rows have in common."""

from __future__ import annotations


def encode(text: str) -> bytes:
    """Return a text as bytes: any, though databases' own texts lack NUL or lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    """Undo `encode`."""
    return data.decode("utf-8", "surrogatepass")


def split_parts(parts: bytes | None) -> tuple[bytes, ...]:
    """Return the ids, of 16 bytes each, that are stored as one."""
    return tuple(parts[i : i + 16] for i in range(0, len(parts), 16)) if parts else ()
