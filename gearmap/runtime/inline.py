"""Tasks in the calling process, after the same pickle round trip as elsewhere: for breakpoints and tests.

Law of the file: options mean what they mean on a cluster, as far as that can be without a second process. A task that
runs longer than `task_timeout` is not ended, it has failed when it returns; retries do not wait for `retry_delay`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from time import monotonic, perf_counter
from typing import Any

from gearmap.config import RunOptions, exception_classes
from gearmap.core.events import TimeOutTask
from gearmap.core.snapshot import ProgressSink
from gearmap.errors import ClusterBroken
from gearmap.runtime.coroutines import awaited
from gearmap.runtime.failed import Failed
from gearmap.runtime.futures import Future
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.inlineprogress import InlineProgress
from gearmap.runtime.maprecord import MapRecord
from gearmap.runtime.report import RunNotes
from gearmap.runtime.task import Task, running_inline
from gearmap.wire.serializer import dump_function, dumps, loads

__all__ = ["InlineMap", "imap_inline", "initialize_inline", "submit_inline"]

_Arguments = Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
"""Makes copies of a task's arguments, as a pickle round trip does: fresh ones for each attempt."""


class InlineMap:
    """One run of a map: task after task, in the thread that asks for it."""

    def __init__(self, record: MapRecord, sink: ProgressSink) -> None:
        self._record = record
        self._sink = sink
        self._fn = _load_function(record.fn)
        self._cancelled = False

    def cancel(self) -> None:
        """End it before the next task; may be called by any thread."""
        self._cancelled = True

    def execute(self) -> None:
        """Run what has no result.

        Raises
        ------
        RunTimeout
            If `timeout` has passed when a task begins.
        CancelledError
            If somebody has cancelled it.
        Exception
            The first failing task's own exception, or the iterable's.
        """
        options = self._record.options
        began = perf_counter()
        notes = RunNotes("in this process", outcome="ended early")
        self._record.notes.append(notes)
        shown = InlineProgress(self._record, self._sink)
        is_whole = False
        note = "interrupted"
        try:
            for task in self._tasks():
                if self._cancelled:
                    raise CancelledError
                if options.timeout is not None and perf_counter() - began >= options.timeout:
                    raise self._record.timed_out()
                self._run(task, shown)
                if self._record.failed and not options.return_exceptions:
                    raise self._first_error()
            self._record.check_source()
            is_whole = True
            notes.outcome, note = "done", ""
        except CancelledError:
            note = "cancelled"
            raise
        except Exception as error:
            note = f"failed: {type(error).__name__}"
            raise
        finally:
            notes.elapsed = perf_counter() - began
            if not is_whole:
                self._record.keep()
            shown.end(note)

    def _tasks(self) -> Iterator[int]:
        record = self._record
        for piece in list(record.pieces()):
            for task in range(piece.first, piece.first + piece.size):
                if not record.is_done(task):
                    yield task
        while record.has_more:
            task, taken, _ = record.take(1)
            if taken:
                yield task

    def _run(self, task: int, shown: InlineProgress) -> None:
        shown.begin(task)

        def arguments() -> tuple[tuple[Any, ...], dict[str, Any]]:
            return self._record.arguments_of(task) or (), {}

        result, error, attempts = _run(self._fn, arguments, task, self._record.options, shown.report)
        if error is None:
            self._record.place(task, [result])
        else:
            failed = Failed(task, error, attempts, None)
            self._record.fail(failed)
            shown.failed(failed)
        shown.settled()

    def _first_error(self) -> BaseException:
        total = self._record.total
        done = self._record.n_done
        return self._record.first_error(done=done, others=0, not_run=None if total is None else total - done - 1)


def imap_inline(fn: Callable[..., Any], rows: Iterable[tuple[Any, ...]], options: RunOptions) -> Iterator[Any]:
    """Call `fn` with each row when its result is asked for."""
    loaded = _load_function(fn)
    for task, row in enumerate(rows):
        result, error, _ = _run(loaded, _copies(row, {}, task), task, options)
        if error is not None and not options.return_exceptions:
            try:
                raise error
            finally:
                del error  # a traceback that holds this frame must not hold the exception
        yield result if error is None else error


def initialize_inline(options: RunOptions) -> ClusterBroken | None:
    """Call the initializer; return what breaks the run if it raises."""
    assert options.initializer is not None
    try:
        initializer, initargs = loads(dumps((options.initializer, options.initargs), name="the initializer"))
        awaited(initializer)(*initargs)
    except Exception as error:
        broken = ClusterBroken(f"the initializer failed: {type(error).__name__}: {error}")
        broken.__cause__ = error
        return broken
    return None


def submit_inline(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], task: int, options: RunOptions
) -> Future[Any]:
    """Call `fn` now; return a future that is done."""
    future: Future[Any] = Future(task)
    future.set_running_or_notify_cancel()
    try:
        loaded = _load_function(fn)
    except Exception as error:
        future.set_exception(error)
        return future
    result, problem, future.attempts = _run(loaded, _copies(args, kwargs, task), task, options)
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)
    return future


def _load_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    return awaited(loads(dump_function(fn)))


def _copies(args: tuple[Any, ...], kwargs: dict[str, Any], task: int) -> _Arguments:
    def arguments() -> tuple[tuple[Any, ...], dict[str, Any]]:
        copies: tuple[tuple[Any, ...], dict[str, Any]]
        copies = loads(dumps((args, kwargs), name=f"the arguments of task {task}"))
        return copies

    return arguments


def _call(fn: Callable[..., Any], arguments: _Arguments, task: int) -> Any:
    args, kwargs = arguments()
    return loads(dumps(fn(*args, **kwargs), name=f"the result of task {task}"))


def _run(
    fn: Callable[..., Any],
    arguments: _Arguments,
    task: int,
    options: RunOptions,
    progress: Callable[[float], object] | None = None,
) -> tuple[Any, Exception | None, int]:
    """Call `fn` until it gives a result or has spent its retries; return the result or the last error, and attempts."""
    classes = exception_classes(options.retry_exceptions)
    limit = options.task_timeout
    allowed = options.retries + 1
    for attempt in range(1, allowed + 1):
        error: Exception | None = None
        result: Any = None
        began = perf_counter()
        deadline = None if limit is None else monotonic() + limit
        try:
            with running_inline(Task(task, attempt, "inline", deadline, "inline", 0), progress):
                result = _call(fn, arguments, task)
        except Exception as raised:
            error = raised
        if limit is not None and perf_counter() - began > limit:
            error = GivenUp.timed_out(TimeOutTask(task, attempt, allowed, None), limit).error()
        if error is None or attempt == allowed or not isinstance(error, classes):
            break
    try:
        return (result if error is None else None), error, attempt
    finally:
        del error
