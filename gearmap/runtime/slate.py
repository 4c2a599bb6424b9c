"""The memory that a child shares with its node: which task it is at, what that task has printed, what was finished.

What must not live here: what either of them makes of it (`childrun`, `taskoutput`; `children`).

Rule 1: the child writes, the node reads, at any time and without asking: what stands here survives the child.
Rule 2: a number is one aligned store and comes after the bytes that it counts, so a child that is killed at any
instruction leaves something that can be read.
Rule 3: nothing here grows. Of a stream the beginning and the end are kept, and how much is missing between them.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from gearmap.wire.pieces import Piece

__all__ = ["HEAD_BYTES", "SHELF_BYTES", "SLATE_BYTES", "TAIL_BYTES", "Kept", "Progress", "Shelf", "Slate", "Strip"]

# What is kept of one stream of one task. Raised: more of a chatty task is seen; lowered: smaller outcomes, and less
# memory for each child.
HEAD_BYTES = 32768
TAIL_BYTES = 32768

_STRIP_BYTES = HEAD_BYTES + TAIL_BYTES
# 0: the index; 1, 2: how much was written to stdout and stderr; 3: how much is on the shelf; 4, 5: how far which task
# says that it is; 6: how much there is of its notes.
_WORDS = 8
_HEADER_BYTES = 8 * _WORDS

# Outcomes of one job that lie here. Raised: fewer of those of a long job wake the node; lowered: less memory for each
# child. A small one takes fifty bytes, sealed two hundred, and they come each millisecond at most.
SHELF_BYTES = 65536

_SHELF_START = _HEADER_BYTES + 3 * _STRIP_BYTES
SLATE_BYTES = _SHELF_START + SHELF_BYTES

_STRIPS = {"stdout": 1, "stderr": 2, "notes": 6}
"""Streams, in the order of their places, and the words that tell how much was written to them."""

_SIZE = struct.Struct("<I")
# What precedes a piece's pickle stream: like `_SIZE`, with a bit that marks it; then first position, tasks, seconds.
_PIECE = struct.Struct("<IIId")
_PIECE_BIT = 1 << 31


class Kept(NamedTuple):
    """What was kept of a stream: `dropped` bytes are missing at offset `at` of `data`."""

    data: bytes = b""
    at: int = 0
    dropped: int = 0


class Strip:
    """The beginning and the end of one stream.

    Parameters
    ----------
    count
        One number: how many bytes were written.
    space
        Where they are.
    """

    def __init__(self, count: memoryview, space: memoryview) -> None:
        self._count = count
        self._space = space
        self._ring = space[HEAD_BYTES:]

    @classmethod
    def private(cls) -> Strip:
        """Return one in memory of its own."""
        return cls(memoryview(bytearray(8)).cast("q"), memoryview(bytearray(_STRIP_BYTES)))

    @property
    def written(self) -> int:
        """How many bytes were written since it was cleared."""
        return int(self._count[0])

    def append(self, data: bytes) -> None:
        """Write bytes."""
        at = self._count[0]
        end = at + len(data)
        if end <= HEAD_BYTES:
            self._space[at:end] = data
        else:
            self._append_to_ring(at, data)
        self._count[0] = end

    def _append_to_ring(self, at: int, data: bytes) -> None:
        view = memoryview(data)
        if at < HEAD_BYTES:
            room = HEAD_BYTES - at
            self._space[at:HEAD_BYTES] = view[:room]
            view, at = view[room:], HEAD_BYTES
        if len(view) > TAIL_BYTES:
            at += len(view) - TAIL_BYTES
            view = view[-TAIL_BYTES:]
        start = (at - HEAD_BYTES) % TAIL_BYTES
        first = min(len(view), TAIL_BYTES - start)
        self._ring[start : start + first] = view[:first]
        self._ring[: len(view) - first] = view[first:]

    def read(self) -> Kept:
        """Return what is kept."""
        written = self._count[0]
        if written <= _STRIP_BYTES:
            return Kept(bytes(self._space[:written]))
        start = (written - HEAD_BYTES) % TAIL_BYTES
        data = b"".join((self._space[:HEAD_BYTES], self._ring[start:], self._ring[:start]))
        return Kept(data, HEAD_BYTES, written - _STRIP_BYTES)

    def since(self, start: int, limit: int) -> tuple[int, bytes]:
        """Return the newest `limit` bytes of what was written from offset `start` on, and where they begin."""
        written = self._count[0]
        begin = max(start, written - min(limit, TAIL_BYTES))
        if begin >= written:
            return written, b""
        if written <= _STRIP_BYTES:
            return begin, bytes(self._space[begin:written])
        low, high = (begin - HEAD_BYTES) % TAIL_BYTES, (written - HEAD_BYTES) % TAIL_BYTES
        data = self._ring[low:high] if low < high else b"".join((self._ring[low:], self._ring[:high]))
        return begin, bytes(data)

    def clear(self) -> None:
        """Forget what was written."""
        self._count[0] = 0


class Shelf:
    """Outcomes of one job, in order: put here by the child, fetched by the node when it likes to.

    Parameters
    ----------
    count
        One number: how many bytes were put.
    space
        Where they are.
    """

    def __init__(self, count: memoryview, space: memoryview) -> None:
        self._count = count
        self._space = space
        self._taken = 0
        self._is_closed = False

    def put(self, data: bytes) -> bool:
        """Add an outcome, in the child; return whether there was room for it."""
        at = self._count[0]
        start = at + _SIZE.size
        end = start + len(data)
        if end > SHELF_BYTES or self._is_closed:
            return False
        _SIZE.pack_into(self._space, at, len(data))
        self._space[start:end] = data
        self._count[0] = end
        return True

    def put_piece(self, piece: Piece) -> bool:
        """Add results that are pickled and not sealed, in the child; return whether there was room for them."""
        at = self._count[0]
        start = at + _PIECE.size
        end = start + len(piece.stream)
        if end > SHELF_BYTES or self._is_closed:
            return False
        size = end - at - _SIZE.size
        _PIECE.pack_into(self._space, at, size | _PIECE_BIT, piece.first, piece.n_tasks, piece.seconds)
        self._space[start:end] = piece.stream
        self._count[0] = end
        return True

    def close(self) -> None:
        """Put nothing from now on: this is a forked copy of the child."""
        self._is_closed = True

    def take(self) -> list[bytes | Piece]:
        """Return what was added since the last call, in the node. A task may have written anything here."""
        taken: list[bytes | Piece] = []
        end = min(self._count[0], SHELF_BYTES)
        while self._taken + _SIZE.size <= end:
            at, start = self._taken, self._taken + _SIZE.size
            size = _SIZE.unpack_from(self._space, at)[0]
            self._taken = start + (size & ~_PIECE_BIT)
            if size & _PIECE_BIT and at + _PIECE.size <= min(self._taken, SHELF_BYTES):
                _, first, n_tasks, seconds = _PIECE.unpack_from(self._space, at)
                taken.append(Piece(first, n_tasks, seconds, bytes(self._space[at + _PIECE.size : self._taken])))
            else:
                taken.append(bytes(self._space[start : self._taken]))
        return taken

    def clear(self) -> None:
        """Begin anew, in the node, while the child is idle."""
        self._count[0] = self._taken = 0


class Progress:
    """How far a task says that it is.

    Parameters
    ----------
    position, fraction
        One number each, of 8 bytes.
    """

    def __init__(self, position: memoryview, fraction: Any) -> None:
        self._position = position
        self._fraction = fraction

    def clear(self) -> None:
        """No task has said anything."""
        self._position[0] = -1

    def set(self, position: int, fraction: float) -> None:
        """The task at a position is so far, from 0.0 to 1.0."""
        self._fraction[0] = fraction
        self._position[0] = position

    def of(self, position: int) -> float | None:
        """Return how far the task at a position is, or None if it has not said."""
        return float(self._fraction[0]) if self._position[0] == position else None


class Slate:
    """The whole of it.

    Parameters
    ----------
    memory
        `SLATE_BYTES` of memory that both processes have.

    Attributes
    ----------
    index
        One number, whose meanings stand in `child`.
    strips
        What the task printed, and its notes, by the names of the streams.
    shelf
        Outcomes that the node need not hear of at once.
    progress
        How far it says that it is.
    """

    def __init__(self, memory: Any) -> None:
        view = memoryview(memory).cast("B")
        words = view[:_HEADER_BYTES].cast("q")
        self.index = words[:1]
        self.shelf = Shelf(words[3:4], view[_SHELF_START:])
        self.progress = Progress(words[4:5], view[40:48].cast("d"))
        self.strips = {
            name: Strip(words[number : number + 1], view[start : start + _STRIP_BYTES])
            for start, (name, number) in zip(
                range(_HEADER_BYTES, _SHELF_START, _STRIP_BYTES), _STRIPS.items(), strict=True
            )
        }
