"""What has to stand still while the process forks, and be made new in the child."""

from __future__ import annotations

import os
import weakref


class Forkable:
    """Something with locks, threads or connections that a fork would leave unusable in the child."""

    def before_fork(self) -> None:
        """Wait until no other thread is in the middle of anything, and keep it so."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork(self) -> None:
        """Become usable in the child."""


def leave_alone(things: object) -> None:
    """Keep what is the parent's from being destroyed here: parent and child share what it would close."""
    _inherited.append(things)


_inherited: list[object] = []
_registered: weakref.WeakSet[Forkable] = weakref.WeakSet()
_forking: list[Forkable] = []


def renew_after_fork(thing: Forkable) -> None:
    """Tell `thing` of every fork of this process, for as long as it lives."""
    _registered.add(thing)


def _before() -> None:
    _forking[:] = _registered
    for thing in _forking:
        thing.before_fork()


def _in_parent() -> None:
    while _forking:
        _forking.pop().after_fork_in_parent()


def _in_child() -> None:
    while _forking:
        _forking.pop().after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
