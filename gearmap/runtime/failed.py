"""A task that has no result and will have none: noted by the driver, made into an error by whoever asks.

Law of the file: an error is made in the thread that wants it; the driver unpickles no exception.
"""

from __future__ import annotations

from dataclasses import dataclass

from gearmap.core.snapshot import FailureRow
from gearmap.errors import RemoteTraceback
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.wording import failure_note
from gearmap.wire.outcome import TaskFailure, rebuild_exception
from gearmap.wire.printed import NO_OUTPUT, Output

__all__ = ["Failed"]


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a task failed for good.

    Attributes
    ----------
    cause
        What it raised, why it was given up, or, where it ran in this process, the exception itself.
    attempts
        How often it was submitted.
    worker
        The last worker that had it, or None.
    """

    task: int
    cause: TaskFailure | GivenUp | BaseException
    attempts: int
    worker: str | None

    @property
    def output(self) -> Output:
        """What it printed in its last attempt."""
        return self.cause.output if isinstance(self.cause, TaskFailure | GivenUp) else NO_OUTPUT

    @property
    def seconds(self) -> float | None:
        """How long that took, if it is known."""
        return self.cause.seconds if isinstance(self.cause, TaskFailure | GivenUp) else None

    @property
    def call(self) -> str:
        """The call, as far as it can be described; where no worker could, its arguments are unpickled for it."""
        if isinstance(self.cause, TaskFailure):
            return self.cause.call
        sent = self.cause.call if isinstance(self.cause, GivenUp) else None
        return "" if sent is None else sent.describe()

    def row(self) -> FailureRow:
        """Return it for a display; nothing is unpickled, and no exception made."""
        cause = self.cause
        call = traceback = ""
        if isinstance(cause, TaskFailure):
            error, message, call, traceback = cause.type_name, cause.message, cause.call, cause.readable_traceback()
        elif isinstance(cause, GivenUp):
            error, message = cause.type_name, cause.reason
        else:
            error, message = type(cause).__name__, str(cause)
        return FailureRow(
            task=self.task,
            call=call,
            error=error.rpartition(".")[2],
            message=message,
            worker=self.worker,
            attempts=self.attempts,
            traceback=traceback,
        )

    def error(self, *, total: int | None = None, counts: str = "") -> BaseException:
        """Return the error that the task's user gets, with a note that says which task, and `counts`."""
        where = f"task {self.task}" + ("" if total is None else f" of {total}")
        if isinstance(self.cause, TaskFailure):
            note = failure_note(
                where, self.cause, attempts=self.attempts, worker=self.worker or "an unknown worker", counts=counts
            )
            return rebuild_exception(self.cause, notes=(note,))
        if isinstance(self.cause, GivenUp):
            error: BaseException = self.cause.error()
        elif counts or not getattr(self.cause, "__notes__", None):
            error = self.cause
        else:
            return self.cause  # one object, however often it is asked for; it has a note that says more
        add_note(error, f"({where}{counts})")
        return error


def add_note(error: BaseException, note: str) -> None:
    """Add a line below an exception; before Python 3.11, in a cause."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif error.__cause__ is None:
        error.__cause__ = RemoteTraceback(note)
