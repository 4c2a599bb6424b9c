"""Real clusters: both job servers, real nodes and children, and nothing left behind.

`cluster` is a local cluster that tests share; `servers` and `nodes` start what a single test kills.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from integration_support import lane_of, wait_until, workers_of
from lan import Lan
from leaks import MARK, MARKED_AS, Belongings, NodesBelongings, expect_no_jobs
from networks import make_network
from programs import KINDS, ends_with_us, require_kind

import gearmap
from gearmap.jobserver.process import ServerProcess, start_job_server
from gearmap.keyfile import load_key, make_key
from gearmap.runtime.noderun import encode_node_config

LOOPBACK = "127.0.0.1"

# Processes that a node with two workers starts: for each worker, to spare, what starts them, what tracks their memory.
AT_REST = 5


@pytest.fixture(scope="session", autouse=True)
def _own_traces() -> Iterator[None]:
    """Processes and temporary files of this session are told from those of everybody else."""
    get_temp_dir()  # the one that this process keeps to its end is made before
    # A short path, for sockets' sake.
    with tempfile.TemporaryDirectory(prefix="gm-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, MARKED_AS)
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of job server in turn."""
    require_kind(request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def cluster(kind: str) -> Iterator[gearmap.LocalCluster]:
    """A cluster of two workers; tests may break its tasks, not its processes."""
    client = gearmap.LocalCluster(2, server=kind)
    client.map(abs, [-1])  # now, or its processes would be taken for those of the first test
    _, node = client._backend.processes.pids
    wait_until(lambda: len(psutil.Process(node).children(recursive=True)) == AT_REST, "its children run")
    had = NodesBelongings.now(node)
    yield client
    try:
        had.expect_nothing_more()
    finally:
        client.close()


@pytest.fixture(scope="module")
def functions_travel(request: pytest.FixtureRequest) -> Iterator[None]:
    """The module's functions are pickled by value: workers do not find it where they import from."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


def _nobody_may_serve_for_a_while() -> None:
    """Let this test's clients warn of it: how soon the next node serves is up to what else the machine does."""
    warnings.filterwarnings("ignore", "no worker serves", RuntimeWarning)  # pytest takes it back after the test


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
        _nobody_may_serve_for_a_while()
        self.process.kill()
        self.process.wait()

    def drain(self) -> None:
        _nobody_may_serve_for_a_while()
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        _nobody_may_serve_for_a_while()
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
        if options.get("port"):  # one that comes back: nodes find it when they look for it the next time
            _nobody_may_serve_for_a_while()
        started.append(start_job_server(kind, **options))
        return started[-1]

    yield start
    try:
        # One on a host of its own cannot be asked from here.
        expect_no_jobs((server.host, server.port) for server in started if server.alive and server.host == LOOPBACK)
    finally:
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
            ends_with_us([interpreter, "-m", "gearmap.runtime.node_main", "0"]),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(
            encode_node_config(
                servers=tuple((server.host, server.port) for server in servers),
                keys=(load_key(key, "a test"),),
                python=python,
                workers=workers,
                queues=(queue,),
                name=name,
                node_id=secrets.token_hex(4),
                **limits,
            ).reveal()
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


@pytest.fixture
def make_lan(
    start_server: Callable[..., ServerProcess],
    start_node: Callable[..., Node],
    connect: Callable[..., gearmap.Client],
    tmp_path: Path,
) -> Iterator[Callable[..., Lan]]:
    """A function that starts servers of these kinds and a client for this test, each on a host of its own."""
    made: list[Lan] = []
    network = make_network()

    def make(*kinds: str) -> Lan:
        for kind in kinds:
            require_kind(kind)
        made.append(Lan(kinds, network, start_server, start_node, connect, tmp_path / "runs"))
        return made[-1]

    yield make
    try:
        for lan in made:
            lan.end()
    finally:
        network.remove()


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test ends, closes and removes all that it started, opened and made."""
    # What has a wider scope is there already, and stays: clients by themselves or in a dictionary.
    wider = list(request.node.funcargs.values())
    wider += [each for value in wider if isinstance(value, dict) for each in value.values()]
    before = Belongings.now(value for value in wider if isinstance(value, gearmap.Client))
    yield
    before.expect_nothing_more()
    for client in before.clients:
        expect_no_jobs((address.host, address.port) for address in client._backend.addresses)
