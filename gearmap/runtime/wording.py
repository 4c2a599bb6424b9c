"""How a task's end is told to its user: the same words for `map` and for `submit`."""

from __future__ import annotations

from gearmap.errors import WorkerLost
from gearmap.wire.outcome import TaskFailure

__all__ = ["failure_note", "worker_lost"]


def failure_note(where: str, failure: TaskFailure, *, attempts: int, worker: str, counts: str = "") -> str:
    """Return the note below a task's own exception; `where` names the task, `counts` says how the run ended."""
    call = f": {failure.call}" if failure.call else ""
    times = "" if attempts == 1 else f", attempt {attempts}"
    return f"({where}{call}; on {worker}{times}{counts})"


def worker_lost(task: int, losses: int, detail: str, worker: str | None) -> WorkerLost:
    """Return the error of a task that took too many workers with it."""
    on = "" if worker is None else f", last on {worker}"
    times = "once" if losses == 1 else f"{losses} times"
    message = f"task {task} took its worker with it {times}: {detail}{on}"
    return WorkerLost(message, task_index=task, attempts=losses, worker=worker)
