"""Waiting for workers that are on their way."""

from __future__ import annotations

import threading

import pytest
from integration_support import wait_until

import gearmap


def test_workers_that_are_there_are_counted(cluster):
    assert cluster.wait_for_workers(2, timeout=30) == 2


def test_workers_that_come_later_are_waited_for(kind, start_server, start_node, connect):
    server = start_server(kind)
    client = connect(server)
    found = []
    waiter = threading.Thread(target=lambda: found.append(client.wait_for_workers(3, timeout=60)))
    waiter.start()
    start_node(server, workers=2)
    assert not found
    start_node(server, workers=2, name="second")
    waiter.join(60)

    assert found
    assert 3 <= found[0] <= 4


def test_too_few_workers_are_an_error_that_says_how_many(cluster):
    with pytest.raises(gearmap.RunTimeout, match=r"^2 of 3 workers after timeout=0\.3 s: queue 'default' has too few"):
        cluster.wait_for_workers(3, timeout=0.3)


def test_no_worker_at_all_is_explained(cluster):
    with pytest.raises(TimeoutError, match=r"0 of 1 workers .* no worker serves queue 'gpu' .* 2 serve 'default'"):
        cluster.wait_for_workers(timeout=0.0, queue="gpu")


def test_a_client_that_is_closed_waits_no_more(kind, start_server, connect):
    client = connect(start_server(kind))
    problems = []

    def wait():
        try:
            client.wait_for_workers()
        except gearmap.ClusterBroken as error:
            problems.append(str(error))

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: client._backend._driver is not None, "it waits")
    client.close()
    waiter.join(30)

    assert not waiter.is_alive()
    assert problems


def test_without_a_job_server_it_is_said_at_once(key_file):
    with gearmap.Client("127.0.0.1:1", key=key_file) as client, pytest.raises(gearmap.ServerUnavailable, match="start"):
        client.wait_for_workers(timeout=60)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_a_number_that_is_none_is_refused(n):
    with gearmap.LocalCluster(0) as inline, pytest.raises(gearmap.ConfigurationError, match="n must be"):
        inline.wait_for_workers(n)


def test_inline_there_is_nothing_to_wait_for():
    with gearmap.LocalCluster(0) as inline:
        assert inline.wait_for_workers(5) == 5
