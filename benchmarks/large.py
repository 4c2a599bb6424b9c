"""Large arrays on one machine: one there, one back, and one that every task of a map needs.

Law of the file: whoever gets an array looks at each of its pages. Else what was only mapped would seem to be there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contenders import open_contender
from benchmarks.payload import peak, reset_peak
from benchmarks.tasks import at, filled, increment, sampled

__all__ = ["capture", "large"]

_TRIPS = 5
_CAPTURE_TASKS = 200


def large(name: str, quick: bool) -> dict[str, float]:
    """An array as a task's argument, and one as its result."""
    import numpy

    n_bytes = 16_000_000 if quick else 256_000_000
    array = numpy.arange(n_bytes // 8, dtype=numpy.float64)
    with open_contender(name) as contender:

        def there() -> None:
            assert contender.submit(sampled, array).result() == sampled(array)

        def back() -> None:
            assert sampled(contender.submit(filled, n_bytes).result()) > 0

        figures = {}
        for label, trip in (("there", there), ("back", back)):
            trip()
            figures[f"{label}_bytes_per_second"] = n_bytes / statistics.median(_times(trip, _TRIPS))
    return figures


def capture(name: str, quick: bool) -> dict[str, float]:
    """Tasks that need one array each: how long the first map takes, how long others, and the client's peak memory.

    joblib shares what is an argument, so there it is one; elsewhere the function captures it.
    """
    import numpy

    n_bytes = 8_000_000 if quick else 50_000_000
    items = range(_CAPTURE_TASKS)
    with open_contender(name) as contender:
        contender.map(increment, items)
        baseline = reset_peak()
        array = numpy.arange(n_bytes // 8, dtype=numpy.float64)
        with_array: Callable[..., Sequence[Any]] | None = getattr(contender, "map_with", None)

        def trip() -> None:
            if with_array is not None:
                results = with_array(at, array, items)
            else:
                results = contender.map(lambda number: at(array, number), items)
            assert list(results) == list(items)

        (first,) = _times(trip, 1)
        grown = peak() - baseline
        again = statistics.median(_times(trip, _TRIPS))
    return {"first": first, "again": again, "peak_arrays": grown / n_bytes}


def _times(trip: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        trip()
        seconds.append(time.perf_counter() - began)
    return seconds
