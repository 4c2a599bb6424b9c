"""What runs the tasks: multiprocessing's pool, the standard library's executor, gearmap on each job server.

Law of the file: every contender is a context manager with two workers, warm when it is entered, and the same two
methods. Each lives in a process of its own.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing.pool
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from benchmarks.tasks import increment

__all__ = ["WORKERS", "Contender", "open_contender"]

WORKERS = 2

# Enough that every worker process has run something.
_WARM_UP_TASKS = 40


class Contender(Protocol):
    """Runs tasks on two workers."""

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        """Run `fn` over items; return the results in order."""

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run one task; return something with `result()`."""


class _Result:
    """The pool's result, under the executor's name."""

    def __init__(self, result: multiprocessing.pool.AsyncResult[Any]) -> None:
        self.result = result.get


class _Pool:
    def __init__(self, pool: multiprocessing.pool.Pool) -> None:
        self._pool = pool
        self.map = pool.map

    def submit(self, fn: Callable[..., Any], *args: Any) -> _Result:
        return _Result(self._pool.apply_async(fn, args))


class _Executor:
    def __init__(self, executor: concurrent.futures.Executor) -> None:
        self._executor = executor
        self.submit = executor.submit

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self._executor.map(fn, items))


@contextmanager
def open_contender(name: str) -> Iterator[Contender]:
    """Start a contender and warm it up: "pool", "executor", "gearmand" or "embedded"."""
    contender: Any  # a gearmap cluster has more precise types than Contender asks for
    if name == "pool":
        with multiprocessing.Pool(WORKERS) as pool:
            contender = _Pool(pool)
            _warm_up(contender)
            yield contender
    elif name == "executor":
        with concurrent.futures.ProcessPoolExecutor(WORKERS) as executor:
            contender = _Executor(executor)
            _warm_up(contender)
            yield contender
    else:
        import gearmap

        with gearmap.LocalCluster(WORKERS, server=name) as cluster:
            contender = cluster
            _warm_up(contender)
            yield contender


def _warm_up(contender: Any) -> None:
    contender.map(increment, list(range(_WARM_UP_TASKS)))
    for future in [contender.submit(increment, number) for number in range(_WARM_UP_TASKS)]:
        future.result()
