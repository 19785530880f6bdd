"""Where threads live: each in keys of its own name, branches in those of their family.

A branch's own keys hold nothing but a *pointer*: the family's name. So a thread that is no branch costs
nothing, and a branch one more round trip the first time that a process meets it. Every script on a thread
says where to go on instead if the thread isn't there; so neither what is remembered here nor a pointer need
be true.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from langgraph_harness_saver.stores.lua import SCRIPTS
from langgraph_harness_saver.stores.redis_rows import (
    Home,
    home_of,
    home_within,
    read_facts,
    read_text,
    text_form,
    thread_form,
)
from langgraph_harness_saver.stores.redis_wires import Command, Reply, call

Ask = Callable[[Sequence[Command]], Awaitable[list[Reply]]]

MOST_REMEMBERED = 100_000


class Wanted(NamedTuple):
    """A call on a thread, made for where it lives, and what it would find of one that isn't there yet."""

    thread_id: str
    make: Callable[[Home], Command]
    nothing: Reply


class Found(NamedTuple):
    """A reply, and where it came from."""

    home: Home
    reply: Reply


class Facts(NamedTuple):
    """Where a thread lives, and what META holds there."""

    home: Home
    meta: Mapping[bytes, bytes]


class Homes:
    """Remembers the families of branches."""

    def __init__(self, prefix: str, ask: Ask) -> None:
        self.ask = ask
        self._prefix = prefix
        self._families: dict[str, str] = {}

    def of(self, thread_id: str) -> Home:
        """Return where a thread lives, as far as is known here."""
        family = self._families.get(thread_id)
        if family is None:
            return home_of(self._prefix, thread_id)
        return home_within(self._prefix, family, thread_id)

    def own(self, thread_id: str) -> Home:
        """Return where a thread lives, or its pointer is."""
        return home_of(self._prefix, thread_id)

    def learn(self, thread_id: str, family: str) -> None:
        """Remember a branch's family."""
        if thread_id != family:
            if len(self._families) >= MOST_REMEMBERED:
                self._families.clear()
            self._families[thread_id] = family

    def forget(self, thread_id: str) -> None:
        """Remember nothing of a thread."""
        self._families.pop(thread_id, None)

    async def look(self, wanted: Sequence[Wanted]) -> list[Found]:
        """Return the replies to calls that may be repeated, each from where its thread lives."""
        found: dict[int, Found] = {}
        trails = [Trail(self, each.thread_id) for each in wanted]
        left: Sequence[int] = range(len(wanted))
        while left:
            homes = [self.of(wanted[n].thread_id) for n in left]
            commands = [wanted[n].make(home) for n, home in zip(left, homes, strict=True)]
            again = []
            for n, home, reply in zip(left, homes, await self.ask(commands), strict=True):
                if not is_elsewhere(reply):
                    found[n] = Found(home, reply)
                elif await trails[n].follow(reply):
                    again.append(n)
                else:
                    found[n] = Found(home, wanted[n].nothing)
            left = again
        return [found[n] for n in range(len(wanted))]

    async def look_once(self, thread_id: str, make: Callable[[Home], Command], nothing: Reply) -> Found:
        """Return the reply to one call that may be repeated."""
        [found] = await self.look([Wanted(thread_id, make, nothing)])
        return found

    async def facts(self, thread_id: str) -> Facts:
        """Return what is known of a thread's family."""
        trail = Trail(self, thread_id)
        while True:
            home = self.of(thread_id)
            [flat] = await self.ask([call(SCRIPTS["facts"], home.spot, ())])
            facts = Facts(home, read_facts(flat))
            reply = away(facts, thread_id)
            if reply is None:
                return facts
            if not await trail.follow(reply):
                return Facts(self.of(thread_id), {})

    async def unpoint(self, thread_id: str, family: str, stamp: bytes = b"") -> bool:
        """Remove a pointer to a family, if it bears this stamp; return whether there is none any more."""
        self.forget(thread_id)
        spot = self.own(thread_id).spot
        [reply] = await self.ask([call(SCRIPTS["unpoint"], spot, (text_form(family), stamp))])
        return bool(reply == 1)


class Trail:
    """Follows one call to where its thread lives."""

    def __init__(self, homes: Homes, thread_id: str) -> None:
        self._homes = homes
        self._thread_id = thread_id
        self._pointed: str | None = None

    async def follow(self, reply: Sequence[bytes]) -> bool:
        """Learn from an answer; return False if the thread is just about to begin, and isn't anywhere yet."""
        if reply[1]:
            self._pointed = read_text(reply[1])
            self._homes.learn(self._thread_id, self._pointed)
            return True
        self._homes.forget(self._thread_id)
        pointed, self._pointed = self._pointed, None
        # Otherwise it was only remembered here.
        return pointed is None or await self._homes.unpoint(self._thread_id, pointed, b"old")


def is_elsewhere(reply: Reply) -> bool:
    """Tell whether a script says that its thread lives elsewhere."""
    return type(reply) is list and len(reply) == 2 and reply[0] == b"elsewhere"


def away(facts: Facts, thread_id: str) -> Sequence[bytes] | None:
    """Return what a script would say of a thread that lives elsewhere; see `common.lua`."""
    thread = thread_form(facts.home.family, thread_id)
    if thread == b"\x00":
        return [b"elsewhere", facts.meta[b"p"]] if b"p" in facts.meta else None
    return None if b"b" + thread in facts.meta else [b"elsewhere", b""]
