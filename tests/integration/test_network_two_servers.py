"""Networks that are cut while there are two job servers: no task is lost, each settles once, the run goes on."""

from __future__ import annotations

import time

import pytest
from integration_support import in_background, wait_until
from lan import SOON

PAIRS = [("gearmand", "embedded"), ("embedded", "gearmand")]

pytestmark = [
    pytest.mark.parametrize("kinds", PAIRS, ids=" and ".join),
    # While every server is cut off nobody serves, as far as the client can tell.
    pytest.mark.filterwarnings("ignore:no worker serves:RuntimeWarning"),
]

TASKS = 100

# Shorter and longer than what a connection bears.
SHORT, LONG = 1.0, 4.0


@pytest.fixture
def lan(kinds, make_lan):
    return make_lan(*kinds)


@pytest.fixture
def node(lan):
    """The host of two workers of both servers."""
    return lan.node("node", workers=2)


def start(lan, task):
    """Run the tasks; return what waits for their results, each as often as it came."""
    results = in_background(lambda: list(lan.client.imap_unordered(task, range(TASKS))))
    wait_until(lambda: len(lan.workers()) > 4, "tasks run")
    return lambda: sorted(results(SOON))


def test_one_that_is_cut_off_for_good(lan, node):
    results = start(lan, lan.worker(0.05))

    lan.server_hosts[0].cut()

    assert results() == list(range(TASKS))
    assert lan.client.map(abs, range(-20, 0), chunksize=1) == list(range(20, 0, -1))


@pytest.mark.parametrize("seconds", [SHORT, LONG])
def test_one_that_is_cut_off_for_a_while(lan, node, seconds):
    results = start(lan, lan.worker(0.05))

    lan.server_hosts[1].cut_for(seconds)

    assert results() == list(range(TASKS))
    assert lan.client.map(abs, range(-20, 0), chunksize=1) == list(range(20, 0, -1))


@pytest.mark.parametrize("seconds", [SHORT, LONG])
def test_both_that_are_cut_off_for_a_while(lan, node, seconds):
    results = start(lan, lan.worker(0.05))

    for host in lan.server_hosts:
        host.cut()
    time.sleep(seconds)  # that is the fault itself
    for host in lan.server_hosts:
        host.restore()

    assert results() == list(range(TASKS))
    assert lan.client.map(abs, range(-20, 0), chunksize=1) == list(range(20, 0, -1))


@pytest.mark.parametrize("who", ["node", "client"])
@pytest.mark.parametrize("seconds", [SHORT, LONG])
def test_a_cut_with_data_in_flight(lan, node, who, seconds):
    """Results are large, so that the cable is pulled in the middle of some."""
    small = lan.worker(0.0)

    def large(x):
        return small(x), bytes(3_000_000)

    results = start(lan, large)

    {"node": node, "client": lan.client_host}[who].cut_for(seconds)

    assert [(x, len(rest)) for x, rest in results()] == [(x, 3_000_000) for x in range(TASKS)]
    assert lan.client.map(abs, range(-20, 0), chunksize=1) == list(range(20, 0, -1))


def test_a_host_that_vanishes_while_it_works_for_both(lan, node):
    lan.node("stays", workers=2)
    results = start(lan, lan.worker(0.05))
    wait_until(lambda: any("stays" in str(names) for names in lan.workers().values()), "it works, too")
    wait_until(lambda: any("node" in str(names) for names in lan.workers().values()), "both work")

    node.cut()

    assert results() == list(range(TASKS))
    again = {task: names for task, names in lan.workers().items() if len(names) > 1}
    assert all("stays" in names[-1] for names in again.values())
