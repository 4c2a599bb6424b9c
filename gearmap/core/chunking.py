"""How many tasks the next chunk takes.

Rule 1: a chunk aims at TARGET_SECONDS of work, so that the cost of a job (about half a millisecond over all processes)
disappears and a lost chunk costs little. Of many workers at more, or their client could not keep up with their jobs.
Rule 2: nothing is believed before it was measured: the first chunk is one task, then sizes grow by a bounded factor.
Rule 3: at the tail, chunks shrink with what is left, so that the last ones end together (guided self-scheduling:
Polychronopoulos and Kuck, IEEE Trans. Computers C-36(12), 1987).
Rule 4: a chunk whose tasks take much longer than those before did gives the rest back: see `budget`.
Rule 5: the user's `chunksize` wins over all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

__all__ = ["TARGET_BYTES", "TARGET_SECONDS", "TaskStatistics", "budget", "chunk_size"]

# Raised: less overhead for each task, but coarser progress and more work lost with a worker. Lowered: the reverse.
TARGET_SECONDS = 0.15

# What a worker has not begun of a chunk after so many times what it aims at goes back. Raised: fewer jobs where
# durations vary; lowered: a chunk whose tasks turn out long holds fewer of them up.
_BUDGET = 4

# What a job costs its client (0.3 to 0.45 ms were measured), and how much of its time a client should spend on jobs at
# most. Raised, either of them: fewer and longer chunks for hundreds of workers; lowered: a client that works all the
# time, and workers that wait for it.
_JOB_SECONDS = 0.0004
_CLIENT_SHARE = 0.5

# At the tail a chunk may shrink to this part of what it aims at. Raised: the workers end closer together, at one job's
# overhead (about 0.5 ms) each. Lowered: fewer jobs, and up to this much idle time of the other workers at the end.
_TAIL_PARTS = 15

# How many chunks for each worker the remaining tasks are thought to be split in. Raised: a better balance of uneven
# tasks; lowered: fewer jobs.
TAIL_SPLITS = 1

# A chunk grows at most by this factor over the largest one measured. Raised: faster start for tiny tasks; lowered:
# less harm when the first tasks were shorter than the rest.
GROWTH = 64

# Arguments in one job, by their pickled size. Raised: fewer jobs for medium data; lowered: less memory in job servers.
TARGET_BYTES = 4 * 1024 * 1024

# Weight of the newest chunk in the mean duration. Raised: follows change; lowered: follows the long run.
_SMOOTHING = 0.4


@dataclass(slots=True)
class TaskStatistics:
    """What was measured of one function's tasks in one run."""

    seconds: float | None = None
    largest: int = 0
    payload_bytes: float = 0.0

    def measured(self, count: int, elapsed: float) -> None:
        """Take in that `count` tasks took `elapsed` seconds together."""
        if count < 1 or not 0 <= elapsed < inf:
            return  # it comes from a peer: not even a number is sure
        mean = elapsed / count
        if self.seconds is None or count > 4 * self.largest:
            self.seconds = mean  # the first task pays for imports and caches: a much larger sample replaces it
        else:
            self.seconds += _SMOOTHING * (mean - self.seconds)
        self.largest = max(self.largest, count)

    def pickled(self, size: int, payload_bytes: int) -> None:
        """Take in that the arguments of `size` tasks (at least one) are `payload_bytes` long."""
        self.payload_bytes = payload_bytes / size


def chunk_size(statistics: TaskStatistics, *, workers: int, remaining: int | None, chunksize: int | None = None) -> int:
    """Return how many tasks the next chunk should take, at least 1.

    Parameters
    ----------
    statistics
        What is known of the function's tasks.
    workers
        Workers that serve the run; at least 1.
    remaining
        Tasks that are not yet sent, or None if nobody knows.
    chunksize
        The user's own choice.

    Examples
    --------
    >>> chunk_size(TaskStatistics(), workers=4, remaining=1000)
    1
    >>> chunk_size(TaskStatistics(seconds=0.01, largest=10), workers=2, remaining=None)
    15
    >>> chunk_size(TaskStatistics(seconds=0.01, largest=10), workers=2, remaining=6)
    3
    >>> chunk_size(TaskStatistics(), workers=4, remaining=1000, chunksize=50)
    50
    """
    if chunksize is not None:
        return chunksize
    if statistics.seconds is None:
        return 1
    seconds = max(statistics.seconds, 1e-9)
    size = min(int(_target(workers) / seconds), GROWTH * max(1, statistics.largest))
    if remaining is not None:
        share = -(-remaining // (TAIL_SPLITS * max(1, workers)))
        size = min(size, max(share, int(_target(workers) / _TAIL_PARTS / seconds)))
    if statistics.payload_bytes > 0:
        size = min(size, int(TARGET_BYTES / statistics.payload_bytes))
    return max(1, size)


def budget(workers: int) -> float:
    """Return after how many seconds of a chunk what was not begun should be given back.

    >>> budget(2)
    0.6
    """
    return _BUDGET * _target(workers)


def _target(workers: int) -> float:
    """Return how many seconds of work a chunk aims at.

    >>> _target(2), _target(1000)
    (0.15, 0.8)
    """
    return max(TARGET_SECONDS, workers * _JOB_SECONDS / _CLIENT_SHARE)
