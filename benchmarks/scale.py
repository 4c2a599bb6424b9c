"""What grows with workers, tasks and job servers: the real client and gearmand, thousands of light workers.

    python -m benchmarks.scale [--workers 100 1000 5000] [--tasks 100000] [--servers 1 2 4] [--task-seconds 0.05]

One line for each case: how long the map took, and how long its work takes where it is spread evenly; the client's
processor time for a task, and gearmand's with its memory. The light workers (`fakeworkers`) use the same processors:
their time is shown, and where it is large the difference tells of this machine and not of gearmap.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

import gearmap
from benchmarks.tasks import identity
from benchmarks.transport import cpu
from gearmap.core.names import Lane
from gearmap.jobserver.process import ServerProcess, start_job_server
from gearmap.keyfile import new_secret
from gearmap.secret import Secret
from gearmap.transport.admin import server_status
from gearmap.wire.seal import key_id

__all__ = ["Case", "measure"]

_HEAD = "workers    tasks servers  task s |   wall s  ideal s | client us/task  gearmand us/task  fakes s | gearmand MB"

# Processes of light workers.
_PROCESSES = 2

# The longest that one map may take; workers that have died are noticed so.
_CASE_SECONDS = 600.0
_TOP = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One simulated map."""

    workers: int
    tasks: int
    servers: int
    task_seconds: float


def measure(case: Case) -> dict[str, float]:
    """Run one case; return its figures in seconds and bytes."""
    secret = new_secret()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(start_job_server("gearmand", workers_wake_one=True)) for _ in range(case.servers)
        ]
        fakes = stack.enter_context(_fakes(case, servers, secret))
        key = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "key"
        key.touch(mode=0o600)
        key.write_text(secret.reveal().hex())
        addresses = [f"{server.host}:{server.port}" for server in servers]
        client = stack.enter_context(gearmap.Client(addresses, key=key))
        client.map(identity, range(10), progress=False, timeout=60)
        processes = [psutil.Process(server.pid) for server in servers]
        before = [cpu(process) for process in processes], [cpu(process) for process in fakes], time.process_time()
        began = time.perf_counter()
        results = client.map(identity, range(case.tasks), progress=False, timeout=_CASE_SECONDS)
        wall = time.perf_counter() - began
        used = time.process_time() - before[2]
        assert len(results) == case.tasks
        ideal = case.tasks * case.task_seconds / case.workers
        return {
            "wall": wall,
            "ideal": ideal,
            "lost": wall - ideal,
            "client_cpu": used,
            "server_cpu": sum(cpu(process) for process in processes) - sum(before[0]),
            "fakes_cpu": sum(cpu(process) for process in fakes) - sum(before[1]),
            "server_bytes": float(max(process.memory_info().rss for process in processes)),
            "client_bytes": float(psutil.Process().memory_info().rss),
        }


@contextmanager
def _fakes(case: Case, servers: Sequence[ServerProcess], secret: Secret) -> Iterator[list[psutil.Process]]:
    """Start the light workers and wait until every server knows them all."""
    function = Lane("default", sys.version_info[:2], key_id(secret)).name
    told = {"function": function, "secret": secret.reveal().hex(), "task_seconds": case.task_seconds}
    ports = [str(server.port) for server in servers]
    share = [case.workers // _PROCESSES + (number < case.workers % _PROCESSES) for number in range(_PROCESSES)]
    processes = []
    try:
        for n_workers in filter(None, share):
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.fakeworkers", str(n_workers), *ports],
                cwd=_TOP,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
        end = time.monotonic() + 120
        while any(_registered(server, function) < case.workers for server in servers):
            if time.monotonic() > end or any(process.poll() is not None for process in processes):
                raise RuntimeError("the workers did not register")
            time.sleep(0.1)
        yield [psutil.Process(process.pid) for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _registered(server: ServerProcess, function: str) -> int:
    rows = server_status((server.host, server.port), 10.0)
    return next((row.workers for row in rows if row.function == function), 0)


def main(arguments: Sequence[str]) -> None:
    """Run every combination and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--tasks", type=int, nargs="+", default=[100_000])
    parser.add_argument("--servers", type=int, nargs="+", default=[1])
    parser.add_argument("--task-seconds", type=float, nargs="+", default=[0.05])
    options = parser.parse_args(arguments)
    _allow_descriptors()
    print(_HEAD)
    for servers in options.servers:
        for workers in options.workers:
            for tasks in options.tasks:
                for seconds in options.task_seconds:
                    case = Case(workers=workers, tasks=tasks, servers=servers, task_seconds=seconds)
                    print(_line(case, measure(case)), flush=True)


def _line(case: Case, figures: dict[str, float]) -> str:
    return (
        f"{case.workers:7} {case.tasks:8} {case.servers:7} {case.task_seconds:7.3f} |"
        f" {figures['wall']:8.2f} {figures['ideal']:8.2f} |"
        f" {figures['client_cpu'] / case.tasks * 1e6:14.1f} {figures['server_cpu'] / case.tasks * 1e6:17.1f}"
        f" {figures['fakes_cpu']:8.2f} | {figures['server_bytes'] / 1e6:11.1f}"
    )


def _allow_descriptors() -> None:
    """Thousands of connections need as many descriptors, in every process that is started from here."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main(sys.argv[1:])
