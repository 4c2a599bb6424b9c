"""What a task can learn about itself, and what has to end with the job that it is part of.

What must not live here: running tasks (`childrun`, `inline`).

Rule 1: a process runs one job at a time, whatever threads its tasks start; so what is said of it belongs to the module.
Rule 2: nothing happens for each task. Which one runs stands in the memory that is shared with the node, and is looked
up when somebody asks.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gearmap.runtime.child import GROUPED

if TYPE_CHECKING:
    from gearmap.runtime.slate import Progress
    from gearmap.wire.framing import Buffer
    from gearmap.wire.jobheader import JobHeader

__all__ = [
    "Task",
    "at_end_of_job",
    "begin_job",
    "begin_row",
    "current_task",
    "end_job",
    "grouped_position",
    "report_progress",
    "running_execution",
    "running_header",
    "running_inline",
    "running_worker",
    "start_clock",
    "timed",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Task:
    """The task that runs; see `current_task`.

    Attributes
    ----------
    index
        Which of the run's tasks it is, from 0: the position of its arguments, or of its `submit`.
    attempt
        Which attempt at it this is, from 1.
    worker
        The name of the worker that runs it.
    deadline
        When it is stopped, in seconds of `time.monotonic()`; None without a `task_timeout`.
    run_id
        The run that it belongs to: the same for all tasks of a map.
    level
        How deep it is nested: 0 unless another task has asked for it.
    """

    index: int
    attempt: int
    worker: str
    deadline: float | None
    run_id: str
    level: int


class _Job(NamedTuple):
    """The job that this process runs."""

    execution_id: bytes
    worker: str
    header: JobHeader
    numbers: Buffer
    noted: memoryview  # the index, in the memory that is shared with the node
    progress: Progress | None  # there, too

    def task(self) -> Task | None:
        from gearmap.wire.jobheader import task_number

        position = self.position()
        number = None if position < 0 else task_number(self.numbers, position)
        if number is None:
            return None
        header, timeout = self.header, self.header.task_timeout
        deadline = None if timeout is None else _clock + timeout
        return Task(number, header.attempt, self.worker, deadline, header.run, header.level)

    def position(self) -> int:
        """Return the position of the task that runs, or less than 0."""
        index: int = self.noted[0]
        if index != GROUPED:
            return index
        first, results = _row
        return first + len(results)


class _Inline(NamedTuple):
    """The task that runs in the process that asked for it."""

    task: Task
    progress: Callable[[float], object] | None


_job: _Job | None = None
_row: tuple[int, Sized] = (0, ())  # the position of the first task since the last outcome, and the results since
_clock = 0.0  # when the running task has begun; kept only for tasks that may run out of time
_endings: list[Callable[[], None]] = []
_lock = threading.Lock()
_inline: ContextVar[_Inline | None] = ContextVar("gearmap_inline_task", default=None)


def current_task() -> Task | None:
    """Return what is known of the task that calls this, or None outside of tasks.

    Threads that the task starts get the same answer, processes that it starts get None.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     gearmap.map(lambda x: gearmap.current_task().index, "abc")
    [0, 1, 2]
    """
    job = _job
    if job is not None:
        return job.task()
    inline = _inline.get()
    return None if inline is None else inline.task


def report_progress(done: float, total: float | None = None) -> None:
    """Say how far the task is that calls this; outside of tasks nothing happens.

    It is seen about four times a second and costs less than two microseconds, so it may stand in an inner loop. A bar
    of `tqdm` in a task says it by itself.

    Parameters
    ----------
    done
        How much is done.
    total
        Of how much; by default of 1.0.

    Examples
    --------
    >>> def train(epochs):
    ...     for epoch in range(epochs):
    ...         gearmap.report_progress(epoch, epochs)
    """
    job = _job
    inline = _inline.get() if job is None else None
    if (job is None or job.progress is None) and (inline is None or inline.progress is None):
        return
    try:
        fraction = done / (1.0 if total is None else total)
    except ZeroDivisionError:
        return
    if fraction != fraction:  # no number
        return
    fraction = min(1.0, max(0.0, fraction))
    if inline is not None and inline.progress is not None:
        inline.progress(fraction)
    elif job is not None and job.progress is not None and (position := job.position()) >= 0:
        job.progress.set(position, fraction)


# ------------------------------------------------------------------------------------------ for those who run tasks


def begin_job(
    execution_id: bytes,
    worker: str,
    header: JobHeader,
    numbers: Buffer,
    index: memoryview,
    progress: Progress | None = None,
) -> None:
    """From now on this process runs tasks of a job; `index` tells which, or that the last row does."""
    global _job
    if progress is not None:
        progress.clear()
    _job = _Job(execution_id, worker, header, numbers, index, progress)


def begin_row(first: int, results: Sized) -> None:
    """The task at position `first` comes next, and `results` holds what it and those after it have returned."""
    global _row
    _row = first, results


def grouped_position() -> int | None:
    """Return the position of the task that runs, if it is one of a group of tiny ones."""
    job = _job
    return None if job is None or job.noted[0] != GROUPED else job.position()


def end_job() -> None:
    """The job's tasks are done: whatever was to end with them ends now."""
    global _job
    _job = None
    if _endings:
        _call_endings()


def timed(items: Iterator[T]) -> Iterator[T]:
    """Yield what belongs to one task after the other, and note when each begins."""
    for item in items:
        start_clock()
        yield item


def start_clock() -> None:
    """Note that a task begins now."""
    global _clock
    _clock = monotonic()


@contextmanager
def running_inline(task: Task, progress: Callable[[float], object] | None = None) -> Iterator[None]:
    """What runs inside runs as a task, in the process that asked for it; `progress` is told how far it is."""
    token = _inline.set(_Inline(task, progress))
    try:
        yield
    finally:
        _inline.reset(token)


# -------------------------------------------------------------------------------------------- for what a task uses


def running_execution() -> bytes | None:
    """Return the id of the execution that this process runs, or None."""
    job = _job
    return None if job is None else job.execution_id


def running_worker() -> str:
    """Return the name of the worker whose job this process runs, or ""."""
    job = _job
    return "" if job is None else job.worker


def running_header() -> JobHeader | None:
    """Return the header of the job that this process runs, or None."""
    job = _job
    return None if job is None else job.header


def at_end_of_job(call: Callable[[], None]) -> None:
    """Have `call` called when the tasks of the job that runs now are done; at once if none runs."""
    with _lock:
        is_running = _job is not None
        if is_running:
            _endings.append(call)
    if not is_running:
        call()


def _call_endings() -> None:
    with _lock:
        endings = list(_endings)
        _endings.clear()
    for call in endings:
        try:
            call()
        except Exception:
            logger.exception("what was to end with a job did not", extra={"action": "end_job"})


def _after_fork_in_child() -> None:
    """A process that a task has started runs no task."""
    global _job, _lock
    _job = None
    _lock = threading.Lock()
    _endings.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
