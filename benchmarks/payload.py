"""A large array there and back: gearmap against bare sockets on the same kind of job server.

The bare contestant is the best that this job server allows: Gearman packets over blocking sockets, received into
buffers that are allocated once, nothing pickled, nothing sealed, no task run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bare import BareClient
from benchmarks.contenders import open_contender
from benchmarks.tasks import identity

__all__ = ["payload", "peak", "reset_peak"]

_TRIPS = 5


def payload(name: str, quick: bool) -> dict[str, float]:
    """64 MB there and back; the client's peak memory at the first trip."""
    n_bytes = 16_000_000 if quick else 64_000_000
    if name.startswith("bare-"):
        return _bare(name.removeprefix("bare-"), n_bytes)
    return _with_contender(name, n_bytes)


def _with_contender(name: str, n_bytes: int) -> dict[str, float]:
    import numpy

    with open_contender(name) as contender:
        contender.map(identity, [numpy.zeros(10)])
        baseline = reset_peak()
        array = numpy.arange(n_bytes // 8, dtype=numpy.float64)

        def trip() -> None:
            (result,) = contender.map(identity, [array])
            assert result.nbytes == n_bytes
            assert result[-1] == array[-1]

        first = _time(trip)
        grown = peak() - baseline
        seconds = [_time(trip) for _ in range(_TRIPS)]
    return _figures(n_bytes, first, seconds) | {"peak_payloads": grown / n_bytes}


def _bare(server_kind: str, n_bytes: int) -> dict[str, float]:
    from gearmap.jobserver.process import launch

    server = launch(server_kind).wait()
    worker = subprocess.Popen([sys.executable, "-m", "benchmarks.bare", str(server.port), str(n_bytes)])
    try:
        with BareClient(server.port, n_bytes) as client:
            client.trip(bytes(1000))
            baseline = reset_peak()
            data = bytearray(os.urandom(1000) * (n_bytes // 1000))

            def trip() -> None:
                result = client.trip(data)
                assert len(result) == n_bytes
                assert result[-1000:] == data[-1000:]

            first = _time(trip)
            grown = peak() - baseline
            seconds = [_time(trip) for _ in range(_TRIPS)]
    finally:
        server.stop()  # the worker ends with its connection
        worker.wait(10.0)
    return _figures(n_bytes, first, seconds) | {"peak_payloads": grown / n_bytes}


def _figures(n_bytes: int, first: float, seconds: list[float]) -> dict[str, float]:
    return {"first_bytes_per_second": n_bytes / first, "bytes_per_second": n_bytes / statistics.median(seconds)}


def _time(trip: Callable[[], None]) -> float:
    began = time.perf_counter()
    trip()
    return time.perf_counter() - began


def reset_peak() -> int:
    """Forget the peak so far, where the system can; return the bytes in memory now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return _status_bytes("VmRSS")


def peak() -> int:
    """Return the most bytes in memory since the reset."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")
