"""What runs the tasks: multiprocessing's pool, the standard library's executor, gearmap on each job server, peers.

Law of the file: every contender is a context manager with two workers, warm when it is entered, with the same methods.
Each lives in a process of its own.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing.pool
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from benchmarks.peers import PEERS, open_peer
from benchmarks.tasks import increment

__all__ = ["WORKERS", "Contender", "open_contender"]

WORKERS = 2

# Enough that every worker process has run something.
_WARM_UP_TASKS = 40


class Contender(Protocol):
    """Runs tasks on two workers."""

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        """Run `fn` over items; return the results in order."""

    def spread(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        """As `map`, for tasks that take long, and not equally long."""

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run one task; return something with `result()`."""

    def imap(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Run `fn` over items that are made while it runs; give the results in order."""


class _Result:
    """The pool's result, under the executor's name."""

    def __init__(self, result: multiprocessing.pool.AsyncResult[Any]) -> None:
        self.result = result.get


class _Pool:
    def __init__(self, pool: multiprocessing.pool.Pool) -> None:
        self._pool = pool
        self.map = self.spread = pool.map

    def submit(self, fn: Callable[..., Any], *args: Any) -> _Result:
        return _Result(self._pool.apply_async(fn, args))

    def imap(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return self._pool.imap(fn, items, chunksize=100)


class _Executor:
    def __init__(self, executor: concurrent.futures.Executor) -> None:
        self._executor = executor
        self.submit = executor.submit

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        # As the pool does it; one by one, which is the default, a million tasks take minutes.
        return list(self._executor.map(fn, items, chunksize=max(1, len(items) // (4 * WORKERS))))

    def spread(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self._executor.map(fn, items))

    def imap(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return self._executor.map(fn, items, chunksize=100)


class _Gearmap:
    def __init__(self, cluster: Any) -> None:
        self.map = self.spread = cluster.map
        self.submit = cluster.submit
        self.imap = cluster.imap


@contextmanager
def open_contender(name: str) -> Iterator[Contender]:
    """Start a contender and warm it up: "pool", "executor", "gearmand", "embedded", or a peer."""
    with _opened(name) as contender:
        _warm_up(contender)
        yield contender


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    if name in PEERS:
        with open_peer(name, WORKERS) as peer:
            yield peer
    elif name == "pool":
        with multiprocessing.Pool(WORKERS) as pool:
            yield _Pool(pool)
    elif name == "executor":
        with concurrent.futures.ProcessPoolExecutor(WORKERS) as executor:
            yield _Executor(executor)
    else:
        import gearmap

        with gearmap.LocalCluster(WORKERS, server=name) as cluster:
            yield _Gearmap(cluster)


def _warm_up(contender: Any) -> None:
    contender.map(increment, list(range(_WARM_UP_TASKS)))
    for future in [contender.submit(increment, number) for number in range(_WARM_UP_TASKS)]:
        future.result()
