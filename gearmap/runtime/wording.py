"""How a task's end is told to its user: the same words for `map` and for `submit`."""

from __future__ import annotations

from gearmap.wire.outcome import TaskFailure

__all__ = ["failure_note"]


def failure_note(where: str, failure: TaskFailure, *, attempts: int, worker: str, counts: str = "") -> str:
    """Return the note below a task's own exception; `where` names the task, `counts` says how the run ended."""
    call = f": {failure.call}" if failure.call else ""
    times = "" if attempts == 1 else f", attempt {attempts}"
    return f"({where}{call}; on {worker}{times}{counts})"
