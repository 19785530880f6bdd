"""Connections to a Redis server or cluster, for every event loop that asks for one."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import AskError, MovedError, NoScriptError, ResponseError

from langgraph_harness_saver.errors import HarnessError, StoreError
from langgraph_harness_saver.stores.lanes import (
    CLOSE_SECONDS,
    PROBE_AFTER,
    PROBE_SECONDS,
    STATEMENT_SECONDS,
    Lanes,
    hang_up,
)
from langgraph_harness_saver.stores.lua import Script
from langgraph_harness_saver.stores.redis_errors import (
    DRIVER_ERRORS,
    is_lost,
    is_never_there,
    is_transient,
    translate,
)
from langgraph_harness_saver.stores.redis_rows import Spot, pack
from langgraph_harness_saver.stores.redis_url import RedisTarget

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[["Wire", float], Awaitable[T]]
Reply = Any
"""What a server answers: bytes, integers, lists, None, or an error that it names."""

REDIRECTIONS = 8
"""How often a command is sent on to where its slot is said to have moved."""


class Command(NamedTuple):
    """What is sent to where a slot is; with a script, `packed` is what follows the script's name."""

    slot: int
    length: int
    packed: bytes
    script: Script | None = None

    def sent(self, *, whole: bool = False) -> bytes:
        """Return it as bytes, with the whole text of its script or only the name."""
        if self.script is None:
            return b"*%d\r\n%b" % (self.length, self.packed)
        word, text = (b"EVAL", self.script.text) if whole else (b"EVALSHA", self.script.sha)
        return b"*%d\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % (
            *(self.length + 2, len(word), word),
            *(len(text), text, self.packed),
        )


def command(spot: Spot, *arguments: bytes) -> Command:
    """Return a command on one of a spot's keys."""
    return Command(spot.slot, len(arguments), pack(arguments))


def call(script: Script, spot: Spot, arguments: Sequence[bytes]) -> Command:
    """Return the call of a script."""
    packed = spot.packed + pack(arguments)
    return Command(spot.slot, 1 + len(spot.keys) + len(arguments), packed, script)


PING = Command(0, 1, b"$4\r\nPING\r\n")


class Wire(ABC):
    """One connection to a server, or one to each server of a cluster."""

    seconds: float | None = None
    """How long an exchange may take, where that is less than its call has left."""
    _gave_up = False

    @abstractmethod
    async def open(self) -> None:
        """Connect."""

    @abstractmethod
    async def exchange(self, commands: Sequence[Command], *, whole: bool = False) -> list[Reply]:
        """Send commands, in this order to each server; return the replies, errors among them."""

    async def rest(self) -> None:  # noqa: B027
        """Give back what is borrowed for one call only."""

    @abstractmethod
    async def close(self) -> None:
        """Say goodbye."""

    def one_for_each_server(self, slots: Iterable[int]) -> list[int]:
        """Return some of the slots, such that each server with one of them is named once."""
        return list(slots)[:1]

    @abstractmethod
    def hang_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """End it from anywhere."""

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether it has ended."""

    async def send(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """Do what `exchange` does, and send scripts that a server doesn't know."""
        loop = asyncio.get_running_loop()
        seconds = max(deadline - loop.time(), STATEMENT_SECONDS)
        if self.seconds is not None:
            seconds = min(seconds, self.seconds)
        # `asyncio.wait_for` takes a task for it, which is a tenth of a call.
        timer = loop.call_later(seconds, self._give_up, loop)
        try:
            return await self._send(commands)
        except DRIVER_ERRORS as error:
            if self._gave_up:
                raise asyncio.TimeoutError from error
            raise
        finally:
            timer.cancel()

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        self._gave_up = True
        self.hang_up(loop)

    async def _send(self, commands: Sequence[Command]) -> list[Reply]:
        replies = await self.exchange(commands)
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = await self.exchange([commands[n] for n in unknown], whole=True)
            for n, reply in zip(unknown, again, strict=True):
                replies[n] = reply
        return replies


async def talk(connection: Any, sent: bytes, count: int) -> list[Reply]:
    """Send bytes on a connection of redis-py's, and return so many replies."""
    await connection.send_packed_command(sent, check_health=False)
    return [await _reply(connection) for _ in range(count)]


async def _reply(connection: Any) -> Reply:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _joined(commands: Sequence[Command], *, whole: bool) -> bytes:
    return b"".join([each.sent(whole=whole) for each in commands])


def _hang_up(connection: Any, loop: asyncio.AbstractEventLoop) -> None:
    # redis-py has no public way to end a connection from another thread.
    writer = connection._writer
    if writer is not None:
        connection._reader = connection._writer = None
        # The writer is kept until then, as it complains if it goes first.
        hang_up(writer.transport, lambda: writer.transport.abort(), loop)


class ServerWire(Wire):
    """One connection to one server, or to whichever server the sentinels name."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._connection = client.connection_pool.make_connection()
        # Once for all replies, instead of for each.
        self.seconds, self._connection.socket_timeout = self._connection.socket_timeout, None

    async def open(self) -> None:
        try:
            await self._connection.connect()
        finally:
            # What it took to ask sentinels.
            await self._client.aclose()

    async def exchange(self, commands: Sequence[Command], *, whole: bool = False) -> list[Reply]:
        return await talk(self._connection, _joined(commands, whole=whole), len(commands))

    async def close(self) -> None:
        await self._connection.disconnect()

    def hang_up(self, loop: asyncio.AbstractEventLoop) -> None:
        _hang_up(self._connection, loop)

    @property
    def is_closed(self) -> bool:
        return not self._connection.is_connected


class GivenServerWire(Wire):
    """A client of the caller's, from whose pool a connection is borrowed for each call."""

    is_closed = False

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    async def open(self) -> None: ...

    async def exchange(self, commands: Sequence[Command], *, whole: bool = False) -> list[Reply]:
        if self._connection is None:
            self._connection = await self._pool.get_connection()
        return await talk(self._connection, _joined(commands, whole=whole), len(commands))

    async def rest(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._pool.release(connection)

    async def close(self) -> None: ...

    def hang_up(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._connection is not None:
            _hang_up(self._connection, loop)


class ClusterWire(Wire):
    """One connection to each server of a cluster, opened when it is first needed."""

    is_closed = False

    def __init__(self, client: Any) -> None:
        self._client = client
        self._nodes = client.nodes_manager
        self._connections: dict[str, Any] = {}

    async def open(self) -> None:
        await self._look_around()

    async def _look_around(self) -> None:
        """Find out who has which slot."""
        await self._nodes.initialize()
        for node in (*self._nodes.startup_nodes.values(), *self._nodes.nodes_cache.values()):
            # What it took to ask.
            await node.disconnect()

    async def exchange(self, commands: Sequence[Command], *, whole: bool = False) -> list[Reply]:
        replies: list[Reply] = [None] * len(commands)
        left: Sequence[int] = range(len(commands))
        for _ in range(REDIRECTIONS):
            await self._ask_all(left, commands, replies, whole=whole)
            for n in left:
                if type(replies[n]) is AskError:
                    replies[n] = await self._ask_where_it_goes(replies[n], commands[n])
            left = [n for n in left if isinstance(replies[n], MovedError)]
            if not left:
                break
            await self._look_around()
        return replies

    async def _ask_all(
        self, numbers: Sequence[int], commands: Sequence[Command], replies: list[Reply], *, whole: bool
    ) -> None:
        """Ask all servers at once, and keep what they answer."""
        shares: dict[str, tuple[Any, list[int]]] = {}
        for n in numbers:
            node = self._nodes.get_node_from_slot(commands[n].slot)
            shares.setdefault(node.name, (node, []))[1].append(n)

        async def ask(node: Any, share: Sequence[int]) -> None:
            sent = _joined([commands[n] for n in share], whole=whole)
            answers = await talk(self._connection(node), sent, len(share))
            for n, answer in zip(share, answers, strict=True):
                replies[n] = answer

        # All of them are waited for, also when one fails: nobody else may read what they still answer.
        done = await asyncio.gather(*(ask(*share) for share in shares.values()), return_exceptions=True)
        for error in done:
            if error is not None:
                raise error

    async def _ask_where_it_goes(self, error: AskError, command: Command) -> Reply:
        """Send a command to where its slot is on its way to."""
        node = self._client.get_node(error.host, error.port)
        if node is None:
            await self._look_around()
            node = self._client.get_node(error.host, error.port)
        # Such a server need not know the script.
        sent = b"*1\r\n$6\r\nASKING\r\n" + command.sent(whole=True)
        return error if node is None else (await talk(self._connection(node), sent, 2))[1]

    def _connection(self, node: Any) -> Any:
        if node.name not in self._connections:
            self._connections[node.name] = node.connection_class(**node.connection_kwargs)
        return self._connections[node.name]

    def one_for_each_server(self, slots: Iterable[int]) -> list[int]:
        return list({self._nodes.get_node_from_slot(slot).name: slot for slot in slots}.values())

    async def close(self) -> None:
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.disconnect()
        for nodes in ("nodes_cache", "startup_nodes"):
            await self._nodes.aclose(nodes)

    def hang_up(self, loop: asyncio.AbstractEventLoop) -> None:
        nodes = [*self._nodes.nodes_cache.values(), *self._nodes.startup_nodes.values()]
        others = [connection for node in nodes for connection in node._connections]
        for connection in (*self._connections.values(), *others):
            _hang_up(connection, loop)


class GivenClusterWire(ClusterWire):
    """A client of the caller's, from whose pools connections are borrowed for each call."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._returns: list[Callable[[], None]] = []

    async def open(self) -> None:
        await self._client.initialize()

    def _connection(self, node: Any) -> Any:
        if node.name not in self._connections:
            connection = node.acquire_connection()
            # Older versions of redis-py have no method for it.
            release = getattr(node, "release", node._free.append)
            self._connections[node.name] = connection
            self._returns.append(partial(release, connection))
        return self._connections[node.name]

    async def _look_around(self) -> None:
        await self._nodes.initialize()

    async def rest(self) -> None:
        returns, self._returns = self._returns, []
        self._connections.clear()
        for give_back in returns:
            give_back()

    async def close(self) -> None: ...

    def hang_up(self, loop: asyncio.AbstractEventLoop) -> None:
        for connection in self._connections.values():
            _hang_up(connection, loop)


class Wires(Lanes[Wire]):
    """The wires of all event loops, each used on the loop that it was made on."""

    def __init__(self, target: RedisTarget, retry_seconds: float) -> None:
        super().__init__(target.describe(), target.max_connections, retry_seconds)
        self._target = target
        self._reached = False

    async def run(self, work: Work[T]) -> T:
        """Return what `work` makes of a wire and a deadline; it may be called again, on another one.

        Raises:
            StoreError: It did not succeed within `retry_seconds`, or never would.
        """
        return await self.keep_trying(lambda deadline: self.attempt(work, deadline))

    async def attempt(self, work: Work[T], deadline: float) -> T:
        """Do what `run` does, once."""
        try:
            lane = self._lanes.get(asyncio.get_running_loop()) or await self.lane()
            wire = await self.acquire(lane, deadline)
            sound = False
            try:
                result = await work(wire, deadline)
                sound = True
                return result
            except Exception as error:
                sound = not is_lost(error)
                raise
            finally:
                await wire.rest()
                # One that was cancelled or timed out may still be answered.
                self.release(lane, wire, sound=sound)
        except HarnessError:
            raise
        except DRIVER_ERRORS as error:
            raise self.translated(error) from error

    def translated(self, error: BaseException) -> StoreError:
        """Return our error for one of the driver's, or for one that a server has named."""
        return translate(error, self.where)

    def is_worth_another(self, error: StoreError, deadline: float) -> bool:
        cause = error.__cause__
        if self._closed or asyncio.get_running_loop().time() >= deadline or not is_transient(cause):
            return False
        # A server that has never answered is more likely misspelt than restarting.
        return self._reached or not is_never_there(cause)

    async def connect(self, deadline: float) -> Wire:
        loop = asyncio.get_running_loop()
        target = self._target
        if target.given is not None and target.home is loop:
            kind = GivenClusterWire if target.cluster else GivenServerWire
            wire: Wire = kind(target.given)
        else:
            # It reads files.
            wire = await loop.run_in_executor(None, self._new_wire)
        try:
            await asyncio.wait_for(wire.open(), max(deadline - loop.time(), STATEMENT_SECONDS))
        except BaseException:
            wire.hang_up(loop)
            raise
        self._reached = True
        return wire

    def _new_wire(self) -> Wire:
        client = self._target.new_client()
        return ClusterWire(client) if self._target.cluster else ServerWire(client)

    def is_closed(self, connection: Wire) -> bool:
        return connection.is_closed

    async def is_alive(self, connection: Wire, idle_since: float) -> bool:
        if connection.is_closed:
            return False
        if asyncio.get_running_loop().time() - idle_since < PROBE_AFTER:
            return True
        try:
            await asyncio.wait_for(connection.exchange([PING]), PROBE_SECONDS)
        except DRIVER_ERRORS as error:
            logger.debug("%s: an idle connection was dead: %s", self.where, error)
            return False
        return True

    async def close_one(self, connection: Wire) -> None:
        try:
            with suppress(*DRIVER_ERRORS):
                await asyncio.wait_for(connection.close(), CLOSE_SECONDS)
        finally:
            # It may have been cancelled before it began.
            connection.hang_up(asyncio.get_running_loop())

    def hang_up(self, connection: Wire, loop: asyncio.AbstractEventLoop) -> None:
        connection.hang_up(loop)
