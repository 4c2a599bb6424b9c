"""What all connections share: the state machine, the loop, and what they may take together.

What lives here: who loses its place when there are too many, or when they hold too much. What must not: sockets, bytes.

Rule 1: what all hold together is counted where it comes and goes, and looked for only when it is too much.
Rule 2: who holds much and has done nothing with it for long loses it first. The only one who holds anything keeps it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gearmap.jobserver.blocks import BlockPool
from gearmap.jobserver.limits import Limits
from gearmap.jobserver.loop import Loop
from gearmap.jobserver.machine import Machine
from gearmap.jobserver.records import Peer
from gearmap.rarelog import RareLog

if TYPE_CHECKING:
    from gearmap.jobserver.connection import Connection

__all__ = ["ConnectedPeer", "Hub"]

log = RareLog(logging.getLogger(__name__))

# Where there are too many connections, so large a part of them is closed at once: looking for them takes time.
MADE_ROOM: Final = 1 / 16


class ConnectedPeer(Peer):
    """A peer that knows its connection."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection, number: int, address: bytes) -> None:
        super().__init__(number, address)
        self.connection = connection


@dataclass(slots=True, eq=False)
class Hub:
    """What the connections share.

    Attributes
    ----------
    connections
        Those with an open socket.
    on_closed
        Called when one has closed its socket.
    turn_seconds
        How long the packets of one connection may be handled before the others have their turn.
    outbox_bytes, half_bytes
        What waits in all outboxes, and the memory of all packets that are not whole.
    """

    machine: Machine
    limits: Limits
    loop: Loop
    on_closed: Callable[[], None]
    pool: BlockPool = field(default_factory=BlockPool)
    connections: set[Connection] = field(default_factory=set)
    outbox_bytes: int = 0
    half_bytes: int = 0
    turn_seconds: float = 0.0
    _n_backlogged: int = 0
    _no_room_until: float = 0.0

    def __post_init__(self) -> None:
        self.note_backlog(0)

    def flush(self, sender: Connection) -> None:
        """Send on what the last packets of `sender` led to."""
        for peer in self.machine.take_touched():
            assert isinstance(peer, ConnectedPeer)
            peer.connection.send_out(sender)

    def note_backlog(self, change: int) -> None:
        """Count those that have packets left for their next turn: they share out the time."""
        self._n_backlogged += change
        self.turn_seconds = max(self.limits.least_turn_seconds, self.limits.turn_seconds / (1 + self._n_backlogged))

    def has_room(self) -> bool:
        """Return whether one more connection may come; some that have nothing to do here may have to go for it."""
        limits, now = self.limits, self.loop.now
        if len(self.connections) < limits.max_connections:
            return True
        if now >= self._no_room_until:
            idle = [each for each in self.connections if each.is_idle(now)]
            idle.sort(key=lambda each: each.last_read)
            for each in idle[: max(1, int(limits.max_connections * MADE_ROOM))]:
                each.abort()
            log.warning("all %d connections are in use; closing some that are idle", limits.max_connections)
            if idle:
                return True
            self._no_room_until = now + limits.least_silence
        return False

    def note_outbox(self, n_bytes: int) -> None:
        """Count what was added to outboxes, or taken from them."""
        self.outbox_bytes += n_bytes
        while self.outbox_bytes > self.limits.all_outboxes_bytes and n_bytes > 0:
            now = self.loop.now
            most = max(self.connections, key=lambda each: each.outbox_weight(now))
            if self.outbox_bytes <= most.outbox_bytes or not most.outbox_bytes:
                return  # it is the only one
            log.warning("closing a connection that did not fetch %d bytes: all outboxes are full", most.outbox_bytes)
            most.give_up()

    def note_half(self, n_bytes: int) -> None:
        """Count what came of packets that are not whole, or what of them is now."""
        self.half_bytes += n_bytes
        while self.half_bytes > self.limits.all_halves_bytes and n_bytes > 0:
            now = self.loop.now
            most = max(self.connections, key=lambda each: each.half_weight(now))
            if self.half_bytes <= most.half_bytes or not most.half_bytes:
                return  # it is the only one
            log.warning("closing a connection that sent %d bytes of a packet: too many are half", most.half_bytes)
            most.give_up()

    def sweep(self, now: float) -> None:
        """Close connections that take too long with a packet, or with fetching what waits for them."""
        for connection in list(self.connections):
            if connection.is_stuck(now):
                log.warning("closing a connection that stopped in the middle of a packet")
                connection.close()
            elif connection.is_holding(now):
                log.warning("closing a connection that kept others from being read")
                connection.abort()
            elif connection.is_overdue(now):
                connection.abort()
        self.pool.trim()
        self.machine.trim()
