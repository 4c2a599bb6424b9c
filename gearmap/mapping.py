"""From options to a run: what `map` and its like do on a backend, whoever asks for it.

What must not live here: which backend that is, and what a person types (`client`, `executor`, `api`).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from gearmap.backend import Backend
from gearmap.config import RunOptions, ServerMode
from gearmap.core.snapshot import ProgressSink
from gearmap.display.sinks import choose_sink, make_sink
from gearmap.runtime.arguments import ArgumentSource
from gearmap.runtime.imaprun import ImapRun
from gearmap.runtime.inline import imap_inline, run_inline
from gearmap.runtime.maprun import MapRun
from gearmap.runtime.port import RunPort

__all__ = ["run_imap", "run_map"]

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def run_map(
    backend: Backend, fn: Callable[..., Any], iterables: Sequence[Iterable[Any]], options: RunOptions, *, rows: bool
) -> list[Any]:
    """Run `fn` over the zipped iterables, or with each row of the only one; return the results in order."""
    source = ArgumentSource(iterables, rows=rows)
    if not source.has_more(0):
        return []
    if backend.mode is ServerMode.INLINE:
        values = (tuple(row) for row in iterables[0]) if rows else zip(*iterables, strict=False)
        return run_inline(fn, values, options)
    function = backend.pickle_function(fn)
    driver = backend.ready_driver()
    run = MapRun(
        driver,
        source,
        function,
        place=backend.place(),
        sink=_sink(backend, options),
        on_notice=_warn,
        timeout=options.timeout,
        return_exceptions=options.return_exceptions,
    )
    total = options.total if source.total is None else source.total
    return run.execute(backend.run_maker(driver, options, function[0], total))


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
        return imap_inline(fn, zip(*iterables, strict=False), options)
    source = ArgumentSource(iterables)
    return _imap_results(backend, backend.pickle_function(fn), source, options, buffersize, ordered)


def _imap_results(
    backend: Backend,
    function: tuple[bytes, Any],
    source: ArgumentSource,
    options: RunOptions,
    buffersize: int | None,
    ordered: bool,
) -> Iterator[Any]:
    if not source.has_more(0):
        return
    driver = backend.ready_driver()
    total = options.total if source.total is None else source.total
    # The engine would stop at the first failure; what stands before it in order is to be handed out first.
    to_the_end = replace(options, return_exceptions=True)
    run = ImapRun(
        RunPort(driver, function, backend.place(), source.kind),
        backend.run_maker(driver, to_the_end, function[0], total),
        source,
        options,
        buffersize=buffersize,
        ordered=ordered,
        sink=_sink(backend, options),
        on_notice=_warn,
    )
    yield from run.results()


def _sink(backend: Backend, options: RunOptions) -> ProgressSink:
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    kind = choose_sink(progress=options.progress, is_terminal=is_terminal, environ=os.environ)
    return make_sink(kind, desc=options.desc, where=backend.where, explicit=bool(options.progress))


def _warn(text: str) -> None:
    """Warn as from the line of the user's code that called us."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)
