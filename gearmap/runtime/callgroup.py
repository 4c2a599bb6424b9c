"""Submitted calls that the driver has not seen yet.

Law of the file: a call comes into its group together with its future, in one step: Ctrl-C may come between any two.
"""

from __future__ import annotations

from typing import Any

from gearmap.runtime.chunkfuture import ChunkFuture
from gearmap.runtime.futures import Future
from gearmap.runtime.jobwriter import Place

__all__ = ["CallGroup"]


class CallGroup:
    """Calls of one function that were submitted one after another, and together are no larger than a block may be.

    A group that is a chunk travels as it is, whole and in a job of its own: one payload and one future for all calls.
    """

    __slots__ = ("entries", "function", "n_bytes", "place")

    def __init__(self, function: tuple[bytes, Any], place: Place) -> None:
        self.function = function
        self.place = place
        self.entries: list[Any] = []  # future and call in turn; to be added to by one `+=`
        self.n_bytes = 0

    @property
    def futures(self) -> list[Future[Any]]:
        return self.entries[::2]

    @property
    def calls(self) -> list[Any]:
        return self.entries[1::2]

    @property
    def is_chunk(self) -> bool:
        return type(self.entries[0]) is ChunkFuture

    def take(self, other: CallGroup) -> None:
        """Take in the calls of another group of the same function and place."""
        self.entries += other.entries
        self.n_bytes += other.n_bytes
