"""`gearmap.share`, and large arguments that come again: on local clusters, on nodes of other hosts, inside tasks."""

from __future__ import annotations

import os

import pytest
from test_large_captures_far import mapped, open_blobs

import gearmap
from gearmap import current

numpy = pytest.importorskip("numpy")


@pytest.fixture
def table():
    return gearmap.share({number: f"{number:040}" for number in range(60_000)})  # pickled, 3 MB


@pytest.fixture
def far(kind, start_server, start_node, connect):
    server = start_server(kind)
    far = connect(server)
    far.node = start_node(server)
    return far


def test_tasks_of_a_local_cluster_get_what_is_shared(cluster, table):
    assert set(cluster.map(lambda number: len(table[number]), range(20))) == {40}


def test_nodes_fetch_what_is_shared_once(far, table):
    for _ in range(3):  # each is another function
        assert set(far.map(lambda number: len(table[number]), range(40))) == {40}
    assert open_blobs(far.node.pid) == 1


def test_what_is_shared_may_be_an_argument_at_any_depth(far, cluster, table):
    for client in (far, cluster):
        rows = [([table, number], {"again": table}) for number in range(20)]
        assert (
            client.map(lambda row: (len(row[0][0][row[0][1]]), row[1]["again"] is row[0][0]), rows) == [(40, True)] * 20
        )
        futures = [client.submit(lambda what, number: len(what[number]), table, number) for number in range(5)]
        assert [future.result(60) for future in futures] == [40] * 5


def test_tasks_of_a_process_get_the_same_object(far, table):
    seen = far.map(lambda what: (os.getpid(), id(what)), [table] * 30, chunksize=1)
    assert len(set(seen)) <= 2


def test_a_shared_array_is_a_snapshot(far):
    array = gearmap.share(numpy.zeros(2**18))
    array[:] = 1
    assert far.map(lambda number: float(array[number]), range(4)) == [0.0] * 4
    gearmap.share(array)
    assert far.map(lambda number: float(array[number]), range(4)) == [1.0] * 4


def test_writing_to_a_shared_array_is_an_error_that_says_what_to_do(cluster):
    numbers = gearmap.share(numpy.zeros(2**18))

    def write(number):
        numbers[0] += number

    with pytest.raises(ValueError, match="read-only") as caught:
        cluster.map(write, range(3))
    told = "\n".join([*getattr(caught.value, "__notes__", ()), str(caught.value.__cause__)])
    assert "change a copy: x = x.copy()" in told


def test_share_works_inside_a_task(far):
    def outer(n):
        inner = gearmap.share(list(range(n)))
        return sum(gearmap.map(lambda at: inner[at], range(3)))

    assert far.map(outer, [200_000, 300_000]) == [3, 3]


def test_share_works_without_processes(table):
    with gearmap.LocalCluster(0) as client:
        assert client.map(lambda number: len(table[number]), range(3)) == [40] * 3


def test_an_array_that_many_tasks_are_called_with_travels_once(far):
    array = numpy.arange(2**18)
    results = far.map(lambda what, at: (int(what[at]), tuple(mapped())), [array] * 30, range(30), chunksize=1)
    assert [value for value, _ in results] == list(range(30))
    assert len({places for _, places in results if places}) == 1
    futures = [far.submit(lambda what, at: int(what[at]), array, number) for number in range(10)]
    assert [future.result(60) for future in futures] == list(range(10))
    assert open_blobs(far.node.pid) == 1


def test_an_array_that_changes_between_calls_is_seen_as_it_was_at_each(far):
    array = numpy.zeros(2**18)
    futures = []
    for number in range(12):
        array[1000] = number
        futures.append(far.submit(lambda what: float(what[1000]), array))
    assert [future.result(60) for future in futures] == [float(number) for number in range(12)]


def test_a_map_with_a_shared_argument_goes_on_elsewhere(far, cluster, table, tmp_path):
    marker = tmp_path / "may run"

    def task(what, number):
        if number > 2 and not os.path.exists(marker):
            raise ValueError("not yet")
        return len(what[number])

    with far, pytest.raises(ValueError, match="not yet"):
        far.map(task, [table] * 8, range(8))
    run = gearmap.last()
    marker.touch()
    current.enter(cluster)
    try:
        assert run.resume() == [40] * 8
    finally:
        current.leave(cluster)


def test_a_large_list_that_a_function_captures_travels_once_too(far, cluster):
    table = [str(number) * 10 for number in range(400_000)]  # more than what a warning would be worth
    for client in (far, cluster):
        for _ in range(2):
            assert client.map(lambda number: len(table[number]), range(3)) == [10] * 3
    assert open_blobs(far.node.pid) == 1


def test_a_map_of_a_task_says_which_variable_travels_with_every_job(far):
    def outer(_):
        table = [str(number) * 10 for number in range(400_000)]
        return gearmap.map(lambda number: len(table[number]), range(3))

    with pytest.warns(RuntimeWarning, match=r"captures 'table' \(list, \d+ MB pickled\): it travels with every job"):
        assert far.map(outer, [1]) == [[10] * 3]
