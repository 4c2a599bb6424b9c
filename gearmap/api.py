"""The functions of the package: the same as a client's methods, on the current client.

Which one that is: the innermost `with` or `connect()`, else what the environment or the config file names, else a
local cluster that is started on first use and stopped at exit.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

from gearmap import current
from gearmap.backend import LocalBackend
from gearmap.choice import choose_backend
from gearmap.client import BoundOptions, Client, LocalCluster
from gearmap.overview.values import ClusterStatus
from gearmap.runtime import child
from gearmap.runtime.futures import Future
from gearmap.runtime.mapfuture import MapFuture
from gearmap.runtime.userframes import own_frames_hidden

__all__ = [
    "connect",
    "current_client",
    "forget",
    "imap",
    "imap_unordered",
    "last",
    "map",
    "map_async",
    "on_every_node",
    "on_every_worker",
    "options",
    "starmap",
    "status",
    "submit",
]

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.RLock()
_automatic: Client | None = None


def current_client() -> Client:
    """Return the client that `gearmap.map` and its like use now; start a local cluster if there is none.

    Raises
    ------
    ConfigurationError
        If there is none and none may be started: inside a task, a web server, or with `GEARMAP_SERVERS=none`.
    """
    global _automatic
    chosen = current.current()
    if chosen is not None:
        return chosen
    with _lock:
        if _automatic is None or _automatic.is_closed:
            _automatic = _make_client()
            if not child.is_child:  # there it ends with the job
                atexit.register(_automatic.close)
        return _automatic


def _make_client() -> Client:
    backend = choose_backend()
    return LocalCluster() if isinstance(backend, LocalBackend) else Client._on(backend)


def connect(
    servers: str | Sequence[str] | None = None,
    *,
    key: str | os.PathLike[str] | None = None,
    tls_ca: str | os.PathLike[str] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
) -> Client:
    """Make a client for job servers and make it the current one.

    Parameters
    ----------
    servers
        `"HOST[:PORT]"` or `"tls://HOST[:PORT]"`, several separated by commas, or a list; by default what the
        environment or the config file names.
    key
        Path of the key file; by default GEARMAP_KEY_FILE, then the config folder.
    tls_ca, tls_cert, tls_key
        Files for servers that are named `tls://`; see `Client`.

    Raises
    ------
    ConfigurationError
        If no server is named anywhere, an address is malformed, or a key is needed and missing.
    """
    client = Client(servers, key=key, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
    current.enter(client)
    return client


def map(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    chunksize: int | None = None,
    timeout: float | None = None,
    task_timeout: float | None = None,
    retries: int = 0,
    retry_exceptions: type[BaseException] | Sequence[type[BaseException]] = (Exception,),
    return_exceptions: bool = False,
    max_workers: int | None = None,
    progress: bool | None = None,
    desc: str | None = None,
    total: int | None = None,
    priority: str = "normal",
    queue: str = "default",
) -> list[R]:
    """Run `fn` over items on the cluster and return the results in order.

    For constant arguments use `functools.partial(fn, alpha=3)`. A task may run twice if a worker is lost: what it does
    outside of its return value should bear that. Arguments are copies; items that are one object here may be one there
    too, so a task should not change them.

    Parameters
    ----------
    fn
        Any callable: function, lambda, closure, method; also `async def`.
    *iterables
        Arguments; several are zipped, like the builtin `map` does.
    chunksize
        Tasks that travel together; by default as many as make about 0.15 s of work.
    timeout
        Seconds to wait for the whole map; then it is cancelled.
    task_timeout
        Seconds that each task may run; then its process is ended, and it fails with `TaskTimeout`. Waiting for a worker
        and unpickling do not count.
    retries
        How often a task that raised, or ran too long, is run again: after half a second, then one, then two ...
    retry_exceptions
        For which exceptions: a class, a list or a tuple. `SystemExit` and its like are no `Exception`.
    return_exceptions
        Return the exceptions of failed tasks in their places, instead of stopping at the first.
    max_workers
        The most jobs of this map at once.
    progress
        True or False to show a progress bar or not; by default on a terminal, if the map takes more than half a second.
    desc
        Words before the progress bar.
    total
        Number of tasks, for iterables without a length.
    priority
        "low", "normal" or "high", among the tasks of all clients.
    queue
        Which workers: those started with `-q QUEUE`.

    Returns
    -------
    list
        One result for each item, in the order of the items. Empty iterables give `[]` and start nothing.

    Raises
    ------
    Exception
        The first failing task's own exception; its notes are the task and the remote traceback.
    TaskTimeout
        If a task ran longer than `task_timeout`.
    WorkerLost
        If a task took its worker with it, three times.
    RunTimeout
        If `timeout` has passed.
    SerializationError
        If the function, an argument or a result does not pickle.
    ServerUnavailable
        If no job server answers.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     gearmap.map(lambda x, y: x + y, [1, 2, 3], [10, 20, 30])
    [11, 22, 33]
    """
    chosen = {
        "chunksize": chunksize,
        "timeout": timeout,
        "task_timeout": task_timeout,
        "retries": retries,
        "retry_exceptions": retry_exceptions,
        "return_exceptions": return_exceptions,
        "max_workers": max_workers,
        "progress": progress,
        "desc": desc,
        "total": total,
        "priority": priority,
        "queue": queue,
    }
    with own_frames_hidden:
        return current_client().map(fn, *iterables, **chosen)


def starmap(
    fn: Callable[..., R],
    rows: Iterable[Iterable[Any]],
    /,
    *,
    chunksize: int | None = None,
    timeout: float | None = None,
    task_timeout: float | None = None,
    retries: int = 0,
    retry_exceptions: type[BaseException] | Sequence[type[BaseException]] = (Exception,),
    return_exceptions: bool = False,
    max_workers: int | None = None,
    progress: bool | None = None,
    desc: str | None = None,
    total: int | None = None,
    priority: str = "normal",
    queue: str = "default",
) -> list[R]:
    """Run `fn(*row)` for each row and return the results in order; options and errors are those of `map`.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     gearmap.starmap(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    chosen = {
        "chunksize": chunksize,
        "timeout": timeout,
        "task_timeout": task_timeout,
        "retries": retries,
        "retry_exceptions": retry_exceptions,
        "return_exceptions": return_exceptions,
        "max_workers": max_workers,
        "progress": progress,
        "desc": desc,
        "total": total,
        "priority": priority,
        "queue": queue,
    }
    with own_frames_hidden:
        return current_client().starmap(fn, rows, **chosen)


def map_async(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    chunksize: int | None = None,
    timeout: float | None = None,
    task_timeout: float | None = None,
    retries: int = 0,
    retry_exceptions: type[BaseException] | Sequence[type[BaseException]] = (Exception,),
    return_exceptions: bool = False,
    max_workers: int | None = None,
    progress: bool | None = None,
    desc: str | None = None,
    total: int | None = None,
    priority: str = "normal",
    queue: str = "default",
) -> MapFuture[R]:
    """Begin to run `fn` over items and return at once; options and errors are those of `map`.

    The iterables are read to their end, here, so one must have an end: `itertools.count()`, `cycle` and `repeat` alone
    are refused, a generator without end is read for ever. `imap` takes such. What they gave is pickled piece by piece
    in a thread of the run. With `GEARMAP_SERVERS=inline` everything is run before this returns.

    Returns
    -------
    MapFuture
        The map: `result()`, `cancel()`, results as they come, and all of what `gearmap.last` tells.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     run = gearmap.map_async(lambda x: x * x, range(4))
    ...     run.result()
    [0, 1, 4, 9]
    """
    chosen = {
        "chunksize": chunksize,
        "timeout": timeout,
        "task_timeout": task_timeout,
        "retries": retries,
        "retry_exceptions": retry_exceptions,
        "return_exceptions": return_exceptions,
        "max_workers": max_workers,
        "progress": progress,
        "desc": desc,
        "total": total,
        "priority": priority,
        "queue": queue,
    }
    with own_frames_hidden:
        return current_client().map_async(fn, *iterables, **chosen)


def last() -> MapFuture[Any] | None:
    """Return the last `map`, `starmap` or `map_async` of this process, or None.

    Also after an error, a timeout or Ctrl-C: what was finished is `partial()`, what went wrong is `failed()`, and
    `resume()` goes on. It keeps its results and the arguments of unfinished tasks until the next map, or `forget`.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     gearmap.map(abs, [-1, "two", -3], return_exceptions=True)
    ...     gearmap.last().partial()
    [1, TypeError("bad operand type for abs(): 'str'"), 3]
    {0: 1, 2: 3}
    """
    return current.last()


def forget() -> None:
    """Let the last map go, with its results and arguments."""
    current.forget()


def imap(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    buffersize: int | None = None,
    chunksize: int | None = None,
    timeout: float | None = None,
    task_timeout: float | None = None,
    retries: int = 0,
    retry_exceptions: type[BaseException] | Sequence[type[BaseException]] = (Exception,),
    return_exceptions: bool = False,
    max_workers: int | None = None,
    progress: bool | None = None,
    desc: str | None = None,
    total: int | None = None,
    priority: str = "normal",
    queue: str = "default",
) -> Iterator[R]:
    """Run `fn` over items, lazily in and out: an iterator over the results, in the order of the items.

    Items are taken, in the thread that asks for the next result, as far ahead of it as keeps all workers busy: an
    endless iterable needs no more memory than a short one. Whoever leaves the loop cancels the rest. The first failing
    task raises in its place and ends the iteration. Nothing is kept for `gearmap.last`.

    Parameters
    ----------
    fn
        Any callable; see `map`.
    *iterables
        Arguments; several are zipped. They may be endless.
    buffersize
        The most items that are taken and not yet handed out; by default enough for all workers, within some megabytes.
    chunksize, timeout, task_timeout, retries, retry_exceptions, return_exceptions, max_workers, progress, desc, total
        See `map`. `timeout` counts from the first result asked for; after it nothing is waited for any more.
    priority, queue
        See `map`.

    Yields
    ------
    object
        The results.

    Raises
    ------
    Exception
        As `map`.

    Examples
    --------
    >>> import itertools
    >>> with gearmap.LocalCluster(0):
    ...     list(itertools.islice(gearmap.imap(lambda x: x * x, itertools.count()), 4))
    [0, 1, 4, 9]
    """
    chosen = {
        "chunksize": chunksize,
        "timeout": timeout,
        "task_timeout": task_timeout,
        "retries": retries,
        "retry_exceptions": retry_exceptions,
        "return_exceptions": return_exceptions,
        "max_workers": max_workers,
        "progress": progress,
        "desc": desc,
        "total": total,
        "priority": priority,
        "queue": queue,
    }
    with own_frames_hidden:
        return current_client().imap(fn, *iterables, buffersize=buffersize, **chosen)


def imap_unordered(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    buffersize: int | None = None,
    chunksize: int | None = None,
    timeout: float | None = None,
    task_timeout: float | None = None,
    retries: int = 0,
    retry_exceptions: type[BaseException] | Sequence[type[BaseException]] = (Exception,),
    return_exceptions: bool = False,
    max_workers: int | None = None,
    progress: bool | None = None,
    desc: str | None = None,
    total: int | None = None,
    priority: str = "normal",
    queue: str = "default",
) -> Iterator[R]:
    """Run `fn` over items, lazily in and out, and give the results as they come; see `imap`.

    Which item a result belongs to is for `fn` to say, or for `map_async(...).as_completed()`.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     sorted(gearmap.imap_unordered(abs, [-3, 2, -1]))
    [1, 2, 3]
    """
    chosen = {
        "chunksize": chunksize,
        "timeout": timeout,
        "task_timeout": task_timeout,
        "retries": retries,
        "retry_exceptions": retry_exceptions,
        "return_exceptions": return_exceptions,
        "max_workers": max_workers,
        "progress": progress,
        "desc": desc,
        "total": total,
        "priority": priority,
        "queue": queue,
    }
    with own_frames_hidden:
        return current_client().imap_unordered(fn, *iterables, buffersize=buffersize, **chosen)


def submit(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """Run `fn(*args, **kwargs)` once on the cluster; return a `concurrent.futures.Future` of its result.

    All keyword arguments are the function's. Options go through `gearmap.options(...).submit(...)`. What has not ended
    when the interpreter does is cancelled.

    Raises
    ------
    SerializationError
        If the function or an argument does not pickle.
    ServerUnavailable
        If no job server answers.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     gearmap.submit(divmod, 7, 2).result()
    (3, 1)
    """
    return current_client().submit(fn, *args, **kwargs)


def on_every_worker(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> dict[str, R | BaseException]:
    """Call `fn(*args, **kwargs)` once on every worker that is there now; return the results by the workers' names.

    Each worker answers when it is idle; `gearmap.options(timeout=...)` limits the wait. Workers that join meanwhile are
    not asked. To load something everywhere, to look into each process, to clear caches.

    Returns
    -------
    dict
        Results by name. In place of a result there is the exception that the call has raised, `WorkerLost` for a worker
        that has gone, `RunTimeout` for one that has not answered in time.

    Raises
    ------
    ClusterBroken
        If there is no worker.
    ConfigurationError
        Inside a task.
    SerializationError
        If the function or an argument does not pickle.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     gearmap.on_every_worker(divmod, 7, 2)
    {'inline': (3, 1)}
    """
    with own_frames_hidden:
        return current_client().on_every_worker(fn, *args, **kwargs)


def on_every_node(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> dict[str, R | BaseException]:
    """Call `fn(*args, **kwargs)` on one worker of every node, an idle one if there is; else as `on_every_worker`.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     gearmap.on_every_node(abs, -3)
    {'inline': 3}
    """
    with own_frames_hidden:
        return current_client().on_every_node(fn, *args, **kwargs)


def status() -> ClusterStatus:
    """Return how the cluster of the current client is now: its job servers, queues, and nodes with their workers.

    Nothing is started for it: a local cluster that was not used yet has nothing to show. It takes a few milliseconds,
    and up to 6 s where a server or a node does not answer.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     print(gearmap.status())
    in this process
    """
    with own_frames_hidden:
        return current_client().status()


def options(**changes: Any) -> BoundOptions:
    """Return the current client with other default options; see `RunOptions` for their names.

    Examples
    --------
    >>> with gearmap.LocalCluster(0):
    ...     gearmap.options(retries=2).submit(abs, -3).result()
    3
    """
    return current_client().options(**changes)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
