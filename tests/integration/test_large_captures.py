"""Functions that capture large arrays: on a local cluster its processes share them."""

from __future__ import annotations

import gc
import os
import signal

import pytest

numpy = pytest.importorskip("numpy")

MEGABYTES = 8


@pytest.fixture
def table():
    return numpy.arange(MEGABYTES * 2**20 // 8, dtype=numpy.int64)


def open_blobs():
    """How many blobs this process has open."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += "gearmap-blob" in os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            pass  # that of the list itself
    return found


def test_tasks_read_the_array_as_it_was_when_the_map_began(cluster, table):
    wanted = [int(table[number * 100]) for number in range(40)]

    def items():
        for number in range(40):
            table[:] = -1
            yield number

    assert cluster.map(lambda number: int(table[number * 100]), items()) == wanted


def test_tasks_share_the_memory_of_the_array(cluster, table):
    def is_shared(_):
        with open("/proc/self/maps") as file:
            return int(table[1]), "gearmap-blob" in file.read()

    assert set(cluster.map(is_shared, range(8))) == {(1, True)}


def test_a_changed_array_is_seen_by_the_next_map(cluster, table):
    first = cluster.map(lambda _: int(table[0]), range(4))
    table[0] = 77
    assert (first, cluster.map(lambda _: int(table[0]), range(4))) == ([0] * 4, [77] * 4)


def test_what_a_task_writes_into_the_array_stays_in_its_process(cluster, table):
    def write(_):
        table[0] = os.getpid()
        return int(table[0]) == os.getpid()

    assert all(cluster.map(write, range(20)))
    assert table[0] == 0


def test_submitted_calls_share_the_array(cluster, table):
    futures = [cluster.submit(lambda number: int(table[number]), number) for number in range(10)]
    assert [future.result(60) for future in futures] == list(range(10))


def test_a_child_that_takes_the_place_of_a_dead_one_maps_the_array_anew(cluster, table, tmp_path):
    marker = tmp_path / "died"

    def die_once(number):
        if number == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return int(table[number])

    assert cluster.map(die_once, range(10)) == list(range(10))


def test_the_memory_is_given_back_with_the_map(cluster, table):
    before = open_blobs()
    cluster.map(lambda number: int(table[number]), range(10))
    # The last map is kept, its run is not; the driver lets it go soon after the results are there.
    for _ in range(1000):
        gc.collect()
        if open_blobs() <= before:
            return
        cluster.map(abs, range(4))
    raise AssertionError(f"{open_blobs()} blobs are open, there were {before}")
