"""The functions that the contestants run, importable by every process.

Law of the file: importing it costs nothing, so that no contestant pays for another's libraries.
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["at", "filled", "identity", "increment", "sampled", "sleep", "spin"]


def increment(number: int) -> int:
    """The trivial task."""
    return number + 1


def identity(value: Any) -> Any:
    """There and back."""
    return value


def at(array: Any, number: int) -> int:
    """One number of an array that every task is given."""
    return int(array[number])


def sampled(array: Any) -> float:
    """One number from each page of an array of 8-byte numbers, added."""
    return float(array[::512].sum())


def filled(n_bytes: int) -> Any:
    """A new array."""
    import numpy

    return numpy.ones(n_bytes // 8)


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
