"""Large arguments on a local cluster: they do not travel, and behave as if they did."""

from __future__ import annotations

import gc
import os
import signal

import pytest

import gearmap
from gearmap.runtime.blobs import can_share

numpy = pytest.importorskip("numpy")

pytestmark = [
    pytest.mark.usefixtures("functions_travel"),
    pytest.mark.skipif(not can_share(), reason="processes cannot open each other's memory here"),
]

MEGABYTE = 2**20


def array_of(value, megabytes=4):
    return numpy.full(megabytes * MEGABYTE, value, dtype=numpy.uint8)


def is_shared(_):
    with open("/proc/self/maps") as file:
        return "gearmap-blob" in file.read()


def first(array):
    return int(array[0])


def open_blobs():
    """How many blobs this process has open."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += "gearmap-blob" in os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            pass  # that of the list itself, or of one that is being closed
    return found


def expect_blobs(cluster, count):
    """The driver lets them go soon after the results are there."""
    for _ in range(1000):
        gc.collect()
        if open_blobs() <= count:
            return
        cluster.map(abs, range(4))
    raise AssertionError(f"{open_blobs()} blobs are open, there were {count}")


def test_arguments_of_every_kind_of_call_are_shared(cluster):
    arrays = [array_of(value) for value in range(4)]
    assert cluster.map(is_shared, arrays) == [True] * 4
    assert list(cluster.imap(is_shared, arrays)) == [True] * 4
    assert cluster.submit(is_shared, arrays[0]).result(60)
    with cluster.executor() as executor:
        assert list(executor.map(is_shared, arrays, chunksize=2)) == [True] * 4


def test_large_bytes_and_text_come_whole(cluster):
    raw, text = bytes(range(256)) * 8192, "\u20ac" * MEGABYTE
    assert cluster.submit(lambda one, two: (one, two), raw, text).result(60) == (raw, text)
    assert cluster.map(len, [raw, text]) == [len(raw), len(text)]


def test_tasks_get_the_arrays_that_are_theirs(cluster):
    arrays = [array_of(value) for value in range(12)]
    assert cluster.map(first, arrays) == list(range(12))
    assert list(cluster.imap(first, iter(arrays))) == list(range(12))


def test_a_task_may_write_to_its_argument_and_nobody_else_sees_it(cluster):
    def write(array):
        before = int(array[0])
        array[:] = 99
        return before

    array = array_of(1)
    futures = [cluster.submit(write, array) for _ in range(6)]
    assert [future.result(60) for future in futures] == [1] * 6
    assert array[0] == 1


def test_a_submitted_array_is_as_it_was_then(cluster):
    array = array_of(1)
    future = cluster.submit(first, array)
    array[:] = 2
    assert future.result(60) == 1


def test_a_task_that_runs_again_finds_its_argument(cluster, tmp_path):
    marker = tmp_path / "died"

    def die_once(array):
        if array[0] == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return int(array[0])

    assert cluster.map(die_once, [array_of(value) for value in range(6)]) == list(range(6))


def test_what_is_left_of_a_map_goes_on_with_its_arrays_on_another_cluster(kind, tmp_path):
    marker = tmp_path / "healthy"

    def fail_at_first(array):
        if array[0] >= 2 and not marker.exists():
            raise RuntimeError("not yet")
        return int(array[0])

    with gearmap.LocalCluster(1, server=kind) as one, pytest.raises(RuntimeError):
        one.map(fail_at_first, [array_of(value) for value in range(4)])
    left = gearmap.last()
    marker.touch()
    with gearmap.LocalCluster(1, server=kind):
        assert left.resume() == [0, 1, 2, 3]


def test_nothing_is_kept_of_many_calls(cluster):
    before = open_blobs()
    for start in range(0, 200, 20):
        futures = [cluster.submit(first, array_of(value, 1)) for value in range(start, start + 20)]
        assert [future.result(60) for future in futures] == list(range(start, start + 20))
    futures.clear()
    expect_blobs(cluster, before)
