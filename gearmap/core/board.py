"""Which tasks wait, are sent or settled, and which blocks may be forgotten.

Law of the file: a task is settled at most once. Ranges, not single tasks, are the unit of work here: a run of a million
trivial tasks must not cost a million steps, nor a million one-task blocks a search each. An endless run costs no more
memory than its open tasks do: what is settled before the first of them is forgotten.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from gearmap.core.events import Block, Span, TaskRange

__all__ = ["CANCELLED", "DELAYED", "DONE", "FAILED", "SENT", "WAITING", "TaskBoard"]

# A task that is DELAYED waits like the others, but not to be sent at once.
WAITING, DELAYED, SENT, DONE, FAILED, CANCELLED = range(6)

# Runs of equal states are found by `re`, at the speed of C.
_WAITING_RUN = re.compile(b"\x00+")
_DELAYED_RUN = re.compile(b"\x01+")
_SENT_RUN = re.compile(b"\x02+")
_OPEN_RUN = re.compile(b"[\x00-\x02]+")


class TaskBoard:
    """The states of a run's tasks, and its blocks."""

    def __init__(self) -> None:
        self._base = 0  # tasks before this one are settled, and forgotten
        self._states = bytearray()
        self._blocks: dict[int, Block] = {}  # by first task: those with an open task, in order
        self._left: dict[int, int] = {}  # by first task: how many are open, in blocks that are partly settled
        self._firsts: list[int] = []  # keys of `_blocks`, and some that are gone
        self.counts = [0, 0, 0, 0, 0, 0]

    @property
    def size(self) -> int:
        """Tasks known so far."""
        return self._base + len(self._states)

    @property
    def open(self) -> int:
        """Tasks that are not settled."""
        return self.counts[WAITING] + self.counts[DELAYED] + self.counts[SENT]

    def add(self, block: Block) -> None:
        """Take in the tasks of a block (at least one), which follow those known."""
        if block.first != self.size or block.size < 1:
            raise ValueError(f"block {block.id} has {block.size} tasks from {block.first}, expected {self.size}")
        self._states.extend(bytes(block.size))
        self._blocks[block.first] = block
        self._firsts.append(block.first)
        self.counts[WAITING] += block.size

    def is_open(self, task: int) -> bool:
        """Whether the task is not settled."""
        return task >= self._base and self._states[task - self._base] <= SENT

    def is_waiting(self, task: int) -> bool:
        """Whether the task is known and not sent, or to be sent again; any number may be asked for."""
        return self._base <= task < self.size and self._states[task - self._base] <= DELAYED

    def open_ranges(self, start: int, stop: int) -> list[TaskRange]:
        """Return the parts of `start .. stop` that are not settled, in order."""
        return self._runs(_OPEN_RUN, (SENT, WAITING, DELAYED), start, stop)

    def first_open(self, start: int, stop: int) -> int | None:
        """Return the first task of `start .. stop` that is not settled, or None."""
        match = _OPEN_RUN.search(self._states, max(0, start - self._base), max(0, stop - self._base))
        return None if match is None else self._base + match.start()

    def waiting_ranges(self, start: int, stop: int) -> list[TaskRange]:
        """Return the parts of `start .. stop` that may be sent, in order."""
        return self._runs(_WAITING_RUN, (WAITING,), start, stop)

    def delayed_ranges(self, start: int, stop: int) -> list[TaskRange]:
        """Return the parts of `start .. stop` that are delayed, in order."""
        return self._runs(_DELAYED_RUN, (DELAYED,), start, stop)

    def sent_ranges(self, start: int, stop: int) -> list[TaskRange]:
        """Return the parts of `start .. stop` that are sent, in order."""
        return self._runs(_SENT_RUN, (SENT,), start, stop)

    def _runs(self, pattern: re.Pattern[bytes], wanted: tuple[int, ...], start: int, stop: int) -> list[TaskRange]:
        """Return the runs of `wanted` states, of which the first is the usual one."""
        base = self._base
        start = max(start, base)
        if stop <= start:
            return []
        low, high = start - base, stop - base
        # Nearly always all of them are in the usual state, or none is: a job ends with every task settled. Counting is
        # ten times as fast as matching, finding nothing a hundred times.
        if self._states.count(wanted[0], low, high) == stop - start:
            return [(start, stop)]
        if all(self._states.find(state, low, high) < 0 for state in wanted):
            return []
        return [(base + match.start(), base + match.end()) for match in pattern.finditer(self._states, low, high)]

    def blocks(self, start: int) -> Iterator[Block]:
        """Yield the live blocks from the one that holds task `start` on; nothing may be settled meanwhile."""
        for at in range(max(0, bisect_right(self._firsts, start) - 1), len(self._firsts)):
            block = self._blocks.get(self._firsts[at])
            if block is not None:
                yield block

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Yield the parts of blocks that open tasks `start .. stop` are."""
        for block in self.blocks(start):
            if block.first >= stop:
                return
            yield Span(block, max(0, start - block.first), min(block.size, stop - block.first))

    def move(self, start: int, stop: int, old: int, new: int) -> None:
        """Move tasks that are all in the open state `old` to the open state `new`."""
        size = stop - start
        self._states[start - self._base : stop - self._base] = bytes((new,)) * size
        self.counts[old] -= size
        self.counts[new] += size

    def settle(self, start: int, stop: int, state: int) -> list[int]:
        """Settle tasks that are all open; return the ids of the blocks of which nothing is open any more."""
        size = stop - start
        low, high = start - self._base, stop - self._base
        waiting = self._states.count(WAITING, low, high)
        delayed = self._states.count(DELAYED, low, high) if self.counts[DELAYED] else 0
        self._states[low:high] = bytes((state,)) * size
        self.counts[WAITING] -= waiting
        self.counts[DELAYED] -= delayed
        self.counts[SENT] -= size - waiting - delayed
        self.counts[state] += size
        finished = []
        at = bisect_right(self._firsts, start) - 1
        while start < stop:  # a block with an open task is live: no gap can come between
            first = self._firsts[at]
            block = self._blocks[first]
            end = min(stop, first + block.size)
            left = self._left.pop(first, block.size) - (end - start)
            if left:
                self._left[first] = left
            else:
                del self._blocks[first]
                finished.append(block.id)
            start = end
            at += 1
        if len(self._firsts) > 2 * len(self._blocks) + 64:
            self._forget()
        return finished

    def _forget(self) -> None:
        """Drop what nobody will ask for again: blocks that are settled, and the states before the first open task."""
        self._firsts = list(self._blocks)
        settled = (self._firsts[0] if self._firsts else self.size) - self._base
        del self._states[:settled]
        self._base += settled

    def cancel_open(self) -> list[int]:
        """Settle everything that is open as cancelled; return the ids of the blocks that were live."""
        live = [block.id for block in self._blocks.values()]
        self._states = self._states.translate(bytes((CANCELLED, CANCELLED, CANCELLED, *range(DONE, 256))))
        self.counts[CANCELLED] += self.open
        self.counts[WAITING] = self.counts[DELAYED] = self.counts[SENT] = 0
        self._blocks.clear()
        self._left.clear()
        self._firsts.clear()
        return live
