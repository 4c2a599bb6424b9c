"""What is measured inside a contestant's process: one function for each row.

Law of the file: a measure returns figures in base units (seconds, tasks per second, shares) under the names that
`rows` judges. It checks the results, so that no contestant wins by not doing the work.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.contenders import WORKERS, Contender, open_contender
from benchmarks.tasks import increment, sleep, spin

__all__ = ["Figures", "cpu", "latency", "map_ints", "sleeps", "submits", "transport_alone"]

Figures = dict[str, float]

# Seconds of processor time of one task of `cpu`.
_SPIN_SECONDS = 0.005

_SLEEP_SEED = 7
_SLEEP_MEDIAN = 0.05


def map_ints(name: str, quick: bool) -> Figures:
    """`map` of a trivial function over small ints, the first time and then warm."""
    count = 200_000 if quick else 1_000_000
    items = list(range(count))
    with open_contender(name) as contender:
        seconds = [_time_map(contender, items) for _ in range(4)]
    return {"first_per_second": count / seconds[0], "per_second": count / statistics.median(seconds[1:])}


def _time_map(contender: Contender, items: list[int]) -> float:
    began = time.perf_counter()
    results = contender.map(increment, items)
    elapsed = time.perf_counter() - began
    assert len(results) == len(items)
    assert results[-1] == items[-1] + 1
    return elapsed


def submits(name: str, quick: bool) -> Figures:
    """Many single submissions, then all results."""
    count = 2_000 if quick else 10_000
    name, fn = _function(name)
    with open_contender(name) as contender:
        seconds = [_time_submits(contender, fn, count) for _ in range(3)]
    return {"first_per_second": count / seconds[0], "per_second": count / statistics.median(seconds[1:])}


def _time_submits(contender: Contender, fn: Callable[[int], int], count: int) -> float:
    began = time.perf_counter()
    futures = [contender.submit(fn, number) for number in range(count)]
    results = [future.result() for future in futures]
    elapsed = time.perf_counter() - began
    assert results == list(range(1, count + 1))
    return elapsed


def latency(name: str, quick: bool) -> Figures:
    """One submission and its result, again and again."""
    count = 100 if quick else 500
    name, fn = _function(name)
    seconds = []
    with open_contender(name) as contender:
        for number in range(count):
            began = time.perf_counter()
            result = contender.submit(fn, number).result()
            seconds.append(time.perf_counter() - began)
            assert result == number + 1
    seconds.sort()
    return {"p50": seconds[count // 2], "p99": seconds[count * 99 // 100]}


def _function(name: str) -> tuple[str, Callable[[int], int]]:
    """Return the contender, and an importable function or, for NAME-closure, one that has to travel."""
    contender, _, kind = name.partition("-")
    if kind != "closure":
        return contender, increment
    step = 1

    def closure(number: int) -> int:
        return number + step

    return contender, closure


def sleeps(name: str, quick: bool) -> Figures:
    """Sleeps of very different lengths: how well are the workers kept busy to the end?"""
    source = random.Random(_SLEEP_SEED)
    count = 50 if quick else 200
    seconds = [source.lognormvariate(math.log(_SLEEP_MEDIAN), 1.0) for _ in range(count)]
    with open_contender(name) as contender:
        began = time.perf_counter()
        contender.map(sleep, seconds)
        makespan = time.perf_counter() - began
    ideal = max(sum(seconds) / WORKERS, max(seconds))
    return {"makespan": makespan, "of_ideal": makespan / ideal}


def cpu(name: str, quick: bool) -> Figures:
    """Tasks that only compute: how much of the time goes into them?

    `efficiency` is against the wall clock. `cpu_efficiency` is against the processor time of every process of the
    contestant; what else runs on the machine does not touch it.
    """
    count = 100 if quick else 400
    work = count * _SPIN_SECONDS
    figures = []
    with open_contender(name) as contender:
        for _ in range(3):
            before = _cpu_seconds()
            began = time.perf_counter()
            walls = contender.map(spin, [_SPIN_SECONDS] * count)
            makespan = time.perf_counter() - began
            used = _cpu_seconds() - before
            figures.append((work / WORKERS / makespan, work / used, sum(walls) / WORKERS / makespan))
    wall, processor, busy = (statistics.median(column) for column in zip(*figures, strict=True))
    return {"efficiency": wall, "cpu_efficiency": processor, "workers_busy": busy}


def transport_alone(name: str, quick: bool) -> Figures:
    """Tiny jobs through gearmand and nothing else: no envelopes, no engine, no children."""
    from benchmarks import transport
    from gearmap.jobserver.process import start_job_server

    n_jobs = 1_000 if quick else 4_000
    with start_job_server("gearmand", threads=0) as server:
        per_second, client, workers = transport.measure(name, (server.host, server.port), n_jobs, 200)
    return {"per_second": per_second, "client_cpu": client * 1e-6, "worker_cpu": workers * 1e-6}


def _cpu_seconds() -> float:
    """Processor time of this process and all that it has started, so far."""
    import psutil

    this = psutil.Process()
    total = 0.0
    for process in [this, *this.children(recursive=True)]:
        times: Any = process.cpu_times()
        total += times.user + times.system
    return total
