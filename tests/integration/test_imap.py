"""`imap` and `imap_unordered` on real clusters: lazy in and out, bounded, and gone when nobody listens."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import os
import threading
import time

import psutil
import pytest
from integration_support import lane_of, wait_until

import gearmap
from gearmap.transport import admin

UNORDERED = pytest.mark.parametrize("name", ["imap", "imap_unordered"])


@UNORDERED
def test_results_come_back(cluster, name):
    results = getattr(cluster, name)(lambda x: x * x, range(3000))

    assert iter(results) is results
    assert (list(results) if name == "imap" else sorted(results)) == [x * x for x in range(3000)]


def test_several_iterables_are_zipped_to_the_shortest(cluster):
    assert list(cluster.imap(lambda x, y: x - y, itertools.count(5), [1, 2])) == [4, 4]


def test_nothing_starts_before_the_first_result_is_asked_for():
    client = gearmap.LocalCluster(2)
    taken = []

    results = client.imap(abs, (taken.append(x) or x for x in range(10)))

    assert (taken, client._processes.pids) == ([], ())
    assert list(client.imap(abs, [])) == []
    assert client._processes.pids == ()
    results.close()


def test_uneven_tasks_stay_in_order_or_come_as_they_end(cluster, tmp_path):
    flag = tmp_path / "go"

    def work(x):
        while x == 0 and not flag.exists():
            time.sleep(0.01)
        return x

    as_they_come = []
    for result in cluster.imap_unordered(work, range(5), chunksize=1):
        as_they_come.append(result)
        if len(as_they_come) == 4:
            flag.touch()
    assert sorted(as_they_come) == list(range(5))
    assert as_they_come[-1] == 0

    def uneven(x):
        time.sleep(0.2 if x == 0 else 0.01)
        return x

    assert list(cluster.imap(uneven, range(20), chunksize=1)) == list(range(20))


@UNORDERED
def test_an_endless_iterable_is_taken_only_as_far_as_the_workers_need(cluster, name):
    taken = 0

    def numbers():
        nonlocal taken
        for number in itertools.count():
            taken = number
            yield number

    results = getattr(cluster, name)(lambda x: (time.sleep(0.01), x)[1], numbers())
    got = [next(results) for _ in range(20)]
    results.close()

    assert len(got) == 20
    assert taken < 200


def test_a_buffersize_bounds_what_is_taken_and_not_handed_out(cluster):
    ahead = []
    handed_out = 0

    def numbers():
        for number in range(200):
            ahead.append(number + 1 - handed_out)
            yield number

    for _ in cluster.imap(abs, numbers(), buffersize=7):
        handed_out += 1

    assert handed_out == 200
    assert max(ahead) <= 7 + 1  # the one that the loop body has


def test_the_iterable_is_advanced_in_the_consuming_thread_only(cluster):
    threads = set()

    def numbers():
        for number in range(500):
            threads.add(threading.get_ident())
            yield number

    assert len(list(cluster.imap(abs, numbers()))) == 500
    assert threads == {threading.get_ident()}


def test_results_of_a_slow_iterable_come_before_it_is_asked_for_more(cluster):
    handed_out = []
    asked_after = []

    def numbers():
        for number in range(8):
            asked_after.append(len(handed_out))
            time.sleep(0.15)
            yield number

    assert list(cluster.imap(abs, range(64))) == list(range(64))  # the workers are awake
    for result in cluster.imap(abs, numbers()):
        handed_out.append(result)

    assert handed_out == list(range(8))
    assert asked_after[-1] >= 3  # not only when all had been read


def test_an_endless_iterable_costs_constant_memory_whatever_the_consumer_does(cluster):
    def kilobytes():
        for number in itertools.count():
            yield number.to_bytes(4, "big") * 250

    results = cluster.imap(lambda x: x, kilobytes())
    memory = []
    for number in range(40_000):
        next(results)
        if number % 1000 == 0:
            time.sleep(0.01)
            memory.append(psutil.Process().memory_info().rss)
    results.close()

    assert (max(memory[10:]) - memory[10]) / 1e6 < 5  # all of them would be 30


# -------------------------------------------------------------------------------------------------------------- errors


def test_the_first_error_comes_in_its_place_and_ends_the_iteration(cluster):
    def check(x):
        if x == 17:
            raise LookupError(f"no {x}")
        time.sleep(0.01 if x < 17 else 0)
        return x

    results = cluster.imap(check, itertools.count(), chunksize=1)
    got = []
    with pytest.raises(LookupError, match="no 17") as caught:
        got.extend(results)

    assert got == list(range(17))
    told = "\n".join([*getattr(caught.value, "__notes__", ()), str(caught.value.__cause__)])
    assert "task 17: check(17)" in told
    assert "Remote traceback" in told or isinstance(caught.value.__cause__, gearmap.RemoteTraceback)
    assert next(results, "finished") == "finished"


def test_unordered_an_error_comes_when_it_happens(cluster):
    def check(x):
        if x == 1:
            raise LookupError("no 1")
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(LookupError):
        list(cluster.imap_unordered(check, range(4), chunksize=1))
    assert time.monotonic() - began < 30


@UNORDERED
def test_failures_come_in_place_if_asked_for(cluster, name):
    def check(x):
        if x == 2:
            os._exit(9)
        return 10 // (x - 1)

    results = list(getattr(cluster, name)(check, range(5), return_exceptions=True))

    kinds = [type(each).__name__ for each in results]
    expected = ["int", "ZeroDivisionError", "WorkerLost", "int", "int"]
    assert kinds == expected if name == "imap" else sorted(kinds) == sorted(expected)


def test_an_iterable_that_raises_does_so_after_the_results_before_it(cluster):
    def numbers():
        yield from range(10)
        raise KeyError("midway")

    got = []
    with pytest.raises(KeyError, match="midway"):
        got.extend(cluster.imap(abs, numbers()))
    assert got == list(range(10))


def test_an_argument_that_does_not_pickle_is_named_after_the_results_before_it(cluster):
    items = [*range(10), threading.Lock(), 11]
    got = []
    with pytest.raises(gearmap.SerializationError, match=r"argument 0 of task 10: .*lock"):
        got.extend(cluster.imap(lambda x: x, items, chunksize=6))
    assert got == list(range(10))


def test_the_time_limit_is_for_the_whole_iteration(cluster):
    results = cluster.imap(lambda x: time.sleep(0.05), itertools.count(), timeout=0.5)
    began = time.monotonic()
    with pytest.raises(gearmap.RunTimeout, match=r"\d+ tasks done after timeout=0.5 s; the run was cancelled$"):
        for _ in results:
            pass
    assert time.monotonic() - began < 20
    assert cluster.map(abs, [-1], timeout=20) == [1]


def test_a_wrong_call_is_told_at_once_not_at_the_first_result(cluster):
    for call, words in [
        (lambda: cluster.imap(3, [1]), "fn must be callable"),
        (lambda: cluster.imap(abs), "imap needs at least one iterable"),
        (lambda: cluster.imap_unordered(abs, 3), "must be an iterable"),
        (lambda: cluster.imap(abs, [1], buffersize=0), "buffersize must be at least 1"),
        (lambda: cluster.imap(abs, [1], chunk=2), "there is no option 'chunk'"),
    ]:
        with pytest.raises(gearmap.ConfigurationError, match=words):
            call()
    lock = threading.Lock()
    with pytest.raises(gearmap.SerializationError):
        cluster.imap(lambda x: lock, [1])


# ------------------------------------------------------------------------------------------------------------- leaving


def break_out(make):
    for _ in make():
        break


def drop(make):
    results = make()
    next(results)
    del results
    gc.collect()


def close(make):
    results = make()
    next(results)
    results.close()


def raise_out(make):
    try:
        for _ in make():
            raise RuntimeError("the loop's own")
    except RuntimeError:
        pass


@pytest.mark.parametrize("leave", [break_out, drop, close, raise_out])
def test_leaving_the_loop_drops_what_is_queued_and_stops_what_runs(
    kind, start_server, start_node, connect, key_file, tmp_path, leave
):
    server = start_server(kind)
    start_node(server, workers=2)
    client = connect(server)
    lane = lane_of(key_file)

    def work(x):
        if x:
            time.sleep(60)
            (tmp_path / "finished").touch()
        return x

    def jobs():
        rows = {row.function: row for row in admin.server_status((server.host, server.port), 5.0)}
        return (rows[lane].total, rows[lane].running) if lane in rows else (0, 0)

    leave(lambda: client.imap(work, itertools.count(), chunksize=1))

    wait_until(lambda: jobs() == (0, 0), "no job of the run is left", 10.0)
    assert not (tmp_path / "finished").exists()
    assert client.map(abs, [-1], timeout=20) == [1]


def test_an_iterator_that_was_never_advanced_leaves_nothing(cluster):
    results = cluster.imap(abs, itertools.count())
    del results
    assert cluster.map(abs, [-1]) == [1]


def test_a_client_that_is_closed_ends_its_iterations(kind):
    with gearmap.LocalCluster(1, server=kind) as client:
        results = client.imap(lambda x: x, itertools.count())
        assert next(results) == 0
    with pytest.raises(gearmap.ClusterBroken, match="closed"):
        for _ in results:
            pass


# -------------------------------------------------------------------------------------------------------------- inline


def test_inline_each_task_runs_when_its_result_is_asked_for():
    ran = []
    with gearmap.LocalCluster(0) as client:
        results = client.imap(lambda x: (os.getpid(), x), (ran.append(x) or x for x in itertools.count()))
        assert ran == []
        assert next(results) == (os.getpid(), 0)
        assert ran == [0]
        assert list(client.imap(abs, [])) == []
        with pytest.raises(ZeroDivisionError):
            list(client.imap_unordered(lambda x: 1 // x, [1, 0]))


def test_the_functions_of_the_package_do_the_same():
    with gearmap.LocalCluster(0):
        assert list(gearmap.imap(abs, [-1, -2], buffersize=3)) == [1, 2]
        assert sorted(gearmap.imap_unordered(abs, [-1, -2], queue="gpu")) == [1, 2]


class Shown:
    """A notebook that keeps what its cards are made for, and how they end."""

    def __init__(self):
        self.cancel = None
        self.note = None

    def is_here(self):
        return True

    def has_widgets(self):
        return True

    def make_card(self, request):
        self.cancel = request.cancel
        return self

    def update(self, snapshot):
        pass

    notice = failed = update

    def finish(self, snapshot, note):
        self.note = note


@pytest.fixture
def shown(monkeypatch):
    """What a notebook shows of a run."""
    notebook = Shown()
    monkeypatch.setattr("gearmap.mapping.registered", lambda: notebook)
    return notebook


@UNORDERED
def test_the_cancel_of_its_card_ends_an_imap_at_once(cluster, shown, name):
    results = getattr(cluster, name)(lambda x: (time.sleep(0.05), x)[1], range(10_000))
    next(results)
    timer = threading.Timer(0.3, lambda: shown.cancel())
    timer.start()

    with pytest.raises(concurrent.futures.CancelledError, match="of 10000 tasks done"):
        for _ in results:
            pass

    assert shown.note == "cancelled"
    assert list(results) == []
    assert cluster.map(abs, [-1]) == [1]
    wait_until(lambda: sum(queue.running for queue in cluster.status().queues) == 0, "nothing runs")


def test_an_imap_that_is_cancelled_hands_out_nothing_more(cluster, shown):
    results = cluster.imap(abs, range(1000), chunksize=100)
    next(results)

    shown.cancel()

    with pytest.raises(concurrent.futures.CancelledError):
        next(results)


def test_an_imap_that_is_interrupted_says_so(cluster, shown):
    results = cluster.imap(abs, (interrupted(x) for x in itertools.count()))

    with pytest.raises(KeyboardInterrupt):
        list(results)

    assert shown.note == "interrupted"


def interrupted(x):
    """As Ctrl-C in a user's iterable."""
    if x == 100:
        raise KeyboardInterrupt
    return x
