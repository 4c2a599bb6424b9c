"""`GearmanExecutor`: the cluster as a `concurrent.futures.Executor` (PEP 3148).

Rule 1: whatever the standard library's executors do in a situation is done here; `tests/integration/test_executor.py`
runs against them too.
Rule 2: an executor owns a `_Work`, which does not know it: work that is pending is done, whoever forgets the executor.
Rule 3: `_Work.finish` may be called from within a garbage collection: it takes no lock and waits for nothing.
"""

from __future__ import annotations

import concurrent.futures
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from gearmap import current
from gearmap.backend import Backend
from gearmap.choice import choose_backend, named_backend
from gearmap.config import MAP_ONLY, RunOptions, ServerMode, check_whole
from gearmap.errors import ClusterBroken, ConfigurationError
from gearmap.runtime.callrun import CallRun
from gearmap.runtime.chunkfuture import ChunkFuture
from gearmap.runtime.forking import watch_forks
from gearmap.runtime.futures import Future
from gearmap.runtime.inline import submit_inline
from gearmap.tls import TlsOptions
from gearmap.wire.serializer import dump_call, dump_snapshot

__all__ = ["GearmanExecutor"]

P = ParamSpec("P")
R = TypeVar("R")

# Who waits for the end of an executor's work makes sure this often that somebody is there to bring it about (seconds).
WAIT_STEP = 0.5


class GearmanExecutor(concurrent.futures.Executor):
    """Runs calls on the cluster, as `ThreadPoolExecutor` and `ProcessPoolExecutor` do on this machine.

    What waits in this process can be cancelled, what was sent to a job server counts as running. The loss of a worker
    breaks nothing: its tasks run again elsewhere.

    Parameters
    ----------
    max_workers
        The most jobs of this executor at once; it is also the size of a local cluster that it starts for itself.
    servers
        Job servers as for `connect`; by default the current client's cluster, then what the environment or the config
        file names, then a local cluster that ends with this executor.
    key
        Path of the key file, for `servers`.
    tls_ca, tls_cert, tls_key
        Files for `servers` that are named `tls://`; see `Client`.
    initializer
        Called once in each child process before its first task; such a child works for this executor only. If it
        raises, the executor is broken.
    initargs
        Its arguments.
    max_tasks_per_child
        Tasks that a child process runs before it is replaced.
    queue
        Which workers: those started with `-q QUEUE`.
    options
        Other options that `submit` can have: `retries`, `task_timeout`, `priority` ...; see `RunOptions`.

    Raises
    ------
    ConfigurationError
        If an option is impossible, or no cluster may be started here; it is a ValueError.

    Examples
    --------
    >>> with gearmap.LocalCluster(0), gearmap.GearmanExecutor(4) as executor:
    ...     print(executor.submit(pow, 2, 5).result(), list(executor.map(abs, [-1, -2])))
    32 [1, 2]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        servers: str | Sequence[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        max_tasks_per_child: int | None = None,
        queue: str = "default",
        **options: Any,
    ) -> None:
        changes = {
            "max_workers": max_workers,
            "initializer": initializer,
            "initargs": initargs,
            "max_tasks_per_child": max_tasks_per_child,
            "queue": queue,
            **options,
        }
        chosen = _executor_options(RunOptions(), changes)
        tls = TlsOptions(ca=tls_ca, cert=tls_cert, key=tls_key)
        if servers is not None or key is not None or tls.is_given:
            self._init(named_backend(servers, key, tls), chosen, is_owner=True)
            return
        client = current.current()
        if client is None:
            self._init(choose_backend(workers=max_workers), chosen, is_owner=True)
        else:
            self._init(client._backend, chosen, is_owner=False)

    @classmethod
    def _on(cls, backend: Backend, defaults: RunOptions, changes: dict[str, Any]) -> GearmanExecutor:
        """Return an executor on somebody else's backend."""
        executor = cls.__new__(cls)
        executor._init(backend, _executor_options(defaults, changes), is_owner=False)
        return executor

    def _init(self, backend: Backend, options: RunOptions, *, is_owner: bool) -> None:
        if is_owner:
            backend.owner = type(self).__name__
        self._max_workers = options.max_workers  # other libraries look at it
        self._work = _Work(backend, options, is_owner=is_owner)
        weakref.finalize(self, self._work.finish).atexit = False

    def __repr__(self) -> str:
        if not hasattr(self, "_work"):  # a traceback may show one that could not be made
            return f"<{type(self).__name__}>"
        return f"<{type(self).__name__}: {self._work.backend.where}{' (shut down)' if self._work.is_shut else ''}>"

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run `fn(*args, **kwargs)` once; return a future of its result.

        Raises
        ------
        RuntimeError
            After `shutdown`, or when the interpreter is ending.
        BrokenExecutor
            If the initializer has failed, or the cluster is gone.
        ServerUnavailable
            If no job server answers.
        SerializationError
            If the function or an argument does not pickle.
        """
        return self._work.submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Run `fn` over the zipped iterables; return an iterator over the results, in order.

        Leaving the iterator cancels what was not sent yet.

        Parameters
        ----------
        fn
            Any callable.
        iterables
            Taken in full at once, unless there is a `buffersize`.
        timeout
            Seconds from now in which a result must be there when it is asked for.
        chunksize
            Tasks that travel together; by default as many as take no time to speak of, as measured.
        buffersize
            The most tasks that were taken from the iterables and whose results were not handed out.

        Raises
        ------
        TimeoutError
            From the iterator, if a result is not there in time.
        """
        check_whole("chunksize", chunksize, least=1, optional=True)
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        check_whole("buffersize", buffersize, least=1, optional=True)
        deadline = None if timeout is None else time.monotonic() + timeout
        feed = _Feed(weakref.ref(self), fn, zip(*iterables, strict=False), chunksize, buffersize)
        feed.fill()
        return feed.results(deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; may be repeated.

        Parameters
        ----------
        wait
            Whether to return only when all tasks have ended, and what this executor has started.
        cancel_futures
            Whether to cancel the tasks that were not sent yet.
        """
        work = self._work
        work.shut(cancel=cancel_futures)
        if wait:
            work.wait()

    @property
    def _broken(self) -> bool:
        """As in the standard library's executors, for who looks there."""
        return self._work.broken_by() is not None


class _Work:
    """What was submitted to one executor, and what carries it out."""

    def __init__(self, backend: Backend, options: RunOptions, *, is_owner: bool) -> None:
        self.backend = backend
        self.is_shut = False
        self._options = options
        self._is_owner = is_owner
        self._tenant = f"executor-{secrets.token_hex(8)}"
        # What the garbage collector or a signal handler calls under it, in the same thread, may take it again.
        self._lock = threading.RLock()
        self._run: CallRun | None = None
        self._error: ClusterBroken | None = None
        self._ended = threading.Event()
        self._conclusion = threading.Lock()  # held by who brings the end about
        self._inline_tasks = 0
        watch_forks(self)

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        backend = self.backend
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {fn!r}")
        if backend.mode is ServerMode.INLINE:
            return self._submit_inline(fn, args, kwargs)
        function = backend.pickle_function(fn, self._options)
        call = dump_call(args, kwargs, backend.place_arguments)
        place = backend.place()
        with self._lock:
            try:
                return self._ready_run().submit(function, call, place)
            except ClusterBroken:
                # The run may have ended since it was looked at; if it is not that, the second try says so.
                return self._ready_run().submit(function, call, place)

    def submit_chunk(self, fn: Callable[..., Any], rows: Sequence[tuple[Any, ...]]) -> list[Future[Any]]:
        """Submit calls that travel together, at most as many as a child may run."""
        backend = self.backend
        if backend.mode is ServerMode.INLINE:
            return [self._submit_inline(fn, row, {}) for row in rows]
        function = backend.pickle_function(fn, self._options)
        place = backend.place()
        size = self._options.max_tasks_per_child or len(rows)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        columns = [tuple(map(list, zip(*part, strict=True))) for part in parts]
        placed = backend.place_arguments
        payloads = [dump_snapshot(each, name="the arguments of a chunk", place=placed) for each in columns]
        with self._lock:
            return [
                self._ready_run().submit_chunk(function, payload, len(part), place)
                for payload, part in zip(payloads, parts, strict=True)
            ]

    def _submit_inline(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        with self._lock:
            self._check()
            try:
                self.backend.begin_inline(self._options, tenant=self._tenant)
            except ClusterBroken as error:
                self._error = error
                raise
            number = self._inline_tasks
            self._inline_tasks += 1
        return submit_inline(fn, args, kwargs, number, self._options)

    def _ready_run(self) -> CallRun:
        """Return the run that takes calls; the caller holds the lock."""
        self._check()
        run = self._run
        if run is None or run.over:
            made = self.backend.make_call_run(self._options, tenant=self._tenant)
            # Whoever came in between may have shut this, or made a run, which is to be the only one.
            self._check()
            run = self._run
            if run is None or run.over:
                run = self._run = made
            _pending.add(self)
        return run

    def broken_by(self) -> ClusterBroken | None:
        """Return what has broken the executor for good, or None."""
        run = self._run
        if run is not None and run.is_broken_for_good and isinstance(run.error, ClusterBroken):
            return run.error
        return self._error

    def _check(self) -> None:
        error = self.broken_by()
        if error is not None:
            raise error
        if self.is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shut(self, *, cancel: bool) -> None:
        with self._lock:
            self.is_shut = True
            run = self._run
        if cancel and run is not None:
            run.cancel_waiting()
        self.finish()

    def finish(self) -> None:
        """Let what was submitted end, and then all that was started for it; returns at once."""
        self.is_shut = True
        run = self._run
        if run is None or not run.has_driver:
            self._conclude()
        else:
            run.finish(self._conclude)

    def wait(self) -> None:
        """Wait until all has ended that `finish` lets end; a callback, which is part of that, does not wait."""
        while not self._ended.is_set():
            run = self._run
            if run is not None and run.is_calling_back:
                return
            if run is None or not run.has_driver:
                self._conclude()
            self._ended.wait(WAIT_STEP)

    def _conclude(self) -> None:
        if not self._conclusion.acquire(blocking=False):
            return
        try:
            if self._is_owner:
                self.backend.close()
        finally:
            self._error, self._run = self.broken_by(), None  # and with it the driver and its threads
            _pending.discard(self)
            self._ended.set()

    def _after_fork_in_child(self) -> None:
        """The parent's tasks are not ours to end; what is submitted from now on is."""
        self._lock = threading.RLock()
        self._run = None
        self._ended = threading.Event()
        self._conclusion = threading.Lock()
        _pending.discard(self)


class _Feed:
    """The calls of one `map`, taken as the buffer has room."""

    def __init__(
        self,
        executor: weakref.ref[GearmanExecutor],
        fn: Callable[..., Any],
        rows: Iterator[tuple[Any, ...]],
        chunksize: int | None,
        buffersize: int | None,
    ) -> None:
        self.futures: deque[Future[Any]] = deque()
        self._held = 0  # tasks that were taken and not handed out
        self._chunk: Iterator[Any] = iter(())  # what is left of the first chunk, if it was begun
        self._left = 0
        self._executor = executor
        self._fn = fn
        self._rows: Iterator[tuple[Any, ...]] | None = rows
        self._chunksize = chunksize
        self._buffersize = buffersize

    def fill(self) -> None:
        """Submit until the buffer has no room for a chunk, or nothing is left."""
        size = self._chunksize or 1
        if self._buffersize is not None:
            size = min(size, self._buffersize)
        while self._rows is not None:
            if self._buffersize is not None and self._held + size > self._buffersize:
                return
            executor = self._executor()
            rows = list(islice(self._rows, size))
            self._held += len(rows)
            if executor is None or not rows:
                self._rows = None
            elif self._chunksize is None:
                self.futures.append(executor._work.submit(self._fn, rows[0], {}))
            else:
                self.futures.extend(executor._work.submit_chunk(self._fn, rows))

    def results(self, deadline: float | None) -> Iterator[Any]:
        """Yield the results in order; cancel what is left when the caller has enough."""
        try:
            while self.futures:
                # No reference to a result may stay here while the caller has it.
                yield self._next(None if deadline is None else deadline - time.monotonic())
        finally:
            while self.futures:
                self.futures.pop().cancel()

    def _next(self, timeout: float | None) -> Any:
        """Return the next result; its place in the buffer is for another task then."""
        future = self.futures[0]
        if isinstance(future, ChunkFuture):
            if not self._left:
                self._chunk, self._left = future.outcomes(timeout), future.size
            result = next(self._chunk)
            self._left -= 1
        else:
            result = future.result(timeout)
        if not self._left:
            self.futures.popleft()
        del future
        self._held -= 1
        self.fill()
        return result


def _executor_options(defaults: RunOptions, changes: dict[str, Any]) -> RunOptions:
    """Return the options of an executor; the standard library's wording where it has one."""
    max_workers, limit = changes.get("max_workers"), changes.get("max_tasks_per_child")
    if isinstance(max_workers, int) and max_workers <= 0:
        raise ConfigurationError("max_workers must be greater than 0")
    if changes.get("initializer") is not None and not callable(changes["initializer"]):
        raise TypeError("initializer must be a callable")
    if limit is not None and not isinstance(limit, int):
        raise TypeError("max_tasks_per_child must be an integer")
    for name in MAP_ONLY:
        if name in changes:
            raise ConfigurationError(f"the option {name!r} means nothing to an executor; it is for map and its like")
    return defaults.with_changes(changes)


# ------------------------------------------------------------------------------------------------ the interpreter's end

_pending: set[_Work] = set()
_is_exiting = False


def _finish_all() -> None:
    """Let the work of all executors end, as the standard library does when the interpreter ends."""
    global _is_exiting
    _is_exiting = True
    pending = list(_pending)
    for work in pending:
        work.finish()
    for work in pending:
        work.wait()


# Before `atexit`, whose functions may not submit any more: this is where the standard library's executors finish, too.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # private, and the same since Python 3.9
