"""One accepted socket: reading, writing, and who is not read for a while.

What lives here: buffers and flow control. What must not: any meaning of a packet.

Rule 1: an error while one connection's packet is handled closes that connection only.
Rule 2: whoever fills the outbox of another connection above `high_water_bytes` is not read until that outbox has
fallen to `low_water_bytes`. So a reader that does not read costs a bounded amount of memory, and its senders feel it
as a full socket. A connection is not held back for what others send to it, only for `own_water_bytes` of answers to
its own requests that it does not fetch: a client may send for long before it begins to read.
Rule 3: a packet that was begun must go on: nobody holds a half packet for ever, nor comes with it byte by byte.
Rule 4: what can be sent at once is sent at once; only what the system does not take waits.
Rule 5: who sends many packets has turns with the others, and those who send few come first.
Rule 6: what a stranger can cause at will is logged rarely.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import Final

from gearmap.errors import ProtocolError
from gearmap.jobserver.hub import ConnectedPeer, Hub
from gearmap.jobserver.loop import READ, WRITE
from gearmap.jobserver.outbox import Outbox
from gearmap.jobserver.protocol import TEXT_LINE, Data
from gearmap.jobserver.reader import PacketReader
from gearmap.jobserver.sockets import tune
from gearmap.rarelog import RareLog

__all__ = ["Connection"]

log = RareLog(logging.getLogger(__name__))

# One read of small packets. Larger: fewer system calls for many of them; smaller: better turns between connections.
READ_BYTES: Final = 64 * 1024
# Up to here pieces are joined and sent in the simplest way. Larger: more copying; smaller: more calls by parts.
JOIN_BYTES: Final = 64 * 1024
# Packets handled between two looks at the outboxes. Larger: fewer sends; smaller: limits are kept more closely.
PACKETS_PER_FLUSH: Final = 256
# How long a connection that is being closed may take to fetch its last answers, and up to one look more.
CLOSE_TIMEOUT: Final = 5.0
# What is weighed by its size and age is at least so old (seconds).
_MOMENT: Final = 0.01


class Connection:
    """One accepted socket.

    Attributes
    ----------
    last_read
        When something came last, or when it was accepted.
    half_bytes
        The memory of a packet that is not whole, and of whole ones that wait for their turn.
    """

    def __init__(self, hub: Hub, sock: socket.socket, address: bytes) -> None:
        self._hub = hub
        self._socket = sock
        # How much a socket that speaks TLS has received that the loop does not know of.
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)
        self._fd = sock.fileno()
        self._peer = ConnectedPeer(self, self._fd, address)
        self._reader = PacketReader(hub.limits.max_body_bytes, hub.pool)
        self.last_read = hub.loop.now
        self.half_bytes = 0
        # When the packet under way began.
        self._half_since = 0.0
        # Whole packets wait for their turn.
        self._is_backlogged = False
        self._outbox = Outbox()
        # Since when it has not been empty.
        self._outbox_since = 0.0
        self._own_bytes = 0
        self._watched = 0
        # It has left the state machine; its last answers may still be on their way until the deadline.
        self._is_closing = False
        self._close_deadline = 0.0
        # Those whose full outboxes keep us from being read, and those that our full outbox keeps from it.
        self._blockers: set[Connection] = set()
        self._blocked: set[Connection] = set()
        # Since when it keeps others from being read, and what it has fetched since then.
        self._holding_since = 0.0
        self._fetched_bytes = 0

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
        self._close_deadline = self._hub.loop.now + CLOSE_TIMEOUT
        self._leave()
        if self._outbox.n_bytes:
            self._watch()
        else:
            self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._fd < 0:
            return
        self._clear_outbox()
        self._leave()
        self._hub.connections.discard(self)
        self._hub.loop.forget(self._fd)
        self._fd = -1
        self._socket.close()
        self._hub.on_closed()

    def give_up(self) -> None:
        """Let go of what it holds at once, and close it when nobody is in the middle of anything."""
        self._clear_outbox()
        self._reader.drop()
        self._note_half()
        self._hub.loop.later(self.abort)

    def is_idle(self, now: float) -> bool:
        """Whether it has said nothing for a while, and has nothing to do here."""
        peer = self._peer
        if now - self.last_read < self._hub.limits.least_silence or self._is_closing:
            return False
        return not (peer.waiting or peer.running or peer.abilities or self._outbox.n_bytes)

    def is_stuck(self, now: float) -> bool:
        """Whether a half packet has been waiting too long for its other half."""
        reader, limits = self._reader, self._hub.limits
        if self._is_closing or self._blockers or self._is_backlogged or not reader.is_partial:
            return False
        if not reader.is_in_large_body:
            return now - self._half_since > limits.header_timeout
        most = limits.body_timeout + reader.came_bytes / limits.body_rate
        return now - self.last_read > limits.body_timeout or now - self._half_since > most

    def is_holding(self, now: float) -> bool:
        """Whether it has kept others from being read for too long."""
        if not self._blocked or self._blocked == {self}:
            return False
        limits = self._hub.limits
        return now - self._holding_since > limits.hold_timeout + self._fetched_bytes / limits.fetch_rate

    def is_overdue(self, now: float) -> bool:
        """Whether it is being closed and did not fetch its last answers."""
        return self._is_closing and now > self._close_deadline

    @property
    def outbox_bytes(self) -> int:
        """What waits to be fetched."""
        return self._outbox.n_bytes

    def outbox_weight(self, now: float) -> float:
        """How much it keeps in its outbox for how long."""
        return self._outbox.n_bytes * (now - self._outbox_since + _MOMENT)

    def half_weight(self, now: float) -> float:
        """How much came of a packet, and for how long nothing did."""
        return self.half_bytes * (now - self.last_read + _MOMENT)

    def _leave(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._release()
        for blocker in self._blockers:
            blocker._blocked.discard(self)
        self._blockers.clear()
        self._reader.drop()
        self._note_half()
        self._hub.machine.disconnect(self._peer)
        self._hub.flush(self)

    def _break(self) -> None:
        # Later: whoever sends to us is in the middle of its own packets.
        self._clear_outbox()
        self._hub.loop.later(self.abort)

    def _clear_outbox(self) -> None:
        self._hub.note_outbox(-self._outbox.n_bytes)
        self._outbox.clear()

    def _watch(self) -> None:
        mask = 0 if self._blockers or self._is_closing or self._is_backlogged else READ
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
            log.exception("closing connection %d", self._peer.number)
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
        self.last_read = self._hub.loop.now
        self._handle_packets()
        self._mind_pending()

    def _mind_pending(self) -> None:
        """Read on soon if something is there that the loop does not know of."""
        if self._pending is not None and self._watched & READ and self._pending():
            self._hub.loop.later(self._read_pending)

    def _read_pending(self) -> None:
        if self._watched & READ:  # not any more if it was closed or is held back; then `_read_again` sees to it
            self._read()

    def _handle_packets(self) -> None:
        """Handle what has come, as long as the turn lasts; the rest waits for the next."""
        hub, peer, clock = self._hub, self._peer, time.monotonic
        next_packet, handle = self._reader.next_packet, hub.machine.handle
        is_handled, is_more, is_over, end = False, True, False, clock() + hub.turn_seconds
        while is_more and not is_over and not self._blockers and not self._is_closing:
            try:
                for _ in range(PACKETS_PER_FLUSH):
                    packet = next_packet()
                    if packet is None:
                        is_more = False
                        break
                    handle(peer, packet.command, packet.body)
                    is_handled = True
                    is_over = clock() > end
                    # A listing may be very long: look at the outbox before the next one.
                    if is_over or packet.command == TEXT_LINE:
                        break
            except ProtocolError as error:
                log.info("closing connection %d: %s", peer.number, error)
                self._close_after_error()
                return
            except Exception:
                log.exception("closing connection %d", peer.number)
                self._close_after_error()
                return
            hub.flush(self)
        if is_handled or not self.half_bytes:
            self._half_since = self.last_read
        self._note_half()
        if is_more and is_over and not self._is_closing:
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        self._is_backlogged = True
        self._hub.note_backlog(1)
        self._watch()
        self._hub.loop.later(self._take_turn)

    def _take_turn(self) -> None:
        self._is_backlogged = False
        self._hub.note_backlog(-1)
        self._read_again()

    def _note_half(self) -> None:
        n_bytes = self._reader.held_bytes
        if n_bytes != self.half_bytes:
            change, self.half_bytes = n_bytes - self.half_bytes, n_bytes
            self._hub.note_half(change)

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
            self._outbox_since = self._hub.loop.now
        self._outbox.put(pieces)
        self._hub.note_outbox(self._outbox.n_bytes - n_before)
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
        if not isinstance(data, bytes) or len(data) > JOIN_BYTES:
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
            n_bytes = self._socket.sendmsg(self._outbox.chunk())
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._break()
            return
        self._outbox.sent(n_bytes)
        self._fetched_bytes += n_bytes
        self._hub.note_outbox(-n_bytes)

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
            if not self._blocked:
                self._holding_since, self._fetched_bytes = self._hub.loop.now, 0
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
        if self._blockers or self._is_closing or self._is_backlogged:
            return
        # What was not read meanwhile was not its fault.
        self.last_read = self._half_since = self._hub.loop.now
        self._handle_packets()
        self._watch()
        self._mind_pending()
