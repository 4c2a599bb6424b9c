"""The sockets around the protocol state machine: asyncio, buffers, flow control.

What lives here: reading, writing, and who is not read for a while. What must not: any meaning of a packet.

Rule 1: an error while one connection's packet is handled closes that connection only.
Rule 2: whoever fills the outbox of another connection above `HIGH_WATER_BYTES` is not read until that outbox has
fallen to `LOW_WATER_BYTES`. So a reader that does not read costs a bounded amount of memory, and its senders feel it
as a full socket. A connection is not held back for what others send to it, only for `OWN_WATER_BYTES` of answers to
its own requests that it does not fetch: a client may send for long before it begins to read.
Rule 3: a packet that was begun must go on: nobody holds a half packet for ever.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gearmap.errors import ProtocolError
from gearmap.jobserver.machine import Machine
from gearmap.jobserver.protocol import MAX_BODY_BYTES, TEXT_LINE, Data, PacketReader
from gearmap.jobserver.records import Peer, ServerOptions
from gearmap.jobserver.sockets import BACKLOG, tune

__all__ = ["Limits", "serve"]

logger = logging.getLogger(__name__)

# One read. Larger: fewer system calls for bulk data; smaller: better turns between connections.
SCRATCH_BYTES: Final = 64 * 1024
# What the transport gets at once. Larger: fewer turns of the loop; smaller: less copying of what it could not send.
WRITE_BYTES: Final = 256 * 1024
# Packets handled between two looks at the outboxes. Larger: fewer sends; smaller: limits are kept more closely.
PACKETS_PER_FLUSH: Final = 256
# How long a connection that is being closed may take to fetch its last answers.
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
class _Server:
    """What the connections share."""

    machine: Machine
    limits: Limits
    loop: asyncio.AbstractEventLoop
    scratch: memoryview = field(default_factory=lambda: memoryview(bytearray(SCRATCH_BYTES)))
    connections: set[_Connection] = field(default_factory=set)

    def flush(self, sender: _Connection) -> None:
        """Send on what the last packets of `sender` led to."""
        for peer in self.machine.take_touched():
            assert isinstance(peer, _ConnectedPeer)
            peer.connection.send_out(sender)


class _ConnectedPeer(Peer):
    """A peer that knows its connection."""

    __slots__ = ("connection",)

    def __init__(self, connection: _Connection, number: int, address: bytes) -> None:
        super().__init__(number, address)
        self.connection = connection


class _Connection(asyncio.BufferedProtocol):
    """One accepted socket."""

    _transport: asyncio.Transport
    _peer: _ConnectedPeer

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._reader = PacketReader(server.limits.max_body_bytes)
        self._is_reading_body = False
        self._is_closing = False
        self._last_read = 0.0
        self._outbox: deque[Data] = deque()
        self._outbox_bytes = 0
        self._own_bytes = 0
        self._is_write_paused = False
        # Those whose full outboxes keep us from being read, and those that our full outbox keeps from it.
        self._blockers: set[_Connection] = set()
        self._blocked: set[_Connection] = set()

    # -- life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Pause at the first byte that the kernel does not take: what waits, waits in our outbox, uncopied.
        transport.set_write_buffer_limits(high=0)
        sock = transport.get_extra_info("socket")
        tune(sock)
        address = (transport.get_extra_info("peername") or ("?",))[0]
        self._peer = _ConnectedPeer(self, sock.fileno(), str(address).encode())
        self._server.connections.add(self)
        self._server.machine.connect(self._peer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def close(self) -> None:
        """Close the connection; answers that are on their way get a few seconds."""
        if self._is_closing:
            return
        self._leave()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._server.loop.call_later(CLOSE_TIMEOUT, self._transport.abort)

    def abort(self) -> None:
        """Close the connection at once."""
        self._leave()
        self._transport.abort()

    def _leave(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._server.connections.discard(self)
        self._outbox.clear()
        self._outbox_bytes = 0
        self._release()
        for blocker in self._blockers:
            blocker._blocked.discard(self)
        self._blockers.clear()
        self._server.machine.disconnect(self._peer)
        self._server.flush(self)

    # -- reading

    def get_buffer(self, sizehint: int) -> memoryview:
        vacancy = self._reader.vacancy()
        self._is_reading_body = vacancy is not None
        return self._server.scratch if vacancy is None else vacancy

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_reading_body:
            self._reader.filled(nbytes)
        else:
            self._reader.feed(bytes(self._server.scratch[:nbytes]))
        self._handle_packets()
        if self._reader.is_partial:
            self._last_read = time.monotonic()

    def is_stuck(self, now: float) -> bool:
        """Whether a half packet has been waiting too long for its other half."""
        if self._blockers or not self._reader.is_partial:
            return False
        limits = self._server.limits
        timeout = limits.body_timeout if self._reader.is_in_large_body else limits.header_timeout
        return now - self._last_read > timeout

    def _handle_packets(self) -> None:
        next_packet, handle, peer = self._reader.next_packet, self._server.machine.handle, self._peer
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
            self._server.flush(self)

    def _close_after_error(self) -> None:
        self._server.flush(self)
        self.close()

    # -- writing

    def send_out(self, sender: _Connection) -> None:
        """Send what the state machine put out for this peer; `sender` caused it."""
        pieces = self._peer.out
        self._peer.out = []
        if not self._outbox and not self._is_write_paused and len(pieces) == 1 and len(pieces[0]) <= WRITE_BYTES:
            self._transport.write(pieces[0])
            return
        n_bytes = sum(map(len, pieces))
        if not self._outbox and not self._is_write_paused and n_bytes <= WRITE_BYTES:
            self._transport.write(b"".join(pieces))
            return
        self._outbox.extend(pieces)
        self._outbox_bytes += n_bytes
        if sender is self:
            self._own_bytes += n_bytes
        self._pump()
        self._hold_back(sender)

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._pump()
        if self._outbox_bytes <= self._server.limits.low_water_bytes:
            self._own_bytes = 0
            self._release()

    def _pump(self) -> None:
        while self._outbox and not self._is_write_paused and not self._is_closing:
            chunk = self._next_chunk()
            self._outbox_bytes -= len(chunk)
            self._transport.write(chunk)

    def _next_chunk(self) -> Data:
        outbox = self._outbox
        first = outbox.popleft()
        if len(first) > WRITE_BYTES:
            view = memoryview(first)
            outbox.appendleft(view[WRITE_BYTES:])
            return view[:WRITE_BYTES]
        pieces, n_bytes = [first], len(first)
        while outbox and n_bytes + len(outbox[0]) <= WRITE_BYTES:
            n_bytes += len(outbox[0])
            pieces.append(outbox.popleft())
        return first if len(pieces) == 1 else b"".join(pieces)

    # -- flow control

    def _hold_back(self, sender: _Connection) -> None:
        limits = self._server.limits
        if self._outbox_bytes <= limits.low_water_bytes or sender._is_closing:
            return
        if sender is self:
            is_too_much = self._own_bytes > limits.own_water_bytes
        else:
            is_too_much = self._outbox_bytes > limits.high_water_bytes
        if is_too_much:
            self._blocked.add(sender)
            sender._blockers.add(self)
            sender._transport.pause_reading()

    def _release(self) -> None:
        for sender in self._blocked:
            sender._blockers.discard(self)
            if not sender._blockers:
                # Later, because its packets may feed this very outbox again.
                self._server.loop.call_soon(sender._read_again)
        self._blocked.clear()

    def _read_again(self) -> None:
        if self._blockers or self._is_closing:
            return
        self._handle_packets()
        if not self._blockers and not self._is_closing:
            self._last_read = time.monotonic()
            self._transport.resume_reading()


def serve(
    listener: socket.socket,
    options: ServerOptions,
    *,
    limits: Limits | None = None,
    lifeline: int | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM, SIGINT, or the end of `lifeline`.

    Parameters
    ----------
    listener
        A listening socket; it is closed at the end.
    lifeline
        A file descriptor whose end of file stops the server.
    on_ready
        Called once connections are accepted.
    """
    # A job is no cycle and goes by its reference count; with a million of them queued the collector only costs.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    asyncio.run(_serve(listener, options, limits or Limits(), lifeline, on_ready))


async def _serve(
    listener: socket.socket,
    options: ServerOptions,
    limits: Limits,
    lifeline: int | None,
    on_ready: Callable[[], None],
) -> None:
    loop = asyncio.get_running_loop()
    server = _Server(machine=Machine(options, pid=os.getpid()), limits=limits, loop=loop)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if lifeline is not None:
        _watch(loop, lifeline, stopped.set)
    acceptor = await loop.create_server(lambda: _Connection(server), sock=listener, backlog=BACKLOG)
    sweeper = loop.create_task(_sweep(server))
    on_ready()
    try:
        await stopped.wait()
    finally:
        sweeper.cancel()
        acceptor.close()
        for connection in list(server.connections):
            connection.abort()
        # One turn, in which the transports close their sockets.
        await asyncio.sleep(0)


def _watch(loop: asyncio.AbstractEventLoop, lifeline: int, stop: Callable[[], None]) -> None:
    def on_readable() -> None:
        if not os.read(lifeline, 4096):
            loop.remove_reader(lifeline)
            stop()

    try:
        loop.add_reader(lifeline, on_readable)
    except PermissionError:
        # A file or /dev/null cannot be watched, and is at its end already.
        stop()


async def _sweep(server: _Server) -> None:
    """Close connections that stopped in the middle of a packet."""
    while True:
        await asyncio.sleep(server.limits.sweep_delay)
        now = time.monotonic()
        for connection in [c for c in server.connections if c.is_stuck(now)]:
            logger.warning("closing a connection that stopped in the middle of a packet")
            connection.close()
