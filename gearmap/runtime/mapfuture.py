"""A map that runs, or ran, as an object: its results so far, what failed, and how it goes on.

What must not live here: how a map is run (`maprun`, `inline`), and what is known of it (`maprecord`).

Rule 1: whoever runs the map ends it here, once, with an outcome; a run that goes on makes it begin again.
Rule 2: waiting changes nothing. Only `cancel` and `resume` do; and who stops awaiting it cancels it, as in asyncio.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError
from typing import Any, Generic, Protocol, TypeVar

from gearmap.core.events import TaskRange
from gearmap.errors import ClusterBroken, ConfigurationError
from gearmap.runtime.coroutines import awaited
from gearmap.runtime.failed import Failed
from gearmap.runtime.forking import watch_forks
from gearmap.runtime.futures import AWAIT_HEARTBEAT, Future
from gearmap.runtime.maprecord import MapRecord
from gearmap.runtime.report import write_report
from gearmap.runtime.userframes import own_frames_hidden, raised_anew
from gearmap.wire.outcome import describe_call
from gearmap.wire.printed import Output

__all__ = ["FailedTask", "FailedTasks", "Launch", "MapFuture", "Runner"]

logger = logging.getLogger(__name__)

R = TypeVar("R")


class Runner(Protocol):
    """One run of a map, ready to begin."""

    def execute(self) -> None:
        """Run what has no result; raise what ends it early."""

    def cancel(self) -> None:
        """End it; called by another thread."""


class Launch(Protocol):
    """Prepares a run of a map."""

    def __call__(self, future: MapFuture[Any], *, again: bool) -> Runner:
        """Return the first run, or one that goes on `again` after another."""


class FailedTask:
    """A task of a map that failed for good.

    Attributes
    ----------
    task_index
        Position of the task in the map, from 0.
    attempts
        How often it was submitted.
    worker
        The last worker that had it, or None.
    duration
        Seconds that its last attempt took, or None if nobody knows: its worker was lost.
    stdout, stderr
        What it printed in its last attempt; of much, the beginning and the end.
    """

    def __init__(self, record: MapRecord, failed: Failed) -> None:
        self._record = record
        self._failed = failed
        self._exception: BaseException | None = None
        self.task_index = failed.task
        self.attempts = failed.attempts
        self.worker = failed.worker
        self.duration = failed.seconds
        self.stdout, self.stderr = failed.output.stdout, failed.output.stderr

    @property
    def exception(self) -> BaseException:
        """What the task raised, or `WorkerLost`, `TaskTimeout` and their like."""
        if self._exception is None:
            self._exception = self._failed.error(total=self._record.total)
        return self._exception

    @property
    def traceback(self) -> str:
        """Where the task failed, as Python prints it, with the lines of cells; empty if it has raised nothing."""
        return self._failed.row().traceback

    @property
    def call(self) -> str:
        """The call, with short representations of its arguments; empty if they are not known."""
        if self._failed.call:
            return self._failed.call
        try:
            arguments = self._record.arguments_of(self.task_index)
        except Exception:  # they are the user's, and this is for a repr
            arguments = None
        return "" if arguments is None else describe_call(self._record.fn, arguments, {})

    def rerun_here(self) -> Any:
        """Call the function again with copies of the task's arguments, in this process: for `%debug` and breakpoints.

        Raises
        ------
        ConfigurationError
            If the arguments are gone: the task has a result by now.
        Exception
            What the function raises.
        """
        arguments = self._record.arguments_of(self.task_index)
        if arguments is None:
            raise ConfigurationError(f"the arguments of task {self.task_index} are gone: it has a result by now")
        return awaited(self._record.fn)(*arguments)

    def __repr__(self) -> str:
        on = f" on {self.worker}" if self.worker else ""
        times = "" if self.attempts <= 1 else f", attempt {self.attempts}"
        error = self.exception
        lines = str(error).splitlines() or [""]
        return f"<task {self.task_index}: {self.call or 'a call'} raised {type(error).__name__}: {lines[0]}{on}{times}>"


class FailedTasks(list[FailedTask]):
    """The failed tasks of a map; notebooks show them as a table."""


class MapFuture(Generic[R]):
    """A map that runs, or ran: what `map_async` returns, and `gearmap.last()` of every map.

    It can be awaited, and iterated over: that gives the results in order, as they come.
    """

    def __init__(self, record: MapRecord, launch: Launch) -> None:
        self.record = record
        self._launch = launch
        self._condition = record.condition
        self._runner: Runner | None = None
        self._is_done = False
        self._cancelled = False
        self._error: BaseException | None = None
        self._results: list[R] | None = None
        self._callbacks: list[Callable[[MapFuture[R]], object]] = []
        watch_forks(self)

    def _after_fork_in_child(self) -> None:
        """Whoever runs the map is in the parent: here it has ended, and can go on."""
        self._condition = self.record.condition = threading.Condition()
        self._runner = None
        self._callbacks = []
        if not self._is_done:
            self._is_done = True
            self._error = ClusterBroken("this map runs in the process that was forked; resume() runs the rest here")

    # -------------------------------------------------------------------------------------------------- for its makers

    def run_here(self) -> list[R]:
        """Run it in this thread; return the results, or raise what `result` would."""
        self._run(self._launch(self, again=False))
        return self.result()

    def run_quietly(self) -> None:
        """Run it in this thread; whoever asks is told how it ended."""
        self._run_quietly(self._launch(self, again=False))

    def run_in_thread(self) -> None:
        """Run it in a thread of its own, in the caller's context: by it a notebook knows whose cell the output is."""
        runner = self._runner = self._launch(self, again=False)
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._run_quietly, runner), name="gearmap-map", daemon=True).start()

    def _run(self, runner: Runner) -> None:
        self._runner = runner
        try:
            runner.execute()
        except CancelledError:
            self.end(cancelled=True)
        except Exception as error:
            self.end(error=error)
            raise
        except BaseException:  # Ctrl-C: whoever asks later was not interrupted
            self.end(cancelled=True)
            raise
        else:
            self.end(results=self.record.all_results())

    def _run_quietly(self, runner: Runner) -> None:
        try:
            self._run(runner)
        except Exception as error:
            logger.debug("a map in a thread failed: %s", type(error).__name__)
        except BaseException as error:  # from the user's pickling code, in a thread where nobody could catch it
            logger.debug("a map in a thread was ended: %s", type(error).__name__)

    def end(
        self, *, results: list[R] | None = None, error: BaseException | None = None, cancelled: bool = False
    ) -> None:
        """It has ended so, unless it was cancelled before."""
        with self._condition:
            self._runner = None
            if not self._is_done:
                self._results, self._error, self._cancelled, self._is_done = results, error, cancelled, True
            callbacks, self._callbacks = self._callbacks, []
            self._condition.notify_all()
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[MapFuture[R]], object]) -> None:
        try:
            callback(self)
        except Exception:
            logger.exception("exception calling callback for %r", self)

    # --------------------------------------------------------------------------------------------------- like a future

    def result(self, timeout: float | None = None) -> list[R]:
        """Return the results in order, after waiting at most `timeout` seconds.

        Raises
        ------
        TimeoutError
            If they are not there in time; the map goes on.
        CancelledError
            If the map was cancelled, or interrupted.
        Exception
            What `map` would raise.
        """
        with own_frames_hidden:
            self._wait(timeout)
            error = self._problem()
            if error is None:
                assert self._results is not None
                return self._results
            try:
                raise raised_anew(error)
            finally:
                # A traceback that holds this frame must not hold the future, which holds the exception.
                del self, error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, or None, after waiting at most `timeout` seconds.

        Raises
        ------
        TimeoutError
            If the map has not ended in time.
        CancelledError
            If it was cancelled, or interrupted.
        """
        self._wait(timeout)
        if self._cancelled:
            raise CancelledError
        return self._error

    def done(self) -> bool:
        """Whether the map has ended, well or not."""
        return self._is_done

    def cancelled(self) -> bool:
        """Whether the map was cancelled, or interrupted."""
        return self._cancelled

    def cancel(self) -> bool:
        """Cancel what has not ended: drop queued tasks, stop running ones. Return False if the map has ended already.

        Results that have come are kept; `resume` goes on.
        """
        with self._condition:
            if self._is_done:
                return self._cancelled
            self._is_done = self._cancelled = True
            runner = self._runner
            callbacks, self._callbacks = self._callbacks, []
            self._condition.notify_all()
        if runner is not None:
            runner.cancel()
        for callback in callbacks:
            self._call(callback)
        return True

    def add_done_callback(self, fn: Callable[[MapFuture[R]], object]) -> None:
        """Call `fn` with this object when the map has ended, in the thread that ends it; now if it has already."""
        with self._condition:
            if not self._is_done:
                self._callbacks.append(fn)
                return
        self._call(fn)

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._wait_in_loop().__await__()

    async def _wait_in_loop(self) -> list[R]:
        ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.add_done_callback(lambda _: ended.set_result(None))
        import asyncio  # as in `Future`

        wrapped = asyncio.wrap_future(ended)
        with own_frames_hidden:
            try:
                while not wrapped.done():
                    # The loop wakes now and then, so that an interrupt is not held back until the result comes.
                    await asyncio.wait({wrapped}, timeout=AWAIT_HEARTBEAT)
            except asyncio.CancelledError:
                self.cancel()  # as asyncio does with every future; a notebook's Interrupt comes this way
                raise
            return self.result()

    def _wait(self, timeout: float | None) -> None:
        with self._condition:
            if not self._condition.wait_for(lambda: self._is_done, timeout):
                # Not the builtin: before Python 3.11 that would not be caught as the standard library's.
                raise concurrent.futures.TimeoutError(f"{self._counts()} after {timeout:g} s; the map goes on")

    def _problem(self) -> BaseException | None:
        if not self._cancelled:
            return self._error
        return CancelledError(
            f"the map was cancelled: {self._counts()}; gearmap.last().partial() has the results, and resume() goes on"
        )

    # --------------------------------------------------------------------------------------------- results as they come

    def __iter__(self) -> Iterator[R]:
        """Yield the results in order, as they come; raise what ended the map at the first that will not come."""
        with own_frames_hidden:
            yield from self._as_they_come()

    def _as_they_come(self) -> Iterator[R]:
        first = 0
        while True:
            stop, is_done, results = self._wait_beyond(first)
            if is_done and results is not None:
                yield from results[first:]
                return
            for task in range(first, stop):
                yield self._settled(task)
            first = stop
            if is_done and stop == self.record.settled_until(stop):
                error = self._problem()
                assert error is not None
                raise raised_anew(error)

    def _wait_beyond(self, first: int) -> tuple[int, bool, list[R] | None]:
        """Wait for the end, or until task `first` is settled; return up to where all are, whether it ended, and how."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_done or self.record.settled_until(first) > first)
            return self.record.settled_until(first), self._is_done, self._results

    def _settled(self, task: int) -> Any:
        if self.record.is_done(task):
            return self.record.results_of(task, task + 1)[0]
        if self.record.options.return_exceptions:
            return self.record.failed[task].error(total=self.record.total)
        # The map is about to end because of it, or of another; that is what is to be raised.
        self._wait(None)
        error = self._problem()
        raise raised_anew(self.record.failed[task].error(total=self.record.total) if error is None else error)

    def as_completed(self) -> Iterator[Future[R]]:
        """Yield the settled tasks as they come: futures that are done, with their position as `task_index`.

        Tasks that failed are among them; tasks that did not run are not.

        Raises
        ------
        GearmapError
            When all that were settled are given, if the map ended early for another reason than a failed task.
        """
        reader = self.record.subscribe()
        try:
            while True:
                with self._condition:
                    self._condition.wait_for(lambda: reader or self._is_done)
                if not reader:
                    break
                yield from self._futures(reader)
        finally:
            self.record.unsubscribe(reader)
        error = self._problem()
        if error is not None and (self.record.options.return_exceptions or not self.record.failed):
            raise error

    def _futures(self, reader: deque[TaskRange]) -> Iterator[Future[R]]:
        first, stop = reader.popleft()
        for task in range(first, stop):
            future: Future[R] = Future(task)
            future.set_running_or_notify_cancel()
            failed = self.record.failed.get(task)
            future._output = self.record.output_of(task)
            if failed is not None:
                future.attempts, future.worker = failed.attempts, failed.worker
                future._seconds = failed.seconds
                future.set_exception(failed.error(total=self.record.total))
            else:
                future.set_result(self.record.results_of(task, task + 1)[0])
            yield future

    def partial(self) -> dict[int, R]:
        """Return the results so far: position of the task -> its result."""
        if self._results is not None and not self.record.failed:
            return dict(enumerate(self._results))
        return {
            task: result
            for first, stop in self.record.result_ranges()
            for task, result in zip(range(first, stop), self.record.results_of(first, stop), strict=True)
        }

    # ----------------------------------------------------------------------------------------------- what went wrong

    def failed(self) -> list[FailedTask]:
        """Return the tasks that have failed for good, in the order of their positions."""
        with self._condition:
            failed = sorted(self.record.failed.items())
        return FailedTasks(FailedTask(self.record, each) for _, each in failed)

    def output(self, task: int) -> Output:
        """Return what a settled task printed, as `.stdout` and `.stderr`; of much, the beginning and the end.

        `.outputs` is what it displayed, and the figures that it left open. A cell that ends with this shows all.

        Of all tasks together 4 MiB are kept, the newest; for what is not there, all are empty.
        """
        return self.record.output_of(task)

    def resume(self, fn: Callable[..., R] | None = None) -> list[R]:
        """Run every task that has no result: failed, cancelled, or never read from the iterables; return all results.

        Results that are there are kept. It waits, shows progress and raises as `map` does, with the map's options, and
        may be called again after another failure. It runs on the client that ran the map, or, once that is closed, on
        the current one. Large arrays among the arguments are not copied: what they hold now is what counts.

        Parameters
        ----------
        fn
            Another function to call for them, a corrected one for example.

        Raises
        ------
        ConfigurationError
            If the map has not ended.
        Exception
            As `map`.
        """
        with own_frames_hidden:
            return self._resume(fn)

    def _resume(self, fn: Callable[..., R] | None) -> list[R]:
        with self._condition:
            if not self._is_done:
                raise ConfigurationError("the map has not ended: wait for its result(), or cancel() it first")
            self._condition.wait_for(lambda: self._runner is None)  # it was cancelled just now
            if self._results is not None and not self.record.failed:
                return self._results
            state = (self._results, self._error, self._cancelled)
            self._results = self._error = None
            self._cancelled = self._is_done = False
        previous, self.record.fn = self.record.fn, fn or self.record.fn
        try:
            runner = self._launch(self, again=True)
        except BaseException:
            self.record.fn = previous
            with self._condition:
                self._results, self._error, self._cancelled = state
                self._is_done = True
            raise
        self.record.reopen()
        self._run(runner)
        return self.result()

    def report(self) -> str:
        """Return a text for a bug report: options, versions, workers, counts of what was lost and run again.

        It names the function, and holds no arguments, results or keys.
        """
        fn = self.record.fn
        module = getattr(fn, "__module__", None)
        return write_report(
            function=f"{module}.{self._name}" if module else self._name,
            options=self.record.options,
            counts=f"{self._state}, {self._counts()}",
            runs=list(self.record.notes),
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._name}: {self._state}, {self._counts()}>"

    @property
    def _name(self) -> str:
        return str(getattr(self.record.fn, "__qualname__", type(self.record.fn).__name__))

    @property
    def _state(self) -> str:
        if not self._is_done:
            return "running"
        if self._cancelled:
            return "cancelled"
        return "done" if self._error is None else f"failed: {type(self._error).__name__}"

    def _counts(self) -> str:
        of = "" if self.record.total is None else f" of {self.record.total}"
        n_failed = len(self.record.failed)
        return f"{self.record.n_done}{of} tasks done" + (f", {n_failed} failed" if n_failed else "")
