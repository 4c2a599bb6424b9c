"""Tasks in the calling process, after the same pickle round trip as elsewhere: for breakpoints and tests.

Law of the file: options mean what they mean on a cluster, as far as that can be without a second process. A task that
runs longer than `task_timeout` is not ended, it has failed when it returns; retries do not wait for `retry_delay`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import monotonic, perf_counter
from typing import Any

from gearmap.config import RunOptions, exception_classes
from gearmap.core.events import TimeOutTask
from gearmap.runtime.coroutines import awaited
from gearmap.runtime.futures import Future
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.task import Task, running_inline
from gearmap.wire.serializer import dump_function, dumps, loads

__all__ = ["imap_inline", "run_inline", "submit_inline"]


def run_inline(fn: Callable[..., Any], rows: Iterable[tuple[Any, ...]], options: RunOptions) -> list[Any]:
    """Call `fn` with each row in turn."""
    loaded = _load_function(fn)
    results: list[Any] = []
    for task, row in enumerate(rows):
        result, error, _ = _run(loaded, row, {}, task, options)
        if error is not None and not options.return_exceptions:
            try:
                raise error
            finally:
                del error  # a traceback that holds this frame must not hold the exception
        results.append(result if error is None else error)
    return results


def imap_inline(fn: Callable[..., Any], rows: Iterable[tuple[Any, ...]], options: RunOptions) -> Iterator[Any]:
    """Call `fn` with each row when its result is asked for."""
    loaded = _load_function(fn)
    for task, row in enumerate(rows):
        result, error, _ = _run(loaded, row, {}, task, options)
        if error is not None and not options.return_exceptions:
            try:
                raise error
            finally:
                del error  # a traceback that holds this frame must not hold the exception
        yield result if error is None else error


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
    result, problem, future.attempts = _run(loaded, args, kwargs, task, options)
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)
    return future


def _load_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    return awaited(loads(dump_function(fn)))


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], task: int) -> Any:
    args, kwargs = loads(dumps((args, kwargs), name=f"the arguments of task {task}"))
    return loads(dumps(fn(*args, **kwargs), name=f"the result of task {task}"))


def _run(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], task: int, options: RunOptions
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
            with running_inline(Task(task, attempt, "inline", deadline, "inline", 0)):
                result = _call(fn, args, kwargs, task)
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
