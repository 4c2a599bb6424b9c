"""Options of sockets and of the process that has many of them.

What lives here: listening, keepalive, the limit of open files. What must not: reading or writing.

Rule 1: nothing here waits.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from typing import Final

__all__ = [
    "BACKLOG",
    "SOCKET_NAME",
    "connect",
    "is_same_user",
    "leave_folder",
    "listen",
    "listen_in_folder",
    "raise_file_limit",
    "tune",
]

# With less, hundreds of workers that connect at once wait for TCP's resends.
BACKLOG: Final = 1024
# Seconds, probes: a vanished host is noticed after about two minutes.
KEEPALIVE_IDLE: Final = 60
KEEPALIVE_INTERVAL: Final = 15
KEEPALIVE_COUNT: Final = 4


# Of the Unix socket in its folder.
SOCKET_NAME: Final = "s"
_CREDENTIALS: Final = struct.Struct("=3i")  # pid, uid, gid: unix(7), SO_PEERCRED


def tune(connection: socket.socket) -> None:
    """Send small packets at once, and notice a peer whose host has vanished."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
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


def listen_in_folder(folder: str) -> socket.socket:
    """Return a listening Unix socket in a folder that nobody else can look into.

    Raises
    ------
    OSError
        If the folder belongs to somebody else, or others may enter it, or there is such a socket already.
    """
    status = os.stat(folder, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(f"{folder!r} is not a folder of this user alone")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.path.join(folder, SOCKET_NAME))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def leave_folder(folder: str) -> None:
    """Remove the socket and its folder, if they are still there and nothing else is."""
    try:
        os.unlink(os.path.join(folder, SOCKET_NAME))
        os.rmdir(folder)
    except OSError:
        pass  # whoever started us has done it


def is_same_user(connection: socket.socket) -> bool:
    """Return whether the process at the other end of a Unix socket is this user's, where the system tells.

    The folder keeps others out already; this also does if somebody has opened it since.
    """
    if connection.family in (socket.AF_INET, socket.AF_INET6) or not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.geteuid())


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """Connect to a server; a host that begins with `/` is a Unix socket's path."""
    if not host.startswith("/"):
        return socket.create_connection((host, port), timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(host)
    except BaseException:
        connection.close()
        raise
    return connection
