"""Futures whose results are unpickled by whoever first asks for them.

Law of the file: the driver thread settles a future, it never unpickles for one. What it puts in is bytes: a share of a
`ResultBatch`, or a `PendingFailure` that is rebuilt into the task's own exception in the thread that asks.

Nearly all futures of many are asked once, after they were settled. So what the standard library's future needs for
being watched (a condition, two lists) is made when somebody watches. Until then a future changes only under the lock
that it shares with the others of its run, many at a time; from then on only under its own condition, as everywhere.
The shared lock is a leaf: nothing is locked, called or waited for under it. What a signal handler or the garbage
collector calls meanwhile, in the same thread, may take it again. It must not be the condition's own lock:
`concurrent.futures.wait` holds those of several futures at once and relies on there being one for each.

A future that a user has ended, by methods that are not for users, is left as it is: nothing that settles raises for it.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from gearmap.errors import SerializationError
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.retelling import retell, show
from gearmap.runtime.userframes import own_frames_hidden, raised_anew
from gearmap.wire.outcome import TaskFailure, rebuild_exception
from gearmap.wire.printed import NO_OUTPUT, Output
from gearmap.wire.serializer import loads
from gearmap.wire.shown import Bundle

__all__ = ["Future", "FutureOwner", "PendingFailure", "ResultBatch", "begin", "settle"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NOTHING_PRINTED: Mapping[int, Output] = MappingProxyType({})

# While a future is awaited the loop wakes this often, so that an interrupt is not held back until the result comes.
AWAIT_HEARTBEAT = 0.05


class ResultBatch:
    """Results of consecutive tasks, pickled together; unpickled at most once.

    Attributes
    ----------
    seconds
        How long one of the tasks took, on average; None if that is not known.
    attempts
        Which attempt of each of the tasks it was.
    outputs
        What tasks printed, by their offset.
    """

    __slots__ = ("_error", "_lock", "_payload", "_values", "attempts", "outputs", "seconds")

    def __init__(self, payload: Any, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.attempts = 1
        self.outputs: Mapping[int, Output] = _NOTHING_PRINTED
        self._payload = payload
        self._values: list[Any] | None = None
        self._error: SerializationError | None = None
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """How long they are, pickled; 0 once they were unpickled."""
        return sum(memoryview(part).nbytes for part in self._payload or ())

    def values(self) -> list[Any]:
        """Return the results.

        Raises
        ------
        SerializationError
            If they cannot be unpickled in this process.
        """
        if self._values is not None:
            return self._values
        with self._lock:
            if self._values is None and self._error is None:
                try:
                    self._values = loads(self._payload)
                except Exception as error:
                    cause = error.__cause__ or error
                    self._error = SerializationError(
                        f"a result came back, but cannot be unpickled here: {type(cause).__name__}: {cause}"
                    )
                    self._error.__cause__ = cause
                self._payload = None
            if self._error is not None:
                raise self._error
            assert self._values is not None
            return self._values


class PendingFailure(Exception):
    """Stands in a future for a task's exception until somebody asks; never seen by users."""

    def __init__(self, failure: TaskFailure | GivenUp, notes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.failure = failure
        self.notes = notes
        self.rebuilt: BaseException | None = None
        self.lock = threading.Lock()


class FutureOwner(Protocol):
    """Whoever settles futures."""

    def cancelled(self, future: Future[Any]) -> None:
        """The task of a future was cancelled. Any thread."""

    def printed_so_far(self, future: Future[Any]) -> Output:
        """Return what the task of a future that runs has printed. Any thread."""

    def call_elsewhere(self, call: Callable[[], None]) -> bool:
        """Have callbacks called in another thread, if this one must not call them; return whether that is so."""


class _Watch:
    """What a future has once it is watched."""

    __slots__ = ("callbacks", "condition", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.callbacks: list[Callable[[Any], object]] = []


class Future(concurrent.futures.Future[T]):
    """The result of one task, to come.

    A `concurrent.futures.Future` that can also be awaited.

    Parameters
    ----------
    task_index
        Position of the task in its run.
    owner
        Who is told when the task is cancelled, and knows where callbacks may be called.
    lock
        The lock that `begin` and `settle` hold for it and the others of its run.

    Attributes
    ----------
    task_index
        Position of the task in its run.
    attempts
        How often the task was run, once it is settled; what a server or a node did wrong is not counted.
    worker
        Name of the worker that settled it, or None.
    number
        What the run's engine calls the task; -1 while the driver has not seen it.
    """

    # There may be hundreds of thousands: one object each, without a dict of attributes.
    __slots__ = (
        "_lock",
        "_offset",
        "_output",
        "_owner",
        "_result",
        "_seconds",
        "_state",
        "_watch",
        "attempts",
        "number",
        "task_index",
        "worker",
    )

    _exception: BaseException | None = None

    def __init__(
        self,
        task_index: int,
        owner: FutureOwner | None = None,
        lock: threading.RLock | None = None,
    ) -> None:
        # Not the standard library's, which makes what `_watch` is for.
        self._state = PENDING
        self._result: Any = None
        self._offset = 0  # in the result, if that is a batch
        self._watch: _Watch | None = None
        self._lock = lock or threading.RLock()
        self._owner = owner
        self.task_index = task_index
        self.number = -1
        self.attempts = 0
        self.worker: str | None = None

    def _watched(self) -> _Watch:
        watch = self._watch
        if watch is None:
            made = _Watch()
            with self._lock:
                watch = self._watch
                if watch is None:
                    watch = self._watch = made
        return watch

    # The standard library's methods and functions use these names.

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # nobody sets it
        return self._watched().condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]  # nobody sets it
        return self._watched().waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Any], object]]:
        return self._watched().callbacks

    def cancel(self) -> bool:
        """Cancel the task if it still waits in this process; one that was sent to a job server is running."""
        was_cancelled = self.cancelled()
        cancelled = super().cancel()
        if cancelled and not was_cancelled and self._owner is not None:
            self._owner.cancelled(self)
        return cancelled

    def _invoke_callbacks(self) -> None:
        """Called by the standard library's methods when the state has changed for good."""
        watch = self._watch
        if watch is None or not watch.callbacks:
            return
        if self._owner is None or not self._owner.call_elsewhere(self._call_callbacks):
            self._call_callbacks()

    def _call_callbacks(self) -> None:
        super()._invoke_callbacks()  # type: ignore[misc]  # private, and the same in every version

    @property
    def duration(self) -> float | None:
        """Seconds that the task took: exact if its result came by itself, else the mean of those that came together.

        Of a task that ran too long it is what it took until it was stopped. None while the task is not settled, and
        if nobody knows: of a worker that was lost.
        """
        result = self._result
        if type(result) is ResultBatch:
            return result.seconds
        error = self._exception
        if isinstance(error, PendingFailure):
            return error.failure.seconds
        return getattr(self, "_seconds", None)  # set when the result was taken from its batch

    @property
    def stdout(self) -> str:
        """What the task wrote to its standard output; of much, the beginning and the end.

        While it runs it is what has come so far, some of it maybe left out; up to about half a second late.

        It is that of the attempt that gave the result or failed for good, also if that ended with its process.
        """
        return self._printed().stdout

    @property
    def stderr(self) -> str:
        """What the task wrote to its standard error; like `stdout`."""
        return self._printed().stderr

    @property
    def outputs(self) -> list[Bundle]:
        """What the task displayed, and the figures that it left open: the forms of each by their MIME types.

        A cell that ends with one of them shows it. In a notebook `result` shows all, once.
        """
        return self._printed().outputs

    def _printed(self) -> Output:
        if self._state == RUNNING and self._owner is not None:
            return self._owner.printed_so_far(self)
        result = self._result
        if type(result) is ResultBatch:
            return result.outputs.get(self._offset, NO_OUTPUT)
        error = self._exception
        if isinstance(error, PendingFailure):
            return error.failure.output
        return getattr(self, "_output", NO_OUTPUT)  # set when the result was taken from its batch

    def cancelled(self) -> bool:
        """Whether the task was cancelled."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """Whether the task was sent and is not settled."""
        return self._state == RUNNING

    def done(self) -> bool:
        """Whether the task is settled or cancelled."""
        return self._state in (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)

    def result(self, timeout: float | None = None) -> T:
        """Return the task's result, after waiting at most `timeout` seconds.

        Raises
        ------
        TimeoutError
            If it is not there in time; the task goes on.
        CancelledError
            If the task was cancelled.
        Exception
            The task's own exception; `WorkerLost` and other errors of gearmap.
        Warning
            What the task warned of, once, if that is an error here; the next call returns the result.
        """
        error: BaseException
        try:
            # What is there is read without a lock: the state is written last.
            is_there = self._state == FINISHED and self._exception is None
            value: Any = self._result if is_there else super().result(timeout)
        except PendingFailure as pending:
            error = self._rebuild(pending)
        else:
            result: T = self._take(value) if type(value) is ResultBatch else value
            return result
        with own_frames_hidden:
            try:
                raise raised_anew(error)
            finally:
                # A traceback that holds this frame must not hold the future, which holds the exception.
                del self, error

    def _take(self, batch: ResultBatch) -> Any:
        """Take the result out of its batch, so that it lives no longer than this future."""
        # Without a lock: the result stands here before it leaves the batch. Who finds the batch here has found the
        # result there; who does not takes what another thread has put here.
        values = batch.values()
        result = values[self._offset]
        if self._result is not batch:
            return self._result
        self._seconds = batch.seconds
        if batch.outputs:
            self._output = batch.outputs.get(self._offset, NO_OUTPUT)
        self._result = result
        values[self._offset] = None
        if batch.outputs and (self._output.notes or self._output.shown):
            show(self._output.outputs)
            retell(self.task_index, self._output.notes)  # last: it may raise, and the next call gives the result
        return result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the task's exception or None, after waiting at most `timeout` seconds.

        It is what `result` would raise, so it also tells of a result that cannot be unpickled here: who copies a
        future's state, as asyncio does, asks for the exception first and takes the result for granted after that.
        """
        error = super().exception(timeout)
        if isinstance(error, PendingFailure):
            return self._rebuild(error)
        value: Any = super().result(timeout) if error is None else None
        if isinstance(value, ResultBatch):
            try:
                self._take(value)
            except (SerializationError, Warning) as unreadable:
                return unreadable
        return error

    def __repr__(self) -> str:
        text = super().__repr__().replace(f" returned {ResultBatch.__name__}", "")
        error = super().exception(0) if self.done() and not self.cancelled() else None
        if isinstance(error, PendingFailure):
            text = text.replace(PendingFailure.__name__, error.failure.type_name)
        return text

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait_in_loop().__await__()

    async def _wait_in_loop(self) -> T:
        import asyncio  # who awaits has it; it would be a tenth of the start of everybody else

        wrapped = asyncio.wrap_future(self)
        with own_frames_hidden:
            while not wrapped.done():
                await asyncio.wait({wrapped}, timeout=AWAIT_HEARTBEAT)
            return wrapped.result()

    def let_run(self) -> bool:
        """Make it run if it waits; return whether it runs. False: it was cancelled, or a user has ended it."""
        with self._condition:  # the standard library takes it again
            if self._state in (PENDING, CANCELLED):
                return self.set_running_or_notify_cancel()
            return self._state == RUNNING

    def put(self, result: Any) -> None:
        """Settle it with a result, unless a user has ended it."""
        try:
            self.set_result(result)
        except concurrent.futures.InvalidStateError:
            self._was_ended()

    def put_exception(self, error: BaseException) -> None:
        """Settle it with an exception, unless a user has ended it."""
        try:
            self.set_exception(error)
        except concurrent.futures.InvalidStateError:
            self._was_ended()

    def _was_ended(self) -> None:
        logger.debug(
            "task %d has ended, but somebody had ended its future", self.task_index, extra={"action": "skip_settling"}
        )

    def _rebuild(self, pending: PendingFailure) -> BaseException:
        with pending.lock:
            if pending.rebuilt is None:
                failure = pending.failure
                if isinstance(failure, TaskFailure):
                    pending.rebuilt = rebuild_exception(failure, notes=pending.notes)
                else:
                    pending.rebuilt = failure.error()
                if failure.output.notes or failure.output.shown:
                    show(failure.output.outputs)
                    retell(self.task_index, failure.output.notes, is_raising=False)
            return pending.rebuilt


def begin(futures: Iterable[Future[Any]], lock: threading.RLock) -> list[Future[Any]]:
    """Let futures run that share a lock, and that may run already; return those that were cancelled or ended before."""
    watched = []
    with lock:
        for future in futures:
            if future._watch is not None:
                watched.append(future)
            else:
                future._state = RUNNING  # who cancels watches
    return [future for future in watched if not future.let_run()]


def settle(
    futures: Iterable[Future[Any] | None], lock: threading.RLock, batch: ResultBatch, offset: int, worker: str
) -> None:
    """Give running futures that share a lock the results of a batch, one after another from `offset` on.

    A result that belongs to None is left out.
    """
    watched = []
    with lock:
        for at, future in enumerate(futures, offset):
            if future is None:
                continue
            future.worker = worker
            future.attempts = batch.attempts
            future._offset = at
            if future._watch is not None:
                watched.append(future)
            else:
                future._result = batch
                future._state = FINISHED  # the last: others read it without the lock
    for future in watched:
        future.put(batch)
