"""The server's process around the protocol state machine: accepting, and when it ends.

What lives here: the listening socket, the lifeline, signals. What must not: reading and writing of connections (see
`connection`), any meaning of a packet.

Rule 1: a system that gives no more connections for now costs neither the others nor processor time.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gearmap.jobserver.connection import Connection
from gearmap.jobserver.hub import Hub
from gearmap.jobserver.limits import Limits
from gearmap.jobserver.loop import READ, Loop
from gearmap.jobserver.machine import Machine
from gearmap.jobserver.records import ServerOptions
from gearmap.jobserver.sockets import is_same_user
from gearmap.rarelog import RareLog

if TYPE_CHECKING:
    import ssl

    from gearmap.jobserver.secured import Handshakes

__all__ = ["Limits", "serve"]

logger = logging.getLogger(__name__)
log = RareLog(logger)

# Connections taken in one turn. Larger: less waiting when hundreds come at once; smaller: better turns for the others.
ACCEPTS_PER_TURN: Final = 16


class _Acceptor:
    """The listening socket."""

    def __init__(self, listener: socket.socket, loop: Loop) -> None:
        self._listener = listener
        self._loop = loop
        self._is_watched = False
        self.hub: Hub | None = None
        self.handshakes: Handshakes | None = None

    def watch(self) -> None:
        """Accept connections, again if that had to pause."""
        if not self._is_watched:
            self._is_watched = True
            self._loop.watch(self._listener.fileno(), READ, self._on_events)

    def _on_events(self, events: int) -> None:
        assert self.hub is not None
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No file descriptors, no memory: until a connection is closed, or the next look at the clock.
                log.error("cannot accept a connection: %s", error)
                self._loop.forget(self._listener.fileno())
                self._is_watched = False
                return
            if not is_same_user(sock):
                log.warning("refusing connections of another user")
                sock.close()
            elif not self.hub.has_room():
                log.warning("refusing connections: all %d are in use", len(self.hub.connections))
                sock.close()
            elif self.handshakes is not None:
                self.handshakes.begin(sock, address)
            else:
                self.start(sock, address)

    def start(self, sock: socket.socket, address: object) -> None:
        """Begin to serve a connection."""
        assert self.hub is not None
        # A Unix socket's peer has none.
        host = str(address[0]) if isinstance(address, tuple) else "unix"
        connection = Connection(self.hub, sock, host.encode())
        try:
            connection.start()
        except OSError as error:
            log.info("a connection ended before it began: %s", error)
            connection.abort()
            return
        logger.debug("a connection from %s", address)


def serve(
    listener: socket.socket,
    options: ServerOptions,
    *,
    limits: Limits | None = None,
    lifeline: int | None = None,
    make_tls: Callable[[], ssl.SSLContext] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM, SIGINT, or the end of `lifeline`.

    Parameters
    ----------
    listener
        A listening socket; it is closed at the end.
    lifeline
        A file descriptor whose end of file stops the server.
    make_tls
        Returns the context for connections, where they are to speak TLS; asked for each, so that it may change.
    on_ready
        Called once connections are accepted.
    """
    # A job is no cycle and goes by its reference count; with a million of them queued the collector only costs.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    loop = Loop()
    listener.setblocking(False)
    acceptor = _Acceptor(listener, loop)
    machine = Machine(options, pid=os.getpid(), clock=time.monotonic)
    hub = Hub(machine=machine, limits=limits or Limits(), loop=loop, on_closed=acceptor.watch)
    acceptor.hub = hub
    handshakes = None
    if make_tls is not None:
        from gearmap.jobserver.secured import Handshakes  # importing `ssl` takes as long as half of the start

        handshakes = acceptor.handshakes = Handshakes(loop, make_tls, acceptor.start, acceptor.watch)

    def tick(now: float) -> None:
        hub.sweep(now)
        if handshakes is not None:
            handshakes.sweep(now)
        acceptor.watch()

    with listener, loop.stopped_by(signal.SIGTERM, signal.SIGINT):
        if lifeline is not None:
            _watch_lifeline(loop, lifeline)
        acceptor.watch()
        on_ready()
        logger.info("serving on %s", listener.getsockname())
        loop.run(tick, delay=hub.limits.sweep_delay)
        if handshakes is not None:
            handshakes.close()
        for connection in list(hub.connections):
            connection.abort()
    loop.close()


def _watch_lifeline(loop: Loop, lifeline: int) -> None:
    def on_events(events: int) -> None:
        if not os.read(lifeline, 4096):
            loop.stop()

    try:
        loop.watch(lifeline, READ, on_events)
    except PermissionError:
        # A file or /dev/null cannot be watched, and is at its end already.
        loop.stop()
