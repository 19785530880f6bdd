"""SQL in files: named queries, and numbered migrations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def queries(dialect: str) -> Mapping[str, str]:
    """Return the queries of a dialect by the names in their `-- name:` lines."""
    text = (files(__name__) / dialect / "queries.sql").read_text("utf-8")
    pieces = _NAME.split(text)
    return {name: sql.strip().rstrip(";") for name, sql in zip(pieces[1::2], pieces[2::2], strict=True)}


def migrations(dialect: str) -> list[tuple[int, list[str]]]:
    """Return the numbers and statements of a dialect's migrations, in order."""
    found = []
    for file in (files(__name__) / dialect).iterdir():
        if re.match(r"\d{4}_", file.name):
            statements = [s.strip() for s in file.read_text("utf-8").split(";\n") if s.strip()]
            found.append((int(file.name[:4]), statements))
    return sorted(found)
