"""Tiny jobs through gearmand: gearmap's transport against gearman3 with only its reading repaired.

Both contestants run on the same gearmand (`-t 0`), each with two worker processes that echo. They take turns, and
what is printed is the ratio of each round with its spread, since a shared machine changes from minute to minute.

    python benchmarks/transport.py [--jobs 4000] [--rounds 5] [--window 200] [--profile client|worker]
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice

import psutil
from gearman import GearmanClient, GearmanWorker
from gearman.connection import GearmanConnection

from gearmap.jobserver.process import start_job_server
from gearmap.transport.client import ServerSession, SessionState
from gearmap.transport.events import Address, JobAssigned, JobRequest, StatusListing, WorkComplete
from gearmap.transport.poller import Poller
from gearmap.transport.worker import WorkerLinks

N_WORKERS = 2


class RepairedConnection(GearmanConnection):  # type: ignore[misc]
    """gearman3's connection with `array.frombytes` in place of the removed `fromstring`, and nothing else."""

    def read_data_from_socket(self, bytes_to_read: int = 4096) -> int:
        received = self.gearman_socket.recv(bytes_to_read)
        if not received:
            self.throw_exception(message="remote disconnected")
        self._incoming_buffer.frombytes(received)
        return len(self._incoming_buffer)


class RepairedClient(GearmanClient):  # type: ignore[misc]
    connection_class = RepairedConnection


class RepairedWorker(GearmanWorker):  # type: ignore[misc]
    connection_class = RepairedConnection


def run_gearman3_worker(address: Address) -> None:
    worker = RepairedWorker([address])
    worker.register_task(b"theirs", lambda _, job: job.data)
    worker.work()


def run_gearmap_worker(address: Address) -> None:
    poller = Poller()
    worker = WorkerLinks([address], ["ours"], "bench")
    worker.start(time.monotonic())
    for link in worker.links:
        poller.add(link)
    next_tick = 0.0
    while True:
        poller.dispatch(1.0)
        for event in worker.take_events():
            if isinstance(event, JobAssigned):
                worker.complete(event.job, event.job.data)
        now = time.monotonic()
        if now >= next_tick:
            worker.tick(now)
            next_tick = now + 0.1


def run_gearman3_client(address: Address, n_jobs: int, window: int) -> None:
    client = RepairedClient([address])
    jobs = [{"task": "theirs", "data": b"tiny"} for _ in range(n_jobs)]
    requests = client.submit_multiple_jobs(jobs, wait_until_complete=True)
    assert all(request.result == b"tiny" for request in requests)
    client.shutdown()


def run_gearmap_client(address: Address, n_jobs: int, window: int) -> None:
    poller = Poller()
    session = ServerSession(address)
    session.start(time.monotonic())
    poller.add(session)
    serial = count()
    requests = (JobRequest(n, "ours", os.urandom(16).hex(), b"tiny") for n in islice(serial, n_jobs))
    session.submit(list(islice(requests, window)))
    n_done = 0
    while n_done < n_jobs:
        poller.dispatch(5.0)
        finished = 0
        for event in session.take_events():
            if isinstance(event, WorkComplete):
                assert event.data == b"tiny"
                finished += 1
        n_done += finished
        if finished and session.state is SessionState.READY:
            session.submit(list(islice(requests, finished)))
    session.close()
    poller.close()


CONTESTANTS: dict[str, Callable[[Address, int, int], None]] = {
    "gearmap": run_gearmap_client,
    "gearman3": run_gearman3_client,
}
WORKERS: dict[str, Callable[[Address], None]] = {
    "gearmap": run_gearmap_worker,
    "gearman3": run_gearman3_worker,
}


@contextmanager
def workers(name: str, address: Address) -> Iterator[list[psutil.Process]]:
    """Two worker processes, registered."""
    command = [sys.executable, __file__, "--worker", name, "--port", str(address[1])]
    processes = [subprocess.Popen(command) for _ in range(N_WORKERS)]
    function = {"gearmap": "ours", "gearman3": "theirs"}[name]
    wait_for_workers(address, function)
    try:
        yield [psutil.Process(process.pid) for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def wait_for_workers(address: Address, function: str) -> None:
    poller = Poller()
    session = ServerSession(address)
    session.start(time.monotonic())
    poller.add(session)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        poller.dispatch(0.05)
        for event in session.take_events():
            if isinstance(event, StatusListing) and any(
                row.function == function and row.workers == N_WORKERS for row in event.rows
            ):
                session.close()
                poller.close()
                return
        if session.state is SessionState.READY:
            session.request_status()
    raise TimeoutError("the workers did not register")


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(name: str, address: Address, n_jobs: int, window: int) -> tuple[float, float, float]:
    """Jobs per second, and CPU microseconds per job of the client and of the workers."""
    with workers(name, address) as processes:
        run = CONTESTANTS[name]
        run(address, max(100, n_jobs // 20), window)
        before = sum(map(cpu, processes))
        client_before = time.process_time()
        started = time.perf_counter()
        run(address, n_jobs, window)
        elapsed = time.perf_counter() - started
        client = time.process_time() - client_before
        return n_jobs / elapsed, client / n_jobs * 1e6, (sum(map(cpu, processes)) - before) / n_jobs * 1e6


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}-{max(values):,.{digits}f}]"


def compare(n_jobs: int, rounds: int, window: int) -> None:
    with start_job_server("gearmand", threads=0) as server:
        address = (server.host, server.port)
        results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTESTANTS}
        for _ in range(rounds):
            for name in CONTESTANTS:
                results[name].append(measure(name, address, n_jobs, window))
    for name, rows in results.items():
        rates, clients, worker_cpus = (list(column) for column in zip(*rows, strict=True))
        print(f"{name:9} jobs/s {spread(rates)}   CPU us/job: client {spread(clients)}, workers {spread(worker_cpus)}")
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(results["gearmap"], results["gearman3"], strict=True)]
    costs = [
        (theirs[1] + theirs[2]) / (ours[1] + ours[2])
        for ours, theirs in zip(results["gearmap"], results["gearman3"], strict=True)
    ]
    print(f"ratio of the CPU times per job {spread(costs, 1)}")
    print(f"ratio of the rates {spread(ratios, 1)} over {rounds} rounds of {n_jobs} jobs")


def profile(n_jobs: int, window: int, which: str) -> None:
    """Profile one side of gearmap's transport."""
    with start_job_server("gearmand", threads=0) as server:
        address = (server.host, server.port)
        if which == "client":
            with workers("gearmap", address):
                profiler = cProfile.Profile()
                profiler.runcall(run_gearmap_client, address, n_jobs, window)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(18)
            return
        command = [
            sys.executable,
            __file__,
            "--worker",
            "gearmap",
            "--port",
            str(address[1]),
            "--profile",
            "worker",
        ]
        process = subprocess.Popen(command)
        run_gearmap_client(address, n_jobs, window)
        process.send_signal(signal.SIGINT)
        process.wait()


def serve(name: str, address: Address, is_profiled: bool) -> None:
    if not is_profiled:
        WORKERS[name](address)
        return
    profiler = cProfile.Profile()
    try:
        profiler.runcall(WORKERS[name], address)
    except KeyboardInterrupt:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=200)
    parser.add_argument("--profile", choices=["client", "worker"])
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker, ("127.0.0.1", options.port), options.profile is not None)
    elif options.profile:
        profile(options.jobs, options.window, options.profile)
    else:
        compare(options.jobs, options.rounds, options.window)


if __name__ == "__main__":
    main()
