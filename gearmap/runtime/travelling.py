"""How much travels with a job: what is too much, and what is worth a word.

What must not live here: what does not travel (`placed`).

Law of the file: nothing is measured that is small; looking for what is large may cost as much as pickling it once more.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from gearmap.core.sizes import shown_bytes
from gearmap.errors import SerializationError
from gearmap.wire.framing import Payload
from gearmap.wire.functions import names_in
from gearmap.wire.serializer import pickled_bytes

__all__ = ["MAX_JOB_BYTES", "check_job", "heavy_notice", "travelling_bytes"]

# Most bytes of one job. The embedded server takes packets of 2 GiB, gearmand of 4, both with what sealing adds. Raised:
# jobs are lost on their way, again and again; lowered: larger arguments have to be shared.
MAX_JOB_BYTES = 2**31 - 2**24

# From here on a function that is sent with each job is worth a warning. Raised: fewer warnings; lowered: they come
# where sending costs little (a few ms for each MB).
HEAVY_BYTES = 8 * 1024 * 1024

# Functions within functions that are looked into for what is large.
_MOST_STEPS = 5


def travelling_bytes(payload: Payload | bytes) -> int:
    """Return how long a payload is, without what does not travel of it."""
    return len(payload) if isinstance(payload, bytes) else sum(memoryview(part).nbytes for part in payload)


def check_job(function: Payload, arguments: Payload | bytes, what: str) -> None:
    """Raise if no job server would take a job with this function and these arguments, which people call `what`.

    Raises
    ------
    SerializationError
        If so.
    """
    total = travelling_bytes(function) + travelling_bytes(arguments)
    if total > MAX_JOB_BYTES:
        raise SerializationError(
            f"cannot send {what}: {shown_bytes(total)} with the function, and a job server takes at most "
            f"{shown_bytes(MAX_JOB_BYTES)} in one job; use gearmap.share() for what is large"
        )


def heavy_notice(fn: Callable[..., Any], payload: Payload) -> str | None:
    """Return what to say of a function that is large and travels with every job, or None."""
    total = travelling_bytes(payload)
    if total < HEAVY_BYTES:
        return None
    name = getattr(fn, "__qualname__", type(fn).__qualname__).rpartition(".")[2]
    found = _heaviest(fn, total // 2)
    if found is None:
        return f"{name} is {shown_bytes(total)} pickled and travels with every job; load what is large where tasks run"
    variable, value, n_bytes = found
    what = f"{type(value).__name__}, {shown_bytes(n_bytes)} pickled"
    if variable == "self":
        return f"{name} is a method of a large object ({what}): it travels with every job; load it where tasks run"
    return f"{name} captures {variable!r} ({what}): it travels with every job; load it where tasks run"


def _heaviest(fn: Any, least: int) -> tuple[str, Any, int] | None:
    """Return name, value and size of the one variable that makes a function large, if there is one."""
    for _ in range(_MOST_STEPS):
        sized = ((name, value, pickled_bytes(value)) for name, value in _captured(fn))
        found = next((each for each in sized if each[2] >= least), None)
        if found is None or not isinstance(found[1], types.FunctionType | types.MethodType | functools.partial):
            return found
        fn = found[1]
    return None


def _captured(fn: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(fn, types.MethodType):
        yield "self", fn.__self__
        fn = fn.__func__
    if isinstance(fn, functools.partial):
        yield "func", fn.func
        yield from fn.keywords.items()
    if not isinstance(fn, types.FunctionType):
        return
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in names_in(fn.__code__):
        value = fn.__globals__.get(name)
        if value is not None and value is not fn and not isinstance(value, types.ModuleType):
            yield name, value
