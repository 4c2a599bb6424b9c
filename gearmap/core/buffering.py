"""What an `imap` may hold between its iterable and its consumer.

Law of the file: enough tasks to keep every worker busy, and no more than a bound on their number and on their bytes,
however long the iterable and however slow the consumer. Values and counts only: the tasks themselves are elsewhere.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from gearmap.core.engine import JOBS_PER_WORKER, UNKNOWN_WORKERS

__all__ = ["AsTheyCome", "Buffer", "InOrder"]

T = TypeVar("T")

# Blocks beyond those that the job servers hold: one that waits to be sent, one whose results wait to be handed out.
# Raised: a consumer that works in bursts stops the workers less; lowered: less memory.
SPARE_BLOCKS = 2

# A block's arguments and results together, and its tasks. Raised: less overhead for each task; lowered: less memory,
# and a slow consumer finds fewer tasks run for nothing when it leaves.
BLOCK_BYTES = 304 * 1024
BLOCK_TASKS = 2048

# All arguments and results together, where single tasks are so large that this counts. Raised: workers wait less for
# the consumer; lowered: less memory.
MAX_BYTES = 64 * 1024 * 1024


class Buffer:
    """Decides when the next block is taken from the iterable, and how large it is.

    Parameters
    ----------
    buffersize
        The user's bound on the tasks that were taken and not yet handed out, or None.
    chunksize
        The user's own size of blocks, or None.
    max_workers
        The most jobs in flight, or None.
    """

    def __init__(
        self, *, buffersize: int | None = None, chunksize: int | None = None, max_workers: int | None = None
    ) -> None:
        self._buffersize = buffersize
        self._chunksize = chunksize
        self._max_workers = max_workers
        self._argument_bytes = 0.0  # of one task
        self._result_bytes = 0.0
        self.held = 0

    def took(self, size: int, payload_bytes: int) -> None:
        """Take in that the arguments of `size` tasks were taken from the iterable."""
        self.held += size
        self._argument_bytes = payload_bytes / size

    def arrived(self, size: int, payload_bytes: int) -> None:
        """Take in that `size` results have come."""
        self._result_bytes = payload_bytes / size

    def handed_out(self, size: int) -> None:
        """Take in that the consumer is done with `size` results."""
        self.held -= size

    def next_block(self, wanted: int, workers: int | None) -> int:
        """Return how many tasks to take now, 0 for none.

        Parameters
        ----------
        wanted
            What the engine would like for a block; it knows of the user's chunksize.
        workers
            How many there are, or None if nobody knows.
        """
        workers = workers or UNKNOWN_WORKERS
        if self._max_workers is not None:
            workers = min(workers, self._max_workers)
        blocks = JOBS_PER_WORKER * workers + SPARE_BLOCKS
        task_bytes = max(1.0, self._argument_bytes + self._result_bytes)
        if self._chunksize:
            size = max(1, min(wanted, self._chunksize))
        else:
            size = max(1, min(wanted, BLOCK_TASKS, int(BLOCK_BYTES / task_bytes)))
        if self._buffersize is not None:
            limit = self._buffersize
            size = min(size, limit if self._chunksize else max(1, limit // blocks))
        else:
            limit = size * blocks
            if limit * task_bytes > MAX_BYTES:
                limit = max(workers, size, int(MAX_BYTES / task_bytes))
        return size if self.held + size <= limit else 0


class InOrder(Generic[T]):
    """Runs of results, to be handed out in the order of their tasks."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, T]] = {}
        self._next = 0

    def add(self, first: int, size: int, item: T) -> None:
        """Take in what belongs to the tasks `first .. first + size`; no task comes twice."""
        self._waiting[first] = (size, item)

    @property
    def ready(self) -> bool:
        """Whether the next one is here."""
        return self._next in self._waiting

    def pop(self) -> tuple[int, T]:
        """Return the next one and its size."""
        size, item = self._waiting.pop(self._next)
        self._next += size
        return size, item


class AsTheyCome(Generic[T]):
    """Runs of results, to be handed out in the order of their arrival."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, T]] = deque()

    def add(self, first: int, size: int, item: T) -> None:
        """Take in what belongs to the tasks `first .. first + size`."""
        self._waiting.append((size, item))

    @property
    def ready(self) -> bool:
        """Whether there is one."""
        return bool(self._waiting)

    def pop(self) -> tuple[int, T]:
        """Return the next one and its size."""
        return self._waiting.popleft()
