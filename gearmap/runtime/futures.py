"""Futures whose results are unpickled by whoever first asks for them.

Law of the file: the driver thread settles a future, it never unpickles for one. What it puts in is bytes: a share of a
`ResultBatch`, or a `PendingFailure` that is rebuilt into the task's own exception in the thread that asks.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from gearmap.errors import SerializationError
from gearmap.wire.outcome import TaskFailure, rebuild_exception
from gearmap.wire.serializer import loads

__all__ = ["Future", "PendingFailure", "ResultBatch", "ResultShare"]

T = TypeVar("T")

# While a future is awaited the loop wakes this often, so that an interrupt is not held back until the result comes.
AWAIT_HEARTBEAT = 0.05


class ResultBatch:
    """Results of consecutive tasks, pickled together; unpickled at most once."""

    __slots__ = ("_error", "_lock", "_payload", "_values")

    def __init__(self, payload: Any) -> None:
        self._payload = payload
        self._values: list[Any] | None = None
        self._error: SerializationError | None = None
        self._lock = threading.Lock()

    def value(self, offset: int) -> Any:
        """Return one of the results; raises like `values`."""
        values = self._values
        return self.values()[offset] if values is None else values[offset]

    def values(self) -> list[Any]:
        """Return the results.

        Raises
        ------
        SerializationError
            If they cannot be unpickled in this process.
        """
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


class ResultShare:
    """One task's result in a batch. There is one for each task, so it is no dataclass: those are made slowly."""

    __slots__ = ("batch", "offset")

    def __init__(self, batch: ResultBatch, offset: int) -> None:
        self.batch = batch
        self.offset = offset


class PendingFailure(Exception):
    """Stands in a future for a task's exception until somebody asks; never seen by users."""

    def __init__(self, failure: TaskFailure, notes: tuple[str, ...]) -> None:
        super().__init__()
        self.failure = failure
        self.notes = notes
        self.rebuilt: BaseException | None = None
        self.lock = threading.Lock()


class Future(concurrent.futures.Future[T]):
    """The result of one task, to come.

    A `concurrent.futures.Future` that can also be awaited.

    Attributes
    ----------
    task_index
        Position of the task in its run.
    attempts
        How often the task was submitted, once it is settled.
    worker
        Name of the worker that settled it, or None.
    """

    def __init__(self, task_index: int, on_cancel: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.task_index = task_index
        self.attempts = 0
        self.worker: str | None = None
        self._on_cancel = on_cancel

    def cancel(self) -> bool:
        """Cancel the task if it still waits in this process; one that was sent to a job server is running."""
        was_cancelled = self.cancelled()
        cancelled = super().cancel()
        if cancelled and not was_cancelled and self._on_cancel is not None:
            self._on_cancel(self.task_index)
        return cancelled

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
        """
        error: BaseException
        try:
            value: Any = super().result(timeout)
        except PendingFailure as pending:
            error = self._rebuild(pending)
        else:
            result: T = value.batch.value(value.offset) if type(value) is ResultShare else value
            return result
        try:
            raise error
        finally:
            # A traceback that holds this frame must not hold the future, which holds the exception.
            del self, error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the task's exception or None, after waiting at most `timeout` seconds.

        It is what `result` would raise, so it also tells of a result that cannot be unpickled here: who copies a
        future's state, as asyncio does, asks for the exception first and takes the result for granted after that.
        """
        error = super().exception(timeout)
        if isinstance(error, PendingFailure):
            return self._rebuild(error)
        value: Any = super().result(timeout) if error is None else None
        if isinstance(value, ResultShare):
            try:
                value.batch.values()
            except SerializationError as unreadable:
                return unreadable
        return error

    def __repr__(self) -> str:
        text = super().__repr__().replace(f" returned {ResultShare.__name__}", "")
        error = super().exception(0) if self.done() and not self.cancelled() else None
        if isinstance(error, PendingFailure):
            text = text.replace(PendingFailure.__name__, error.failure.type_name)
        return text

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait_in_loop().__await__()

    async def _wait_in_loop(self) -> T:
        wrapped = asyncio.wrap_future(self)
        while not wrapped.done():
            await asyncio.wait({wrapped}, timeout=AWAIT_HEARTBEAT)
        return wrapped.result()

    def _rebuild(self, pending: PendingFailure) -> BaseException:
        with pending.lock:
            if pending.rebuilt is None:
                pending.rebuilt = rebuild_exception(pending.failure, notes=pending.notes)
            return pending.rebuilt
