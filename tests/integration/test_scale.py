"""A local cluster that grows and shrinks while it works, and its memory limit."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

import gearmap

pytestmark = pytest.mark.usefixtures("functions_travel")


@pytest.fixture(params=["gearmand", "embedded"])
def cluster(request):
    with gearmap.LocalCluster(1, server=request.param) as cluster:
        cluster.wait_for_workers(1, timeout=30)
        yield cluster


def hold(folder, x):
    """Say that it runs, and run until it may end."""
    folder = Path(folder)
    (folder / f"began-{x}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return x, os.getpid()


def wait_for(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.02)


def test_a_cluster_that_grows_runs_more_tasks_at_once(cluster, tmp_path):
    run = cluster.map_async(hold, [str(tmp_path)] * 3, range(3), chunksize=1)
    wait_for(lambda: len(list(tmp_path.glob("began-*"))) == 1)

    cluster.scale(3)

    wait_for(lambda: len(list(tmp_path.glob("began-*"))) == 3)
    (tmp_path / "go").touch()
    results = run.result(30)
    assert [x for x, _ in results] == [0, 1, 2]
    assert len({pid for _, pid in results}) == 3
    assert "3 workers" in cluster.where
    assert len(cluster.status().workers) == 3


def test_a_cluster_that_shrinks_ends_what_runs_and_runs_the_rest_elsewhere(cluster, tmp_path):
    cluster.scale(2)
    cluster.wait_for_workers(2, timeout=30)
    run = cluster.map_async(hold, [str(tmp_path)] * 6, range(6), chunksize=1)
    wait_for(lambda: len(list(tmp_path.glob("began-*"))) == 2)
    before = {worker.name for worker in cluster.status().workers}

    cluster.scale(1)
    (tmp_path / "go").touch()

    assert [x for x, _ in run.result(60)] == list(range(6))
    wait_for(lambda: len(cluster.status().workers) == 1)
    assert len(before) == 2
    assert cluster.map(abs, [-1, -2]) == [1, 2]


def test_every_process_of_a_scaled_cluster_ends_with_it(cluster):
    cluster.scale(3)
    cluster.scale(2)
    cluster.scale(4)
    cluster.wait_for_workers(4, timeout=60)
    processes = [psutil.Process(pid) for pid in cluster._processes.pids]
    processes += [child for process in processes for child in process.children(recursive=True)]

    cluster.close()

    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
    with pytest.raises(gearmap.ClusterBroken, match="closed"):
        cluster.scale(2)


def test_the_size_before_the_first_use_counts_for_the_start():
    cluster = gearmap.LocalCluster(1)
    cluster.scale(2)
    with cluster:
        assert cluster.wait_for_workers(2, timeout=30) == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: gearmap.LocalCluster(1).scale(0), "workers must be at least 1, got 0"),
        (lambda: gearmap.LocalCluster(1).scale("3"), "workers must be an int, got '3'"),
        (lambda: gearmap.LocalCluster(0).scale(2), "runs tasks in this process"),
        (lambda: gearmap.LocalCluster(1, memory_limit="lots"), "memory is given like 4G"),
        (lambda: gearmap.LocalCluster(1, memory_limit=1000), "memory_limit must be at least 64 MB"),
        (lambda: gearmap.LocalCluster(1, memory_limit=1.5), "memory_limit must be bytes"),
    ],
)
def test_a_wrong_size_is_refused(make, says):
    with pytest.raises(gearmap.ConfigurationError, match=says):
        make()


def test_a_local_cluster_may_limit_the_memory_of_its_workers():
    def use(megabytes):
        data = bytearray(megabytes * 2**20)
        data[::4096] = b"x" * len(data[::4096])
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.05)
        return len(data)

    with gearmap.LocalCluster(1, memory_limit="200M") as cluster:
        with pytest.raises(gearmap.WorkerLost, match=r"memory limit of 200 MB"):
            cluster.options(max_worker_losses=1).submit(use, 400).result(60)
        assert cluster.status().nodes[0].memory_limit == 200 * 2**20
