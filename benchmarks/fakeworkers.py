"""Thousands of light workers in one process: real connections and real sealed outcomes, but nothing is run.

`python -m benchmarks.fakeworkers N PORT... < line of JSON`. A job is answered, with None for each of its tasks, after
as long as its tasks are said to take. So the job server and the client see what they would see of N real workers, at
the cost of one process.

Law of the file: one thread, one poller, one heap of jobs to be answered; a worker is a `WorkerLinks` as in a node.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from heapq import heappop, heappush
from itertools import count

from gearmap.runtime.keyring import Keyring
from gearmap.runtime.work import JobOpener, Work
from gearmap.secret import Secret
from gearmap.transport.events import Address, JobAssigned, JobLost
from gearmap.transport.link import ServerLink
from gearmap.transport.poller import Poller
from gearmap.transport.worker import WorkerLinks
from gearmap.wire import envelope, seal
from gearmap.wire.outcome import encode_results
from gearmap.wire.serializer import dumps

__all__ = ["FakeWorkers"]

# Timers of thousands of workers are looked at once in a while, a part at a time.
_TICK_SECONDS = 0.1
_TICK_PARTS = 20

# How many connections are begun at once; the job server's backlog is not endless.
_CONNECT_AT_ONCE = 100


class FakeWorkers:
    """So many workers.

    Parameters
    ----------
    addresses
        The job servers; every worker is on all of them.
    function
        What they serve.
    secret
        The key's bytes.
    task_seconds
        How long each task takes.
    """

    def __init__(self, n: int, addresses: list[Address], function: str, secret: Secret, task_seconds: float) -> None:
        self._opener = JobOpener(Keyring([secret]))
        self._secret = secret
        self._session_keys: dict[bytes, seal.Deriver] = {}
        self._poller = Poller()
        self._seconds = task_seconds
        self._workers = [WorkerLinks(addresses, [function], f"fake-{number}") for number in range(n)]
        self._of_link: dict[ServerLink, WorkerLinks] = {
            link: worker for worker in self._workers for link in worker.links
        }
        self._names = {worker: f"fake/{number}" for number, worker in enumerate(self._workers)}
        self._due: list[tuple[float, int, WorkerLinks, Work, float]] = []
        self._serial = count()
        self._part = 0

    def run(self) -> None:
        """Connect all of them, say so, and work for ever."""
        for start in range(0, len(self._workers), _CONNECT_AT_ONCE):
            for worker in self._workers[start : start + _CONNECT_AT_ONCE]:
                worker.start(time.monotonic())
                for link in worker.links:
                    self._poller.add(link)
            self._turn(0.01)
        print("started", flush=True)
        next_tick = time.monotonic()
        while True:
            now = time.monotonic()
            until = min(next_tick, self._due[0][0]) if self._due else next_tick
            self._turn(max(0.0, until - now))
            now = time.monotonic()
            if now >= next_tick:
                self._tick(now)
                next_tick = now + _TICK_SECONDS

    def _turn(self, timeout: float) -> None:
        for link in self._poller.dispatch(timeout):
            worker = self._of_link[link]  # type: ignore[index]  # nothing else is watched
            for event in worker.take_events():
                if isinstance(event, JobAssigned):
                    self._begin(worker, event)
                elif isinstance(event, JobLost):
                    self._due = [each for each in self._due if each[2] is not worker]
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, worker, work, seconds = heappop(self._due)
            worker.complete(work.job, self._outcome(work, seconds, self._names[worker]))

    def _tick(self, now: float) -> None:
        self._part = (self._part + 1) % _TICK_PARTS
        for worker in self._workers[self._part :: _TICK_PARTS]:
            worker.tick(now)

    def _begin(self, worker: WorkerLinks, event: JobAssigned) -> None:
        now = time.monotonic()
        work = self._opener.open(event.job, execution_id=secrets.token_bytes(16), now=now)
        seconds = work.header.n_tasks * self._seconds
        heappush(self._due, (now + seconds, next(self._serial), worker, work, seconds))

    def _outcome(self, work: Work, seconds: float, name: str) -> bytes:
        unique = work.job.unique.encode()
        n_tasks = work.header.n_tasks
        encoded = encode_results(0, n_tasks, dumps([None] * n_tasks), elapsed=seconds, final=True, worker=name)
        assert encoded is not None
        header, body = encoded
        key = self._session_key(work.prefix.session_id)
        message = envelope.seal_now(
            kind=envelope.Kind.OUTCOME,
            key=seal.outcome_key(key, unique, work.execution_id),
            session_id=work.prefix.session_id,
            execution_id=work.execution_id,
            expiry=work.prefix.expiry,
            context=envelope.make_context(work.job.function.encode(), unique),
            header=header,
            body=body,
        )
        return message if isinstance(message, bytes) else message.to_bytes()

    def _session_key(self, session_id: bytes) -> seal.Deriver:
        key = self._session_keys.get(session_id)
        if key is None:
            key = self._session_keys[session_id] = seal.Deriver(seal.session_key(self._secret, session_id))
        return key


def main(arguments: list[str]) -> None:
    """Read what is secret and what is long from standard input, and work until it ends with its parent."""
    number, *ports = map(int, arguments)
    told = json.loads(sys.stdin.readline())
    workers = FakeWorkers(
        number,
        [("127.0.0.1", port) for port in ports],
        told["function"],
        Secret(bytes.fromhex(told["secret"])),
        told["task_seconds"],
    )
    workers.run()


if __name__ == "__main__":
    main(sys.argv[1:])
