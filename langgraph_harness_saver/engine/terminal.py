"""Lines of text for a terminal, safe to print whatever the values hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

BOLD, DIM, RED, GREEN, YELLOW, MAGENTA, CYAN = "1", "2", "31", "32", "33", "35", "36"
"""ANSI's numbers."""
_SHORTEST_ID = 8


class Ink(NamedTuple):
    """A stretch of a line, and what it looks like in colour."""

    text: str
    style: str = ""


def lines_of(lines: Iterable[Sequence[Ink]], *, colour: bool, width: int) -> str:
    """Join lines, each cut to so many columns."""
    return "\n".join(_inked(_cut(line, width), colour) for line in lines)


def printable(text: str) -> str:
    """Return text on one line, with everything escaped that a terminal would obey, or couldn't show."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short_ids(ids: Collection[str]) -> dict[str, str]:
    """Return by id as much of it as tells it from the others."""
    order = sorted(set(ids))
    lengths = dict.fromkeys(order, _SHORTEST_ID)
    for one, other in pairwise(order):
        needed = _common(one, other) + 1
        lengths[one], lengths[other] = max(lengths[one], needed), max(lengths[other], needed)
    return {id_: printable(id_[:length]) for id_, length in lengths.items()}


def _common(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _inked(line: Iterable[Ink], colour: bool) -> str:
    if not colour:
        return "".join(ink.text for ink in line).rstrip()
    return "".join(f"\x1b[{ink.style}m{ink.text}\x1b[0m" if ink.style else ink.text for ink in line)


def _cut(line: Sequence[Ink], width: int) -> list[Ink]:
    inks = [ink._replace(text=printable(ink.text)) for ink in line]
    if sum(_columns(ink.text) for ink in inks) <= width:
        return inks
    kept: list[Ink] = []
    room = width - 1
    for ink in inks:
        kept.append(ink._replace(text=_beginning(ink.text, room)))
        if kept[-1] != ink:
            break
        room -= _columns(ink.text)
    return [*kept, Ink("…")]


def _columns(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _beginning(text: str, room: int) -> str:
    used = 0
    for end, character in enumerate(text):
        used += _columns_of(character)
        if used > room:
            return text[:end]
    return text
