"""What is measured inside a contestant's process: one function for each row.

Law of the file: a measure returns figures in base units (seconds, tasks per second, shares) under the names that
`rows` judges. It checks the results, so that no contestant wins by not doing the work.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from benchmarks.contenders import WORKERS, Contender, open_contender
from benchmarks.tasks import identity, increment, sleep, spin

__all__ = ["Figures", "cpu", "latency", "lazy", "map_ints", "sleeps", "submits", "transport_alone"]

Figures = dict[str, float]

# Seconds of processor time of one task of `cpu`.
_SPIN_SECONDS = 0.005

# The lazy items: bytes of each, and how many a slow consumer takes, with pauses of so many seconds.
_LAZY_BYTES = 1000
_LAZY_CONSUMED = 200
_LAZY_PAUSE = 0.005

# Who would not be done in his time gets only this part of the tasks; figures are rates.
_PARTS = {("map", "dask"): 10, ("submits", "dask"): 20, ("submits", "ipyparallel"): 20}

_SLEEP_SEED = 7
_SLEEP_MEDIAN = 0.05


def map_ints(name: str, quick: bool) -> Figures:
    """`map` of a trivial function over small ints, the first time and then warm."""
    count = (200_000 if quick else 1_000_000) // _PARTS.get(("map", name), 1)
    items = list(range(count))
    with open_contender(name) as contender:
        seconds = [_time_map(contender, items)]
        before = _cpu_seconds()
        seconds += [_time_map(contender, items) for _ in range(3)]
        used = _cpu_seconds() - before
    return {
        "first_per_second": count / seconds[0],
        "per_second": count / statistics.median(seconds[1:]),
        "cpu_per_task": used / (3 * count),
    }


def _time_map(contender: Contender, items: list[int]) -> float:
    began = time.perf_counter()
    results = contender.map(increment, items)
    elapsed = time.perf_counter() - began
    assert len(results) == len(items)
    assert results[-1] == items[-1] + 1
    return elapsed


def submits(name: str, quick: bool) -> Figures:
    """Many single submissions, then all results."""
    count = (2_000 if quick else 10_000) // _PARTS.get(("submits", name), 1)
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
        contender.spread(sleep, seconds)
        makespan = time.perf_counter() - began
    ideal = max(sum(seconds) / WORKERS, max(seconds))
    return {"makespan": makespan, "of_ideal": makespan / ideal}


def lazy(name: str, quick: bool) -> Figures:
    """Items that a generator makes, 1 kB each: how fast, and how far ahead of a slow consumer is it asked?

    `ahead` is the most items that were made and not consumed, `grown` by how much this process grew meanwhile.
    """
    count = 20_000 if quick else 200_000
    with open_contender(name) as contender:
        began = time.perf_counter()
        n_results = sum(1 for _ in contender.imap(identity, _made(count, [0])))
        elapsed = time.perf_counter() - began
        assert n_results == count
        ahead, grown = _slow_consumer(contender, count)
    return {"per_second": count / elapsed, "ahead": ahead, "grown": grown}


def _made(count: int, made: list[int]) -> Iterator[bytes]:
    for number in range(count):
        made[0] += 1
        yield number.to_bytes(8, "big") + bytes(_LAZY_BYTES - 8)


def _slow_consumer(contender: Contender, count: int) -> tuple[float, float]:
    made, ahead = [0], 0
    resident = psutil.Process().memory_info().rss
    results = contender.imap(identity, _made(count, made))
    for consumed in range(_LAZY_CONSUMED):
        next(results)
        time.sleep(_LAZY_PAUSE)
        ahead = max(ahead, made[0] - consumed - 1)
    return ahead, psutil.Process().memory_info().rss - resident


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
            walls = contender.spread(spin, [_SPIN_SECONDS] * count)
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
    this = psutil.Process()
    total = 0.0
    for process in [this, *this.children(recursive=True)]:
        times: Any = process.cpu_times()
        total += times.user + times.system
    return total
