"""Several buffers as one body, without joining them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["Parts"]


class Parts:
    """A body for the transport: exact length, iterated once."""

    def __init__(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        self._parts = parts
        self._length = sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes | bytearray | memoryview]:
        return iter(self._parts)
