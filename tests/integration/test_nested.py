"""Tasks that use the cluster themselves: no circle of waiting, few processes, nothing left behind."""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest
from integration_support import wait_until

import gearmap

WORKERS = 2


pytestmark = pytest.mark.usefixtures("functions_travel")


def children_of(cluster) -> list[psutil.Process]:
    """The processes that run tasks: all that the node's starter of processes has started."""
    node = psutil.Process(cluster._processes.pids[1])
    starters = node.children()
    return [child for starter in starters for child in starter.children()]


def tree(depth: int) -> int:
    """Count the tasks of a tree in which each maps over two more."""
    return 1 + sum(gearmap.map(tree, [depth - 1] * 2)) if depth else 1


def test_tasks_may_map_while_every_worker_is_busy_with_such_tasks(cluster):
    def outer(x):
        return sum(gearmap.map(lambda y: x * y, range(4)))

    assert cluster.map(outer, range(6), chunksize=1, timeout=60) == [6 * x for x in range(6)]


def test_every_way_to_run_tasks_works_inside_a_task(cluster):
    def outer(x):
        client = gearmap.options(retries=1)
        return [
            gearmap.starmap(pow, [(x, 2), (x, 3)]),
            gearmap.submit(abs, -x).result(),
            list(gearmap.imap(abs, [-x, x])),
            sorted(gearmap.imap_unordered(abs, [-x, x])),
            client.map(abs, [-x]),
        ]

    assert cluster.map(outer, [2, 3], chunksize=2, timeout=60) == [
        [[x**2, x**3], x, [x, x], [x, x], [x]] for x in (2, 3)
    ]


@pytest.mark.parametrize("depth", [2, 3])
def test_tasks_may_be_nested_deeply_in_few_processes(cluster, depth):
    most = 0
    done = threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.02):
            most = max(most, len(children_of(cluster)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        counts = cluster.map(tree, [depth] * 3, chunksize=1, timeout=90)
    finally:
        done.set()
        watcher.join()

    assert counts == [2 ** (depth + 1) - 1] * 3
    assert WORKERS < most <= WORKERS * (depth + 1) + 1  # and a spare


def test_the_fourth_level_is_refused(cluster):
    with pytest.raises(gearmap.ConfigurationError, match=r"tasks can be nested 3 deep, and this one is"):
        cluster.map(tree, [4], timeout=60)


def test_a_nested_task_knows_its_level_and_its_worker(cluster):
    def inner(_):
        now = gearmap.current_task()
        return now.level, now.worker

    levels = cluster.submit(lambda: gearmap.map(inner, range(3))).result(60)

    assert {level for level, _ in levels} == {1}
    assert all(worker.endswith("~1") for _, worker in levels)


def test_the_exception_of_an_inner_task_comes_out_as_itself(cluster):
    def outer(x):
        return gearmap.map(lambda y: 1 // y, [1, 0])

    with pytest.raises(ZeroDivisionError) as caught:
        cluster.map(outer, [1], timeout=60)

    assert "gearmap.map(" in "\n".join([*getattr(caught.value, "__notes__", ()), str(caught.value.__cause__)])


def test_inner_tasks_run_in_the_folder_of_the_outer_one(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert cluster.submit(lambda: gearmap.map(lambda _: os.getcwd(), [1, 2])).result(60) == [str(tmp_path)] * 2


def test_a_task_may_run_in_threads_what_it_wants(cluster):
    def outer():
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda x: sum(gearmap.map(abs, [x, -x])), range(8)))

    assert cluster.submit(outer).result(60) == [2 * x for x in range(8)]


def test_a_task_that_runs_out_of_time_takes_its_inner_tasks_with_it(cluster, tmp_path):
    def inner(x):
        (tmp_path / f"{x}-{os.getpid()}").touch()
        time.sleep(60)

    with pytest.raises(gearmap.TaskTimeout):
        cluster.options(task_timeout=3.0).submit(lambda: gearmap.map(inner, range(20))).result(60)

    began = {int(path.name.partition("-")[2]) for path in tmp_path.iterdir()}
    assert began
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in began), "the inner tasks are stopped", 20)


def test_what_a_task_does_not_wait_for_ends_with_it(cluster, tmp_path):
    def inner(x):
        (tmp_path / f"{x}-{os.getpid()}").touch()
        time.sleep(60)

    def outer():
        futures = [gearmap.submit(inner, x) for x in range(20)]
        until = time.monotonic() + 30
        while not list(tmp_path.iterdir()) and time.monotonic() < until:
            time.sleep(0.01)
        return len(futures)

    assert cluster.submit(outer).result(60) == 20

    began = {int(path.name.partition("-")[2]) for path in tmp_path.iterdir()}
    assert began
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in began), "the inner tasks are stopped", 20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_a_task_has_forked_is_told_that_it_cannot(cluster):
    def forks():
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                gearmap.map(abs, [1])
            except gearmap.ConfigurationError as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.wait()
        return os.read(reading, 1000).decode()

    assert "a process that a task has started cannot use the cluster" in cluster.submit(forks).result(30)


def test_a_task_may_have_a_cluster_of_its_own_when_it_says_so(cluster, kind):
    def outer():
        with gearmap.LocalCluster(1, server=kind) as own:
            return own.where, gearmap.map(abs, [-1, 2])

    where, results = cluster.submit(outer).result(60)

    assert "1 worker" in where
    assert results == [1, 2]


def test_in_line_tasks_may_map_in_line():
    with gearmap.LocalCluster(0) as inline:
        assert inline.map(lambda x: gearmap.map(abs, [x, -x]), [1, 2]) == [[1, 1], [2, 2]]


def test_workers_of_a_level_that_nobody_asks_for_end(kind, start_server, start_node, connect):
    server = start_server(kind)
    node = start_node(server)
    client = connect(server)
    before = len(node.children())

    assert client.submit(lambda: gearmap.map(abs, [-1, -2])).result(60) == [1, 2]
    assert len(node.children()) > before
    wait_until(lambda: len(node.children()) <= before, "their processes have ended")

    assert client.submit(lambda: gearmap.map(abs, [-1, -2])).result(60) == [1, 2]


def test_a_node_that_drains_lets_nested_tasks_finish(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    node = start_node(server, grace=30.0)
    client = connect(server)

    def outer():
        first = gearmap.map(abs, [-1, -2])
        (tmp_path / "began").touch()
        until = time.monotonic() + 30
        while not (tmp_path / "draining").exists() and time.monotonic() < until:
            time.sleep(0.01)
        return first + gearmap.map(abs, [-3, -4])

    future = client.submit(outer)
    wait_until((tmp_path / "began").exists, "the outer task has begun")
    node.drain()
    (tmp_path / "draining").touch()

    assert future.result(60) == [1, 2, 3, 4]
    assert node.process.wait(30) == 0


def test_what_a_task_writes_to_its_line_harms_nobody_else(kind):
    def vandal(garbage):
        from gearmap.runtime import child

        child.line.socket.sendall(garbage)
        return os.getpid()

    with gearmap.LocalCluster(1, server=kind) as own:
        client = own.options(max_tasks_per_child=1)
        for garbage in (
            b"\xff" * 64,
            b"\x02\x00\x00\x00{}",
            b"\x04\x00\x00\x00[[]]",
            b'\x05\x00\x00\x00["a"]',
            b"\x01",
        ):
            client.submit(vandal, garbage).result(30)

        assert own.submit(lambda: gearmap.map(abs, [-1, -2])).result(60) == [1, 2]


def test_a_nested_call_in_a_queue_that_nobody_serves_can_time_out(cluster):
    def outer():
        try:
            gearmap.map(abs, [1], queue="nobody", timeout=0.5)
        except gearmap.RunTimeout as error:
            return str(error)

    assert "timeout=0.5" in cluster.submit(outer).result(60)
