"""What was given up: a task that did not raise and has no result either, or a whole run.

Law of the file: nothing that came from a worker is unpickled here, in the driver thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from gearmap.core import events as ev
from gearmap.errors import ClockSkew, ClusterBroken, GearmapError, RemoteTraceback, TaskError, TaskTimeout, WorkerLost
from gearmap.runtime.sentcall import SentCall
from gearmap.runtime.wording import clock_time
from gearmap.wire.failure import TaskFailure
from gearmap.wire.printed import NO_OUTPUT, Output

__all__ = ["GivenUp", "broken_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """Why a task was given up, in words."""

    task: int
    kind: type[TaskError]
    reason: str
    attempts: int
    worker: str | None
    call: SentCall | None = None
    output: Output = NO_OUTPUT
    seconds: float | None = None

    @property
    def type_name(self) -> str:
        """What the error is called."""
        return self.kind.__name__

    @classmethod
    def lost(cls, news: ev.LoseTask, call: SentCall | None = None) -> GivenUp:
        """The task took too many workers with it."""
        times = "once" if news.losses == 1 else f"{news.losses} times"
        on = "" if news.worker is None else f", last on {news.worker}"
        return cls(
            task=news.task,
            kind=WorkerLost,
            reason=f"killed its worker {times}: {news.detail}{on}{_guess(news.detail)}",
            attempts=news.losses,
            worker=news.worker,
            call=call,
            output=_output(news.output),
        )

    @classmethod
    def timed_out(cls, news: ev.TimeOutTask, limit: float | None, call: SentCall | None = None) -> GivenUp:
        """The task ran longer than the `limit` that its run has for each."""
        seconds = "" if limit is None else f"={limit:g} s"
        on = "" if news.worker is None else f" on {news.worker}"
        attempt = f" (attempt {news.attempts} of {news.allowed})" if news.allowed > 1 else ""
        return cls(
            task=news.task,
            kind=TaskTimeout,
            reason=f"ran longer than task_timeout{seconds}{on}{attempt}",
            attempts=news.attempts,
            worker=news.worker,
            call=call,
            output=_output(news.output),
            seconds=news.seconds,
        )

    def error(self) -> TaskError:
        """Return the error that the task's user gets; the arguments are unpickled for it."""
        call = "" if self.call is None else self.call.describe()
        shown = f" ({call})" if call else ""
        return self.kind(
            f"task {self.task}{shown} {self.reason}", task_index=self.task, attempts=self.attempts, worker=self.worker
        )


def _output(opaque: object) -> Output:
    """Return what the engine has handed on."""
    return opaque if isinstance(opaque, Output) else NO_OUTPUT


def _guess(detail: str) -> str:
    """Say what a signal that nobody of us sent mostly means: the system ends who takes too much memory."""
    return "; out of memory?" if detail.startswith("SIGKILL") else ""


def broken_run(news: ev.BreakRun, now: float) -> GearmapError:
    """Return the error of a run that cannot go on; `now` is wall time in seconds."""
    if news.kind is not ev.NotRunKind.INITIALIZER_FAILED:
        return ClockSkew(
            f"client and worker clocks are too far apart: {news.detail}, and {clock_time(now)} here; jobs are good for "
            "a day: set the clock that is wrong"
        )
    on = "" if news.worker is None else f" on {news.worker}"
    error = ClusterBroken(f"the initializer failed{on}: {news.detail}")
    if isinstance(news.failure, TaskFailure):
        error.__cause__ = RemoteTraceback(news.failure.readable_traceback())
    return error
