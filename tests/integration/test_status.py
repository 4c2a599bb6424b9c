"""`gearmap.status()` on clusters that run, that were not started, and that are gone."""

from __future__ import annotations

import time

import pytest

import gearmap
from gearmap.overview.values import ClusterStatus

pytestmark = pytest.mark.usefixtures("functions_travel")


def wait_until_busy(cluster: gearmap.Client, seconds: float = 20.0) -> ClusterStatus:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        seen = cluster.status()
        if any(worker.state == "busy" and worker.position is not None for worker in seen.workers):
            return seen
    raise AssertionError("no worker was ever busy")


def spin(path):
    import pathlib

    while not pathlib.Path(path).exists():
        sum(range(10_000))
    return bytes(10)


def test_a_busy_worker_shows_its_task_and_what_it_uses(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    start_node(server, workers=2)
    client = connect(server)
    client.wait_for_workers(2, timeout=30)
    run = client.map_async(spin, [str(tmp_path / "go")] * 3, chunksize=3)
    seen = wait_until_busy(client)

    (node,) = seen.nodes
    busy = next(worker for worker in node.workers if worker.state == "busy")
    assert (len(node.workers), busy.position, busy.n_tasks) == (2, 0, 3)
    assert busy.memory_bytes > 5_000_000
    assert busy.cpu_seconds >= 0
    assert [each.problem for each in seen.servers] == [""]
    (queue,) = [each for each in client.status().queues if each.is_mine]  # servers were asked before nodes
    assert (queue.queue, queue.workers, queue.running) == ("default", 2, 1)

    (tmp_path / "go").touch()
    assert run.result() == [bytes(10)] * 3
    assert busy.name in {each.name for each in client.status().workers}


def test_a_server_that_is_gone_is_said_with_its_problem(kind, start_server, connect):
    server = start_server(kind)
    client = connect(server)
    server.stop()
    seen = client.status()
    assert "Connection refused" in seen.servers[0].problem
    assert seen.nodes == ()
    assert seen.queues == ()


def test_nothing_is_started_for_a_status():
    cluster = gearmap.LocalCluster(1)
    try:
        assert cluster.status().servers == ()
        assert cluster.server == "no server"
        with cluster:
            cluster.wait_for_workers(1, timeout=30)
            assert gearmap.status().nodes[0].name
    finally:
        cluster.close()
    assert cluster.status().servers == ()
