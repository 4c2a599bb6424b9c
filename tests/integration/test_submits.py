"""Single calls: who may be waited for, where callbacks run, what a future knows at its end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from integration_support import wait_until
from programs import KINDS, require_kind

import gearmap

LIMIT = 30.0


@pytest.fixture(params=KINDS)
def server_kind(request):
    require_kind(request.param)
    return request.param


# ---------------------------------------------------------------------------------------------------------- no server


def test_a_submit_says_at_once_that_no_job_server_answers_and_names_each_with_its_origin(
    server_kind, start_server, connect
):
    servers = [start_server(server_kind) for _ in range(2)]
    client = connect(*servers)
    for server in servers:
        server.stop()
    began = time.monotonic()

    for _ in range(2):
        with pytest.raises(gearmap.ServerUnavailable) as caught:
            client.submit(abs, 1)

    assert time.monotonic() - began < 4
    for server in servers:
        assert f"'127.0.0.1:{server.port}' (from the argument)" in str(caught.value)
    assert "gearmap server" in str(caught.value)


def test_a_server_that_does_not_answer_costs_a_submit_two_seconds(connect, key_file):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)  # connects, and never says a word
        with gearmap.Client(f"127.0.0.1:{silent.getsockname()[1]}", key=key_file) as client:
            began = time.monotonic()
            with pytest.raises(gearmap.ServerUnavailable, match=r"within 2\.0 s"):
                client.submit(abs, 1)
            assert 1.9 < time.monotonic() - began < 4


def test_what_was_sent_waits_for_the_server_to_return_and_a_new_call_does_not(
    server_kind, start_server, start_node, connect
):
    server = start_server(server_kind)
    client = connect(server)
    sent = client.submit(abs, -1)
    wait_until(sent.running, "the call is sent")
    port = server.port
    server.kill()

    def refused():
        try:
            client.submit(abs, -2)
        except gearmap.ServerUnavailable:
            return True
        return False

    wait_until(refused, "a new call is refused", 5.0)
    assert sent.running()

    start_node(start_server(server_kind, port=port), workers=1)
    assert sent.result(LIMIT) == 1
    assert client.submit(abs, -3).result(LIMIT) == 3


def test_a_submit_finds_a_server_that_came_back_without_waiting_for_the_next_attempt(
    server_kind, start_server, start_node, connect
):
    server = start_server(server_kind)
    client = connect(server)
    port = server.port
    server.kill()
    with pytest.raises(gearmap.ServerUnavailable):
        client.submit(abs, -1)

    start_node(start_server(server_kind, port=port), workers=1)
    assert client.submit(abs, -2).result(LIMIT) == 2


def test_one_server_that_answers_is_enough(server_kind, start_server, start_node, connect):
    gone, there = start_server(server_kind), start_server(server_kind)
    start_node(there, workers=1)
    client = connect(gone, there)
    gone.kill()

    assert client.submit(abs, -1).result(LIMIT) == 1


def test_many_threads_that_submit_first_share_one_run(cluster):
    barrier = threading.Barrier(8)
    found = []

    def work(number):
        barrier.wait(LIMIT)
        found.append(cluster.options(max_worker_losses=2).submit(abs, -number).result(LIMIT))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(found) == list(range(8))


# ---------------------------------------------------------------------------------------------------------- callbacks


def test_callbacks_have_a_thread_of_their_own_and_one_that_blocks_stops_no_call(cluster, tmp_path):
    release, done = threading.Event(), threading.Event()
    names = []

    def block(future):
        names.append(threading.current_thread().name)
        release.wait(LIMIT)
        done.set()

    go = tmp_path / "go"

    def wait():
        while not go.exists():
            time.sleep(0.01)

    # One that is added to a future that is done is called at once, by whoever adds it.
    cluster.submit(wait).add_done_callback(block)
    go.touch()
    try:
        assert [cluster.submit(abs, -n).result(LIMIT) for n in range(3)] == [0, 1, 2]
        assert cluster.map(abs, range(10)) == list(range(10))
    finally:
        release.set()
    assert done.wait(LIMIT)
    assert names == ["gearmap-callbacks"]


def test_a_callback_may_submit_and_wait(cluster):
    found = []
    done = threading.Event()

    def go_on(future):
        found.append(cluster.submit(abs, -future.result()).result(LIMIT) + 1)
        done.set()

    cluster.submit(abs, -41).add_done_callback(go_on)
    assert done.wait(LIMIT)
    assert found == [42]


def test_callbacks_come_in_the_order_in_which_they_were_added(cluster):
    order = []
    done = threading.Event()
    future = cluster.submit(time.sleep, 0.3)
    for number in range(5):
        future.add_done_callback(lambda _, number=number: order.append(number))
    future.add_done_callback(lambda _: done.set())
    assert done.wait(LIMIT)
    assert order == list(range(5))


def test_callbacks_that_are_due_are_called_before_a_client_is_closed(server_kind):
    called = []
    with gearmap.LocalCluster(1, server=server_kind) as own:
        own.submit(abs, -1).result(LIMIT)
        future = own.submit(time.sleep, 60)
        future.add_done_callback(lambda _: time.sleep(0.05))
        future.add_done_callback(called.append)
        wait_until(future.running, "the task runs")
    assert called == [future]
    with pytest.raises(gearmap.ClusterBroken):
        future.result(0)


def test_a_callback_may_close_its_client(server_kind, start_server, start_node, connect):
    server = start_server(server_kind)
    start_node(server, workers=1)
    client = connect(server)
    closed = threading.Event()
    client.submit(abs, -1).add_done_callback(lambda _: (client.close(), closed.set()))
    assert closed.wait(LIMIT)
    assert client.is_closed


def test_asyncio_waits_for_many_futures_at_once(cluster):
    async def main():
        futures = [cluster.submit(abs, -n) for n in range(50)]
        return await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, futures)), LIMIT)

    assert asyncio.run(main()) == list(range(50))


# ---------------------------------------------------------------------------------------------------- what it knows


def test_a_future_knows_its_index_worker_attempts_and_duration(cluster):
    bound = cluster.options(retries=1, priority="high")
    first, second = bound.submit(time.sleep, 0.2), bound.submit(os.getpid)
    assert (second.result(LIMIT) > 0, first.result(LIMIT)) == (True, None)
    assert (first.task_index, second.task_index) == (0, 1)
    assert first.attempts == second.attempts == 1
    assert first.worker
    assert first.worker.rpartition("/")[0] == second.worker.rpartition("/")[0]
    assert 0.2 <= first.duration < 2
    assert 0 <= second.duration < 0.2


def test_tasks_that_came_together_have_the_mean_of_their_durations(cluster):
    futures = [cluster.submit(abs, -n) for n in range(500)]
    assert [future.result(LIMIT) for future in futures] == list(range(500))
    assert all(0 <= future.duration < 1 for future in futures)


# ------------------------------------------------------------------------------------------------ the interpreter's end


@pytest.mark.parametrize("how", ["gearmap.submit", "gearmap.LocalCluster(1).submit"])
def test_the_end_of_the_interpreter_cancels_what_nobody_waited_for_and_says_so(how):
    code = f"""
import gearmap, time
submit = {how}
submit(abs, -1).result(60)
futures = [submit(time.sleep, 120) for _ in range(3)]
"""
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert time.monotonic() - began < LIMIT
    assert ended.returncode == 0
    assert "3 submitted calls were cancelled by the end of the interpreter; wait for the futures" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_end_of_the_interpreter_says_nothing_if_all_calls_have_ended():
    code = "import gearmap\nassert gearmap.submit(abs, -1).result(60) == 1"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "cancelled" in ended.stderr) == (0, False)
