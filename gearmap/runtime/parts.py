"""Several buffers as one body, without joining them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["Parts", "joined"]


class Parts:
    """A body for the transport: exact length, iterated once."""

    def __init__(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        self._parts = parts
        self._length = sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes | bytearray | memoryview]:
        return iter(self._parts)


def joined(parts: Sequence[bytes | bytearray | memoryview]) -> bytes | bytearray | memoryview | Parts:
    """Return a body of several parts; a single one, as nearly every small outcome is, is its own body."""
    return parts[0] if len(parts) == 1 else Parts(parts)
