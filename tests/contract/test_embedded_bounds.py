"""The embedded server under attack: what all connections may take together, and that the honest are served meanwhile.

`benchmarks.siege` has the figures. Here the limits are small, so that little reaches them.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from allowed_differences import expected
from packets import (
    CAN_DO,
    ECHO_REQ,
    ECHO_RES,
    ERROR,
    GRAB_JOB_UNIQ,
    JOB_CREATED,
    SUBMIT_JOB,
    SUBMIT_JOB_BG,
    WORK_DATA,
    RawConnection,
    request,
)

import gearmap.jobserver

ROOT = str(Path(gearmap.jobserver.__file__).parents[2])
MIB = 1 << 20

SCRIPT = """
import json, resource, sys
root, limits, stock, files = sys.argv[1:]
sys.path.insert(0, root)
from gearmap.jobserver.limits import Limits, Stock
from gearmap.jobserver.records import ServerOptions
from gearmap.jobserver.shell import serve
from gearmap.jobserver.sockets import listen

if int(files):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
listener = listen("127.0.0.1", 0)
port = listener.getsockname()[1]
serve(
    listener,
    ServerOptions(stock=Stock(**json.loads(stock))),
    limits=Limits(**json.loads(limits)),
    lifeline=0,
    on_ready=lambda: print(json.dumps(port), flush=True),
)
"""


class Bounded:
    """A server with limits of its own."""

    def __init__(self, *, files: int = 0, stock: dict[str, int] | None = None, **limits: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, ROOT, json.dumps(limits), json.dumps(stock or {}), str(files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline())
        self._opened: list[RawConnection] = []

    def connect(self) -> RawConnection:
        self._opened.append(RawConnection("127.0.0.1", self.port))
        return self._opened[-1]

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def rss(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def end(self) -> str:
        """Stop the server; return what it logged."""
        for connection in self._opened:
            connection.close()
        _, messages = self.process.communicate(timeout=10)
        assert self.process.returncode == 0
        return messages.decode()


@pytest.fixture
def bounded() -> Iterator[object]:
    """A function that starts a server; what it logged must not hold a traceback."""
    servers: list[Bounded] = []

    def start(**options: object) -> Bounded:
        servers.append(Bounded(**options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.returncode is None:
            assert "Traceback" not in server.end()


def is_served(connection: RawConnection) -> bool:
    return connection.ask(ECHO_REQ, b"x") == (ECHO_RES, b"x")


def is_closed(connection: RawConnection) -> bool:
    """Whether the server closes the connection soon."""
    try:
        connection.expect_closed()
    except TimeoutError:
        return False
    return True


def test_without_file_descriptors_the_server_waits_and_does_not_spin(bounded):
    server = bounded(files=40, sweep_delay=60.0)
    honest = server.connect()
    assert is_served(honest)
    crowd = [server.connect() for _ in range(60)]
    assert is_served(honest)
    before = server.cpu_seconds()
    time.sleep(0.5)  # long enough to see a process that never waits
    assert server.cpu_seconds() - before < 0.2
    assert is_served(honest)
    for connection in crowd:
        connection.close()
    assert is_served(server.connect())
    assert server.end().count("cannot accept") == 1


def test_idle_connections_give_way_to_new_ones_and_those_with_something_to_do_stay(bounded):
    server = bounded(max_connections=20, least_silence=0.0)
    worker, client = server.connect(), server.connect()
    worker.can_do(b"f")
    client.submit(b"f")
    crowd = [server.connect() for _ in range(18)]
    for connection in crowd:
        assert is_served(connection)
    fresh = server.connect()
    assert is_served(fresh)
    assert is_closed(crowd[0])
    assert is_served(crowd[-1])
    assert worker.grab() is not None
    assert is_served(client)


def test_where_nobody_is_idle_a_new_connection_is_closed_at_once(bounded):
    server = bounded(max_connections=5)
    workers = [server.connect() for _ in range(5)]
    for worker in workers:
        worker.can_do(b"f")
    for _ in range(30):
        assert is_closed(server.connect())
    assert all(map(is_served, workers))
    assert server.end().count("refusing connections") == 1


def test_many_half_bodies_cost_bounded_memory_and_the_stalest_goes_first(bounded):
    server = bounded(all_halves_bytes=16 * MIB)
    before = server.rss()
    halves = [server.connect() for _ in range(20)]
    for half in halves:
        try:
            half.send_bytes(b"\0REQ" + struct.pack(">II", SUBMIT_JOB_BG, 2**31 - 1) + b"f\0\0" + bytes(4 * MIB))
        except OSError:
            pass  # it is that one's turn
        time.sleep(0.01)  # they differ in age
    honest = server.connect()
    assert is_served(honest)
    assert server.rss() - before < 40 * MIB
    # The newest is alive: its body goes on.
    halves[-1].send_bytes(bytes(MIB))
    assert is_closed(halves[0])


def test_one_large_body_may_be_larger_than_the_limit_of_all(bounded):
    server = bounded(all_halves_bytes=MIB)
    client = server.connect()
    client.submit(b"f", bytes(8 * MIB), command=SUBMIT_JOB_BG)


def test_announcing_a_megabyte_costs_nothing(bounded):
    server = bounded()
    before = server.rss()
    for _ in range(200):
        server.connect().send_bytes(b"\0REQ" + struct.pack(">II", SUBMIT_JOB_BG, MIB) + bytes(100))
    assert is_served(server.connect())
    assert server.rss() - before < 20 * MIB


def test_many_outboxes_that_nobody_fetches_cost_bounded_memory(bounded):
    server = bounded(all_outboxes_bytes=16 * MIB, own_water_bytes=8 * MIB, low_water_bytes=MIB)
    before = server.rss()
    flood = request(ECHO_REQ, bytes(MIB)) * 16
    crowd = [server.connect() for _ in range(10)]
    for connection in crowd:
        connection.timeout = 0.3
        try:
            connection.send_bytes(flood)
        except OSError:
            pass  # it is held back, or has lost its place
    assert is_served(server.connect())
    assert server.rss() - before < 48 * MIB
    assert "did not fetch" in server.end()


def test_a_packet_that_comes_byte_by_byte_has_a_deadline(bounded):
    server = bounded(header_timeout=0.5, sweep_delay=0.05)
    quiet, slow = server.connect(), server.connect()
    is_open = True
    for byte in request(ECHO_REQ, bytes(200)):
        try:
            slow.send_bytes(bytes([byte]))
        except OSError:
            is_open = False
            break
        time.sleep(0.05)  # the attack itself
    assert not is_open
    assert is_served(quiet)


def test_who_keeps_others_from_being_read_is_closed(bounded):
    server = bounded(hold_timeout=0.3, sweep_delay=0.05, high_water_bytes=2 * MIB, low_water_bytes=MIB)
    client, worker, honest = server.connect(), server.connect(), server.connect()
    handle = client.submit(b"f")
    worker.can_do(b"f")
    worker.must_grab()
    for _ in range(30):
        worker.send_bytes(request(WORK_DATA, handle, bytes(MIB)))
    assert is_served(worker)
    assert is_served(honest)
    assert "kept others from being read" in server.end()


def test_who_floods_has_turns_with_the_others(bounded):
    server = bounded()
    honest = server.connect()
    packets = request(ECHO_REQ, b"x") * 5000
    stop = threading.Event()

    def flood(connection: socket.socket) -> None:
        # The answers are not read, and fit into the outbox for as long as this takes.
        connection.settimeout(5.0)
        while not stop.is_set():
            connection.sendall(packets)

    threads = [threading.Thread(target=flood, args=(server.connect().socket,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    times = []
    try:
        for _ in range(20):
            began = time.perf_counter()
            assert is_served(honest)
            times.append(time.perf_counter() - began)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # Without turns each round of the five is 15,000 packets, 100 ms or more of the server.
    assert sorted(times)[10] < 0.05


def test_jobs_above_the_stock_are_refused_and_room_comes_back(bounded):
    server = bounded(stock={"max_jobs": 10, "max_jobs_bytes": 10 * MIB})
    client, worker = server.connect(), server.connect()
    for _ in range(10):
        client.submit(b"f", command=SUBMIT_JOB_BG)
    refusal = expected("embedded", "stock-is-bounded", gearmand=(), ours=(ERROR, b"QUEUE_ERROR\0Job queue is full"))
    assert client.ask(SUBMIT_JOB, b"f", b"", b"x") == refusal
    worker.can_do(b"f")
    handle = worker.must_grab()
    worker.send_bytes(request(13, handle, b"done"))
    assert worker.settle() == []
    client.submit(b"f", command=SUBMIT_JOB_BG)


def test_functions_without_jobs_and_workers_are_forgotten_when_there_are_too_many(bounded):
    server = bounded(stock={"max_names_bytes": 100_000})
    worker, admin = server.connect(), server.connect()
    worker.can_do(b"served")
    for number in range(1000):
        assert admin.ask_line(b"create function spam-%d" % number) == b"OK\r\n"
    lines = admin.ask_lines(b"status")
    assert lines[0] == b"served\t0\t0\t1"
    assert 100 < len(lines) < 200
    assert admin.ask(SUBMIT_JOB, b"served", b"", b"x").command == JOB_CREATED
    assert admin.ask(SUBMIT_JOB, b"n" * 8000, b"", b"x").command == JOB_CREATED


def test_a_long_packet_that_has_no_data_is_refused_at_its_header(bounded):
    server = bounded()
    peer = server.connect()
    peer.send_bytes(b"\0REQ" + struct.pack(">II", CAN_DO, 20_000) + b"begun")
    assert is_closed(peer) == expected("embedded", "only-data-is-long", gearmand=False, ours=True)


def test_a_long_listing_that_was_just_made_is_given_again(bounded):
    server = bounded()
    admin = server.connect()
    submission, n_jobs = request(SUBMIT_JOB_BG, b"f", b"", b""), 50_000
    for _ in range(10):
        admin.send_bytes(submission * (n_jobs // 10))
        for _ in range(n_jobs // 10):
            assert admin.read().command == JOB_CREATED
    # Sent at once, so that nothing takes time between the two.
    admin.send_bytes(b"show jobs\n" + submission + b"show jobs\n")
    received = b""
    while received.count(b"\n.\n") < 2:
        received += admin.socket.recv(MIB)
    n_listed = received.count(b"\t0\t0\t1\n")
    assert n_listed == expected("embedded", "long-listings-are-kept", gearmand=2 * n_jobs + 1, ours=2 * n_jobs)


def test_a_worker_of_too_many_functions_is_closed(bounded):
    server = bounded(stock={"max_abilities": 100})
    worker, honest = server.connect(), server.connect()
    worker.send_bytes(b"".join(request(CAN_DO, b"f%d" % number) for number in range(101)))
    assert is_closed(worker)
    honest.can_do(b"f0")
    assert honest.ask(GRAB_JOB_UNIQ).command == 10
