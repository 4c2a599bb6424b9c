"""What a person holds: `Client` and `LocalCluster`.

Law of the file: it joins what lies below and decides nothing about tasks. A user's own keyword arguments and our
options never meet: `submit` takes none of ours, `options(...)` gives a light copy with other defaults.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gearmap import current
from gearmap.cluster import LocalProcesses
from gearmap.config import (
    MAP_ONLY,
    RunOptions,
    ServerAddress,
    ServerMode,
    config_folder,
    resolve_key_file,
    resolve_servers,
)
from gearmap.core.engine import RunEngine
from gearmap.core.names import Lane
from gearmap.core.retry import RetryPolicy
from gearmap.display.sinks import choose_sink, make_sink
from gearmap.errors import ClusterBroken, ConfigurationError
from gearmap.keyfile import load_key, load_or_make_key
from gearmap.runtime.callrun import CallRun
from gearmap.runtime.driver import Driver
from gearmap.runtime.futures import Future
from gearmap.runtime.inline import run_inline, submit_inline
from gearmap.runtime.maprun import ArgumentSource, MapRun
from gearmap.runtime.run import Consumer, Place, Run, RunSettings
from gearmap.wire import seal
from gearmap.wire.serializer import FunctionCache, dumps

__all__ = ["BoundOptions", "Client", "LocalCluster", "read_config"]

P = ParamSpec("P")
R = TypeVar("R")

_PYTHON = (sys.version_info[0], sys.version_info[1])
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


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
        chosen = self._defaults.with_changes(options)
        if not iterables:
            raise ConfigurationError("map needs at least one iterable: map(fn, items)")
        for each in iterables:
            _check_iterable(each)
        return self._client._map(fn, iterables, chosen, rows=False)

    def starmap(self, fn: Callable[..., R], rows: Iterable[Iterable[Any]], /, **options: Any) -> list[R]:
        """Run `fn(*row)` for each row; see `gearmap.starmap`."""
        chosen = self._defaults.with_changes(options)
        _check_iterable(rows)
        return self._client._map(fn, (rows,), chosen, rows=True)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run `fn(*args, **kwargs)` once; see `gearmap.submit`."""
        return self._client._submit(fn, args, kwargs, self._defaults)


class Client(BoundOptions):
    """A connection to job servers, for maps and single calls.

    Nothing is connected before the first use.

    Parameters
    ----------
    servers
        `"HOST[:PORT]"`, several separated by commas, or a list; by default GEARMAP_SERVERS, GEARMAN_SERVERS, then the
        config file. `"inline"` runs tasks in this process.
    key
        Path of the key file; by default GEARMAP_KEY_FILE, then the config folder.

    Raises
    ------
    ConfigurationError
        If no server is named anywhere, an address is malformed, or there is no key for a server that is not on this
        machine.
    """

    def __init__(
        self, servers: str | Sequence[str] | None = None, *, key: str | os.PathLike[str] | None = None
    ) -> None:
        choice = resolve_servers(servers, environ=os.environ, config_text=read_config())
        if choice.mode is ServerMode.NONE:
            raise ConfigurationError(f"there is no cluster to use: {choice.origin} says 'none'")
        if choice.mode is ServerMode.LOCAL:
            raise ConfigurationError(
                "no job server is named; give servers='HOST[:PORT]', set GEARMAP_SERVERS, or use LocalCluster()"
            )
        self._init(choice.mode, choice.addresses)
        if choice.mode is ServerMode.SERVERS:
            self._secret = _find_key(key, choice.addresses)

    def _init(self, mode: ServerMode, addresses: Sequence[ServerAddress]) -> None:
        super().__init__(self, RunOptions())
        self._mode = mode
        self._addresses = tuple(addresses)
        self._secret = b""
        self._lock = threading.RLock()
        self._driver: Driver | None = None
        self._cache = FunctionCache()
        self._call_runs: dict[Any, CallRun] = {}
        self._inline_tasks = 0
        self._closed = False
        self._pid = os.getpid()

    # ---------------------------------------------------------------------------------------------------------- surface

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.where}{' (closed)' if self._closed else ''}>"

    @property
    def is_closed(self) -> bool:
        """Whether the client was closed, or belongs to the process that this one was forked from."""
        return self._closed or os.getpid() != self._pid

    @property
    def where(self) -> str:
        """Where tasks run, and who said so."""
        if self._mode is ServerMode.INLINE:
            return "in this process"
        return f"{', '.join(map(str, self._addresses))} (from {self._addresses[0].origin})"

    def __enter__(self) -> Client:
        current.enter(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs, leave the job servers, and stop being the current client. May be repeated."""
        current.leave(self)
        with self._lock:
            self._closed = True
            driver, self._driver = self._driver, None
            self._call_runs.clear()
        if driver is not None and os.getpid() == self._pid:
            driver.close()
        self._stop_backend()

    # ------------------------------------------------------------------------------------------------------------- runs

    def _map(
        self, fn: Callable[..., R], iterables: Sequence[Iterable[Any]], options: RunOptions, *, rows: bool
    ) -> list[R]:
        _check_callable(fn)
        source = ArgumentSource(iterables, rows=rows)
        if source.is_empty:
            return []
        if self._mode is ServerMode.INLINE:
            values = (tuple(row) for row in iterables[0]) if rows else zip(*iterables, strict=False)
            return run_inline(fn, values, retries=options.retries, return_exceptions=options.return_exceptions)
        function = self._pickle_function(fn)
        driver = self._ready_driver()
        kind = choose_sink(progress=options.progress, is_terminal=_is_terminal(), environ=os.environ)
        sink = make_sink(kind, desc=options.desc, where=self.where, explicit=bool(options.progress))
        run = MapRun(
            driver,
            source,
            function,
            place=self._place(),
            sink=sink,
            on_notice=_warn,
            timeout=options.timeout,
            return_exceptions=options.return_exceptions,
        )
        total = options.total if source.total is None else source.total
        results: list[R] = run.execute(lambda consumer: self._make_run(driver, consumer, options, function[0], total))
        return results

    def _submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: RunOptions
    ) -> Future[Any]:
        _check_callable(fn)
        if self._mode is ServerMode.INLINE:
            self._inline_tasks += 1
            return submit_inline(fn, args, kwargs, self._inline_tasks - 1)
        function = self._pickle_function(fn)
        call = dumps((args, kwargs), name="the arguments", snapshot=True)
        place = self._place()
        run = self._call_run(options)
        try:
            return run.submit(function, call, place)
        except ClusterBroken:
            # The run ended meanwhile: its servers were away. Now is another time.
            return self._call_run(options).submit(function, call, place)

    def _call_run(self, options: RunOptions) -> CallRun:
        with self._lock:
            run = self._call_runs.get(options)
            if run is None or run.over:
                _check_submit_options(options)
                driver = self._ready_driver()
                run = CallRun(driver, lambda consumer: self._make_run(driver, consumer, options, None, None))
                self._call_runs[options] = run
            return run

    def _make_run(
        self, driver: Driver, consumer: Consumer, options: RunOptions, feeds: bytes | None, total: int | None
    ) -> Run:
        """Make a run; called in the driver thread."""
        session_id = secrets.token_bytes(16)
        settings = RunSettings(
            run_id=uuid.uuid4().hex,
            lane=Lane(options.queue, _PYTHON, seal.key_id(self._secret)),
            session_id=session_id,
            session_key=seal.session_key(self._secret, session_id),
            priority=options.priority,
            feeds=feeds,
        )
        engine = RunEngine(
            policy=RetryPolicy(retries=options.retries, max_worker_losses=options.max_worker_losses),
            chunksize=options.chunksize,
            max_workers=options.max_workers,
            fail_fast=feeds is not None and not options.return_exceptions,
            total=total,
        )
        return Run(settings, engine, consumer, driver.make_links())

    def _pickle_function(self, fn: Callable[..., Any]) -> tuple[bytes, Any]:
        with self._lock:
            return self._cache.payload(fn)

    def _ready_driver(self) -> Driver:
        with self._lock:
            if self._closed:
                raise ClusterBroken(f"this {type(self).__name__} is closed")
            if os.getpid() != self._pid:
                raise ClusterBroken("this client belongs to the process that was forked; make a new one here")
            if self._driver is None or not self._driver.is_alive:
                self._start_backend()
                driver = Driver(self._addresses, health=self._problem)
                driver.start()
                self._driver = driver
            return self._driver

    # ---------------------------------------------------------------------------------- what a local cluster overrides

    def _start_backend(self) -> None:
        """Start what must run before the driver connects."""

    def _stop_backend(self) -> None:
        """Stop what was started."""

    def _problem(self) -> str | None:
        """Return what is wrong with the cluster, as far as this process can tell."""
        return None

    def _place(self) -> Place:
        """Where tasks run: at the folder where the node was started."""
        return Place()


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

    Examples
    --------
    >>> with LocalCluster(0) as cluster:
    ...     cluster.map(abs, [-1, 2])
    [1, 2]
    """

    def __init__(self, workers: int | None = None, *, server: str = "auto") -> None:
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
            raise ConfigurationError(f"workers must be an int, 0 or more, got {workers!r}")
        if not isinstance(server, str):
            raise ConfigurationError(
                f"server must be 'auto', 'gearmand', 'embedded' or a path, got {server!r}; "
                "for job servers that run already use connect()"
            )
        self._init(ServerMode.INLINE if workers == 0 else ServerMode.LOCAL, ())
        self._processes = LocalProcesses(workers, server)
        self._last_place: Place | None = None
        self._last_path: list[str] = []

    @property
    def where(self) -> str:
        """Where tasks run."""
        return super().where if self._mode is ServerMode.INLINE else self._processes.describe()

    @property
    def server(self) -> str:
        """Which job server runs."""
        return self._processes.server_kind

    def __enter__(self) -> LocalCluster:
        super().__enter__()
        if self._mode is ServerMode.LOCAL:
            try:
                self._ready_driver()
            except BaseException:
                self.close()
                raise
        return self

    def _start_backend(self) -> None:
        self._processes.stop()
        self._addresses = (self._processes.start(),)
        self._secret = self._processes.secret

    def _stop_backend(self) -> None:
        self._processes.stop()

    def _problem(self) -> str | None:
        return self._processes.problem()

    def _place(self) -> Place:
        cwd = os.getcwd()
        place = self._last_place
        if place is None or place.cwd != cwd or self._last_path != sys.path:
            self._last_path = list(sys.path)
            place = self._last_place = Place(cwd, tuple(path or cwd for path in self._last_path))
        return place


def _find_key(key: str | os.PathLike[str] | None, addresses: Sequence[ServerAddress]) -> bytes:
    path, origin = resolve_key_file(key, environ=os.environ, home=Path.home(), config_text=read_config())
    if all(address.is_loopback for address in addresses):
        return load_or_make_key(path, origin)
    return load_key(path, origin)


def read_config() -> str:
    """Return the config file's text, or nothing if there is none."""
    try:
        return (config_folder(os.environ, Path.home()) / "config.ini").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise ConfigurationError(f"the config file cannot be read: {error}") from None


def _check_callable(fn: object) -> None:
    if not callable(fn):
        raise ConfigurationError(f"fn must be callable, got {fn!r}")


def _check_iterable(value: object) -> None:
    try:
        iter(value)  # type: ignore[call-overload]  # asking is the check
    except TypeError:
        raise ConfigurationError(f"the arguments must be an iterable, got {value!r}") from None


def _check_submit_options(options: RunOptions) -> None:
    defaults = RunOptions()
    for name in MAP_ONLY:
        if getattr(options, name) != getattr(defaults, name):
            raise ConfigurationError(f"the option {name!r} means nothing to submit; it is for map and starmap")


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _warn(text: str) -> None:
    """Warn as from the line of the user's code that called us."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)
