"""What has to be made new in a child process: locks, threads, connections."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """Something that a fork would leave unusable in the child."""

    def after_fork(self) -> None:
        """Make it usable in the child."""


_registered: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew_after_fork(thing: Forked) -> None:
    """Call `thing.after_fork()` in every child of this process, for as long as it lives."""
    _registered.add(thing)


def _renew() -> None:
    for thing in list(_registered):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
