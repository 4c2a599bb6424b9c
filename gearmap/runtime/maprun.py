"""One run of a map: the calling thread feeds arguments, unpickles results as they come, and waits.

Rule 1: the user's iterables are advanced, and the user's objects pickled and unpickled, in the calling thread only.
Rule 2: what is to be kept is in the record; a run that is over knows nothing that a later one needs.
Rule 3: whatever ends the wait early (an error, a timeout, Ctrl-C) cancels the run before it goes up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError

from gearmap.core.snapshot import ProgressSink, ProgressSnapshot
from gearmap.errors import GearmapError, SerializationError
from gearmap.runtime.failed import Failed
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.maprecord import MapRecord
from gearmap.runtime.port import WAIT_STEP, Mail, RunPort
from gearmap.runtime.printing import Echo
from gearmap.runtime.report import RunNotes
from gearmap.runtime.run import Run

__all__ = ["MapRun"]

# Once so many tasks went out at once, the workers have something to do for a while.
_MANY_TASKS = 4096


class MapRun:
    """The loop of the thread that waits for one run.

    Parameters
    ----------
    port
        The run, not yet open.
    make_run
        Makes it; called in the driver thread.
    record
        What is to be run, and where results go.
    where
        Where it runs, in words.

    Attributes
    ----------
    leftover
        What may go while the tasks run: letting go of a million results takes ten milliseconds.
    """

    def __init__(
        self,
        port: RunPort,
        make_run: Callable[[RunPort], Run],
        record: MapRecord,
        *,
        where: str,
        sink: ProgressSink,
        on_notice: Callable[[str], None],
    ) -> None:
        self._port = port
        self._make_run = make_run
        self._record = record
        self._sink = sink
        self._echo = Echo(sink, is_kept=True)
        self._on_notice = on_notice
        self._arrived: deque[tuple[int, int, ResultBatch, int, str]] = deque()
        self._error: GearmapError | None = None
        self._notes = RunNotes(where)
        self._began = 0.0
        self._end: ProgressSnapshot | None = None
        self._cancelled = False
        self.leftover: object = None

    def cancel(self) -> None:
        """End the run; may be called by any thread."""
        self._cancelled = True
        self._port.interrupt()

    def execute(self) -> None:
        """Run what has no result.

        Raises
        ------
        RunTimeout
            If it takes longer than `timeout`.
        CancelledError
            If somebody has cancelled it.
        GearmapError
            If the run cannot go on.
        Exception
            The first failing task's own exception, or the iterable's.
        """
        timeout = self._record.options.timeout
        self._began = time.monotonic()
        deadline = None if timeout is None else self._began + timeout
        self._record.notes.append(self._notes)
        outcome = note = "interrupted"
        try:
            self._port.open(self._make_run)
            self._go_on()
            self._wait(deadline)
            note = "failed" if self._error is not None or self._record.failed else ""
            self._conclude()
            outcome = "done"
        except CancelledError:
            outcome = note = "cancelled"
            raise
        except Exception as error:
            outcome = note = f"failed: {type(error).__name__}"
            raise
        finally:
            self.leftover = None
            self._port.cancel()
            self._keep(self._port.take(0.0))
            self._notes.elapsed = time.monotonic() - self._began
            self._notes.outcome = outcome
            if note:
                self._record.keep()
            # Failures among the results are no bad end: they are counted.
            self._sink.finish(self._notes.last or self._nothing_yet(), "" if outcome == "done" else note)
            self._echo.end(is_raising=outcome == "done")  # last: the books are kept

    def _nothing_yet(self) -> ProgressSnapshot:
        """Return the state of a run that has ended before anything was heard of it."""
        record = self._record
        return ProgressSnapshot(
            total=record.total,
            done=record.n_done,
            failed=0,
            cancelled=0,
            running=0,
            queued=0,
            again=0,
            elapsed=self._notes.elapsed,
            workers=None,
            earlier=record.n_done,
        )

    def _go_on(self) -> None:
        """Send what an earlier run has left."""
        for piece in self._record.pieces():
            self._port.add(piece.first, piece.size, piece.content, done=piece.done)
        if not self._record.has_more:
            self._port.end_input()

    def _wait(self, deadline: float | None) -> None:
        record = self._record
        while True:
            mail = self._port.take(0.0 if self._arrived else _step(deadline))
            self._read(mail)
            is_over = self._end is not None or self._error is not None
            if mail.wanted and not is_over:
                # Before anything is unpickled: idle workers wait for it.
                self._feed(mail.wanted)
            elif self._arrived:
                self._place(self._arrived[0])
                self._arrived.popleft()
            if is_over and not self._arrived:
                return
            if self._cancelled:
                raise CancelledError
            if deadline is not None and time.monotonic() >= deadline:
                raise record.timed_out()

    def _read(self, mail: Mail) -> None:
        self._arrived.extend(mail.results)
        for failed in mail.failed:
            self._record.fail(failed)
            self._sink.failed(failed.row())
        self._error = self._error or mail.error
        self._end = self._end or mail.end
        snapshot = mail.end or mail.snapshot
        if mail.notice:
            self._sink.notice(mail.notice)
            self._on_notice(mail.notice)
        if snapshot is not None:
            notes = self._notes
            notes.run_id, notes.last, notes.tally = self._port.run_id, snapshot, mail.tally
            notes.elapsed = time.monotonic() - self._began
            if mail.end is None:
                self._sink.update(snapshot)
        self._echo.live(mail.printed)
        for failed in mail.failed:
            self._echo.failed(failed)  # last: a stream that raises, or Ctrl-C while it is slow, must not cost the books

    def _feed(self, size: int) -> None:
        """Pickle the next block and hand it to the driver."""
        first, taken, payload = self._record.take(size)
        ended = not self._record.has_more
        if taken:
            self._port.add(first, taken, payload, ended=ended)
            if taken >= _MANY_TASKS:
                self.leftover = None
        elif ended:
            self._port.end_input()

    def _place(self, piece: tuple[int, int, ResultBatch, int, str]) -> None:
        first, size, batch, offset, worker = piece
        self._notes.arrived(worker, size, time.monotonic() - self._began)
        if batch.outputs:
            for at, output in batch.outputs.items():
                if offset <= at < offset + size:
                    self._record.printed(first + at - offset, output)
            self._echo.results(first, batch, offset, size)
        try:
            values = batch.values()
        except SerializationError as unreadable:
            for task in range(first, first + size):
                self._record.fail(Failed(task, unreadable, 1, worker))
            if not self._record.options.return_exceptions:
                raise
            return
        self._record.place(first, values if size == len(values) else values[offset : offset + size])

    def _keep(self, mail: Mail) -> None:
        """Take in what came while the wait was ended: nothing that is finished is lost."""
        self._read(mail)
        while self._arrived:
            try:
                self._place(self._arrived[0])
            except SerializationError:
                pass  # there is a reason for the end already
            self._arrived.popleft()

    def _conclude(self) -> None:
        if self._error is not None:
            raise self._error
        if self._record.failed and not self._record.options.return_exceptions:
            end = self._end
            assert end is not None
            error = self._record.first_error(done=end.done, others=end.failed - 1, not_run=end.cancelled)
            try:
                raise error
            finally:
                del error  # a traceback that holds this frame must not hold the exception
        self._record.check_source()


def _step(deadline: float | None) -> float:
    return WAIT_STEP if deadline is None else max(0.0, min(WAIT_STEP, deadline - time.monotonic()))
