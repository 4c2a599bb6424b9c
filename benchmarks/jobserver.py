"""The embedded job server against gearmand: processor time per tiny job, and throughput of large payloads.

Run `python benchmarks/jobserver.py [--rounds N]` from the project's root. The servers take turns inside every round,
and each figure is a median with its range, so that a busy machine touches both alike. Processor time is the server
process's own, from the system's accounts; wall times also hold the load generator, a Python program.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import struct
import time
from collections.abc import Callable

import psutil

from gearmap.jobserver.process import ServerProcess, find_gearmand, start_job_server

CAN_DO, SUBMIT_JOB, JOB_CREATED, GRAB_JOB_UNIQ, JOB_ASSIGN_UNIQ, WORK_COMPLETE = 1, 7, 8, 30, 31, 13
HEADER = struct.Struct(">4sII")
FUNCTION = b"benchmark"
MIB = 1 << 20

Figures = dict[str, list[float]]


def request(command: int, body: bytes = b"") -> bytes:
    return HEADER.pack(b"\0REQ", command, len(body)) + body


class Peer:
    """A connection that counts packets and keeps their bodies."""

    def __init__(self, server: ServerProcess) -> None:
        self.socket = socket.create_connection((server.host, server.port), 60.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def read(self, n_packets: int, wanted: int) -> list[bytes]:
        """Read until `n_packets` of the command `wanted` came; return their bodies."""
        bodies: list[bytes] = []
        while len(bodies) < n_packets:
            pos = 0
            while len(self.buffer) - pos >= HEADER.size:
                _, command, size = HEADER.unpack_from(self.buffer, pos)
                end = pos + HEADER.size + size
                if len(self.buffer) < end:
                    break
                if command == wanted:
                    bodies.append(bytes(self.buffer[pos + HEADER.size : end]))
                pos = end
            del self.buffer[:pos]
            if len(bodies) < n_packets:
                data = self.socket.recv(MIB)
                if not data:
                    raise ConnectionError("the server closed the connection")
                self.buffer += data
        return bodies

    def read_large(self, n_bytes: int) -> None:
        """Read a packet of at least `n_bytes` and throw it away."""
        scratch = memoryview(bytearray(MIB))
        header = b""
        while len(header) < HEADER.size:
            header += self.socket.recv(HEADER.size - len(header))
        missing = HEADER.unpack(header)[2]
        assert missing >= n_bytes
        while missing:
            missing -= self.socket.recv_into(scratch[: min(missing, MIB)])


def run_jobs(client: Peer, worker: Peer, n_jobs: int, window: int) -> None:
    """Pass tiny jobs through the server, `window` at a time."""
    serial = 0
    for _ in range(n_jobs // window):
        submissions = []
        for _ in range(window):
            serial += 1
            submissions.append(request(SUBMIT_JOB, b"%b\0%032x\0%b" % (FUNCTION, serial, b"x" * 100)))
        client.socket.sendall(b"".join(submissions))
        # All are queued before the first is asked for: a grab that came earlier would be answered NO_JOB.
        client.read(window, JOB_CREATED)
        worker.socket.sendall(request(GRAB_JOB_UNIQ) * window)
        handles = [body.partition(b"\0")[0] for body in worker.read(window, JOB_ASSIGN_UNIQ)]
        worker.socket.sendall(b"".join(request(WORK_COMPLETE, handle + b"\0result") for handle in handles))
        client.read(window, WORK_COMPLETE)


def measure_tiny(server: ServerProcess, n_jobs: int, window: int) -> tuple[float, float]:
    """Return microseconds of the server's processor time, and of wall time, per job."""
    process = psutil.Process(server.pid)
    client, worker = Peer(server), Peer(server)
    with client.socket, worker.socket:
        worker.socket.sendall(request(CAN_DO, FUNCTION))
        before, begin = process.cpu_times(), time.perf_counter()
        run_jobs(client, worker, n_jobs, window)
        elapsed, after = time.perf_counter() - begin, process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return used / n_jobs * 1e6, elapsed / n_jobs * 1e6


def measure_large(server: ServerProcess, n_bytes: int, n_jobs: int) -> float:
    """Return MB per second of payload that goes in and comes out again."""
    client, worker = Peer(server), Peer(server)
    packet = request(SUBMIT_JOB, FUNCTION + b"\0\0" + bytes(n_bytes))
    with client.socket, worker.socket:
        worker.socket.sendall(request(CAN_DO, FUNCTION))
        begin = time.perf_counter()
        for _ in range(n_jobs):
            client.socket.sendall(packet)
            handle = client.read(1, JOB_CREATED)[0]
            worker.socket.sendall(request(GRAB_JOB_UNIQ))
            worker.read_large(n_bytes)
            worker.socket.sendall(request(WORK_COMPLETE, handle + b"\0"))
            client.read(1, WORK_COMPLETE)
        return n_jobs * n_bytes / (time.perf_counter() - begin) / 1e6


def report(name: str, unit: str, figures: Figures) -> None:
    """Print the median of each contestant, its range, and the ratio round by round."""
    for kind, values in figures.items():
        print(f"{name:34} {kind:10} {statistics.median(values):9.1f} {unit} [{min(values):.1f} - {max(values):.1f}]")
    if len(figures) == 2:
        ours, theirs = figures["embedded"], figures["gearmand"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True) if b]
        if ratios:
            spread = f"[{min(ratios):.2f} - {max(ratios):.2f}]"
            print(f"{name:34} {'ratio':10} {statistics.median(ratios):9.2f} embedded / gearmand {spread}")


def compare(servers: dict[str, ServerProcess], rounds: int, measure: Callable[[ServerProcess], float]) -> Figures:
    figures: Figures = {kind: [] for kind in servers}
    for _ in range(rounds):
        for kind, server in servers.items():
            figures[kind].append(measure(server))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the embedded job server with gearmand.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=10_000)
    args = parser.parse_args()
    kinds = ["embedded"] + (["gearmand"] if find_gearmand() else [])
    servers = {kind: start_job_server(kind) for kind in kinds}
    try:
        for window in (1, 10, 100):
            n_jobs = args.jobs if window > 1 else args.jobs // 4
            cpu: Figures = {kind: [] for kind in kinds}
            wall: Figures = {kind: [] for kind in kinds}
            for _ in range(args.rounds):
                for kind, server in servers.items():
                    cpu_time, wall_time = measure_tiny(server, n_jobs, window)
                    cpu[kind].append(cpu_time)
                    wall[kind].append(wall_time)
            report(f"server CPU per job, window {window}", "us", cpu)
            report(f"wall time per job, window {window}", "us", wall)
        for n_mib, n_jobs in ((1, 50), (10, 8), (64, 2)):
            large = compare(
                servers,
                args.rounds,
                lambda server, n=n_mib, jobs=n_jobs: measure_large(server, n * MIB, jobs),
            )
            report(f"payload of {n_mib} MiB", "MB/s", large)
        for kind, server in servers.items():
            print(f"{'memory at the end':34} {kind:10} {psutil.Process(server.pid).memory_info().rss / 1e6:9.1f} MB")
    finally:
        for server in servers.values():
            server.stop()


if __name__ == "__main__":
    main()
