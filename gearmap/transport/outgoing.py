"""What waits to be sent on one connection: many small commands become one send, large data is never copied.

Law of the file: pure. It hands out buffers and is told how much of them went; a lazy body is only asked for its next
piece when less than `LOW_WATER_BYTES` wait, so a large body never stands in memory as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from gearmap.errors import TransportError
from gearmap.transport.events import Body

__all__ = ["SendQueue"]

# Below this much ready to be sent the next piece is made. Larger: fewer, larger sends but more memory; smaller: the
# socket may run dry between two polls.
LOW_WATER_BYTES = 1024 * 1024
# From here on joining costs more than a further buffer in the send.
_JOIN_BYTES = 32 * 1024
_NOTHING = b""
# So many small commands are joined without looking at their sizes.
_MAX_JOINED = 32
# sendmsg takes at most IOV_MAX (1024 on Linux) buffers; so many are never needed.
_MAX_BUFFERS = 64


class SendQueue:
    """Commands in order, as few buffers."""

    def __init__(self) -> None:
        # Not yet turned into buffers: packed commands, and bodies with what they still owe.
        self._waiting: deque[bytes | memoryview | _Source] = deque()
        # How many of these are not small commands.
        self._n_large = 0
        self._ready: deque[bytes | memoryview] = deque()
        self._ready_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._ready or self._waiting)

    @property
    def n_bytes(self) -> int:
        """How much waits."""
        return self._ready_bytes + sum(map(len, self._waiting))

    def put(self, head: bytes, body: Body = _NOTHING) -> None:
        """Append a command: its head, then the body."""
        if body is _NOTHING:
            self._waiting.append(head)
            return
        if isinstance(body, (bytes, bytearray)) and len(body) < _JOIN_BYTES:
            self._waiting.append(head + body)
            return
        self._waiting.append(head)
        self._n_large += 1
        if isinstance(body, (bytes, bytearray, memoryview)):
            self._waiting.append(memoryview(body).cast("B"))
        else:
            self._waiting.append(_Source(body))

    def take_small(self) -> bytes | None:
        """Return everything that waits, joined, if that is a few small commands; else None.

        Nearly always so. What the socket does not take of it comes back by `put_back`, before anything else is put.
        """
        waiting = self._waiting
        if self._ready or self._n_large or not 0 < len(waiting) <= _MAX_JOINED:
            return None
        joined: bytes = waiting[0] if len(waiting) == 1 else b"".join(waiting)  # type: ignore[assignment, arg-type]
        waiting.clear()
        return joined

    def put_back(self, rest: bytes) -> None:
        """Take back the end of what `take_small` returned."""
        self._append(rest)

    def gather(self) -> list[bytes | memoryview]:
        """Return the next buffers to send; empty when nothing waits.

        Raises
        ------
        TransportError
            If a lazy body fails, or is shorter or longer than it said. The connection cannot go on then.
        """
        if self._waiting and self._ready_bytes < LOW_WATER_BYTES:
            if self._n_large or len(self._waiting) > _MAX_JOINED:
                self._refill()
            else:
                self._append(b"".join(self._waiting))  # type: ignore[arg-type]  # none is large, so all are bytes
                self._waiting.clear()
        elif not self._ready:
            return []
        if len(self._ready) <= _MAX_BUFFERS:
            return list(self._ready)
        return list(islice(self._ready, _MAX_BUFFERS))

    def advance(self, count: int) -> bool:
        """Forget the first `count` bytes of what `gather` returned: they are sent. Return whether nothing is left."""
        ready = self._ready
        self._ready_bytes -= count
        if not self._ready_bytes:
            ready.clear()
            return not self._waiting
        while count:
            first = ready[0]
            if count < len(first):
                ready[0] = memoryview(first)[count:]
                return False
            count -= len(first)
            ready.popleft()
        return False

    def clear(self) -> None:
        """Drop everything; bodies are not asked any more."""
        self._waiting.clear()
        self._n_large = 0
        self._ready.clear()
        self._ready_bytes = 0

    def _refill(self) -> None:
        smalls: list[bytes | memoryview] = []
        small_bytes = 0
        waiting = self._waiting
        while waiting and self._ready_bytes + small_bytes < LOW_WATER_BYTES:
            piece = waiting[0]
            if isinstance(piece, _Source):
                chunk = piece.next_chunk()
                if chunk is None:
                    waiting.popleft()
                    self._n_large -= 1
                    continue
                piece = chunk
            else:
                waiting.popleft()
                self._n_large -= isinstance(piece, memoryview)
            if len(piece) < _JOIN_BYTES:
                smalls.append(piece)
                small_bytes += len(piece)
                continue
            self._append_joined(smalls)
            small_bytes = 0
            self._append(piece)
        self._append_joined(smalls)

    def _append_joined(self, smalls: list[bytes | memoryview]) -> None:
        if smalls:
            self._append(b"".join(smalls) if len(smalls) > 1 else smalls[0])
            smalls.clear()

    def _append(self, piece: bytes | memoryview) -> None:
        if len(piece):
            self._ready.append(piece)
            self._ready_bytes += len(piece)


class _Source:
    """A lazy body that is being sent."""

    __slots__ = ("_body", "_iterator", "_owed")

    def __init__(self, body: Body) -> None:
        self._body: Body | None = body
        self._owed = len(body)
        self._iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self._owed

    def next_chunk(self) -> memoryview | None:
        """Return the next non-empty piece, or None after the last."""
        if self._iterator is None:
            assert self._body is not None
            self._iterator, self._body = iter(self._body), None
        view = self._pull()
        while view is not None and not len(view):
            view = self._pull()
        self._owed -= 0 if view is None else len(view)
        if self._owed < 0 or (view is None and self._owed):
            raise TransportError("a body was not as long as it said, so its packet cannot be completed")
        return view

    def _pull(self) -> memoryview | None:
        assert self._iterator is not None
        try:
            chunk = next(self._iterator, None)
        except Exception as error:
            # The head with the length has gone out already: this connection can only be given up.
            raise TransportError(f"a body could not be made while it was sent: {error!r}") from error
        return None if chunk is None else memoryview(chunk).cast("B")
