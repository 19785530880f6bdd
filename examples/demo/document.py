"""What the demo knows about a text file. Standard library only, so that `make` can ask before installing."""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 1_000_000
PART_CHARS = 900
MAX_PARTS = 20

STOP_WORDS = """
about after again also another because been before being between both cannot could does done down each
either else even every from gets give given goes have here into itself just know last less like made make
many more most much must need never next nothing once only onto other over same says shall should since
some such take than that their them then there these they this those through under until upon used uses
using very want well were what when where which while whose will with without work works would your false
import none return self true
"""


class DocumentError(Exception):
    """A file that the demo cannot read; the message says what to do instead."""


@dataclass(frozen=True)
class Part:
    """A run of lines, small enough to read at once."""

    number: int
    first: int
    last: int
    text: str


def load(path: str | Path) -> str:
    """Read a text file, or say in one line why not."""
    if Path(path).is_dir():
        raise DocumentError(f"{path} is a directory; name a file in it: make demo FILE={path}/…")
    if not Path(path).is_file():
        raise DocumentError(f"there is no file {path}; name a text file: make demo FILE=notes.md")
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DocumentError(
            f"cannot read {path} ({error.strerror}); choose another: make demo FILE=…"
        ) from None
    return decode(data, path)


def decode(data: bytes, path: str | Path) -> str:
    """Turn a file's bytes into text, refusing what is not text."""
    if b"\0" in data:
        raise DocumentError(f"{path} is a binary file; name a text file: make demo FILE=notes.md")
    if len(data) > MAX_BYTES:
        raise DocumentError(f"{path} is over 1 MB; take a piece: head -c {MAX_BYTES} {path} > piece.txt")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{path} is not UTF-8 (byte {error.start}); convert it: iconv -f latin1 -t utf-8 {path} > text.md"
        ) from None
    if not text.strip():
        raise DocumentError(f"{path} is empty; name a file with text in it: make demo FILE=notes.md")
    return text


def split(text: str) -> list[Part]:
    """Cut a text into at most `MAX_PARTS` parts, at blank lines and headings where it can."""
    size = max(PART_CHARS, -(-len(text) // MAX_PARTS))
    parts: list[Part] = []
    pending: list[tuple[int, str]] = []
    length = 0
    fenced = False
    for number, piece in _pieces(text, size):
        natural = not fenced and (not piece.strip() or piece.startswith("#"))
        if length >= size and (natural or length >= 2 * size):
            parts.append(_part(len(parts) + 1, pending))
            pending, length = [], 0
        if pending or piece.strip():
            pending.append((number, piece))
            length += len(piece) + 1
        fenced ^= _is_fence(piece)
    if pending:
        parts.append(_part(len(parts) + 1, pending))
    return parts


def _pieces(text: str, size: int) -> list[tuple[int, str]]:
    # A file may be one line of a megabyte.
    return [
        (number, line[at : at + size])
        for number, line in enumerate(text.splitlines(), 1)
        for at in range(0, max(len(line), 1), size)
    ]


def _part(number: int, lines: list[tuple[int, str]]) -> Part:
    return Part(number, lines[0][0], lines[-1][0], "\n".join(line for _, line in lines))


def headings(text: str) -> list[str]:
    """List the Markdown headings outside code blocks."""
    prose = "\n".join(_without_code(text.splitlines()))
    return [match[1].strip() for match in re.finditer(r"^#{1,6}\s+(.+?)\s*#*$", prose, re.MULTILINE)]


def words(text: str) -> list[str]:
    """List the words of a text in lower case."""
    return [word.lower() for word in re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?", text)]


def frequent_words(text: str, count: int) -> list[tuple[str, int]]:
    """Count the words that say what a text is about, most frequent first."""
    empty = set(STOP_WORDS.split())
    telling = Counter(word for word in words(text) if 3 < len(word) < 30 and word not in empty)
    return sorted(telling.items(), key=lambda item: (-item[1], item[0]))[:count]


def search(text: str, term: str) -> list[int]:
    """List the numbers of the lines that hold a term."""
    return [number for number, line in enumerate(text.splitlines(), 1) if term.lower() in line.lower()]


def key_sentence(text: str, terms: list[str], longest: int = 160) -> str:
    """Choose the sentence of a part that says most about the terms."""
    wanted = set(terms)

    def score(sentence: str) -> float:
        found = words(sentence)
        return sum(word in wanted for word in found) / (len(found) + 4) if len(found) > 4 else -1.0

    candidates = _sentences(text) or _lines(text)
    best = max(candidates, key=score)
    return textwrap.shorten(best, longest, placeholder=" …") if " " in best[:longest] else best[:longest]


def _sentences(text: str) -> list[str]:
    prose = [line for line in _without_code(text.splitlines()) if not re.match(r"\s*(#|\||<|\[!\[)", line)]
    blocks = re.split(r"\n\s*\n|\n\s*(?:[-*+]|\d+\.)\s+", "\n" + "\n".join(prose))
    plain = (_plain(block) for block in blocks)
    found = [sentence for block in plain for sentence in re.split(r"(?<=[.!?])\s+(?=[^a-z])", block)]
    # What doesn't end like a sentence is code, or a label.
    return [
        sentence for sentence in found if sentence.endswith((".", "!", "?", "\u3002", "\uff01", "\uff1f"))
    ]


def escape(sentence: str) -> str:
    """Make plain text safe to show as Markdown."""
    return re.sub(r"([\\*`<\[]|_(?=_)|(?<=_)_)", r"\\\1", sentence)


def span(first: int, last: int) -> str:
    """Name a run of lines."""
    return f"lines {first}-{last}" if last > first else f"line {first}"


def _lines(text: str) -> list[str]:
    lines = text.splitlines()
    found = [line.strip("| \t") for line in _without_code(lines) or lines]
    return [" · ".join(re.split(r"\s*\|\s*", _plain(line))) for line in found if words(line)] or [
        text.strip()
    ]


def _without_code(lines: list[str]) -> list[str]:
    kept: list[str] = []
    fenced = False
    for line in lines:
        if _is_fence(line):
            fenced = not fenced
        elif not fenced:
            kept.append(line)
    return kept


def _is_fence(line: str) -> bool:
    return line.lstrip().startswith(("```", "~~~"))


def _plain(block: str) -> str:
    unlisted = re.sub(r"^\s*(?:[-*+]|\d+\.)\s+", "", block)
    unlinked = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", unlisted)
    unmarked = re.sub(r"(?<!\w)(\*{1,3}|`{1,2})(?=\S)(.+?)(?<=\S)\1(?!\w)", r"\2", unlinked)
    return " ".join(unmarked.split())


if __name__ == "__main__":
    try:
        load(sys.argv[1])
    except DocumentError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(2)
