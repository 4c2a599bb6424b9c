"""One submission of a chunk, and which task stands at which of its positions.

Law of the file: positions come from peers. Whatever they are, nothing here raises; what is outside of the chunk is left
out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from gearmap.core.events import TaskRange
from gearmap.core.retry import History

__all__ = ["Attempt", "parted", "ranges_of", "without"]

# An execution is silent after this part of the time that makes it lost: two beats of six, and some patience. Raised: a
# host that vanished is seen later; lowered: a beat that was late looks like a fault.
SILENT_PART = 0.4


@dataclass(slots=True)
class Attempt:
    """An attempt. It is *live* until the engine gives it up or its job is over.

    `ranges` are its tasks in the order of their positions. `last_sign` is when it was sent, or when an execution was
    last heard of; `taken_at` when its job server said that a worker has it, while no execution was heard of.
    `executions` are the positions they were last known at; the newest execution comes last. `failed` are tasks that
    raised and may go again, and when. `worker` was heard of last, at first at `heard_at`.
    `progress` is how far which execution said to be with the task at which position.
    """

    id: int
    server: int
    function: Hashable
    ranges: list[TaskRange]
    history: History
    live: bool = True
    last_sign: float = 0.0
    taken_at: float = float("inf")
    executions: dict[bytes, int | None] = field(default_factory=dict)
    failed: dict[int, float] = field(default_factory=dict)
    worker: str | None = None
    heard_at: float = 0.0
    progress: tuple[bytes, int, float] | None = None
    size: int = field(init=False)
    _bases: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.size = 0
        self._bases = []
        for start, stop in self.ranges:
            self._bases.append(self.size)
            self.size += stop - start

    def locate(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield what positions `start .. stop` are: (first task, stop task, offset from `start`)."""
        for at in range(max(0, bisect_right(self._bases, start) - 1), len(self.ranges)):
            base = self._bases[at]
            if base >= stop:
                return
            first, last = self.ranges[at]
            low, high = max(start, base), min(stop, base + last - first)
            if low < high:
                yield first + low - base, first + high - base, low - start

    def task_at(self, position: int | None) -> int | None:
        """Return the task at a position, or None if there is none."""
        if position is None:
            return None
        return next((first for first, _, _ in self.locate(position, position + 1)), None)

    def silence(self, now: float, timeout: float) -> float | None:
        """Return the seconds since the last sign if beats are missing, None otherwise; `timeout` makes it lost."""
        seconds = now - self.last_sign
        return seconds if seconds > timeout * SILENT_PART else None

    @property
    def suspect(self) -> int | None:
        """The position that the newest execution was last known at."""
        return next((at for at in reversed(self.executions.values()) if at is not None), None)


def ranges_of(tasks: Iterable[int]) -> list[TaskRange]:
    """Return ascending tasks as ranges.

    >>> ranges_of([1, 2, 4])
    [(1, 3), (4, 5)]
    """
    result: list[TaskRange] = []
    for task in tasks:
        if result and result[-1][1] == task:
            result[-1] = (result[-1][0], task + 1)
        else:
            result.append((task, task + 1))
    return result


def parted(ranges: Iterable[TaskRange], at: int) -> tuple[list[TaskRange], list[TaskRange]]:
    """Return the first `at` tasks, and the others.

    >>> parted([(0, 3), (7, 9)], 4)
    ([(0, 3), (7, 8)], [(8, 9)])
    """
    head: list[TaskRange] = []
    tail: list[TaskRange] = []
    for start, stop in ranges:
        middle = min(stop, start + max(0, at))
        at -= middle - start
        if start < middle:
            head.append((start, middle))
        if middle < stop:
            tail.append((middle, stop))
    return head, tail


def without(ranges: Iterable[TaskRange], task: int) -> list[TaskRange]:
    """Return all tasks but one.

    >>> without([(0, 3), (7, 9)], 7)
    [(0, 3), (8, 9)]
    >>> without([(0, 3)], 7)
    [(0, 3)]
    """
    result: list[TaskRange] = []
    for start, stop in ranges:
        if start <= task < stop:
            result += [part for part in ((start, task), (task + 1, stop)) if part[0] < part[1]]
        else:
            result.append((start, stop))
    return result
