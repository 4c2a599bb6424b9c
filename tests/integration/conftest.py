"""Real clusters: both job servers, real nodes and children, and nothing left behind.

`cluster` is a local cluster that tests share; `servers` and `nodes` start what a single test kills.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import gearmap
from gearmap.core.names import Lane
from gearmap.jobserver.process import ServerProcess, find_gearmand, start_job_server
from gearmap.keyfile import make_key
from gearmap.runtime.noderun import encode_node_config
from gearmap.transport import admin
from gearmap.wire import seal

KINDS = ("embedded", "gearmand")

# How long anything may take before the test gives up (seconds); generous, for a busy machine.
DEADLINE = 30.0


def require(kind: str) -> None:
    """Skip without gearmand; fail where it has to be there."""
    if kind == "gearmand" and find_gearmand() is None:
        if os.environ.get("CI"):
            pytest.fail("gearmand is not installed, and CI is set")
        pytest.skip("gearmand is not installed")


def wait_until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Wait until something outside of our control is so."""
    until = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"{what}: not within {deadline} s")
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def lane_of(key_file: Path, queue: str = "default") -> str:
    """The function name that nodes of this Python and key serve."""
    secret = bytes.fromhex(key_file.read_text().strip())
    return Lane(queue, (sys.version_info[0], sys.version_info[1]), seal.key_id(secret)).name


def workers_of(server: ServerProcess, function: str) -> int:
    """How many workers a job server lists for a function."""
    rows = admin.server_status((server.host, server.port), 5.0)
    return {row.function: row.workers for row in rows}.get(function, 0)


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of job server in turn."""
    require(request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def cluster(kind: str) -> Iterator[gearmap.LocalCluster]:
    """A cluster of two workers; tests may break its tasks, not its processes."""
    client = gearmap.LocalCluster(2, server=kind)
    yield client
    client.close()


class Node:
    """A node that a test started, and may kill."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[psutil.Process]:
        """Every process that the node has started."""
        return psutil.Process(self.pid).children(recursive=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def drain(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """A function that starts a job server for this test."""
    started: list[ServerProcess] = []

    def start(kind: str, **options: object) -> ServerProcess:
        started.append(start_job_server(kind, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key that client and nodes of this test share."""
    path = tmp_path / "key"
    make_key(path)
    return path


@pytest.fixture
def start_node(key_file: Path) -> Iterator[Callable[..., Node]]:
    """A function that starts a node for this test."""
    started: list[Node] = []

    def start(*servers: ServerProcess, workers: int = 2, queue: str = "default", name: str = "node") -> Node:
        lane = lane_of(key_file, queue)
        before = [(server, workers_of(server, lane)) for server in servers]
        process = subprocess.Popen(
            [sys.executable, "-m", "gearmap.runtime.node_main", "0"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        process.stdin.write(
            encode_node_config(
                servers=tuple((server.host, server.port) for server in servers),
                secret=bytes.fromhex(key_file.read_text().strip()),
                workers=workers,
                queues=(queue,),
                name=name,
                node_id=secrets.token_hex(4),
            )
        )
        process.stdin.close()
        started.append(Node(process))
        wait_until(
            lambda: all(workers_of(server, lane) >= count + workers for server, count in before), "the node serves"
        )
        return started[-1]

    yield start
    for node in started:
        node.stop()


@pytest.fixture
def connect(key_file: Path) -> Iterator[Callable[..., gearmap.Client]]:
    """A function that makes a client for this test."""
    clients: list[gearmap.Client] = []

    def make(*servers: ServerProcess) -> gearmap.Client:
        clients.append(gearmap.Client([f"{server.host}:{server.port}" for server in servers], key=key_file))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(autouse=True)
def _leaves_no_process_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that starts processes of its own ends them all."""
    if "cluster" in request.fixturenames:
        yield  # the shared cluster stays
        return
    # What this process has started itself: the shared cluster's node may start a child of its own at any time.
    before = {process.pid for process in psutil.Process().children()}
    yield

    def left() -> list[psutil.Process]:
        return [p for p in psutil.Process().children() if p.pid not in before and is_alive(p)]

    wait_until(lambda: not left(), f"processes left behind: {left()}", 10.0)
