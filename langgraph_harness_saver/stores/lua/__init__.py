"""Lua in files: what they have in common and a script's own text make one script."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

_COMMON, _INDEX_COMMON = "common", "index_common"


class Script(NamedTuple):
    """A script, and the name by which a server knows it again."""

    text: bytes
    sha: bytes


def _read() -> dict[str, Script]:
    texts = {
        file.name[:-4]: file.read_text("utf-8")
        for file in files(__name__).iterdir()
        if file.name.endswith(".lua")
    }
    common, index_common = texts.pop(_COMMON), texts.pop(_INDEX_COMMON)
    found = {}
    for name, text in texts.items():
        whole = f"{index_common if name.startswith('index_') else common}\n{text}".encode()
        # Not for secrecy: it is how Redis names scripts.
        found[name] = Script(whole, sha1(whole, usedforsecurity=False).hexdigest().encode())
    return found


# Read here, as reading files would hold up an event loop.
SCRIPTS = _read()
"""The scripts by name: those named index_… work on an index, all others on a family."""
