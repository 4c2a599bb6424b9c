"""How a task's end is told to its user, the same words for `map` and for `submit`; and how times are told."""

from __future__ import annotations

from datetime import datetime, timezone

from gearmap.wire.outcome import TaskFailure

__all__ = ["clock_time", "failure_note"]


def clock_time(seconds: float) -> str:
    """Say what time that is, so that two hosts' clocks can be compared.

    >>> clock_time(1795426261.7)
    '2026-11-23 09:31:01 UTC'
    """
    return f"{datetime.fromtimestamp(int(seconds), timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def failure_note(where: str, failure: TaskFailure, *, attempts: int, worker: str, counts: str = "") -> str:
    """Return the note below a task's own exception; `where` names the task, `counts` says how the run ended."""
    call = f": {failure.call}" if failure.call else ""
    times = "" if attempts == 1 else f", attempt {attempts}"
    return f"({where}{call}; on {worker}{times}{counts})"
