"""Hosts that vanish without a word, and networks that are cut and mended: nothing is lost, everything settles once.

Server, nodes and client live in network namespaces of their own. The times after which silence counts are shorter here
than they are for users; what follows them is the same.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter

import pytest
from integration_support import in_background, lane_of, wait_until
from lan import SOON
from programs import KINDS

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def lan(kind, make_lan):
    """A server, a client and as many nodes as wanted, each on a host of its own."""
    return make_lan(kind)


CAN_DO, PRE_SLEEP, NOOP, GRAB_JOB, JOB_ASSIGN = 1, 4, 6, 9, 11


def packet(command, data=b""):
    return struct.pack("!4sII", b"\0REQ", command, len(data)) + data


def wait_for(worker, wanted):
    """Read packets up to one of the wanted kind."""
    command = None
    while command != wanted:
        _, command, size = struct.unpack("!4sII", worker.recv(12, socket.MSG_WAITALL))
        worker.recv(size, socket.MSG_WAITALL)


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
    with goes.inside(), socket.create_connection((lan.servers[0].host, lan.servers[0].port), SOON) as worker:
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
    host = {"client": lan.client_host, "node": node, "server": lan.server_hosts[0]}[who]
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

    lan.server_hosts[0].cut()
    lan.servers[0].kill()  # its FINs go nowhere
    lan.restart_server(0)
    lan.server_hosts[0].restore()

    assert result(SOON) == list(range(100))
