"""From options to a run: what `map` and its like do on a backend, whoever asks for it.

What must not live here: which backend that is, and what a person types (`client`, `executor`, `api`).
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from gearmap import current
from gearmap.backend import Backend
from gearmap.config import RunOptions, ServerMode
from gearmap.core.snapshot import ProgressSink
from gearmap.display.registry import SinkRequest, registered
from gearmap.display.sinks import SHOW_AFTER, choose_sink, make_sink
from gearmap.errors import ClusterBroken
from gearmap.runtime import child
from gearmap.runtime.arguments import ArgumentSource, taken_whole
from gearmap.runtime.imaprun import ImapRun
from gearmap.runtime.inline import InlineMap, imap_inline
from gearmap.runtime.mapfuture import MapFuture, Runner
from gearmap.runtime.maprecord import MapRecord
from gearmap.runtime.maprun import MapRun
from gearmap.runtime.port import RunPort
from gearmap.runtime.travelling import heavy_notice
from gearmap.runtime.userframes import own_frames_hidden

__all__ = ["run_imap", "run_map", "start_map"]

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def run_map(
    backend: Backend, fn: Callable[..., Any], iterables: Sequence[Iterable[Any]], options: RunOptions, *, rows: bool
) -> list[Any]:
    """Run `fn` over the zipped iterables, or with each row of the only one; return the results in order."""
    source = ArgumentSource(iterables, rows=rows)
    if not source.has_more(0):
        return []
    return _make_map(backend, fn, source, options, waits=True).run_here()


def start_map(
    backend: Backend, fn: Callable[..., Any], iterables: Sequence[Iterable[Any]], options: RunOptions
) -> MapFuture[Any]:
    """Begin to run `fn` over the zipped iterables, in a thread of the run; inline, run it now.

    The iterables are taken whole, here: nobody else may advance them.
    """
    source = ArgumentSource(taken_whole(iterables))
    future = _make_map(backend, fn, source, options, waits=False, began=_users_line())
    if not source.has_more(0):
        future.end(results=[])
    elif backend.mode is ServerMode.INLINE:
        future.run_quietly()
    else:
        future.run_in_thread()
    return future


def _make_map(
    backend: Backend,
    fn: Callable[..., Any],
    source: ArgumentSource,
    options: RunOptions,
    *,
    waits: bool,
    began: tuple[str, int] | None = None,
) -> MapFuture[Any]:
    """`began` is the line that warnings are of if they come in a thread of the run, where no user's line is."""

    def launch(future: MapFuture[Any], *, again: bool) -> Runner:
        # Whoever waits needs no display of what is over at once; whoever does not is shown what was begun.
        delay = SHOW_AFTER if waits or again else 0.0
        runner = _runner(_open_backend(backend) if again else backend, future, delay, began)
        before = current.remember(future)
        if isinstance(runner, MapRun):
            runner.leftover = before
        return runner

    return MapFuture(MapRecord(fn, source, options), launch)


def _open_backend(backend: Backend) -> Backend:
    """Return the backend, or once that is closed the current client's: a map can go on elsewhere.

    Raises
    ------
    ClusterBroken
        If there is none.
    """
    if not backend.is_closed:
        return backend
    client = current.current()
    if client is None:
        raise ClusterBroken(f"this {backend.owner} is closed; open another, and the map can go on there with resume()")
    return client._backend


def _runner(backend: Backend, future: MapFuture[Any], delay: float, began: tuple[str, int] | None) -> Runner:
    record = future.record
    options = record.options
    total = options.total if record.total is None else record.total
    if backend.mode is ServerMode.INLINE:
        backend.begin_inline(options)
        return InlineMap(record, _sink(backend, options, record.fn, total, delay=delay, cancel=future.cancel))
    function = _pickled(backend, record.fn, options, began)
    task = backend.task_name(record.fn)
    driver = backend.ready_driver()
    record.store = backend.arguments
    record.goes_by_reference(task is not None)
    return MapRun(
        RunPort(driver, function, backend.place(), record.kind),
        backend.run_maker(driver, options, function[0], total, task=task),
        record,
        where=backend.where,
        sink=_sink(backend, options, record.fn, total, delay=delay, cancel=future.cancel),
        on_notice=partial(_warn, began=began),
    )


def _pickled(
    backend: Backend, fn: Callable[..., Any], options: RunOptions, began: tuple[str, int] | None = None
) -> tuple[bytes, Any]:
    """Pickle a function; say so if it is large and travels with every job."""
    function = backend.pickle_function(fn, options)
    notice = heavy_notice(fn, function[1])
    if notice is not None:
        _warn(notice, began)
    return function


def run_imap(
    backend: Backend,
    fn: Callable[..., Any],
    iterables: Sequence[Iterable[Any]],
    options: RunOptions,
    *,
    buffersize: int | None,
    ordered: bool,
) -> Iterator[Any]:
    """Return an iterator over the results of `fn` over the zipped iterables; nothing starts before the first is asked.

    Raises
    ------
    SerializationError
        If the function does not pickle.
    """
    if backend.mode is ServerMode.INLINE:
        backend.begin_inline(options)
        return imap_inline(fn, zip(*iterables, strict=False), options)
    source = ArgumentSource(iterables)
    return _imap_results(backend, fn, _pickled(backend, fn, options), source, options, buffersize, ordered)


def _imap_results(
    backend: Backend,
    fn: Callable[..., Any],
    function: tuple[bytes, Any],
    source: ArgumentSource,
    options: RunOptions,
    buffersize: int | None,
    ordered: bool,
) -> Iterator[Any]:
    if not source.has_more(0):
        return
    task = backend.task_name(fn)
    source.by_reference = task is not None
    driver = backend.ready_driver()
    total = options.total if source.total is None else source.total
    # The engine would stop at the first failure; what stands before it in order is to be handed out first.
    to_the_end = replace(options, return_exceptions=True)
    run = ImapRun(
        RunPort(driver, function, backend.place(), source.kind),
        backend.run_maker(driver, to_the_end, function[0], total, task=task),
        source,
        options,
        store=backend.arguments,
        buffersize=buffersize,
        ordered=ordered,
        make_sink=lambda cancel: _sink(backend, options, fn, total, delay=SHOW_AFTER, cancel=cancel),
        on_notice=_warn,
    )
    with own_frames_hidden:
        yield from run.results()


def _sink(
    backend: Backend,
    options: RunOptions,
    fn: Callable[..., Any],
    total: int | None,
    *,
    delay: float,
    cancel: Callable[[], object] | None = None,
) -> ProgressSink:
    # A task has no terminal, though its node may have been started in one.
    is_terminal = sys.stderr is not None and sys.stderr.isatty() and not child.is_child
    notebook = registered()
    is_notebook = notebook is not None and notebook.is_here() and not child.is_child
    kind = choose_sink(
        progress=options.progress,
        is_terminal=is_terminal,
        environ=os.environ,
        is_notebook=is_notebook,
        has_widgets=is_notebook and notebook is not None and notebook.has_widgets(),
    )
    request = SinkRequest(
        title=options.desc or str(getattr(fn, "__qualname__", type(fn).__name__)).replace("<locals>.", ""),
        where=backend.where,
        total=total,
        delay=0.0 if options.progress else delay,
        cancel=cancel,
    )
    return make_sink(kind, request, desc=options.desc, notebook=notebook)


def _users_line() -> tuple[str, int]:
    """Return the file and line that called us."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _warn(text: str, began: tuple[str, int] | None = None) -> None:
    """Warn as from the line of the user's code that called us, or in a thread of ours, that began this."""
    filename, line = _users_line()
    if began is not None and filename == threading.__file__:
        filename, line = began
    warnings.warn_explicit(text, RuntimeWarning, filename, line)
