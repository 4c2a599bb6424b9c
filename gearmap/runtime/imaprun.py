"""One `imap`: lazy in and out, within bounds.

Rule 1: everything happens in the thread that asks for the next result, while it asks: the iterable is advanced, blocks
are pickled, results are unpickled. Between two results nothing of the user's runs here.
Rule 2: what was taken from the iterable and not yet handed out is bounded (`core.buffering`), so an endless iterable
and a slow consumer cost a constant amount of memory.
Rule 3: an error comes in its place: what stands before it is handed out first. Whatever ends the iteration, also that
nobody wants the rest, ends the run. Only a cancel does not wait for its turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

from gearmap.config import RunOptions
from gearmap.core.buffering import AsTheyCome, Buffer, InOrder
from gearmap.core.snapshot import ProgressSink, ProgressSnapshot
from gearmap.errors import GearmapError, RunTimeout, SerializationError
from gearmap.runtime.arguments import ArgumentSource, pickle_block
from gearmap.runtime.failed import Failed
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.placed import ArgumentPlacer
from gearmap.runtime.port import WAIT_STEP, Mail, RunPort
from gearmap.runtime.printing import Echo
from gearmap.runtime.run import Run

__all__ = ["ImapRun"]

# How long the iterable is asked for one block (seconds). Raised: larger blocks from slow iterables; lowered: what they
# gave is on its way sooner.
PATIENCE = 0.01

_Piece = tuple[int, ResultBatch, int] | Failed
"""The first task, a batch and where in it the results begin; or the one task that has none."""


class ImapRun:
    """The loop behind an `imap`.

    Parameters
    ----------
    port
        The run, not yet open.
    make_run
        Makes it. Its engine must not stop at the first failure: what stands before that is still wanted.
    store
        Where large buffers of arguments go, if there is such a place.
    make_sink
        Makes what shows it, of what cancels it.
    """

    def __init__(
        self,
        port: RunPort,
        make_run: Callable[[RunPort], Run],
        source: ArgumentSource,
        options: RunOptions,
        *,
        store: ArgumentPlacer | None,
        buffersize: int | None,
        ordered: bool,
        make_sink: Callable[[Callable[[], object]], ProgressSink],
        on_notice: Callable[[str], None],
    ) -> None:
        self._port = port
        self._make_run = make_run
        self._source = source
        self._store = store
        self._options = options
        self._sink = make_sink(self.cancel)
        self._echo = Echo(self._sink, is_kept=False)
        self._on_notice = on_notice
        self._buffer = Buffer(buffersize=buffersize, chunksize=options.chunksize, max_workers=options.max_workers)
        self._arrived: InOrder[_Piece] | AsTheyCome[_Piece] = InOrder() if ordered else AsTheyCome()
        self._taken = 0
        self._done = 0
        self._wanted = 0
        self._workers: int | None = None
        self._deadline: float | None = None
        self._input_ended = False
        self._input_error: Exception | None = None
        self._is_slow = False  # the iterable: what is here is handed out before more is asked of it
        self._last: ProgressSnapshot | None = None
        self._end: ProgressSnapshot | None = None
        self._error: GearmapError | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End the run now, and the iteration with the next result that is asked for; may be called by any thread."""
        self._cancelled = True
        self._port.cancel()
        self._port.interrupt()

    def results(self) -> Iterator[Any]:
        """Run, and yield the results.

        Raises
        ------
        RunTimeout
            If it takes longer than `timeout` from the first result asked for to the last.
        GearmapError
            If the run cannot go on.
        CancelledError
            If somebody has cancelled it.
        Exception
            What the first failing task raised, or the iterable.
        """
        if self._options.timeout is not None:
            self._deadline = time.monotonic() + self._options.timeout
        self._port.open(self._make_run)
        note = "stopped"
        try:
            while (values := self._next()) is not None:
                for value in values:
                    self._check_cancelled()
                    yield value
                self._buffer.handed_out(len(values))
                del value, values  # they may be large, and the next wait may be long
            note = ""
        except CancelledError:
            note = "cancelled"
            raise
        except KeyboardInterrupt:
            note = "interrupted"
            raise
        except Exception as error:
            note = f"failed: {type(error).__name__}"
            raise
        finally:
            self._port.cancel()
            last = self._end or self._last
            if last is not None:
                self._sink.finish(last, note)
            self._echo.end(is_raising=not note)

    def _next(self) -> list[Any] | None:
        """Return the next results, or None at the end."""
        while True:
            self._check_cancelled()
            self._read(self._port.take(0.0))
            has_fed = False
            while not (self._arrived.ready and self._is_slow) and self._feed():
                has_fed = True
            if self._arrived.ready:
                return self._values(*self._arrived.pop())
            if self._error is not None:
                raise self._error
            if self._end is not None:
                if self._input_error is not None:
                    raise self._input_error
                return None
            if not has_fed:
                self._wait()

    def _wait(self) -> None:
        left = self._seconds_left()
        if left <= 0:
            raise self._timed_out()
        self._read(self._port.take(min(WAIT_STEP, left)))

    def _seconds_left(self) -> float:
        return WAIT_STEP if self._deadline is None else self._deadline - time.monotonic()

    def _read(self, mail: Mail) -> None:
        for first, size, batch, offset, _ in mail.results:
            self._buffer.arrived(size, batch.size_bytes)
            self._done += size
            self._arrived.add(first, size, (first, batch, offset))
        for failed in mail.failed:
            self._arrived.add(failed.task, 1, failed)
            self._sink.failed(failed.row())
        self._error = self._error or mail.error
        self._end = self._end or mail.end
        self._wanted = mail.wanted or self._wanted
        if mail.notice:
            self._sink.notice(mail.notice)
            self._on_notice(mail.notice)
        if mail.snapshot is not None:
            self._last = mail.snapshot
            self._workers = mail.snapshot.workers
            self._sink.update(mail.snapshot)
        self._echo.live(mail.printed)

    def _feed(self) -> bool:
        """Take the next block from the iterable, if there is room for it; return whether anything was done."""
        if not self._wanted or self._input_ended or self._seconds_left() <= 0:
            return False
        size = self._buffer.next_block(self._wanted, self._workers)
        if not size:
            return False
        taken, payload = self._take(self._taken, size)
        has_more = self._input_error is None and self._source.has_more(self._taken + taken)
        self._input_ended = not has_more
        if taken:
            length = self._port.add(self._taken, taken, payload, ended=self._input_ended)
            self._buffer.took(taken, length)
            self._taken += taken
            self._source.forget(self._taken)
        elif self._input_ended:
            self._port.end_input()
        return True

    def _take(self, first: int, size: int) -> tuple[int, Any]:
        """Return the size of the next block and its payload. An error of the iterable has its place after the block."""
        began = time.monotonic()
        try:
            value, taken = self._source.take(first, size, patience=PATIENCE)
        except Exception as error:
            self._input_error = error
            value, taken = self._source.held(first, size)
        self._is_slow = time.monotonic() - began > PATIENCE
        try:
            return taken, pickle_block(self._source, value, first, taken, self._store) if taken else None
        except SerializationError as error:
            if taken > 1:
                return self._take(first, taken // 2)  # what stands before the culprit is still wanted
            self._input_error = error
            return 0, None

    def _values(self, size: int, piece: _Piece) -> list[Any]:
        if isinstance(piece, Failed):
            self._echo.failed(piece)
            error = piece.error(total=self._source.total)
            if self._options.return_exceptions:
                return [error]
            try:
                raise error
            finally:
                del error  # a traceback that holds this frame must not hold the exception
        first, batch, offset = piece
        if batch.outputs:
            self._echo.results(first, batch, offset, size)
        try:
            values = batch.values()
        except SerializationError as unreadable:
            if not self._options.return_exceptions:
                raise
            return [unreadable] * size
        return values if size == len(values) else values[offset : offset + size]

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError(f"the imap was cancelled: {self._counts()}")

    def _timed_out(self) -> RunTimeout:
        return RunTimeout(f"{self._counts()} after timeout={self._options.timeout:g} s; the run was cancelled")

    def _counts(self) -> str:
        of = "" if self._source.total is None else f" of {self._source.total}"
        return f"{self._done}{of} tasks done"
