"""The memory that a child shares with its node: which task it is at, and what that task has printed.

What must not live here: what either of them makes of it (`childrun`, `taskoutput`; `children`).

Rule 1: the child writes, the node reads, at any time and without asking: what stands here survives the child.
Rule 2: a number is one aligned store and comes after the bytes that it counts, so a child that is killed at any
instruction leaves something that can be read.
Rule 3: nothing here grows. Of a stream the beginning and the end are kept, and how much is missing between them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["HEAD_BYTES", "SLATE_BYTES", "TAIL_BYTES", "Kept", "Slate", "Strip"]

# What is kept of one stream of one task. Raised: more of a chatty task is seen; lowered: smaller outcomes, and less
# memory for each child.
HEAD_BYTES = 32768
TAIL_BYTES = 32768

_STRIP_BYTES = HEAD_BYTES + TAIL_BYTES
_WORDS = 8  # 0: the index; 1 and 2: how much was written to stdout and stderr
_HEADER_BYTES = 8 * _WORDS

SLATE_BYTES = _HEADER_BYTES + 2 * _STRIP_BYTES


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

    def clear(self) -> None:
        """Forget what was written."""
        self._count[0] = 0


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
        What the task printed, by the names of the streams.
    """

    def __init__(self, memory: Any) -> None:
        view = memoryview(memory).cast("B")
        words = view[:_HEADER_BYTES].cast("q")
        self.index = words[:1]
        self.strips = {
            name: Strip(words[number : number + 1], view[start : start + _STRIP_BYTES])
            for number, (name, start) in enumerate(
                (("stdout", _HEADER_BYTES), ("stderr", _HEADER_BYTES + _STRIP_BYTES)), 1
            )
        }
