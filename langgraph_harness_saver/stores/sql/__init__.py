"""SQL in files: named queries, and numbered migrations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

MAJOR = 1
MINORS = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5}
"""The minor version that each Postgres migration leads to. A release works with every newer one."""
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def queries(dialect: str) -> Mapping[str, str]:
    """Return the queries of a dialect by the names in their `-- name:` lines."""
    text = (files(__name__) / dialect / "queries.sql").read_text("utf-8")
    pieces = _NAME.split(text)
    return {name: sql.strip().rstrip(";") for name, sql in zip(pieces[1::2], pieces[2::2], strict=True)}


@cache
def migrations(dialect: str) -> list[tuple[int, str]]:
    """Return the numbers and texts of a dialect's migrations, in order."""
    found = [file for file in (files(__name__) / dialect).iterdir() if re.match(r"\d{4}_", file.name)]
    return sorted((int(file.name[:4]), file.read_text("utf-8")) for file in found)


def migration(number: int, schema: str) -> str:
    """Return one of Postgres' migrations, which records itself."""
    text = dict(migrations("postgres"))[number]
    versions = f"{number}, {MAJOR}, {MINORS[number]}"
    record = f"INSERT INTO {{schema}}.harness_schema (migration, major, minor) VALUES ({versions});\n"  # noqa: S608
    return in_schema(f"{text}\n{record}", schema)


def ddl(schema: str, after: int = 0) -> str:
    """Return Postgres' migrations, all or those after one, to be run in this order and once each."""
    begin = in_schema("CREATE SCHEMA IF NOT EXISTS {schema};\n\n", schema)
    scripts = [
        f"BEGIN;\n\n{migration(number, schema)}\nCOMMIT;\n"
        for number, _ in migrations("postgres")
        if number > after
    ]
    return (begin if schema != "public" and not after else "") + "\n".join(scripts)


def in_schema(text: str, name: str) -> str:
    """Put the quoted name of a schema where `{schema}` stands."""
    quoted = '"' + name.replace('"', '""') + '"'
    tag = "$body$"
    while tag in name:
        # A function's text ends where this comes again.
        tag = f"${tag[1:-1]}_$"
    return text.replace("$$", tag).replace("{schema}", quoted)
