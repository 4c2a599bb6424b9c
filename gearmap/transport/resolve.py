"""From a host name to socket addresses without holding up the caller's thread.

Law of the file: numbers and `localhost` are answered at once; every other name is looked up in a thread of its
own, because a name server that does not answer blocks `getaddrinfo` for many seconds.
"""

from __future__ import annotations

import socket
import threading
from typing import Any, TypeAlias

from gearmap.transport.events import Address

__all__ = ["Endpoint", "Resolution", "resolve_at_once"]

# (family, socket address as `connect` takes it)
Endpoint: TypeAlias = tuple[int, Any]


def resolve_at_once(address: Address) -> list[Endpoint] | None:
    """Return the endpoints of a path, a numeric address or `localhost`; None if the name must be looked up."""
    host, port = address[0], address[1]
    if host.startswith("/") and hasattr(socket, "AF_UNIX"):
        return [(socket.AF_UNIX, host)]
    if host == "localhost":
        # In this order: job servers bind to the IPv4 loopback unless told otherwise.
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port, 0, 0))]
    try:
        return _lookup(address, socket.AI_NUMERICHOST)
    except OSError:
        return None


def _lookup(address: Address, flags: int = 0) -> list[Endpoint]:
    host, port = address[0], address[1]
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags)
    return [(info[0], info[4]) for info in infos]


class Resolution:
    """A look-up in the background; `fileno()` becomes readable when it is done."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._reader, self._writer = socket.socketpair()
        self._endpoints: list[Endpoint] = []
        self._error: OSError | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="gearmap-resolve", daemon=True).start()

    def fileno(self) -> int:
        return self._reader.fileno()

    def result(self) -> list[Endpoint]:
        """Return the endpoints; to be called once `fileno()` is readable.

        Raises
        ------
        OSError
            If the name does not resolve.
        """
        if self._error is not None:
            raise self._error
        return self._endpoints

    def close(self) -> None:
        """Stop listening to the look-up; its thread ends by itself."""
        self._reader.close()

    def _run(self) -> None:
        # The writing end belongs to this thread alone; closing it is the signal.
        with self._writer:
            try:
                self._endpoints = _lookup(self._address)
            except OSError as error:
                self._error = error
            except UnicodeError as error:  # a label of the name is too long or empty
                self._error = OSError(str(error))
