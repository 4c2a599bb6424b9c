"""What a person holds: `Client` and `LocalCluster`.

Law of the file: it joins what lies below and decides nothing about tasks. A user's own keyword arguments and our
options never meet: `submit` takes none of ours, `options(...)` gives a light copy with other defaults.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

from gearmap import current
from gearmap.backend import Backend, LocalBackend
from gearmap.choice import named_backend
from gearmap.cluster import LocalProcesses
from gearmap.config import MAP_ONLY, RunOptions, ServerMode, check_whole
from gearmap.errors import ClusterBroken, ConfigurationError
from gearmap.everywhere import run_everywhere
from gearmap.executor import GearmanExecutor
from gearmap.mapping import run_imap, run_map, start_map
from gearmap.overview.survey import survey
from gearmap.overview.values import ClusterStatus
from gearmap.runtime.arguments import is_endless
from gearmap.runtime.callrun import CallRun
from gearmap.runtime.cpus import usable_cpus
from gearmap.runtime.forking import watch_forks
from gearmap.runtime.futures import Future
from gearmap.runtime.inline import submit_inline
from gearmap.runtime.mapfuture import MapFuture
from gearmap.runtime.memory_use import memory_limit_bytes
from gearmap.runtime.userframes import own_frames_hidden
from gearmap.tls import TlsOptions
from gearmap.waiting import wait_for_workers
from gearmap.wire.serializer import dump_call

__all__ = ["BoundOptions", "Client", "LocalCluster"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class BoundOptions:
    """A client with other default options; made by `Client.options`."""

    def __init__(self, client: Client, defaults: RunOptions) -> None:
        self._client = client
        self._defaults = defaults

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._client!r}>"

    def options(self, **changes: Any) -> BoundOptions:
        """Return a copy with further options; see `Client.options`."""
        return BoundOptions(self._client, self._defaults.with_changes(changes))

    def map(self, fn: Callable[..., R], /, *iterables: Iterable[Any], **options: Any) -> list[R]:
        """Run `fn` over the zipped iterables; see `gearmap.map`."""
        with own_frames_hidden:
            chosen = self._defaults.with_changes(options)
            _check_call("map", fn, iterables)
            results: list[R] = run_map(self._client._backend, fn, iterables, chosen, rows=False)
        return results

    def starmap(self, fn: Callable[..., R], rows: Iterable[Iterable[Any]], /, **options: Any) -> list[R]:
        """Run `fn(*row)` for each row; see `gearmap.starmap`."""
        with own_frames_hidden:
            chosen = self._defaults.with_changes(options)
            _check_call("starmap", fn, (rows,))
            results: list[R] = run_map(self._client._backend, fn, (rows,), chosen, rows=True)
        return results

    def map_async(self, fn: Callable[..., R], /, *iterables: Iterable[Any], **options: Any) -> MapFuture[R]:
        """Begin to run `fn` over the zipped iterables; see `gearmap.map_async`."""
        with own_frames_hidden:
            return self._begin(fn, iterables, options)

    def _begin(
        self, fn: Callable[..., R], iterables: tuple[Iterable[Any], ...], options: dict[str, Any]
    ) -> MapFuture[R]:
        chosen = self._defaults.with_changes(options)
        _check_call("map_async", fn, iterables)
        if all(map(is_endless, iterables)):
            raise ConfigurationError(
                f"map_async reads its iterables to their end, and {iterables[0]!r} has none; take a part with "
                "itertools.islice, or use imap, which reads as it goes"
            )
        return start_map(self._client._backend, fn, iterables, chosen)

    def imap(
        self, fn: Callable[..., R], /, *iterables: Iterable[Any], buffersize: int | None = None, **options: Any
    ) -> Iterator[R]:
        """Run `fn` over the zipped iterables, lazily; see `gearmap.imap`."""
        with own_frames_hidden:
            return self._imap("imap", fn, iterables, buffersize, options)

    def imap_unordered(
        self, fn: Callable[..., R], /, *iterables: Iterable[Any], buffersize: int | None = None, **options: Any
    ) -> Iterator[R]:
        """Run `fn` over the zipped iterables, results as they come; see `gearmap.imap_unordered`."""
        with own_frames_hidden:
            return self._imap("imap_unordered", fn, iterables, buffersize, options)

    def _imap(
        self,
        name: str,
        fn: Callable[..., R],
        iterables: tuple[Iterable[Any], ...],
        buffersize: int | None,
        options: dict[str, Any],
    ) -> Iterator[R]:
        chosen = self._defaults.with_changes(options)
        check_whole("buffersize", buffersize, least=1, optional=True)
        _check_call(name, fn, iterables)
        ordered = name == "imap"
        return run_imap(self._client._backend, fn, iterables, chosen, buffersize=buffersize, ordered=ordered)

    def on_every_worker(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> dict[str, R | BaseException]:
        """Call `fn` once on every worker; see `gearmap.on_every_worker`."""
        with own_frames_hidden:
            _check_callable(fn)
            return run_everywhere(self._client._backend, self._defaults, fn, args, kwargs, one_of_each_node=False)

    def on_every_node(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> dict[str, R | BaseException]:
        """Call `fn` once on every node; see `gearmap.on_every_node`."""
        with own_frames_hidden:
            _check_callable(fn)
            return run_everywhere(self._client._backend, self._defaults, fn, args, kwargs, one_of_each_node=True)

    def executor(self, max_workers: int | None = None, **options: Any) -> GearmanExecutor:
        """Return an executor on this client; see `GearmanExecutor`. Closing the client ends it."""
        return GearmanExecutor._on(self._client._backend, self._defaults, {"max_workers": max_workers, **options})

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run `fn(*args, **kwargs)` once; see `gearmap.submit`."""
        return self._client._submit(fn, args, kwargs, self._defaults)


class Client(BoundOptions):
    """A connection to job servers, for maps and single calls.

    Nothing is connected before the first use.

    Parameters
    ----------
    servers
        `"HOST[:PORT]"` or `"tls://HOST[:PORT]"`, several separated by commas, or a list; by default GEARMAP_SERVERS,
        GEARMAN_SERVERS, then the config file. `"inline"` runs tasks in this process.
    key
        Path of the key file; by default GEARMAP_KEY_FILE, then the config folder.
    tls_ca, tls_cert, tls_key
        For servers that are named `"tls://HOST[:PORT]"`: the file of the authorities that may have signed the server's
        certificate, by default those that the system trusts; and the certificate that this client shows, with its key,
        if the server wants one. By default GEARMAP_TLS_CA, GEARMAP_TLS_CERT and GEARMAP_TLS_KEY, then the config file.

    Raises
    ------
    ConfigurationError
        If no server is named anywhere, an address is malformed, a file of TLS is not fit, or there is no key for a
        server that is not on this machine.
    """

    def __init__(
        self,
        servers: str | Sequence[str] | None = None,
        *,
        key: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
    ) -> None:
        self._init(named_backend(servers, key, TlsOptions(ca=tls_ca, cert=tls_cert, key=tls_key)))

    @classmethod
    def _on(cls, backend: Backend) -> Client:
        """Return a client of a backend."""
        client = cls.__new__(cls)
        client._init(backend)
        return client

    def _init(self, backend: Backend) -> None:
        super().__init__(self, RunOptions())
        self._backend = backend
        backend.owner = type(self).__name__
        self._lock = threading.RLock()
        self._call_runs: dict[Hashable, CallRun] = {}
        self._last_calls: tuple[RunOptions | None, str | None, CallRun | None] = (None, None, None)
        self._inline_tasks = 0
        watch_forks(self)

    def _after_fork_in_child(self) -> None:
        """Forget the parent's runs; called by itself in a forked process."""
        self._lock = threading.RLock()
        self._call_runs = {}
        self._last_calls = (None, None, None)
        _with_calls.discard(self)

    # ---------------------------------------------------------------------------------------------------------- surface

    def __repr__(self) -> str:
        if not hasattr(self, "_backend"):  # a traceback may show one that could not be made
            return f"<{type(self).__name__}>"
        return f"<{type(self).__name__}: {self.where}{' (closed)' if self.is_closed else ''}>"

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    @property
    def is_closed(self) -> bool:
        """Whether the client was closed, or is a local cluster of the process that this one was forked from."""
        return self._backend.is_closed

    @property
    def where(self) -> str:
        """Where tasks run, and who said so."""
        return self._backend.where

    def __enter__(self) -> Client:
        current.enter(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def wait_for_workers(self, n: int = 1, *, timeout: float | None = None, queue: str = "default") -> int:
        """Wait until `n` workers serve this client: its Python version, its key, and the queue.

        Parameters
        ----------
        n
            How many, busy ones included.
        timeout
            Seconds to wait, or None to wait for ever.
        queue
            Which queue they serve.

        Returns
        -------
        int
            How many there are, `n` or more.

        Raises
        ------
        RunTimeout
            If there are fewer after `timeout`; the message says what is there.
        ServerUnavailable
            If no job server answers.
        """
        check_whole("n", n, least=1)
        chosen = RunOptions(timeout=timeout, queue=queue)
        return wait_for_workers(self._backend, n, timeout=chosen.timeout, queue=chosen.queue)

    def status(self) -> ClusterStatus:
        """Return how the cluster is now: job servers, queues, and nodes with their workers; see `gearmap.status`."""
        return survey(self._backend)

    def close(self) -> None:
        """Cancel what runs, leave the job servers, and stop being the current client. May be repeated."""
        current.leave(self)
        with self._lock:
            self._call_runs.clear()
            self._last_calls = (None, None, None)
        self._backend.close()

    # ------------------------------------------------------------------------------------------------------------- runs

    def _submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: RunOptions
    ) -> Future[Any]:
        _check_callable(fn)
        backend = self._backend
        if backend.mode is ServerMode.INLINE:
            backend.begin_inline(options)
            self._inline_tasks += 1
            return submit_inline(fn, args, kwargs, self._inline_tasks - 1, options)
        function = backend.pickle_function(fn, options)
        name = backend.task_name(fn)
        call = dump_call(args, kwargs, backend.place_arguments, by_reference=name is not None)
        place = backend.place()
        run = self._call_run(options, name)
        try:
            return run.submit(function, call, place)
        except ClusterBroken:
            # The run ended meanwhile: its servers were away. Now is another time.
            return self._call_run(options, name).submit(function, call, place)

    @property
    def _pending(self) -> int:
        """How many submitted calls have not ended."""
        return sum(run.pending for run in list(self._call_runs.values()))

    def _call_run(self, options: RunOptions, task: str | None = None) -> CallRun:
        known, known_task, run = self._last_calls
        if known is options and known_task == task and run is not None and not run.over:
            return run  # a look-up compares all options
        with self._lock:
            key = (options.key, task)
            run = self._call_runs.get(key)
            if run is not None and run.is_broken_for_good and run.error is not None:
                raise run.error
            if run is None or run.over:
                _check_submit_options(options)
                _remember(self)
                run = self._call_runs[key] = self._backend.make_call_run(options, task=task)
            self._last_calls = (options, task, run)
            return run


class LocalCluster(Client):
    """A cluster on this machine, and the client of it.

    Job server and workers are processes of their own; they start at the first use or on entering, and end with
    `close()`, on leaving, or with this process.

    Parameters
    ----------
    workers
        How many tasks run at once; by default one for each CPU that this process may use. 0 runs tasks inline, in the
        calling process.
    server
        "auto" (gearmand where it is installed, else the embedded job server), "gearmand", "embedded", or the path of a
        gearmand.
    memory_limit
        What each worker may use, with all that its tasks have started: bytes, or a text like "4G". A task that uses
        more is ended, and tried again elsewhere.

    Examples
    --------
    >>> with LocalCluster(0) as cluster:
    ...     cluster.map(abs, [-1, 2])
    [1, 2]
    """

    def __init__(
        self, workers: int | None = None, *, server: str = "auto", memory_limit: int | str | None = None
    ) -> None:
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
            raise ConfigurationError(f"workers must be an int, 0 or more, got {workers!r}")
        if not isinstance(server, str):
            raise ConfigurationError(
                f"server must be 'auto', 'gearmand', 'embedded' or a path, got {server!r}; "
                "for job servers that run already use connect()"
            )
        limit = None if memory_limit is None else memory_limit_bytes(memory_limit, "memory_limit")
        self._local = LocalBackend(workers, server=server, memory_limit=limit)
        self._init(Backend(ServerMode.INLINE) if workers == 0 else self._local)

    @property
    def server(self) -> str:
        """Which job server runs."""
        return self._processes.server_kind

    @property
    def _processes(self) -> LocalProcesses:
        return self._local.processes

    @property
    def n_workers(self) -> int:
        """How many workers it should have; for how many are there, see `status`."""
        if self._backend is not self._local:
            return 0
        return self._processes.workers or usable_cpus()

    def scale(self, workers: int) -> None:
        """Have so many workers from now on.

        New ones are there a moment later: `wait_for_workers`. Those that go end their running job first, and what they
        have not begun goes to others.

        Raises
        ------
        ConfigurationError
            If it is less than 1, or the cluster runs tasks in this process.
        ClusterBroken
            If the cluster is closed.
        """
        check_whole("workers", workers, least=1)
        if self._backend is not self._local:
            raise ConfigurationError("LocalCluster(0) runs tasks in this process; make one with workers")
        if self.is_closed:
            raise ClusterBroken(f"this {type(self).__name__} is closed")
        self._local.scale(workers)

    def __enter__(self) -> LocalCluster:
        super().__enter__()
        if self._backend is self._local:
            try:
                self._backend.ready_driver()
            except BaseException:
                self.close()
                raise
        return self


def _check_callable(fn: object) -> None:
    if not callable(fn):
        raise ConfigurationError(f"fn must be callable, got {fn!r}")


def _check_call(name: str, fn: object, iterables: Sequence[object]) -> None:
    _check_callable(fn)
    if not iterables:
        raise ConfigurationError(f"{name} needs at least one iterable: {name}(fn, items)")
    for each in iterables:
        _check_iterable(each)


def _check_iterable(value: object) -> None:
    try:
        iter(value)  # type: ignore[call-overload]  # asking is the check
    except TypeError:
        raise ConfigurationError(f"the arguments must be an iterable, got {value!r}") from None


def _check_submit_options(options: RunOptions) -> None:
    defaults = RunOptions()
    for name in MAP_ONLY:
        if getattr(options, name) != getattr(defaults, name):
            raise ConfigurationError(f"the option {name!r} means nothing to submit; it is for map and its like")


# ------------------------------------------------------------------------------------------------ the interpreter's end

_with_calls: weakref.WeakSet[Client] = weakref.WeakSet()


def _remember(client: Client) -> None:
    if not _with_calls:
        atexit.unregister(_tell_unfinished)
        atexit.register(_tell_unfinished)  # now, to be called before what closes the cluster
    _with_calls.add(client)


def _tell_unfinished() -> None:
    """Say what the interpreter's end cancels: whoever submitted it did not wait for it, and may count on it."""
    unfinished = sum(client._pending for client in list(_with_calls) if not client.is_closed)
    if unfinished:
        calls = "call was" if unfinished == 1 else "calls were"
        logger.warning(
            "%d submitted %s cancelled by the end of the interpreter; wait for the futures, or use a GearmanExecutor",
            unfinished,
            calls,
        )
