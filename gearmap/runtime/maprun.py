"""One `map`: the calling thread feeds arguments, unpickles results as they come, and waits.

Rule 1: the user's iterables are advanced, and the user's objects pickled and unpickled, in the calling thread only.
Rule 2: the driver and the caller meet in one mailbox under one condition; neither waits for the other to work.
Rule 3: whatever ends the wait early (an error, a timeout, Ctrl-C) cancels the run before it goes up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from gearmap.core import events as ev
from gearmap.core.snapshot import ProgressSink, ProgressSnapshot
from gearmap.errors import GearmapError, RunTimeout
from gearmap.runtime.arguments import ArgumentSource, pickle_block
from gearmap.runtime.driver import Driver
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.run import Place, Run
from gearmap.runtime.wording import failure_note
from gearmap.wire.outcome import TaskFailure, rebuild_exception

__all__ = ["MapRun"]

# The longest uninterrupted wait: Ctrl-C, the timeout and the progress display are looked at this often (seconds).
WAIT_STEP = 0.1


class MapRun:
    """The consumer of one map's run, and the loop of the thread that waits for it."""

    def __init__(
        self,
        driver: Driver,
        source: ArgumentSource,
        function: tuple[bytes, Any],
        *,
        place: Place,
        sink: ProgressSink,
        on_notice: Callable[[str], None],
        timeout: float | None,
        return_exceptions: bool,
    ) -> None:
        self._driver = driver
        self._source = source
        self._function = function
        self._place = place
        self._sink = sink
        self._on_notice = on_notice
        self._timeout = timeout
        self._return_exceptions = return_exceptions
        self._run: Run | None = None
        self._results: list[Any] = []
        self._next_block = 0
        self._condition = threading.Condition()
        # The mailbox; everything below belongs to the condition.
        self._arrived: deque[tuple[int, int, ResultBatch, int]] = deque()
        self._failures: deque[tuple[int, Any]] = deque()
        self._told = False  # whether the caller is about to be told of `_arrived`
        self._wanted = 0
        self._snapshot: ProgressSnapshot | None = None
        self._notice = ""
        self._error: GearmapError | None = None
        self._end: ProgressSnapshot | None = None

    def execute(self, make_run: Callable[[MapRun], Run]) -> list[Any]:
        """Run the map; return its results in order. `make_run` is called in the driver thread.

        Raises
        ------
        RunTimeout
            If it takes longer than `timeout`.
        GearmapError
            If the run cannot go on.
        Exception
            The first failing task's own exception.
        """
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        self._driver.post(lambda: self._open(make_run))
        note = "interrupted"
        try:
            self._wait(deadline)
            note = "" if self._error is None and not self._failures else "failed"
            return self._conclude()
        except Exception as error:
            note = f"failed: {type(error).__name__}"
            raise
        finally:
            self._driver.post(self._cancel)
            last = self._end or self._snapshot
            if last is not None:
                self._sink.finish(last, note)

    # ----------------------------------------------------------------------------------------------- calling thread

    def _wait(self, deadline: float | None) -> None:
        shown: ProgressSnapshot | None = None
        while True:
            with self._condition:
                self._condition.wait_for(self._has_mail, _step(deadline))
                wanted, self._wanted = self._wanted, 0
                # Blocks go first, before each batch: what is wanted, idle workers wait for.
                arrived = self._arrived.popleft() if self._arrived and not wanted else None
                snapshot, notice, end = self._snapshot, self._notice, self._end
                self._notice = ""
                error, is_more = self._error, bool(self._arrived)
            if arrived is not None:
                self._place_results(*arrived)
            if not is_more and (error is not None or end is not None):
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise self._timed_out(snapshot)
            if notice:
                self._sink.notice(notice)
                self._on_notice(notice)
            if wanted and error is None and end is None:
                self._feed(wanted)
            if snapshot is not None and snapshot is not shown:
                shown = snapshot
                self._sink.update(snapshot)

    def _place_results(self, first: int, size: int, batch: ResultBatch, offset: int) -> None:
        values = batch.values()
        if offset or size != len(values):
            values = values[offset : offset + size]
        self._results[first : first + size] = values

    def _has_mail(self) -> bool:
        return bool(self._arrived or self._wanted or self._notice or self._end is not None or self._error is not None)

    def _feed(self, size: int) -> None:
        """Pickle the next block and hand it to the driver."""
        first = len(self._results)
        value, taken = self._source.take(first, size)
        ended = not self._source.has_more(first + taken)
        if taken:
            payload = pickle_block(self._source, value, first, taken)
            self._source.forget(first + taken)
            self._results.extend([None] * taken)
            length = sum(memoryview(part).nbytes for part in payload)
            block = ev.Block(self._next_block, first, taken, self._function[0], length)
            self._next_block += 1
            self._driver.post(lambda: self._add(block, payload, ended))
        else:
            self._driver.post(lambda: self._add(None, None, ended))

    def _timed_out(self, snapshot: ProgressSnapshot | None) -> RunTimeout:
        total = self._source.total
        done = 0 if snapshot is None else snapshot.done
        of = "" if total is None else f" of {total}"
        return RunTimeout(f"{done}{of} tasks done after timeout={self._timeout:g} s; the run was cancelled")

    def _conclude(self) -> list[Any]:
        if self._error is not None:
            raise self._error
        # Handed over, not shared: a run is a net of cycles, and must not keep large results until the next collection.
        results, self._results = self._results, []
        failures = sorted(self._failures, key=lambda pair: pair[0])
        if not failures:
            return results
        if self._return_exceptions:
            for task, failure in failures:
                results[task] = self._rebuild(task, failure, "")
            return results
        task, failure = self._failures[0]
        error = self._rebuild(task, failure, self._counts())
        try:
            raise error
        finally:
            # A traceback that holds this frame must not hold the results, nor the exception itself.
            del error, results, self

    def _rebuild(self, task: int, failure: Any, counts: str) -> BaseException:
        total = self._source.total
        where = f"task {task}" + ("" if total is None else f" of {total}")
        if isinstance(failure, GivenUp):
            return _with_note(failure.error(), f"({where}{counts})")
        described, attempts, worker = failure
        assert isinstance(described, TaskFailure)
        note = failure_note(where, described, attempts=attempts, worker=worker, counts=counts)
        return rebuild_exception(described, notes=(note,))

    def _counts(self) -> str:
        end = self._end
        if end is None:
            return ""
        others = end.failed - 1
        noun = "task" if others == 1 else "tasks"
        failed = f", {others} other {noun} failed" if others > 0 else ""
        return f"; {end.done} done{failed}, {end.cancelled} not run"

    # ------------------------------------------------------------------------------------------------ driver thread

    def _open(self, make_run: Callable[[MapRun], Run]) -> None:
        self._run = make_run(self)
        self._driver.add(self._run)
        self._run.tell(ev.Tick())

    def _add(self, block: ev.Block | None, payload: Any, ended: bool) -> None:
        run = self._run
        assert run is not None
        if block is not None:
            run.add_block(block, self._source.kind, payload, self._place, self._function)
        if ended:
            run.tell(ev.InputEnded())

    def _cancel(self) -> None:
        if self._run is not None and not self._run.closed:
            self._run.cancel()

    def claim(self, first: int, stop: int) -> Sequence[int]:
        return ()

    def delivered(self, first: int, size: int, batch: ResultBatch, offset: int, worker: str) -> None:
        with self._condition:
            self._arrived.append((first, size, batch, offset))
            told, self._told = self._told, True
        if not told:
            # In the driver's next round: a caller that unpickles now takes the interpreter lock, for milliseconds each
            # time, from a driver that is about to send the next job.
            self._driver.post(self._tell)

    def _tell(self) -> None:
        with self._condition:
            self._told = False
            self._condition.notify()

    def failed(self, task: int, failure: Any, attempts: int, worker: str) -> None:
        with self._condition:
            self._failures.append((task, (failure, attempts, worker)))

    def gave_up(self, task: int, reason: GivenUp) -> None:
        with self._condition:
            self._failures.append((task, reason))

    def broken(self, error: GearmapError) -> None:
        with self._condition:
            self._error = error
            self._condition.notify()

    def wanted(self, size: int) -> None:
        with self._condition:
            self._wanted = size
            self._condition.notify()

    def progressed(self, snapshot: ProgressSnapshot) -> None:
        with self._condition:
            self._snapshot = snapshot

    def noticed(self, text: str) -> None:
        with self._condition:
            self._notice = text
            self._condition.notify()

    def ended(self, snapshot: ProgressSnapshot) -> None:
        with self._condition:
            self._end = snapshot
            self._condition.notify()


def _step(deadline: float | None) -> float:
    return WAIT_STEP if deadline is None else max(0.0, min(WAIT_STEP, deadline - time.monotonic()))


def _with_note(error: BaseException, note: str) -> BaseException:
    if hasattr(error, "add_note"):
        error.add_note(note)
    return error
