"""The functions that the contestants run, importable by every process.

Law of the file: importing it costs nothing, so that no contestant pays for another's libraries.
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["identity", "increment", "sleep", "spin"]


def increment(number: int) -> int:
    """The trivial task."""
    return number + 1


def identity(value: Any) -> Any:
    """There and back."""
    return value


def sleep(seconds: float) -> None:
    """A task that needs no processor."""
    time.sleep(seconds)


def spin(cpu_seconds: float) -> float:
    """Use so much processor time; return how long that took by the wall clock.

    The clock is this thread's processor time, so a busy machine makes the task longer, not more work.
    """
    began = time.perf_counter()
    end = time.thread_time() + cpu_seconds
    while time.thread_time() < end:
        pass
    return time.perf_counter() - began
