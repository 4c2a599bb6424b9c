"""One accepted socket: reading, writing, and who is not read for a while.

What lives here: buffers and flow control. What must not: any meaning of a packet.

Rule 1: an error while one connection's packet is handled closes that connection only.
Rule 2: whoever fills the outbox of another connection above `high_water_bytes` is not read until that outbox has
fallen to `low_water_bytes`. So a reader that does not read costs a bounded amount of memory, and its senders feel it
as a full socket. A connection is not held back for what others send to it, only for `own_water_bytes` of answers to
its own requests that it does not fetch: a client may send for long before it begins to read.
Rule 3: a packet that was begun must go on: nobody holds a half packet for ever.
Rule 4: what can be sent at once is sent at once; only what the system does not take waits.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gearmap.errors import ProtocolError
from gearmap.jobserver.blocks import BlockPool
from gearmap.jobserver.loop import READ, WRITE, Loop
from gearmap.jobserver.machine import Machine
from gearmap.jobserver.outbox import Outbox
from gearmap.jobserver.protocol import TEXT_LINE, Data
from gearmap.jobserver.reader import MAX_BODY_BYTES, PacketReader
from gearmap.jobserver.records import Peer
from gearmap.jobserver.sockets import tune

__all__ = ["Connection", "Hub", "Limits"]

logger = logging.getLogger(__name__)

# One read of small packets. Larger: fewer system calls for many of them; smaller: better turns between connections.
READ_BYTES: Final = 64 * 1024
# Up to here pieces are joined and sent in the simplest way. Larger: more copying; smaller: more calls by parts.
JOIN_BYTES: Final = 64 * 1024
# Packets handled between two looks at the outboxes. Larger: fewer sends; smaller: limits are kept more closely.
PACKETS_PER_FLUSH: Final = 256
# How long a connection that is being closed may take to fetch its last answers, and up to one look more.
CLOSE_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one connection may take.

    Attributes
    ----------
    max_body_bytes
        Larger packets are refused by closing the connection.
    high_water_bytes, low_water_bytes
        Size of an outbox at which those who feed it are no longer read, and at which they are read again.
    own_water_bytes
        Answers to its own requests after which a connection is not read until it has fetched them.
    header_timeout, body_timeout
        Seconds without a byte after which a half packet closes its connection; the second is for large bodies.
    sweep_delay
        Seconds between two looks for half packets.
    """

    max_body_bytes: int = MAX_BODY_BYTES
    high_water_bytes: int = 32 << 20
    low_water_bytes: int = 8 << 20
    own_water_bytes: int = 64 << 20
    header_timeout: float = 30.0
    body_timeout: float = 300.0
    sweep_delay: float = 5.0


@dataclass(slots=True, eq=False)
class Hub:
    """What the connections share.

    Attributes
    ----------
    connections
        Those with an open socket.
    on_closed
        Called when one has closed its socket.
    """

    machine: Machine
    limits: Limits
    loop: Loop
    on_closed: Callable[[], None]
    pool: BlockPool = field(default_factory=BlockPool)
    connections: set[Connection] = field(default_factory=set)

    def flush(self, sender: Connection) -> None:
        """Send on what the last packets of `sender` led to."""
        for peer in self.machine.take_touched():
            assert isinstance(peer, _ConnectedPeer)
            peer.connection.send_out(sender)

    def sweep(self, now: float) -> None:
        """Close connections that stopped in the middle of a packet, or do not fetch their last answers."""
        for connection in [c for c in self.connections if c.is_stuck(now)]:
            logger.warning("closing a connection that stopped in the middle of a packet")
            connection.close()
        for connection in [c for c in self.connections if c.is_overdue(now)]:
            connection.abort()
        self.pool.trim()


class _ConnectedPeer(Peer):
    """A peer that knows its connection."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection, number: int, address: bytes) -> None:
        super().__init__(number, address)
        self.connection = connection


class Connection:
    """One accepted socket."""

    def __init__(self, hub: Hub, sock: socket.socket, address: bytes) -> None:
        self._hub = hub
        self._socket = sock
        self._fd = sock.fileno()
        self._peer = _ConnectedPeer(self, self._fd, address)
        self._reader = PacketReader(hub.limits.max_body_bytes, hub.pool)
        self._last_read = 0.0
        self._outbox = Outbox()
        self._own_bytes = 0
        self._watched = 0
        # It has left the state machine; its last answers may still be on their way until the deadline.
        self._is_closing = False
        self._close_deadline = 0.0
        # Those whose full outboxes keep us from being read, and those that our full outbox keeps from it.
        self._blockers: set[Connection] = set()
        self._blocked: set[Connection] = set()

    # -- life

    def start(self) -> None:
        """Begin to read."""
        self._socket.setblocking(False)
        tune(self._socket)
        self._hub.connections.add(self)
        self._hub.machine.connect(self._peer)
        self._watch()

    def close(self) -> None:
        """Close the connection; answers that are on their way get a few seconds."""
        if self._is_closing:
            return
        self._close_deadline = time.monotonic() + CLOSE_TIMEOUT
        self._leave()
        if self._outbox.n_bytes:
            self._watch()
        else:
            self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._fd < 0:
            return
        self._outbox.clear()
        self._leave()
        self._hub.connections.discard(self)
        self._hub.loop.forget(self._fd)
        self._fd = -1
        self._socket.close()
        self._hub.on_closed()

    def is_stuck(self, now: float) -> bool:
        """Whether a half packet has been waiting too long for its other half."""
        if self._is_closing or self._blockers or not self._reader.is_partial:
            return False
        limits = self._hub.limits
        timeout = limits.body_timeout if self._reader.is_in_large_body else limits.header_timeout
        return now - self._last_read > timeout

    def is_overdue(self, now: float) -> bool:
        """Whether it is being closed and did not fetch its last answers."""
        return self._is_closing and now > self._close_deadline

    def _leave(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._release()
        for blocker in self._blockers:
            blocker._blocked.discard(self)
        self._blockers.clear()
        self._reader.drop()
        self._hub.machine.disconnect(self._peer)
        self._hub.flush(self)

    def _break(self) -> None:
        # Later: whoever sends to us is in the middle of its own packets.
        self._outbox.clear()
        self._hub.loop.later(self.abort)

    def _watch(self) -> None:
        mask = 0 if self._blockers or self._is_closing else READ
        if self._outbox.n_bytes:
            mask |= WRITE
        if mask == self._watched or self._fd < 0:
            return
        self._watched = mask
        if mask:
            self._hub.loop.watch(self._fd, mask, self._on_events)
        else:
            # Not watched for nothing: the end of the connection would be reported again and again.
            self._hub.loop.forget(self._fd)

    def _on_events(self, events: int) -> None:
        watched = self._watched
        try:
            if watched & READ and events != WRITE:
                self._read()
            if watched & WRITE and events != READ and self._outbox.n_bytes:
                self._write_on()
        except Exception:
            logger.exception("closing connection %d", self._peer.number)
            self.abort()

    # -- reading

    def _read(self) -> None:
        reader = self._reader
        vacancy = reader.vacancy()
        try:
            if vacancy is None:
                data = self._socket.recv(READ_BYTES)
                n_bytes = len(data)
            else:
                n_bytes = self._socket.recv_into(vacancy)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if not n_bytes:
            self.close()
            return
        if vacancy is None:
            reader.feed(data)
        else:
            reader.filled(n_bytes)
        self._handle_packets()
        if reader.is_partial:
            self._last_read = time.monotonic()

    def _handle_packets(self) -> None:
        next_packet, handle, peer = self._reader.next_packet, self._hub.machine.handle, self._peer
        is_more = True
        while is_more and not self._blockers and not self._is_closing:
            try:
                for _ in range(PACKETS_PER_FLUSH):
                    packet = next_packet()
                    if packet is None:
                        is_more = False
                        break
                    handle(peer, packet.command, packet.body)
                    if packet.command == TEXT_LINE:
                        # A listing may be very long: look at the outbox before the next one.
                        break
            except ProtocolError as error:
                logger.info("closing connection %d: %s", peer.number, error)
                self._close_after_error()
                return
            except Exception:
                logger.exception("closing connection %d", peer.number)
                self._close_after_error()
                return
            self._hub.flush(self)

    def _close_after_error(self) -> None:
        self._hub.flush(self)
        self.close()

    # -- writing

    def send_out(self, sender: Connection) -> None:
        """Send what the state machine put out for this peer; `sender` caused it."""
        pieces = self._peer.out
        self._peer.out = []
        n_before = self._outbox.n_bytes
        if not n_before and pieces:
            pieces = self._send_small(pieces)
            if not pieces:
                return
        self._outbox.put(pieces)
        if sender is self:
            self._own_bytes += self._outbox.n_bytes - n_before
        if not n_before:
            self._send_parts()
        self._watch()
        self._hold_back(sender)

    def _send_small(self, pieces: list[Data]) -> list[Data]:
        """Send pieces that are not large at once; return what must wait."""
        data = pieces[0]
        if len(pieces) > 1:
            if sum(map(len, pieces)) > JOIN_BYTES:
                return pieces
            data = b"".join(map(bytes, pieces))
        if not isinstance(data, bytes):
            return pieces
        try:
            n_sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            n_sent = 0
        except OSError:
            self._break()
            return []
        return [] if n_sent == len(data) else [data[n_sent:]]

    def _send_parts(self) -> None:
        try:
            self._outbox.sent(self._socket.sendmsg(self._outbox.chunk()))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._break()

    def _write_on(self) -> None:
        self._send_parts()
        if self._is_closing and not self._outbox.n_bytes:
            self.abort()
            return
        self._watch()
        if self._outbox.n_bytes <= self._hub.limits.low_water_bytes:
            self._own_bytes = 0
            self._release()

    # -- flow control

    def _hold_back(self, sender: Connection) -> None:
        limits = self._hub.limits
        if self._outbox.n_bytes <= limits.low_water_bytes or sender._is_closing:
            return
        if sender is self:
            is_too_much = self._own_bytes > limits.own_water_bytes
        else:
            is_too_much = self._outbox.n_bytes > limits.high_water_bytes
        if is_too_much:
            self._blocked.add(sender)
            sender._blockers.add(self)
            sender._watch()

    def _release(self) -> None:
        for sender in self._blocked:
            sender._blockers.discard(self)
            if not sender._blockers:
                # Later, because its packets may feed this very outbox again.
                self._hub.loop.later(sender._read_again)
        self._blocked.clear()

    def _read_again(self) -> None:
        if self._blockers or self._is_closing:
            return
        self._handle_packets()
        if not self._blockers and not self._is_closing:
            self._last_read = time.monotonic()
            self._watch()
