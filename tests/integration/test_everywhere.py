"""One call on every worker, or on every node."""

from __future__ import annotations

import os
import threading
import time

import pytest
from integration_support import wait_until

import gearmap
from gearmap.transport import admin

pytestmark = pytest.mark.usefixtures("functions_travel")


def names_on(server) -> set[str]:
    """The private names that a job server knows."""
    rows = admin.server_status((server.host, server.port), 5.0)
    return {row.function for row in rows if row.function.startswith("gearmap1.on-")}


def test_every_worker_answers_from_a_process_of_its_own(cluster):
    answers = cluster.on_every_worker(os.getpid)

    assert len(answers) == 2
    assert len(set(answers.values())) == 2
    assert sorted(name.rpartition("/")[2] for name in answers) == ["0", "1"]


def test_arguments_are_passed_on_and_the_names_are_those_that_tasks_see(cluster):
    def who(prefix, *, mark):
        return prefix + gearmap.current_task().worker + mark

    assert all(answer == f"<{name}>" for name, answer in cluster.on_every_worker(who, "<", mark=">").items())


def test_an_exception_stands_in_its_place(cluster):
    def picky():
        if gearmap.current_task().worker.endswith("/1"):
            raise ValueError("not here")
        return "fine"

    answers = {name.rpartition("/")[2]: answer for name, answer in cluster.on_every_worker(picky).items()}

    assert answers["0"] == "fine"
    assert isinstance(answers["1"], ValueError)


def test_a_busy_worker_is_waited_for(cluster, tmp_path):
    def busy():
        (tmp_path / "busy").touch()
        until = time.monotonic() + 30
        while not (tmp_path / "go").exists() and time.monotonic() < until:
            time.sleep(0.01)

    future = cluster.submit(busy)
    wait_until((tmp_path / "busy").exists, "one worker is busy")
    answers = []
    caller = threading.Thread(target=lambda: answers.append(cluster.on_every_worker(abs, -1)))
    caller.start()
    caller.join(1.0)
    assert not answers
    (tmp_path / "go").touch()
    caller.join(30)

    assert list(answers[0].values()) == [1, 1]
    future.result(30)


def test_a_worker_that_stays_busy_is_a_timeout_in_its_place(cluster, tmp_path):
    def busy():
        (tmp_path / "busy").touch()
        until = time.monotonic() + 60
        while not (tmp_path / "go").exists() and time.monotonic() < until:
            time.sleep(0.01)

    future = cluster.submit(busy)
    wait_until((tmp_path / "busy").exists, "one worker is busy")
    answers = cluster.options(timeout=3.0).on_every_worker(abs, -1)
    (tmp_path / "go").touch()

    kinds = sorted(type(answer).__name__ for answer in answers.values())
    assert kinds == ["RunTimeout", "int"]
    future.result(30)


def test_a_map_that_goes_on_meanwhile_is_not_disturbed(cluster):
    run = cluster.map_async(lambda x: (time.sleep(0.005), x)[1], range(600))
    answers = cluster.on_every_worker(abs, -1)

    assert list(answers.values()) == [1, 1]
    assert run.result() == list(range(600))


def test_nothing_is_left_on_the_job_server(kind, start_server, start_node, connect):
    server = start_server(kind)
    start_node(server)
    client = connect(server)
    for _ in range(3):
        assert list(client.on_every_worker(abs, -1).values()) == [1, 1]

    wait_until(lambda: not names_on(server), "the names are forgotten", 10)
    assert client.map(abs, [-1]) == [1]


def test_every_node_answers_once(kind, start_server, start_node, connect):
    server = start_server(kind)
    start_node(server, name="a")
    start_node(server, name="b", workers=1)
    client = connect(server)

    assert sorted(client.on_every_node(lambda: gearmap.current_task().worker[0]).items()) == [("a", "a"), ("b", "b")]
    assert sorted(client.on_every_worker(abs, -1)) == ["a/0", "a/1", "b/0"]


def test_two_nodes_of_one_name_are_told_apart(kind, start_server, start_node, connect):
    server = start_server(kind)
    for _ in range(2):
        start_node(server, name="same", workers=1)

    answers = connect(server).on_every_worker(os.getpid)

    assert len(answers) == len(set(answers.values())) == 2


def test_only_workers_of_the_queue_are_asked(kind, start_server, start_node, connect):
    server = start_server(kind)
    start_node(server, name="a", workers=1)
    start_node(server, name="b", workers=1, queue="gpu")

    assert list(connect(server).options(queue="gpu").on_every_worker(abs, -1)) == ["b/0"]


def test_a_node_that_dies_meanwhile_is_a_loss_in_its_place(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    start_node(server, name="a", workers=1)
    doomed = start_node(server, name="b", workers=1)
    client = connect(server)

    def work():
        if gearmap.current_task().worker == "b/0":
            (tmp_path / "began").touch()
            time.sleep(60)
        return "fine"

    answers = {}
    caller = threading.Thread(target=lambda: answers.update(client.on_every_worker(work)))
    caller.start()
    wait_until((tmp_path / "began").exists, "it runs")
    doomed.kill()
    caller.join(30)

    assert answers["a/0"] == "fine"
    assert isinstance(answers["b/0"], gearmap.WorkerLost)


def test_without_workers_it_is_said_why(kind, start_server, start_node, connect):
    server = start_server(kind)
    start_node(server)

    with pytest.raises(gearmap.ClusterBroken, match=r"no worker serves queue 'gpu' .* 2 serve 'default'"):
        connect(server).options(queue="gpu").on_every_worker(abs, -1)


def test_a_task_cannot_ask_every_worker(cluster):
    with pytest.raises(gearmap.ConfigurationError, match="its own is busy with the task"):
        cluster.submit(lambda: gearmap.on_every_worker(abs, -1)).result(60)


def test_threads_may_ask_at_the_same_time(cluster):
    answers = []
    callers = [threading.Thread(target=lambda: answers.append(cluster.on_every_worker(abs, -1))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)

    assert [sorted(each.values()) for each in answers] == [[1, 1]] * 3
