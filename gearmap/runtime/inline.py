"""Tasks in the calling process, after the same pickle round trip as elsewhere: for breakpoints and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gearmap.runtime.coroutines import awaited
from gearmap.runtime.futures import Future
from gearmap.wire.serializer import dump_function, dumps, loads

__all__ = ["run_inline", "submit_inline"]


def _load_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    return awaited(loads(dump_function(fn)))


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], task: int) -> Any:
    args, kwargs = loads(dumps((args, kwargs), name=f"the arguments of task {task}"))
    return loads(dumps(fn(*args, **kwargs), name=f"the result of task {task}"))


def run_inline(
    fn: Callable[..., Any], rows: Iterable[tuple[Any, ...]], *, retries: int, return_exceptions: bool
) -> list[Any]:
    """Call `fn` with each row in turn."""
    loaded = _load_function(fn)
    results: list[Any] = []
    for task, row in enumerate(rows):
        try:
            results.append(_with_retries(loaded, row, task, retries))
        except Exception as error:
            if not return_exceptions:
                raise
            results.append(error)
    return results


def _with_retries(fn: Callable[..., Any], row: tuple[Any, ...], task: int, retries: int) -> Any:
    for _ in range(retries):
        try:
            return _call(fn, row, {}, task)
        except Exception:
            continue
    return _call(fn, row, {}, task)


def submit_inline(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], task: int) -> Future[Any]:
    """Call `fn` now; return a future that is done."""
    future: Future[Any] = Future(task)
    future.set_running_or_notify_cancel()
    try:
        future.set_result(_call(_load_function(fn), args, kwargs, task))
    except Exception as error:
        future.set_exception(error)
    return future
