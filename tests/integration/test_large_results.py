"""Large results on a local cluster: they do not travel, none is lost, and nothing is left of them."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys

import psutil
import pytest
from integration_support import wait_until

import gearmap
from gearmap.runtime.sealedmemory import can_share

numpy = pytest.importorskip("numpy")

pytestmark = [
    pytest.mark.usefixtures("functions_travel"),
    pytest.mark.skipif(not can_share(), reason="processes cannot hand memory over here"),
]

MEGABYTE = 2**20


def array_of(value, megabytes=2):
    return numpy.full(megabytes * MEGABYTE, value, dtype=numpy.uint8)


def mapped():
    """How many arrays of this process are in memory that was handed over."""
    gc.collect()
    with open("/proc/self/maps") as file:
        return file.read().count("gearmap-blob")


def descriptors(process):
    return psutil.Process(process).num_fds()


def values(arrays):
    return [int(array[-1]) for array in arrays]


def test_results_of_every_kind_of_call_are_handed_over(cluster):
    before = mapped()
    results = cluster.map(array_of, range(4))
    assert (values(results), mapped() - before) == ([0, 1, 2, 3], 4)
    del results
    cluster.map(abs, [1])  # the results of the last map are kept
    assert values(cluster.imap(array_of, range(4))) == [0, 1, 2, 3]
    futures = [cluster.submit(array_of, value) for value in range(4)]
    assert values(future.result(60) for future in futures) == [0, 1, 2, 3]
    assert mapped() - before == 4
    del futures
    assert mapped() == before


def test_nodes_of_this_machine_hand_memory_over_whoever_started_them(kind, start_server, start_node, connect):
    server = start_server(kind)
    client = connect(server)
    start_node(server)
    before = mapped()
    results = client.map(array_of, range(4))
    assert (values(results), mapped() - before) == ([0, 1, 2, 3], 4)


def test_the_caller_may_write_to_a_result(cluster):
    result = cluster.submit(array_of, 1).result(60)
    result[:] = 7
    assert (result.min(), result.max()) == (7, 7)


def test_a_task_that_prints_and_fails_among_others_loses_nothing(cluster, capsys):
    def task(number):
        print("task", number)
        if number == 3:
            raise ValueError(number)
        return [array_of(number), number, array_of(number + 100)]

    results = cluster.options(return_exceptions=True, chunksize=4).map(task, range(6))
    assert isinstance(results[3], ValueError)
    assert [each[1] for each in results if isinstance(each, list)] == [0, 1, 2, 4, 5]
    assert all(values(each[::2]) == [each[1], each[1] + 100] for each in results if isinstance(each, list))


def test_large_bytes_and_text_come_whole(cluster):
    def task(number):
        return bytes([number]) * MEGABYTE, chr(number + 1000) * MEGABYTE

    for number, (raw, text) in enumerate(cluster.map(task, range(4))):
        assert raw == bytes([number]) * MEGABYTE
        assert text == chr(number + 1000) * MEGABYTE


def test_more_arrays_than_are_handed_over_at_once_come_whole(cluster):
    result = cluster.submit(lambda: [array_of(value, 1) for value in range(40)]).result(60)
    assert values(result) == list(range(40))


def test_a_child_that_dies_between_memory_and_outcome_costs_another_run_only(cluster, tmp_path):
    marker = tmp_path / "died"

    def task(number):
        from gearmap.runtime.handover import Handover

        if number == 2 and not marker.exists():
            hand_over = Handover._hand_over

            def die(self, line, view):
                hand_over(self, line, view)
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

            Handover._hand_over = die
        return array_of(number)

    assert values(cluster.map(task, range(6))) == list(range(6))
    assert marker.exists()


def test_memory_that_was_lost_on_its_way_costs_another_run_only(kind, tmp_path, caplog):
    marker = tmp_path / "lost"

    def task(number):
        from gearmap.runtime.handover import Handover
        from gearmap.wire.landed import Landed

        if number == 1 and not marker.exists():
            marker.touch()
            Handover._hand_over = lambda self, line, view: Landed(bytes(16), len(view))
        return array_of(number)

    with gearmap.LocalCluster(1, server=kind) as cluster, caplog.at_level(logging.WARNING):
        assert values(cluster.options(chunksize=1).map(task, range(4))) == [0, 1, 2, 3]
        assert "memory of a large result was lost" in caplog.text
        before = mapped()
        result = cluster.submit(array_of, 5).result(60)  # it goes on, without memory
        assert (values([result]), mapped()) == ([5], before)


def test_neither_client_nor_node_keeps_anything_of_many_calls(cluster):
    _, node = cluster._backend.processes.pids

    def round_of_calls(start):
        assert values(cluster.map(array_of, range(start, start + 20))) == list(range(start, start + 20))
        futures = [cluster.submit(array_of, value) for value in range(start, start + 20)]
        assert values(future.result(60) for future in futures) == list(range(start, start + 20))

    round_of_calls(0)
    before, of_node = descriptors(os.getpid()), descriptors(node)
    for start in range(0, 200, 40):
        round_of_calls(start)
    # The last run of a map is closed by the driver soon after its results are there.
    wait_until(lambda: descriptors(os.getpid()) <= before, "the client has as many descriptors as before")
    wait_until(lambda: descriptors(node) <= of_node, "the node has as many descriptors as before")


def test_a_slow_consumer_holds_a_bounded_number_of_large_results(cluster):
    before = mapped()
    most = 0
    for number, array in enumerate(cluster.imap(lambda value: array_of(value, 8), range(30))):
        assert array[0] == number
        most = max(most, mapped() - before)
        if number % 10 == 5:
            cluster.map(abs, range(4))  # meanwhile, as many as may come do
    assert most <= 16


def test_a_client_that_is_killed_leaves_nothing(kind, tmp_path):
    script = tmp_path / "client.py"
    script.write_text(
        "import sys, gearmap, numpy\n"
        "if __name__ == '__main__':\n"
        f"    with gearmap.LocalCluster(2, server={kind!r}) as cluster:\n"
        "        cluster.submit(abs, 1).result()\n"
        "        print(cluster._backend._driver.landing.name, *cluster._backend.processes.pids, flush=True)\n"
        "        for array in cluster.imap(lambda value: numpy.full(2**23, value % 256, numpy.uint8), range(10**6)):\n"
        "            print(len(array), flush=True)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        name, *others = client.stdout.readline().split()
        assert client.stdout.readline().strip() == str(2**23)
        client.kill()
    wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in others), "its cluster has ended")
    with open("/proc/net/unix") as file:
        assert name not in file.read()
