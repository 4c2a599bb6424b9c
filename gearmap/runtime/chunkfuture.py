"""The future of many tasks that travel together and are asked for together.

Law of the file: the driver thread puts in what came, as bytes; who asks unpickles. Each task has its own end: one that
failed takes nothing from the others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from gearmap.runtime.futures import Future, FutureOwner, PendingFailure, ResultBatch
from gearmap.runtime.retelling import Retelling, show

__all__ = ["ChunkFuture"]

_Piece = tuple[int, int, ResultBatch, int]
"""First task in the chunk, number of tasks, their results and where these begin."""


class ChunkFuture(Future[Any]):
    """The results of a chunk, to come; for users they are those of its tasks.

    Parameters
    ----------
    task_index
        Position of the first task in its run.
    size
        Tasks in the chunk.
    """

    __slots__ = ("_failures", "_left", "_pieces", "size")

    def __init__(self, task_index: int, size: int, owner: FutureOwner, lock: threading.RLock) -> None:
        super().__init__(task_index, owner, lock)
        self.size = size
        self._left = size
        self._pieces: list[_Piece] = []
        self._failures: dict[int, PendingFailure] = {}

    @property
    def numbers(self) -> range:
        """The engine's numbers of its tasks."""
        return range(self.number, self.number + self.size)

    def place(self, number: int, size: int, batch: ResultBatch, offset: int) -> None:
        """Put in the results of tasks that follow each other; driver thread only."""
        self._pieces.append((number - self.number, size, batch, offset))
        self._settle(size)

    def place_failure(self, number: int, failure: PendingFailure) -> None:
        """Put in the end of a task without a result; driver thread only."""
        self._failures[number - self.number] = failure
        self._settle(1)

    def _settle(self, size: int) -> None:
        self._left -= size
        if not self._left:
            self.set_result(None)

    def outcomes(self, timeout: float | None) -> Iterator[Any]:
        """Wait for the chunk; yield the results of its tasks in order, and raise at the place of one that failed.

        Raises
        ------
        TimeoutError
            If the chunk has not ended in time.
        """
        self.result(timeout)
        self._pieces.sort(key=lambda piece: piece[0])
        at = 0
        for first, size, batch, offset in self._pieces:
            self._check(at, first)
            at = first + size
            whole = batch.values()
            values = whole[offset : offset + size]
            if batch.outputs:
                self._retell(first, size, batch, offset)
            whole[offset : offset + size] = [None] * size
            values.reverse()
            while values:
                yield values.pop()  # nothing here keeps a result that the caller has let go
        self._check(at, self.size)

    def _retell(self, first: int, size: int, batch: ResultBatch, offset: int) -> None:
        """Say again what tasks warned of and displayed."""
        retelling = Retelling()
        for at in sorted(batch.outputs):
            if offset <= at < offset + size:
                show(batch.outputs[at].outputs)
                retelling.take(self.task_index + first + at - offset, batch.outputs[at].notes)
        retelling.end()

    def _check(self, start: int, stop: int) -> None:
        """Raise the exception of the first of these tasks, if there are any: they have no results."""
        if start < stop:
            raise self._rebuild(self._failures[start])
