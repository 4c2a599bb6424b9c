"""Hosts that vanish without a word, and networks that are cut and mended: nothing is lost, everything settles once.

Server, nodes and client live in network namespaces of their own. The times after which silence counts are shorter here
than they are for users; what follows them is the same.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter

import pytest
from integration_support import in_background, lane_of, wait_until
from leaks import expect_no_jobs
from networks import make_network
from programs import KINDS, require_kind

from gearmap.config import Patience

pytestmark = pytest.mark.parametrize("kind", KINDS)

# A tenth of what users have.
SHORT = {"beat_interval": 0.5, "beat_timeout": 3.0, "send_timeout": 2.0}

# What all of it may take, with what a busy machine may add.
SOON = 40.0


@pytest.fixture
def network():
    made = make_network()
    yield made
    made.remove()


@pytest.fixture
def lan(kind, network, start_server, start_node, connect, tmp_path):
    """A server, a client and as many nodes as wanted, each on a host of its own."""
    require_kind(kind)
    made = Lan(kind, network, start_server, start_node, connect, tmp_path / "runs")
    yield made
    made.client.close()  # a job that a host took along is one that nobody waits for then
    with made.server_host.inside():
        expect_no_jobs([(made.server.host, made.server.port)])
    for node in made.nodes:
        node.kill()  # one that is cut off would try for seconds to take its leave


CAN_DO, PRE_SLEEP, NOOP, GRAB_JOB, JOB_ASSIGN = 1, 4, 6, 9, 11


def packet(command, data=b""):
    return struct.pack("!4sII", b"\0REQ", command, len(data)) + data


def wait_for(worker, wanted):
    """Read packets up to one of the wanted kind."""
    command = None
    while command != wanted:
        _, command, size = struct.unpack("!4sII", worker.recv(12, socket.MSG_WAITALL))
        worker.recv(size, socket.MSG_WAITALL)


class Lan:
    def __init__(self, kind, network, start_server, start_node, connect, runs):
        self.network, self.runs, self.nodes = network, runs, []
        self._start_node, self._start_server, self._kind = start_node, start_server, kind
        self.server_host, self.client_host = network.host("server"), network.host("client")
        self.server = self.start_server()
        with self.client_host.inside():
            self.client = connect(self.server)
            self.client._backend.patience = Patience(**SHORT)
            self.client._backend.ready_driver()  # its thread lives where it is started

    def start_server(self, port=0):
        with self.server_host.inside():
            return self._start_server(self._kind, host=self.server_host.address, port=port)

    def node(self, name, workers=1):
        host = self.network.host(name)
        with host.inside():
            node = self._start_node(self.server, name=name, workers=workers, patience=SHORT)
        self.nodes.append(node)
        return host

    def workers(self):
        """The names of those who have begun each task, as they say themselves."""
        found = {}
        if self.runs.exists():
            for line in self.runs.read_text().splitlines():
                task, worker = line.split()
                found.setdefault(int(task), []).append(worker)
        return found

    def worker(self, seconds):
        """A task that says who runs it and takes its time."""
        runs = self.runs

        def work(x):
            import gearmap

            with runs.open("a") as file:
                file.write(f"{x} {gearmap.current_task().worker}\n")
            time.sleep(seconds)
            return x

        return work


def test_a_host_that_vanishes_in_the_middle_of_a_map(lan):
    goes = lan.node("goes")
    result = in_background(lambda: lan.client.map(lan.worker(0.1), range(60), chunksize=2))
    wait_until(lambda: len(lan.workers()) > 4, "the map runs")
    lan.node("stays")
    wait_until(lambda: any("stays" in str(names) for names in lan.workers().values()), "both work")

    goes.cut()

    assert result(SOON) == list(range(60))
    again = {task: names for task, names in lan.workers().items() if len(names) > 1}
    assert len(again) <= 2 * 4  # at most what it had been given: its window of chunks
    assert all("stays" in names[-1] for names in again.values())


def test_a_host_that_vanishes_in_a_long_task(lan):
    goes = lan.node("goes")
    future = lan.client.submit(lan.worker(2.0), 7)
    wait_until(lambda: lan.workers() == {7: ["goes/0"]}, "the task runs")
    goes.cut()
    lan.node("stays")

    assert future.result(SOON) == 7
    assert lan.workers() == {7: ["goes/0", "stays/0"]}


def test_a_job_that_is_queued_for_a_host_that_has_vanished(lan):
    """The server wakes a connection that looks alive."""
    goes = lan.node("goes")
    assert lan.client.submit(abs, -1).result(SOON) == 1
    goes.cut()
    future = lan.client.submit(lan.worker(0.0), 7)
    lan.node("stays")

    assert future.result(SOON) == 7
    assert lan.workers() == {7: ["stays/0"]}


def test_a_job_on_its_way_to_a_host_that_has_vanished(lan, key_file):
    """The server believes that it runs, and no execution ever tells of itself."""
    goes = lan.network.host("goes")
    with goes.inside(), socket.create_connection((lan.server.host, lan.server.port), SOON) as worker:
        function = lane_of(key_file).encode()
        worker.sendall(packet(CAN_DO, function) + packet(PRE_SLEEP))
        future = lan.client.submit(lan.worker(0.0), 7)
        wait_for(worker, NOOP)
        worker.sendall(packet(GRAB_JOB))
        wait_for(worker, JOB_ASSIGN)
        goes.cut()
        lan.node("stays")

        assert future.result(SOON) == 7
        assert lan.workers() == {7: ["stays/0"]}


def test_a_large_outcome_that_is_cut_off_in_the_middle(lan):
    goes = lan.node("goes")
    began = lan.runs.with_name("began")

    def work(x):
        began.touch()
        return bytes(64_000_000)

    future = lan.client.submit(work, 1)
    wait_until(began.exists, "the task runs")
    goes.cut()
    lan.node("stays")

    assert len(future.result(SOON)) == 64_000_000


@pytest.mark.parametrize(
    ("who", "seconds"), [("client", 1.0), ("client", 4.0), ("node", 4.0), ("server", 1.0), ("server", 4.0)]
)
def test_a_cut_that_is_mended(lan, who, seconds):
    """Shorter and longer than what a connection bears."""
    node = lan.node("node", workers=2)
    host = {"client": lan.client_host, "node": node, "server": lan.server_host}[who]
    result = in_background(lambda: lan.client.map(lan.worker(0.05), range(100), chunksize=1))
    wait_until(lambda: len(lan.workers()) > 4, "the map runs")

    host.cut_for(seconds)

    assert result(SOON) == list(range(100))
    counts = Counter(len(names) for names in lan.workers().values())
    assert set(counts) <= {1, 2, 3}
    assert lan.client.map(abs, range(-9, 0)) == list(range(9, 0, -1))


def test_a_servers_host_that_vanishes_and_comes_back_without_memory(lan):
    lan.node("node", workers=2)
    result = in_background(lambda: lan.client.map(lan.worker(0.05), range(100), chunksize=1))
    wait_until(lambda: len(lan.workers()) > 4, "the map runs")

    lan.server_host.cut()
    lan.server.kill()  # its FINs go nowhere
    lan.start_server(lan.server.port)
    lan.server_host.restore()

    assert result(SOON) == list(range(100))
