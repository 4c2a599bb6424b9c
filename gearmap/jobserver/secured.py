"""TLS for accepted sockets: the handshake, and a socket that looks like a plain one afterwards.

What lives here: what OpenSSL needs from a loop that never waits. What must not: any meaning of a packet, and the choice
of files and protocol versions (`gearmap.tls`).

Rule 1: until its handshake is done a connection is nobody: it is closed after `HANDSHAKE_TIMEOUT`, whatever it does,
and there are at most `MAX_HANDSHAKES` of them.
Rule 2: nothing is remembered of a connection that was refused, and what a stranger can cause is logged rarely.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from gearmap.errors import ConfigurationError
from gearmap.jobserver.loop import READ, WRITE, Loop
from gearmap.rarelog import RareLog

__all__ = ["HANDSHAKE_TIMEOUT", "MAX_HANDSHAKES", "Handshakes", "SecureSocket"]

log = RareLog(logging.getLogger(__name__))

# Seconds, and up to one look at the clock more. Larger: slow networks get in; smaller: who says nothing leaves sooner.
HANDSHAKE_TIMEOUT: Final = 5.0
# Above it the oldest is closed. Larger: more clients may come at once; smaller: less memory, each takes about 60 kB.
MAX_HANDSHAKES: Final = 2048
# What TLS packs together at most.
RECORD_BYTES: Final = 16384
READ_BYTES: Final = 65536

_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
# An alert of TLS, "protocol version": gearmap's clients tell by it that they were to speak TLS. OpenSSL says nothing to
# those that do not.
_SPEAK_TLS: Final = b"\x15\x03\x03\x00\x02\x02\x46"
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST"})

_Start = Callable[[socket.socket, tuple[Any, ...]], None]


class SecureSocket(ssl.SSLSocket):
    """What `Connection` uses of a socket, in TLS: would-block is the usual error, and several parts are sent at once.

    `pending()` tells how much was received that no wait will report.
    """

    # What OpenSSL has begun to send: it insists on the same bytes the next time, and on no fewer.
    _begun: bytes | memoryview | None = None

    def recv(self, buflen: int = READ_BYTES, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except _WANTS:
            raise BlockingIOError from None

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive as much as is there and fits: a record alone is a small part of a large body."""
        count = 0
        try:
            while count < len(buffer):
                more = super().recv_into(buffer[count:])
                if not more:
                    break
                count += more
        except _WANTS:
            if not count:
                raise BlockingIOError from None
        except OSError:
            if not count:  # else it comes again
                raise
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        return self.sendmsg([data])

    def sendmsg(self, buffers: Any, *others: Any) -> int:  # type: ignore[override]  # the base class always refuses
        """Send parts in records that are as full as possible; return how many bytes were taken."""
        count = 0
        records = _records(buffers, 0 if self._begun is None else len(self._begun))
        while True:
            record = next(records, None) if self._begun is None else self._begun
            if record is None:
                return count
            try:
                sent = super().send(record)
            except _WANTS:
                self._begun = record
                if not count:
                    raise BlockingIOError from None
                return count
            self._begun = None
            count += sent
            if sent < len(record):
                return count


def _records(buffers: Sequence[bytes | memoryview], skip: int) -> Iterator[bytes | memoryview]:
    """Yield what `buffers` hold after the first `skip` bytes, in records; small parts are joined."""
    joined = bytearray()
    for buffer in buffers:
        view = memoryview(buffer)
        if skip:
            passed = min(skip, len(view))
            skip -= passed
            view = view[passed:]
        while view:
            if not joined and len(view) >= RECORD_BYTES:
                yield view[:RECORD_BYTES]
                view = view[RECORD_BYTES:]
                continue
            room = RECORD_BYTES - len(joined)
            joined += view[:room]
            view = view[room:]
            if len(joined) == RECORD_BYTES:
                yield bytes(joined)
                joined.clear()
    if joined:
        yield bytes(joined)


class Handshakes:
    """Connections that were accepted and have not proven themselves yet.

    Parameters
    ----------
    context
        Returns the present context; certificates may be renewed while the server runs.
    start
        Called with a socket that is ready, and its address.
    on_closed
        Called when one has closed its socket.
    """

    def __init__(
        self, loop: Loop, context: Callable[[], ssl.SSLContext], start: _Start, on_closed: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._make_context = context
        self._context = _fit(context())
        self._start = start
        self._on_closed = on_closed
        # By age.
        self._open: dict[_Handshake, float] = {}

    def begin(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """Take an accepted socket over."""
        if len(self._open) >= MAX_HANDSHAKES:
            self._give_up(next(iter(self._open)), "there are too many others")
        handshake = _Handshake(self, sock, address)
        self._open[handshake] = self._loop.now + HANDSHAKE_TIMEOUT
        sock.setblocking(False)
        self._loop.watch(sock.fileno(), READ, handshake.on_events)

    def sweep(self, now: float) -> None:
        """Close those that take too long."""
        for handshake in [each for each, deadline in self._open.items() if now > deadline]:
            self._give_up(handshake, f"it was not finished in {HANDSHAKE_TIMEOUT:g} s")

    def close(self) -> None:
        """Close all."""
        for handshake in list(self._open):
            self.drop(handshake)

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """Return the socket as one that speaks TLS, with the certificate that is there now."""
        try:
            self._context = _fit(self._make_context())
        except ConfigurationError as error:
            log.error("the former certificate stays in use: %s", error)
        return self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def watch(self, handshake: _Handshake, mask: int) -> None:
        self._loop.watch(handshake.fd, mask, handshake.on_events)

    def forget(self, handshake: _Handshake) -> None:
        self._loop.forget(handshake.fd)

    def finish(self, handshake: _Handshake) -> None:
        """Hand a connection over that is ready."""
        self._open.pop(handshake, None)
        self.forget(handshake)
        self._start(handshake.sock, handshake.address)

    def drop(self, handshake: _Handshake) -> None:
        """Close a connection. May be repeated."""
        if self._open.pop(handshake, None) is not None:
            self.forget(handshake)
            handshake.sock.close()
            self._on_closed()

    def _give_up(self, handshake: _Handshake, why: str) -> None:
        if not handshake.is_refused:
            log.info("a TLS handshake with %s was given up: %s", handshake.address, why)
        self.drop(handshake)


class _Handshake:
    """One connection until it is ready or refused."""

    def __init__(self, owner: Handshakes, sock: socket.socket, address: tuple[Any, ...]) -> None:
        self._owner = owner
        self.sock = sock
        self.fd = sock.fileno()
        self.address = address
        self.is_refused = False

    def on_events(self, events: int) -> None:
        try:
            if self.is_refused:
                self._hear_out()
            else:
                self._go_on()
        except OSError as error:
            log.info("a connection from %s ended in its TLS handshake: %s", self.address, error)
            self._owner.drop(self)
        except Exception:
            log.exception("closing a connection from %s in its TLS handshake", self.address)
            self._owner.drop(self)

    def _go_on(self) -> None:
        if not isinstance(self.sock, ssl.SSLSocket):
            # Not before something has come: until then it costs next to nothing. Who has been reset meanwhile is closed
            # in there, and the loop must not know a number that is free for the next connection.
            self._owner.forget(self)
            self.sock = self._owner.wrap(self.sock)
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._owner.watch(self, READ)
        except ssl.SSLWantWriteError:
            self._owner.watch(self, WRITE)
        except ssl.SSLError as error:
            self._refuse(error)
        else:
            self._owner.finish(self)

    def _refuse(self, error: ssl.SSLError) -> None:
        """Say no, and wait until the other side has heard it: closing at once could take back what was said."""
        log.info("a TLS handshake with %s failed: %s", self.address, error.strerror or error)
        self.is_refused = True
        if error.reason in _NO_TLS:
            socket.socket.send(self.sock, _SPEAK_TLS)
        socket.socket.shutdown(self.sock, socket.SHUT_WR)
        self._owner.watch(self, READ)

    def _hear_out(self) -> None:
        try:
            if not socket.socket.recv(self.sock, READ_BYTES):
                self._owner.drop(self)
        except BlockingIOError:
            pass


def _fit(context: ssl.SSLContext) -> ssl.SSLContext:
    context.sslsocket_class = SecureSocket
    return context
