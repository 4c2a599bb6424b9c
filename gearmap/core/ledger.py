"""Which tasks of a map have a result, and what the others need to run again.

Law of the file: an interrupt (Ctrl-C in the thread that keeps the books) may come between any two steps, and the books
are right nevertheless. So each change is one step that counts, and all else can be done again or left undone.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gearmap.core.events import TaskRange

__all__ = ["Ledger", "Piece"]

T = TypeVar("T")

_OPEN, _DONE, _FAILED = range(3)
_DONE_RUN = re.compile(b"\x01+")
_REOPEN = bytes((_OPEN, _DONE, _OPEN, *range(3, 256)))


@dataclass(frozen=True, slots=True)
class Piece(Generic[T]):
    """Neighbouring tasks, for a run that goes on: a block and its content, or tasks that are all done and None.

    `done` are the tasks of them that have a result.
    """

    first: int
    size: int
    content: T | None
    done: tuple[TaskRange, ...]


class Ledger(Generic[T]):
    """The books of one map.

    Blocks follow each other from task 0 on. What a block holds is kept until all of its tasks have a result, so that
    those that failed, or never ran, can be run again.
    """

    def __init__(self) -> None:
        self._states = bytearray()
        self._blocks: dict[int, tuple[int, T]] = {}  # by first task: size and content; in order
        self._firsts: list[int] = []  # keys of `_blocks`, and some that are gone

    @property
    def size(self) -> int:
        """Tasks known so far."""
        return len(self._states)

    @property
    def n_done(self) -> int:
        """Tasks that have a result."""
        return self._states.count(_DONE)

    @property
    def is_complete(self) -> bool:
        """Whether every task known has a result."""
        return self.n_done == len(self._states)

    def add(self, first: int, size: int, content: T) -> None:
        """Take in a block that follows those known."""
        if first != len(self._states) or size < 1:
            raise ValueError(f"a block of {size} tasks from {first}, expected one from {self.size}")
        self._blocks[first] = (size, content)
        if not self._firsts or self._firsts[-1] != first:
            self._firsts.append(first)
        self._states.extend(bytes(size))  # what counts: until now it can be added again

    def done(self, first: int, stop: int) -> None:
        """The tasks `first .. stop` have results."""
        self._states[first:stop] = b"\x01" * (stop - first)
        at = max(0, bisect_right(self._firsts, first) - 1)
        while at < len(self._firsts) and self._firsts[at] < stop:
            start = self._firsts[at]
            size, _ = self._blocks.get(start, (0, None))
            # The last task is looked at first: mostly it is the last to be done, and the search need not be made.
            if size and self._states[start + size - 1] == _DONE and self._whole(start, start + size):
                self._blocks.pop(start, None)
            at += 1
        if len(self._firsts) > 2 * len(self._blocks) + 64:
            self._firsts = list(self._blocks)

    def _whole(self, start: int, stop: int) -> bool:
        return self._states.find(_OPEN, start, stop) < 0 and self._states.find(_FAILED, start, stop) < 0

    def failed(self, task: int) -> None:
        """The task failed for good, in this run."""
        self._states[task] = _FAILED

    def reopen(self) -> None:
        """Another run begins: nothing has failed in it yet."""
        self._states = self._states.translate(_REOPEN)

    def is_done(self, task: int) -> bool:
        """Whether the task has a result."""
        return 0 <= task < len(self._states) and self._states[task] == _DONE

    def done_ranges(self, start: int = 0, stop: int | None = None) -> list[TaskRange]:
        """Return the tasks from `start` to `stop` that have results."""
        return [match.span() for match in _DONE_RUN.finditer(self._states, start, self.size if stop is None else stop)]

    def settled_until(self, start: int) -> int:
        """Return the first task from `start` on that neither has a result nor failed, or the number of tasks."""
        found = self._states.find(_OPEN, start)
        return len(self._states) if found < 0 else found

    def block_of(self, task: int) -> tuple[int, T] | None:
        """Return first task and content of the block that a task without a result is in, or None if it is not known."""
        at = bisect_right(self._firsts, task) - 1
        if at < 0 or self._firsts[at] not in self._blocks:
            return None
        first = self._firsts[at]
        size, content = self._blocks[first]
        return (first, content) if task < first + size else None

    def pieces(self) -> Iterator[Piece[T]]:
        """Yield all tasks known, in order."""
        end = 0
        for first, (size, content) in list(self._blocks.items()):
            if first >= len(self._states):
                break  # its adding was interrupted
            if first > end:
                yield Piece(end, first - end, None, ((end, first),))
            end = first + size
            yield Piece(first, size, content, tuple(self.done_ranges(first, end)))
        if end < len(self._states):
            yield Piece(end, len(self._states) - end, None, ((end, len(self._states)),))
