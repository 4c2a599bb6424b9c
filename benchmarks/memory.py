"""How much memory a client, its node and its job server take while much passes through them.

    python -m benchmarks.memory [--server gearmand|embedded] [--only CASE] [--seconds 8]

Each case runs in a process of its own, with a cluster of its own. This process looks at all of them ten times a second
and prints the most that each took beyond what it had when the case began: proportional set sizes, in which memory that
processes share counts once (Linux: proc(5), smaps_rollup). What the client holds because its user does is not counted:
no case keeps its results.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import psutil

import gearmap

_LOOK_SECONDS = 0.1
_WHO = ("client", "node", "children", "job server")


def endless(cluster: gearmap.LocalCluster, seconds: float) -> int:
    """`imap` over items of 1 kB without end, taken as they come."""
    return _take(cluster.imap(len, _items()), seconds, 0.0)


def slow_consumer(cluster: gearmap.LocalCluster, seconds: float) -> int:
    """The same, one taken each 5 ms."""
    return _take(cluster.imap(len, _items()), seconds, 0.005)


def large_results(cluster: gearmap.LocalCluster, seconds: float) -> int:
    """`imap` of results of 100 MB each, let go as they come."""
    return _take(cluster.imap(_large, count()), seconds, 0.0)


def large_results_slowly(cluster: gearmap.LocalCluster, seconds: float) -> int:
    """The same, one taken each half second."""
    return _take(cluster.imap(_large, count()), seconds, 0.5)


def many_tasks(cluster: gearmap.LocalCluster, seconds: float) -> int:
    """`map` of 1,000,000 tasks that return None: the client's list of them is 8 MB."""
    return len(cluster.map(_nothing, range(1_000_000)))


def client_stops(cluster: gearmap.LocalCluster, seconds: float) -> int:
    """Results of 1 MB to a client that is suspended: of 400 calls what is done then waits somewhere."""
    futures = [cluster.submit(_megabyte, number) for number in range(400)]
    print("stop", flush=True)
    time.sleep(seconds)  # all of it suspended
    return sum(len(future.result()) > 0 for future in futures)


CASES: dict[str, Callable[[gearmap.LocalCluster, float], int]] = {
    case.__name__: case
    for case in (endless, slow_consumer, large_results, large_results_slowly, many_tasks, client_stops)
}


def _items() -> Iterator[bytes]:
    for number in count():
        yield b"%01000d" % number


def _take(results: Iterator[object], seconds: float, pause: float) -> int:
    end, taken = time.monotonic() + seconds, 0
    for _ in results:
        taken += 1
        if time.monotonic() > end:
            break
        if pause:
            time.sleep(pause)
    return taken


def _large(number: int) -> bytes:
    return b"%d" % (number % 10) * 100_000_000


def _megabyte(number: int) -> bytes:
    return os.urandom(1_000_000)


def _nothing(number: int) -> None:
    return None


# ------------------------------------------------------------------------------------------------------ the processes


def run_case(name: str, server: str, workers: int, seconds: float) -> None:
    """In a process of its own: warm up, say so, run."""
    with gearmap.LocalCluster(workers, server=server) as cluster:
        cluster.map(abs, range(-4, 0), chunksize=1)
        job_server, node = cluster._backend.processes.pids
        print("ready", job_server, node, flush=True)
        sys.stdin.readline()
        done = CASES[name](cluster, seconds)
        print("done", done, flush=True)


def watch_case(name: str, server: str, workers: int, seconds: float) -> str:
    """Run a case; return a line of what was seen."""
    command = [sys.executable, "-m", "benchmarks.memory", "--run", name, server, str(workers), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        _, job_server, node = process.stdout.readline().split()
        pids = {"client": process.pid, "node": int(node), "job server": int(job_server)}
        before, most = _look(pids), dict.fromkeys(_WHO, 0)
        process.stdin.write("go\n")
        process.stdin.flush()
        stopped = name == client_stops.__name__ and process.stdout.readline()
        if stopped:
            process.send_signal(signal.SIGSTOP)
            _sample(pids, before, most, until=time.monotonic() + seconds)
            process.send_signal(signal.SIGCONT)
        _sample(pids, before, most, until=time.monotonic() + 3 * seconds + 30, process=process)
        said = process.stdout.readline().split()
    if process.returncode or said[:1] != ["done"]:
        return f"{name:22} {server:9} failed"
    shown = "  ".join(f"{who} {most[who] / 1e6:7.1f}" for who in _WHO)
    return f"{name:22} {server:9} {int(said[1]):>9,} tasks   {shown}   MB"


def _sample(
    pids: dict[str, int],
    before: dict[str, int],
    most: dict[str, int],
    *,
    until: float,
    process: subprocess.Popen[str] | None = None,
) -> None:
    while time.monotonic() < until and (process is None or process.poll() is None):
        for who, n_bytes in _look(pids).items():
            most[who] = max(most[who], n_bytes - before.get(who, 0))
        time.sleep(_LOOK_SECONDS)


def _look(pids: dict[str, int]) -> dict[str, int]:
    seen = {who: _pss(pid) for who, pid in pids.items()}
    try:
        children = psutil.Process(pids["node"]).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    seen["children"] = sum(_pss(child.pid) for child in children)
    return seen


def _pss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except OSError:
        return 0  # it has ended


def main(arguments: Sequence[str]) -> int:
    """Run the cases, or one of them as its process; return the exit status."""
    if arguments[:1] == ["--run"]:
        name, server, workers, seconds = arguments[1:]
        run_case(name, server, int(workers), float(seconds))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--server", action="append", choices=("gearmand", "embedded"))
    parser.add_argument("--only", action="append", choices=tuple(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long a case without an end goes on")
    options = parser.parse_args(arguments)
    for name in options.only or CASES:
        for server in options.server or ("gearmand", "embedded"):
            print(watch_case(name, server, options.workers, options.seconds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
