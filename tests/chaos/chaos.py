"""Maps and submits on a cluster whose processes are killed all the time: every result is right, and comes once.

    make chaos SECONDS=600                        for so long, with a seed of its own
    make chaos SECONDS=600 CHAOS_ARGS="--seed 7"  the same script again

Rule 1: nothing here forgives. A task that is lost, a result that is wrong or comes twice, a node that ends by itself, a
client that grows: each is a failure, and ends the program with status 1.
Rule 2: nothing here hangs. What is not done in its time is told with the state of run, nodes and threads.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import hashlib
import itertools
import os
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mischief import Cluster, Killer

import gearmap

PAIRS = (("gearmand", "gearmand"), ("gearmand", "embedded"))

# Of all tasks one in so many is submitted by itself.
SUBMITTED = 5
# Of all results one in so many is large.
LARGE = 400
LARGE_BYTES = 300_000

# More than the deaths that chance brings upon one task; the default is what a task may be blamed for.
LOSSES = 50

# What the client may grow by: at most during a round, and from the first round's end to a later one's.
MAX_GROWTH_BYTES = 200 * 2**20
MAX_LEFT_BYTES = 15 * 2**20


def work(x: int, marks: str) -> tuple[int, bytes]:
    """Leave a mark for this execution, take up to 6 ms, return what only this task returns."""
    with open(marks, "ab", buffering=0) as file:
        file.write(x.to_bytes(4, "big"))
    time.sleep(x % 7 * 0.001)
    return x, result_of(x)


def result_of(x: int) -> bytes:
    digest = hashlib.sha256(str(x).encode()).digest()
    return digest * (LARGE_BYTES // len(digest)) if x % LARGE == 0 else digest


class ChaosError(Exception):
    """Something that must not happen did."""


@dataclass
class Totals:
    """What all rounds came to."""

    tasks: int = 0
    executions: int = 0
    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    unavailable: int = 0
    resident: list[int] = field(default_factory=list)
    peak_bytes: int = 0


@dataclass
class Submitted:
    """Calls that were submitted one by one, and how often each came back."""

    futures: list[Any] = field(default_factory=list)
    arrivals: Counter[int] = field(default_factory=Counter)
    unavailable: int = 0

    def submit(self, client: Any, x: int, marks: str, deadline: float) -> None:
        """Submit one call; while all servers are down that is refused, which is no failure."""
        while True:
            try:
                future = client.submit(work, x, marks)
                break
            except gearmap.ServerUnavailable:
                self.unavailable += 1
                if time.monotonic() > deadline:
                    raise
        future.add_done_callback(lambda _: self.arrivals.update((x,)))
        self.futures.append((x, future))

    def check(self, deadline: float) -> None:
        for x, future in self.futures:
            if future.result(max(0.1, deadline - time.monotonic())) != (x, result_of(x)):
                raise ChaosError(f"submitted task {x} came back wrong")


def run_round(kinds: Sequence[str], *, tasks: int, seed: int, seconds: float, totals: Totals) -> None:
    """Run one cluster's share of tasks while it is being killed."""
    with tempfile.TemporaryDirectory(prefix="gearmap-chaos-") as name:
        cluster = Cluster(kinds, Path(name))
        killer = Killer(cluster, seed)
        marks = str(Path(name) / "marks")
        try:
            cluster.start()
            with gearmap.Client(cluster.addresses, key=cluster.key_file) as client:
                killer.start()
                try:
                    _run_tasks(client, cluster, marks, tasks=tasks, seconds=seconds, totals=totals)
                finally:
                    killer.stop()
                    totals.kills += killer.kills
            if killer.error is not None:
                raise ChaosError(f"what was killed did not come back: {killer.error!r}")
        finally:
            cluster.stop()
        totals.executions += os.path.getsize(marks) // 4
        _check_marks(Path(marks), tasks)
    totals.rounds += 1
    totals.tasks += tasks


def _run_tasks(
    client: gearmap.Client, cluster: Cluster, marks: str, *, tasks: int, seconds: float, totals: Totals
) -> None:
    deadline = time.monotonic() + seconds
    # Should even the deadlines fail: where every thread stands, and the end.
    faulthandler.dump_traceback_later(seconds + 30, exit=True)
    numbers = [x for x in range(tasks) if x % SUBMITTED]
    begun = psutil.Process().memory_info().rss
    options = client.options(max_worker_losses=LOSSES)
    submitted = Submitted()
    run = options.map_async(work, numbers, [marks] * len(numbers))
    try:
        for x in range(0, tasks, SUBMITTED):
            submitted.submit(options, x, marks, deadline)
        while not run.done() and time.monotonic() < deadline:
            _check_growth(begun, totals)
            _wait(run, 0.2)
        results = run.result(max(0.1, deadline - time.monotonic()))
        submitted.check(deadline)
    except BaseException:
        print(f"map: {run.report()}\n{_pending(submitted)}\n{cluster.describe()}", file=sys.stderr)
        faulthandler.dump_traceback(file=sys.stderr)
        raise
    faulthandler.cancel_dump_traceback_later()
    if results != [(x, result_of(x)) for x in numbers]:
        raise ChaosError("a map's result is wrong, missing or not in its place")
    _check_arrivals(submitted, deadline)
    totals.unavailable += submitted.unavailable
    if cluster.fallen():
        raise ChaosError(f"nodes have ended by themselves: {cluster.fallen()}\n{cluster.describe()}")


def _wait(run: Any, seconds: float) -> None:
    try:
        run.result(seconds)
    except TimeoutError:
        pass


def _check_arrivals(submitted: Submitted, deadline: float) -> None:
    """Each call came back once; callbacks have a thread of their own, which may be behind."""
    while sum(submitted.arrivals.values()) < len(submitted.futures) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    wrong = {x: submitted.arrivals[x] for x, _ in submitted.futures if submitted.arrivals[x] != 1}
    if wrong:
        raise ChaosError(f"submitted tasks that did not come back once: {wrong}")


def _check_growth(begun: int, totals: Totals) -> None:
    grown = psutil.Process().memory_info().rss - begun
    totals.peak_bytes = max(totals.peak_bytes, grown)
    if grown > MAX_GROWTH_BYTES:
        raise ChaosError(f"the client grew by {grown / 2**20:.0f} MiB")


def _check_marks(marks: Path, tasks: int) -> None:
    data = marks.read_bytes()
    seen = {data[at : at + 4] for at in range(0, len(data) - 3, 4)}
    if len(seen) != tasks:
        raise ChaosError(f"{tasks} tasks have results, {len(seen)} have run")


def _pending(submitted: Submitted) -> str:
    waiting = [x for x, future in submitted.futures if not future.done()]
    return f"submitted: {len(submitted.futures)}, of which {len(waiting)} have not come back: {waiting[:20]}"


def run(seconds: float, *, tasks: int, seed: int, round_seconds: float, say: Callable[[str], None]) -> Totals:
    """Run rounds until the time is over, at least one on each pair of job servers."""
    totals = Totals()
    began = time.monotonic()
    process = psutil.Process()
    for number, kinds in enumerate(itertools.cycle(PAIRS)):
        if number >= len(PAIRS) and time.monotonic() - began >= seconds:
            break
        started, before = time.monotonic(), totals.executions
        run_round(kinds, tasks=tasks, seed=seed + number, seconds=round_seconds, totals=totals)
        _let_go()
        totals.resident.append(process.memory_info().rss)
        left = totals.resident[-1] - totals.resident[0]
        say(
            f"{' + '.join(kinds)}: {tasks} tasks, {totals.executions - before} executions, "
            f"{time.monotonic() - started:.1f} s; the client is {left / 2**20:+.1f} MiB from the first round's end"
        )
        if left > MAX_LEFT_BYTES:
            raise ChaosError(f"the client keeps {left / 2**20:.0f} MiB more than after the first round")
    return totals


def _let_go() -> None:
    """Give back what is kept on purpose: the last map, and memory that the allocator keeps for the next objects."""
    gearmap.forget()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Tasks on a cluster whose processes are killed all the time.")
    parser.add_argument("--seconds", type=float, default=600.0, help="start rounds for so long")
    parser.add_argument("--tasks", type=int, default=20_000, help="in each round")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--round-seconds", type=float, default=300.0, help="what a round may take")
    chosen = parser.parse_args(argv)
    seed = secrets.randbelow(2**31) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    faulthandler.enable()
    began = time.monotonic()
    try:
        totals = run(
            chosen.seconds,
            tasks=chosen.tasks,
            seed=seed,
            round_seconds=chosen.round_seconds,
            say=lambda line: print(line, flush=True),
        )
    except Exception as error:
        print(f"failed with seed {seed} after {time.monotonic() - began:.1f} s: {error!r}", flush=True)
        raise
    kills = ", ".join(f"{count} {kind}" for kind, count in sorted(totals.kills.items()))
    print(
        f"seed {seed}: {totals.tasks} tasks in {totals.rounds} rounds, each with one right result; killed: {kills}; "
        f"{totals.executions} executions, {totals.executions - totals.tasks} of them again; "
        f"{totals.unavailable} submits refused; the client grew by {totals.peak_bytes / 2**20:.0f} MiB at most; "
        f"{time.monotonic() - began:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
