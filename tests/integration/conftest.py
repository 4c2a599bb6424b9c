"""Real clusters: both job servers, real nodes and children, and nothing left behind.

`cluster` is a local cluster that tests share; `servers` and `nodes` start what a single test kills.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from integration_support import is_alive, lane_of, wait_until, workers_of
from programs import KINDS, require_kind

import gearmap
from gearmap.jobserver.process import ServerProcess, start_job_server
from gearmap.keyfile import make_key
from gearmap.runtime.noderun import encode_node_config


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of job server in turn."""
    require_kind(request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def cluster(kind: str) -> Iterator[gearmap.LocalCluster]:
    """A cluster of two workers; tests may break its tasks, not its processes."""
    client = gearmap.LocalCluster(2, server=kind)
    yield client
    client.close()


@pytest.fixture(scope="module")
def functions_travel(request: pytest.FixtureRequest) -> Iterator[None]:
    """The module's functions are pickled by value: workers do not find it where they import from."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


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

    def start(
        *servers: ServerProcess,
        workers: int = 2,
        queue: str = "default",
        name: str = "node",
        key: Path = key_file,
        interpreter: str = sys.executable,
        python: tuple[int, int] | None = None,
        **limits: Any,
    ) -> Node:
        lane = lane_of(key, queue, python)
        before = [(server, workers_of(server, lane)) for server in servers]
        process = subprocess.Popen(
            [interpreter, "-m", "gearmap.runtime.node_main", "0"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        process.stdin.write(
            encode_node_config(
                servers=tuple((server.host, server.port) for server in servers),
                secret=bytes.fromhex(key.read_text().strip()),
                python=python,
                workers=workers,
                queues=(queue,),
                name=name,
                node_id=secrets.token_hex(4),
                **limits,
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
