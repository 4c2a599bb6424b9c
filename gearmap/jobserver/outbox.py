"""What waits to be sent to one peer.

What lives here: the order of the bytes, and how many were sent. What must not: sockets.

Rule 1: nothing large is copied, and what lies in blocks keeps its `LargeData` until its last byte was sent.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

from gearmap.jobserver.blocks import LargeData
from gearmap.jobserver.protocol import Data

__all__ = ["Outbox"]

# What the system is offered at once. Larger: fewer system calls; smaller: better turns between connections. Above what
# a socket takes, 4 MB on most machines, it changes nothing.
CHUNK_BYTES: Final = 4 << 20
# As many places as one system call may name on every system is 1024; tiny packets are offered in such numbers.
CHUNK_PARTS: Final = 256

_Part: TypeAlias = "tuple[bytes | memoryview, LargeData | None]"


class Outbox:
    """Bytes on their way to a peer, in order.

    Attributes
    ----------
    n_bytes
        How many there are.

    Examples
    --------
    >>> outbox = Outbox()
    >>> outbox.put([b"some", b"thing"])
    >>> outbox.sent(6)
    >>> outbox.n_bytes, [bytes(part) for part in outbox.chunk()]
    (3, [b'ing'])
    """

    __slots__ = ("_parts", "n_bytes")

    def __init__(self) -> None:
        self._parts: deque[_Part] = deque()
        self.n_bytes = 0

    def put(self, pieces: list[Data]) -> None:
        """Add pieces of packets at the end."""
        for piece in pieces:
            self.n_bytes += len(piece)
            if not isinstance(piece, bytes):
                self._parts.extend((view, piece) for view in piece.views if view)
            elif piece:
                self._parts.append((piece, None))

    def chunk(self) -> list[bytes | memoryview]:
        """Return what to send next, in order; not empty unless all was sent."""
        chunk: list[bytes | memoryview] = []
        n_bytes = 0
        for part, _ in self._parts:
            chunk.append(part)
            n_bytes += len(part)
            if n_bytes >= CHUNK_BYTES or len(chunk) == CHUNK_PARTS:
                break
        return chunk

    def sent(self, n_bytes: int) -> None:
        """Note that the first `n_bytes` were sent."""
        parts = self._parts
        self.n_bytes -= n_bytes
        while n_bytes:
            part, data = parts[0]
            if n_bytes < len(part):
                parts[0] = memoryview(part)[n_bytes:], data
                return
            n_bytes -= len(part)
            parts.popleft()

    def clear(self) -> None:
        """Forget what was not sent."""
        self._parts.clear()
        self.n_bytes = 0
