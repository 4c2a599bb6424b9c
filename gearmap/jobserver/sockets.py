"""Options of sockets and of the process that has many of them.

What lives here: listening, keepalive, the limit of open files. What must not: reading or writing.

Rule 1: nothing here waits.
"""

from __future__ import annotations

import socket
import sys
from typing import Final

__all__ = ["BACKLOG", "listen", "raise_file_limit", "tune"]

# With less, hundreds of workers that connect at once wait for TCP's resends.
BACKLOG: Final = 1024
# Seconds, probes: a vanished host is noticed after about two minutes.
KEEPALIVE_IDLE: Final = 60
KEEPALIVE_INTERVAL: Final = 15
KEEPALIVE_COUNT: Final = 4


def tune(connection: socket.socket) -> None:
    """Send small packets at once, and notice a peer whose host has vanished."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def raise_file_limit() -> int:
    """Allow as many open files as the system lets this user have; return how many."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (ValueError, OSError):
        # macOS reports "unlimited" and accepts less; the soft limit then stays.
        pass
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; the first address of `host` is used.

    Raises
    ------
    OSError
        If the address does not exist or is taken.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=BACKLOG)
