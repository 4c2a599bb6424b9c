"""Named tasks: functions that workers have, and that are called by name.

What must not live here: which ones there are (`runtime.taskbook`), and how calls travel (`client`, `backend`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar, overload

from gearmap import api
from gearmap.client import BoundOptions
from gearmap.core.names import DEFAULT_QUEUE
from gearmap.errors import ConfigurationError
from gearmap.runtime.futures import Future
from gearmap.runtime.mapfuture import MapFuture
from gearmap.runtime.taskbook import TaskRecord, find_callable, register

__all__ = ["NamedTask", "TaskCalls", "task"]

P = ParamSpec("P")
R = TypeVar("R")


class TaskCalls(Generic[P, R]):
    """The ways to call a named task on the cluster, with certain options; see `NamedTask.options`."""

    def __init__(self, task: NamedTask[P, R], options: dict[str, Any]) -> None:
        self._task = task
        self._options = options

    def _bound(self) -> BoundOptions:
        return api.current_client().options(**self._options)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call the task on a worker; see `gearmap.submit`."""
        return self._bound().submit(self._task, *args, **kwargs)

    def map(self, *iterables: Iterable[Any], **options: Any) -> list[R]:
        """Call the task for each of the zipped items; see `gearmap.map`."""
        return self._bound().map(self._task, *iterables, **options)

    def starmap(self, rows: Iterable[Iterable[Any]], **options: Any) -> list[R]:
        """Call the task with each row of arguments; see `gearmap.starmap`."""
        return self._bound().starmap(self._task, rows, **options)

    def imap(self, *iterables: Iterable[Any], buffersize: int | None = None, **options: Any) -> Iterator[R]:
        """Call the task for the zipped items, lazily; see `gearmap.imap`."""
        return self._bound().imap(self._task, *iterables, buffersize=buffersize, **options)

    def imap_unordered(self, *iterables: Iterable[Any], buffersize: int | None = None, **options: Any) -> Iterator[R]:
        """Call the task for the zipped items, results as they come; see `gearmap.imap_unordered`."""
        return self._bound().imap_unordered(self._task, *iterables, buffersize=buffersize, **options)

    def map_async(self, *iterables: Iterable[Any], **options: Any) -> MapFuture[R]:
        """Begin to call the task for the zipped items; see `gearmap.map_async`."""
        return self._bound().map_async(self._task, *iterables, **options)


class NamedTask(TaskCalls[P, R]):
    """A function that workers have, and that is called by name; made by `gearmap.task`.

    Calling it calls the function, here. `submit`, `map` and their like call it on a worker that serves the name.

    Attributes
    ----------
    name
        What it is called on job servers.
    queue
        The queue whose workers serve it, or None for the default one.
    """

    _gearmap_record: TaskRecord

    def __init__(self, function: Callable[P, R], *, name: str | None = None, queue: str | None = None) -> None:
        super().__init__(self, {})
        functools.update_wrapper(self, function)
        self._gearmap_record = register(function, self, name=name, queue=queue)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self._gearmap_record.function(*args, **kwargs)
        return result

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return find_callable, (self.name, self._gearmap_record.module)

    @property
    def name(self) -> str:
        """What it is called on job servers."""
        return self._gearmap_record.name

    @property
    def queue(self) -> str | None:
        """The queue whose workers serve it, or None for the default one."""
        return self._gearmap_record.queue

    def options(self, **options: Any) -> TaskCalls[P, R]:
        """Return the task with other options for its calls, such as `task_timeout` or `retries`.

        Raises
        ------
        ConfigurationError
            If it is `queue`, which belongs to the task. If there is no such option, or a value is wrong, that is told
            when it is called.
        """
        if "queue" in options:
            raise ConfigurationError(
                f"{self!r} is served by workers of queue {self.queue or DEFAULT_QUEUE!r}, whoever calls it; for another"
                " queue make another task: @gearmap.task(queue=..., name=...)"
            )
        return TaskCalls(self, options)


@overload
def task(function: Callable[P, R], /) -> NamedTask[P, R]: ...


@overload
def task(*, name: str | None = None, queue: str | None = None) -> Callable[[Callable[P, R]], NamedTask[P, R]]: ...


def task(
    function: Callable[..., Any] | None = None, /, *, name: str | None = None, queue: str | None = None
) -> NamedTask[..., Any] | Callable[[Callable[..., Any]], NamedTask[..., Any]]:
    """Make a named task of a function: workers that have its module serve it, and it is called by name.

    Nothing of the function travels, so that a web application and its workers may run different Pythons. Workers are
    started with `gearmap worker --tasks MODULE`. On a local cluster it runs without.

    Parameters
    ----------
    function
        A function of a module, where `@gearmap.task` is written without brackets.
    name
        What it is called; by default its module and its own name, without a module `gearman_jobs` at the end:
        `shop.gearman_jobs.send_mail` is `shop.send_mail`.
    queue
        Only workers of this queue serve it (`gearmap worker -q QUEUE --tasks MODULE`).

    Raises
    ------
    ConfigurationError
        If the function is no function of a module, or the name is taken or none.

    Examples
    --------
    >>> import gearmap
    >>> @gearmap.task
    ... def add(a, b):
    ...     return a + b
    >>> add(1, 2)
    3
    >>> with gearmap.LocalCluster(0):
    ...     add.map(range(3), range(3))
    [0, 2, 4]
    """
    if function is not None:
        return NamedTask(function, name=name, queue=queue)
    return lambda wrapped: NamedTask(wrapped, name=name, queue=queue)
