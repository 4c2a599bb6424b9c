"""The embedded job server under attack: what an honest client notices, and what the server takes.

    python -m benchmarks.siege [--only ATTACK] [--server embedded|gearmand] [--seconds 4]

Each attack runs against a server of its own. An honest client has one small job after the other done by an honest
worker, first in peace, then under attack; meanwhile the server's processor time and memory are looked at. The attackers
are processes of low priority, so that what an honest job waits for is the server and not the processor; they end after
`--seconds` by themselves. Figures go to a table and to a file beside those of `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.attackers import ATTACKS
from gearmap.jobserver.process import ServerProcess, start_job_server

__all__ = ["main"]

_TOP = Path(__file__).resolve().parent.parent
_FOLDER = _TOP / "artifacts" / "benchmarks"

# The longest that one honest job may take; then it counts as this long, and the honest connect anew.
_JOB_SECONDS = 10.0
# The longest that attackers may need until their attack is in full swing.
_READY_SECONDS = 60.0
# Between two honest jobs: they show how long one waits, and are no load themselves.
_PAUSE_SECONDS = 0.002

_SUBMIT_JOB, _JOB_CREATED, _WORK_COMPLETE, _CAN_DO = 7, 8, 13, 1
_PRE_SLEEP, _NOOP, _GRAB_JOB_UNIQ, _NO_JOB, _JOB_ASSIGN_UNIQ = 4, 6, 30, 10, 31
_MB = 1e6


def _request(command: int, body: bytes = b"") -> bytes:
    return b"\0REQ" + struct.pack(">II", command, len(body)) + body


class _Peer:
    """A connection that waits for packets."""

    def __init__(self, server: ServerProcess) -> None:
        self.socket = socket.create_connection((server.host, server.port), _JOB_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def send(self, command: int, body: bytes = b"") -> None:
        self.socket.sendall(_request(command, body))

    def read(self) -> tuple[int, bytes]:
        while len(self._buffer) < 12 or len(self._buffer) < 12 + struct.unpack_from(">I", self._buffer, 8)[0]:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionResetError("the server closed an honest connection")
            self._buffer += data
        _, command, size = struct.unpack_from(">4sII", self._buffer)
        body, self._buffer = self._buffer[12 : 12 + size], self._buffer[12 + size :]
        return command, body

    def read_until(self, wanted: int) -> bytes:
        while True:
            command, body = self.read()
            if command == wanted:
                return body


class Honest:
    """A client and the worker that serves it, taking turns in one thread."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._number = 0
        # Refused or lost honest jobs: the attack has succeeded.
        self.failures = 0
        self._connect()

    def _connect(self) -> None:
        self._client, self._worker = _Peer(self._server), _Peer(self._server)
        self._worker.send(_CAN_DO, b"honest")
        self._worker.send(_PRE_SLEEP)

    def close(self) -> None:
        for peer in (self._client, self._worker):
            peer.socket.close()

    def job(self) -> float:
        """Have one job done; return how long it took."""
        began = time.perf_counter()
        try:
            self._round_trip()
        except OSError:
            self.failures += 1
            self.close()
            try:
                self._connect()
            except OSError:
                time.sleep(0.05)  # nobody is let in
            return _JOB_SECONDS
        return time.perf_counter() - began

    def jobs(self, seconds: float) -> list[float]:
        """Have jobs done for so long; return how long each took."""
        end, times = time.monotonic() + seconds, []
        while time.monotonic() < end:
            times.append(self.job())
            time.sleep(_PAUSE_SECONDS)
        return times

    def _round_trip(self) -> None:
        self._number += 1
        self._client.send(_SUBMIT_JOB, b"honest\0%032d\0data" % self._number)
        command, body = self._client.read()
        if command != _JOB_CREATED:
            raise OSError(f"an honest job was refused: {body!r}")
        self._worker.read_until(_NOOP)
        self._worker.send(_GRAB_JOB_UNIQ)
        handle = self._worker.read_until(_JOB_ASSIGN_UNIQ).partition(b"\0")[0]
        self._worker.socket.sendall(_request(_WORK_COMPLETE, handle + b"\0result") + _request(_PRE_SLEEP))
        self._client.read_until(_WORK_COMPLETE)


class _Look:
    """What the server takes: processor time since the last look, and memory now."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._cpu, self._when = self._seconds(), time.monotonic()

    def _seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def cpu_share(self) -> float:
        cpu, when = self._seconds(), time.monotonic()
        share = (cpu - self._cpu) / max(1e-9, when - self._when)
        self._cpu, self._when = cpu, when
        return share

    def peak_bytes(self) -> int:
        """The most memory that the process ever had (VmHWM)."""
        with open(f"/proc/{self._process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

    def bytes_now(self) -> int:
        return int(self._process.memory_info().rss)


def besiege(name: str, kind: str, seconds: float) -> dict[str, float]:
    """Run one attack against a fresh server; return its figures (seconds, bytes)."""
    with ExitStack() as stack:
        server = stack.enter_context(start_job_server(kind))
        honest = Honest(server)
        stack.callback(honest.close)
        honest.jobs(0.3)
        look = _Look(server.pid)
        before = honest.jobs(seconds / 2)
        quiet_cpu, quiet_bytes = look.cpu_share(), look.bytes_now()
        attackers = stack.enter_context(_attackers(name, server, seconds))
        look.cpu_share()
        during = honest.jobs(seconds)
        cpu = look.cpu_share()
        failures = honest.failures
        attackers.wait(seconds + _READY_SECONDS)
        alive = server.alive
        after = honest.jobs(0.5) if alive else [_JOB_SECONDS]
        figures = {
            "quiet_median": statistics.median(before),
            "median": statistics.median(during),
            "p99": _percentile(during, 0.99),
            "longest": max(during),
            "after_median": statistics.median(after),
            "jobs": float(len(during)),
            "failures": float(failures),
            "quiet_cpu": quiet_cpu,
            "cpu": cpu,
            "quiet_bytes": float(quiet_bytes),
        }
        if alive:
            figures |= {"peak_bytes": float(look.peak_bytes()), "after_bytes": float(look.bytes_now())}
        return figures


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _attackers(name: str, server: ServerProcess, seconds: float) -> subprocess.Popen[str]:
    """Start the attackers, and wait until they are in full swing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.attackers", name, server.host, str(server.port), str(seconds)],
        cwd=_TOP,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    # It ends by itself should it never get ready.
    signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.alarm(int(_READY_SECONDS))
    ready = process.stdout.readline()
    signal.alarm(0)
    if ready != "ready\n":
        process.kill()
        raise RuntimeError(f"the attackers of {name!r} did not get ready")
    return process


_HEAD = (
    f"{'attack':18} {'server':9} | {'job ms in peace':>15} {'under attack: median':>21} {'p99':>8} {'longest':>9}"
    f" {'lost':>5} {'after':>7} | {'CPU %':>6} | {'MB before':>9} {'peak':>8} {'after':>8}"
)


def _line(name: str, kind: str, figures: dict[str, float]) -> str:
    def ms(key: str) -> str:
        return f"{figures[key] * 1e3:.2f}"

    memory = "the server has ended"
    if "peak_bytes" in figures:
        memory = f"{figures['peak_bytes'] / _MB:8.1f} {figures['after_bytes'] / _MB:8.1f}"
    return (
        f"{name:18} {kind:9} | {ms('quiet_median'):>15} {ms('median'):>21} {ms('p99'):>8} {ms('longest'):>9}"
        f" {figures['failures']:5.0f} {ms('after_median'):>7} | {figures['cpu'] * 100:6.1f} |"
        f" {figures['quiet_bytes'] / _MB:9.1f} {memory}"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the attacks; return 1 if an honest job was lost in one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.siege", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=tuple(ATTACKS), metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--server", action="append", choices=("gearmand", "embedded"), help="default: embedded")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each attack goes on")
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    everything: list[dict[str, object]] = []
    print(_HEAD, flush=True)
    for name in options.only or ATTACKS:
        for kind in options.server or ("embedded",):
            figures = besiege(name, kind, options.seconds)
            everything.append({"attack": name, "server": kind, **figures})
            print(_line(name, kind, figures), flush=True)
    _FOLDER.mkdir(parents=True, exist_ok=True)
    path = _FOLDER / time.strftime("siege-%Y%m%d-%H%M%S.json")
    facts = {"Python": platform.python_version(), "cores": os.cpu_count(), "seconds": options.seconds}
    path.write_text(json.dumps({"facts": facts, "rows": everything}, indent=1) + "\n")
    print(f"written to {path.relative_to(_TOP)}")
    return 1 if any(row["failures"] for row in everything) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
