"""Waiting until enough workers are there.

Law of the file: a job server does not say by itself that a worker has come. It is asked, and the time between two
questions ends at once when the client is closed.
"""

from __future__ import annotations

import time

from gearmap.backend import Backend
from gearmap.config import ServerMode
from gearmap.core.names import Lane, explain_no_worker
from gearmap.errors import ClusterBroken, RunTimeout
from gearmap.runtime.nodeclient import listed_workers

__all__ = ["wait_for_workers"]

# Between two looks (seconds). Raised: less traffic; lowered: a worker that has come is seen sooner.
LOOK_INTERVAL = 0.1


def wait_for_workers(backend: Backend, n: int, *, timeout: float | None, queue: str) -> int:
    """Return how many workers serve a queue for this Python and key, once there are `n`.

    Raises
    ------
    RunTimeout
        If there are fewer after `timeout` seconds.
    ServerUnavailable
        If no job server answers.
    ClusterBroken
        If the client is closed meanwhile.
    """
    if backend.mode is ServerMode.INLINE:
        return n  # this process is as many as anybody wants
    deadline = None if timeout is None else time.monotonic() + timeout
    backend.ready_driver()
    lane = backend.open_session(queue).lane
    while True:
        served = _served(backend)
        count = served.get(lane.name, 0)
        if count >= n:
            return count
        backend.check_well()
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise RunTimeout(_explain(backend, lane, n, count, served, timeout))
        if backend.closing.wait(LOOK_INTERVAL if left is None else min(LOOK_INTERVAL, left)):
            raise ClusterBroken(f"this {backend.owner} was closed while it waited for workers")


def _served(backend: Backend) -> dict[str, int]:
    """Return the workers of each function: the same stand on each server, so the largest number counts."""
    served: dict[str, int] = {}
    for listed in listed_workers(backend.addresses).values():
        for name, workers in listed.items():
            served[name] = max(workers, served.get(name, 0))
    return served


def _explain(backend: Backend, lane: Lane, n: int, count: int, served: dict[str, int], timeout: float | None) -> str:
    start = f"{count} of {n} workers after timeout={timeout:g} s: "
    if count:
        return f"{start}queue {lane.queue!r} has too few"
    return start + explain_no_worker(lane, served.items(), [str(address) for address in backend.addresses])
