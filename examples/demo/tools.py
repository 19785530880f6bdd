"""The agent's tools: they work on the real file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import document
from langchain_core.tools import BaseTool, tool

if TYPE_CHECKING:
    from pathlib import Path

    from langchain_core.messages import ToolMessage

WORDS_PER_MINUTE = 220


def build_tools(file: Path, summary: Path) -> list[BaseTool]:
    """Make the tools for one file."""

    @tool
    def outline() -> dict[str, Any]:
        """List the headings of the file and count its parts."""
        text = document.load(file)
        return {"headings": document.headings(text), "parts": len(document.split(text))}

    @tool
    def word_statistics() -> dict[str, Any]:
        """Count the words and find the telling ones."""
        text = document.load(file)
        found = document.words(text)
        return {
            "words": len(found),
            "different": len(set(found)),
            "minutes": max(1, round(len(found) / WORDS_PER_MINUTE)),
            "frequent": document.frequent_words(text, 8),
        }

    @tool
    def read_part(number: int) -> dict[str, Any]:
        """Read one part of the file."""
        part = document.split(document.load(file))[number - 1]
        return {"number": number, "first": part.first, "last": part.last, "text": part.text}

    @tool
    def search(term: str) -> dict[str, Any]:
        """Find the lines that hold a term."""
        return {"term": term, "lines": document.search(document.load(file), term)}

    @tool
    def save_summary(text: str) -> dict[str, Any]:
        """Write the summary to disk."""
        return {"characters": summary.write_text(text + "\n", encoding="utf-8"), "file": summary.name}

    return [outline, word_statistics, read_part, search, save_summary]


def result_of(message: ToolMessage) -> dict[str, Any]:
    """Read the dictionary that a tool returned."""
    if message.status == "error":
        raise RuntimeError(f"{message.name} failed: {message.text}")
    found: dict[str, Any] = json.loads(message.text)
    return found


def describe(message: ToolMessage) -> str:
    """Say in a few words what a tool call found."""
    found = result_of(message)
    match message.name:
        case "outline":
            return f"{plural(len(found['headings']), 'heading')}, {plural(found['parts'], 'part')}"
        case "word_statistics":
            return f"{plural(found['words'], 'word')}, {found['different']:,} different"
        case "read_part":
            return document.span(found["first"], found["last"])
        case "search":
            return f"in {plural(len(found['lines']), 'line')}"
        case _:
            return f"{plural(found['characters'], 'character')} to {found['file']}"


def plural(count: int, noun: str) -> str:
    """Count something in words."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
