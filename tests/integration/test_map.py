"""`map`, `starmap` and `submit` on real clusters, with real work."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import os
import random
import sqlite3
import sys
import threading
import time
import weakref

import pytest

import gearmap


def test_results_come_back_in_order(cluster):
    assert cluster.map(lambda x: x * x, range(1000)) == [x * x for x in range(1000)]


def test_a_million_trivial_tasks_come_back_whole(cluster):
    n = 1_000_000

    results = cluster.map(lambda x: x + 1, range(n))

    assert len(results) == n
    assert results == list(range(1, n + 1))


@pytest.mark.parametrize("size", [1_000_000, 1_048_576, 3_000_000, 20_000_000])
def test_large_arguments_and_results_come_back_whole(cluster, size):
    data = [os.urandom(1000) * (size // 1000), bytearray(os.urandom(500)) * (size // 500)]

    results = cluster.map(lambda value: (len(value), value), data)

    assert results == [(len(value), value) for value in data]


class Thing:
    """Something that can be watched."""

    def __init__(self, number):
        self.number = number


def test_results_live_no_longer_than_the_caller_keeps_them(cluster):
    gc.collect()
    gc.disable()  # it would hide that something else holds them
    try:
        (result,) = cluster.map(Thing, [1])
        watched = weakref.ref(result)
        del result
        gearmap.forget()
        assert watched() is None
    finally:
        gc.enable()


def test_several_iterables_are_zipped_to_the_shortest(cluster):
    assert cluster.map(lambda x, y: x - y, [5, 6, 7], range(2)) == [5, 5]


@pytest.mark.parametrize(
    "make", [list, tuple, iter, lambda xs: (x for x in xs), set], ids=["list", "tuple", "iterator", "generator", "set"]
)
def test_any_iterable_will_do(cluster, make):
    assert sorted(cluster.map(lambda x: x + 1, make([1, 2, 3]))) == [2, 3, 4]


def test_no_items_give_an_empty_list_and_start_nothing():
    client = gearmap.LocalCluster(2)

    assert client.map(abs, []) == []
    assert client._processes.pids == ()


def test_starmap_unpacks_each_row(cluster):
    assert cluster.starmap(pow, [(2, 3), (3, 2), (10, 0)]) == [8, 9, 1]


def test_uneven_tasks_stay_in_order(cluster):
    delays = [random.Random(7).uniform(0, 0.02) for _ in range(60)]

    results = cluster.map(lambda pair: (time.sleep(pair[1]), pair[0])[1], list(enumerate(delays)))

    assert results == list(range(60))


def test_the_users_chunksize_wins(cluster):
    results = cluster.map(lambda x: os.getpid(), range(40), chunksize=20)

    assert len(set(results[:20])) == 1
    assert len(set(results[20:])) == 1


def test_max_workers_bounds_what_runs_at_once(cluster, tmp_path):
    def count(_):
        flag = tmp_path / f"{os.getpid()}-{time.monotonic_ns()}"
        flag.touch()
        running = len(list(tmp_path.iterdir()))
        time.sleep(0.02)
        flag.unlink()
        return running

    assert max(cluster.map(count, range(12), max_workers=1, chunksize=1)) == 1


def test_a_map_from_a_generator_reads_no_further_than_it_needs(cluster):
    taken = []

    def endless():
        for number in range(10_000):
            taken.append(number)
            yield number

    with pytest.raises(gearmap.RunTimeout):
        cluster.map(lambda x: time.sleep(0.05), endless(), timeout=0.6)

    assert len(taken) < 1000


def test_coroutine_functions_are_run(cluster):
    async def double(x):
        await asyncio.sleep(0)
        return 2 * x

    assert cluster.map(double, [1, 2, 3]) == [2, 4, 6]


def test_a_cached_function_keeps_its_cache_between_chunks_of_a_run(cluster):
    @functools.lru_cache
    def load():
        time.sleep(0.001)
        return os.urandom(8)

    loads = cluster.map(lambda x: (os.getpid(), load()), range(40), chunksize=2)

    by_process: dict[int, set[bytes]] = {}
    for pid, value in loads:
        by_process.setdefault(pid, set()).add(value)
    assert all(len(values) == 1 for values in by_process.values())


def test_tasks_run_in_the_callers_folder_and_see_its_modules(cluster, tmp_path, monkeypatch):
    (tmp_path / "beside_the_notebook.py").write_text("def triple(x):\n    return 3 * x\n")
    (tmp_path / "data.txt").write_text("forty-two")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import beside_the_notebook

    assert cluster.map(beside_the_notebook.triple, [14]) == [42]
    assert cluster.submit(lambda: open("data.txt").read()).result() == "forty-two"  # noqa: SIM115


def test_large_arrays_go_there_and_back(cluster):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(2_000_000, dtype="f8")

    back = cluster.submit(lambda x: x * 2, array).result()

    assert back.dtype == array.dtype
    assert (back == array * 2).all()
    back[0] = 1.0  # what comes back is the caller's own, and can be written


def test_submit_takes_every_keyword_for_the_function(cluster):
    def tell(fn, /, queue, timeout, retries, self):
        return fn, queue, timeout, retries, self

    future = cluster.submit(tell, 1, queue=2, timeout=3, retries=4, self=5)

    assert future.result() == (1, 2, 3, 4, 5)


def test_ten_thousand_submits_all_come_back(cluster):
    futures = [cluster.submit(abs, -number) for number in range(10_000)]

    assert [future.result() for future in futures] == list(range(10_000))


def test_futures_work_with_the_standard_library(cluster):
    futures = [cluster.submit(divmod, number, 3) for number in range(20)]

    done, pending = concurrent.futures.wait(futures, timeout=30)

    assert not pending
    assert {future.result() for future in done} == {divmod(number, 3) for number in range(20)}
    assert {f.result() for f in concurrent.futures.as_completed(futures)} == {f.result() for f in futures}


def test_futures_can_be_awaited(cluster):
    async def main():
        return await asyncio.gather(*(cluster.submit(abs, -number) for number in range(5)))

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_a_future_that_waits_in_the_client_can_be_cancelled(cluster):
    blocking = [cluster.submit(time.sleep, 0.3) for _ in range(12)]
    last = cluster.submit(abs, -1)

    assert last.cancel()
    assert last.cancelled()
    assert [future.result() for future in blocking] == [None] * 12
    with pytest.raises(concurrent.futures.CancelledError):
        last.result()


def test_many_threads_share_a_client(cluster):
    results: dict[int, list[int]] = {}

    def work(number):
        results[number] = cluster.map(lambda x: x + number, range(50))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert results == {number: [x + number for x in range(50)] for number in range(6)}


# ------------------------------------------------------------------------------------------------------------- errors


def test_the_first_failing_task_raises_its_own_exception(cluster):
    def check(x):
        if x == 17:
            raise LookupError(f"no {x}")
        return x

    with pytest.raises(LookupError, match="no 17") as caught:
        cluster.map(check, range(1000))

    told = "\n".join([*getattr(caught.value, "__notes__", ()), str(caught.value.__cause__)])
    assert "in check" in told
    assert "task 17 of 1000: check(17)" in told
    assert "done" in told
    assert "not run" in told


def test_failures_come_back_in_their_places_if_asked_for(cluster):
    results = cluster.map(lambda x: 10 // x, [1, 0, 5], return_exceptions=True)

    assert results[0] == 10
    assert isinstance(results[1], ZeroDivisionError)
    assert results[2] == 2


def test_retries_run_a_failing_task_again(cluster, tmp_path):
    def flaky(x):
        mark = tmp_path / str(x)
        tries = len(mark.read_text()) if mark.exists() else 0
        mark.write_text("x" * (tries + 1))
        if tries < 2:
            raise OSError("not yet")
        return x

    assert cluster.map(flaky, range(4), retries=2) == [0, 1, 2, 3]
    with pytest.raises(OSError, match="not yet"):
        cluster.map(flaky, range(4, 6), retries=1)


def test_an_iterable_that_raises_ends_the_map_and_nothing_else(cluster):
    def items():
        yield 1
        raise KeyError("midway")

    with pytest.raises(KeyError, match="midway"):
        cluster.map(abs, items())

    assert cluster.map(abs, [-1]) == [1]


def test_a_map_that_takes_too_long_is_cancelled_with_counts(cluster):
    began = time.monotonic()

    with pytest.raises(gearmap.RunTimeout, match=r"\d+ of 100 tasks done after timeout=0.5 s"):
        cluster.map(lambda x: time.sleep(0.1), range(100), timeout=0.5)

    assert time.monotonic() - began < 5
    assert cluster.map(abs, [-1], timeout=20) == [1]


def test_what_does_not_pickle_is_named_with_the_way_to_it(cluster):
    connection = sqlite3.connect(":memory:")
    with connection:
        with pytest.raises(
            gearmap.SerializationError, match=r"cannot pickle fn: .*'connection' is a sqlite3.Connection"
        ):
            cluster.map(lambda x: connection.execute("select ?", (x,)), [1])
        with pytest.raises(gearmap.SerializationError, match=r"argument 1 of task 2: .*lock"):
            cluster.map(lambda a, b: None, [0, 1, 2], [0, 1, threading.Lock()], chunksize=3)
    connection.close()
    with pytest.raises(gearmap.SerializationError, match=r"cannot pickle the result: .*lock"):
        cluster.map(lambda x: threading.Lock(), [1])
    assert cluster.map(abs, [-1]) == [1]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_exceptions_that_would_mean_something_else_here_come_as_remote_errors(cluster, error):
    def leave(x):
        raise error(3)

    with pytest.raises(gearmap.RemoteError, match=error.__name__):
        cluster.map(leave, [1])


class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


def test_an_exception_with_its_own_constructor_comes_back_as_itself(cluster):
    def fail(x):
        raise TwoArguments(1, 2)

    with pytest.raises(TwoArguments, match="1 and 2") as caught:
        cluster.map(fail, [1])

    assert (caught.value.a, caught.value.b) == (1, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.map(abs, [1], max_workers="head:4730"), "max_workers must be an int, got 'head:4730'; servers"),
        (lambda c: c.map(3, [1]), "fn must be callable, got 3"),
        (lambda c: c.map(abs, 3), "must be an iterable, got 3"),
        (lambda c: c.map(abs), "needs at least one iterable"),
        (lambda c: c.map(abs, [1], priority="urgent"), "priority must be one of low, normal, high"),
        (lambda c: c.map(abs, [1], chunksize=0), "chunksize must be at least 1"),
        (lambda c: c.map(abs, [1], timeout=-1), "timeout must be seconds"),
        (lambda c: c.map(abs, [1], queue="no spaces"), "queue must be 1 to 64 letters"),
        (lambda c: c.options(chunk=3), "there is no option 'chunk'; did you mean 'chunksize'"),
        (lambda c: c.options(timeout=3).submit(abs, 1), "'timeout' means nothing to submit"),
    ],
)
def test_wrong_calls_are_told_what_is_wrong(cluster, call, words):
    with pytest.raises(gearmap.ConfigurationError) as caught:
        call(cluster)

    assert words in str(caught.value)
    assert cluster.map(abs, [-1]) == [1]


# -------------------------------------------------------------------------------------------------------------- deaths


def test_a_task_that_kills_its_process_is_charged_and_all_others_finish(cluster):
    def risky(x):
        if x == 5:
            os._exit(9)
        return x

    results = cluster.map(risky, range(20), return_exceptions=True)

    lost = results.pop(5)
    assert results == [x for x in range(20) if x != 5]
    assert isinstance(lost, gearmap.WorkerLost)
    assert "exit code 9" in str(lost)
    assert (lost.task_index, lost.attempts) == (5, 3)


def test_what_was_finished_before_a_death_is_not_run_again(cluster, tmp_path):
    def work(x):
        with open(tmp_path / str(x), "a") as file:
            file.write("x")
        time.sleep(0.003)  # longer than what may be lost
        if x == 30 and (tmp_path / "30").stat().st_size < 2:
            os.kill(os.getpid(), 9)
        return x

    assert cluster.map(work, range(40), chunksize=40) == list(range(40))

    runs = {x: (tmp_path / str(x)).stat().st_size for x in range(40)}
    assert runs[30] == 2
    assert all(runs[x] == 1 for x in range(30))


def test_a_cluster_stays_usable_after_many_deaths(cluster):
    def die(x):
        os.kill(os.getpid(), 9)

    for _ in range(3):
        with pytest.raises(gearmap.WorkerLost, match="SIGKILL"):
            cluster.map(die, [1])
    assert cluster.map(abs, [-1]) == [1]


def test_a_segfault_is_named(cluster):
    def crash(x):
        import ctypes

        ctypes.string_at(0)

    with pytest.raises(gearmap.WorkerLost, match="SIGSEGV"):
        cluster.options(max_worker_losses=1).map(crash, [1])


# ---------------------------------------------------------------------------------------------------------- clusters


def test_inline_mode_runs_in_this_process():
    with gearmap.LocalCluster(0) as client:
        assert client.map(lambda x: os.getpid(), [1]) == [os.getpid()]
        assert client.submit(divmod, 7, 2).result() == (3, 1)
        assert client.submit(lambda: 1 / 0).exception().__class__ is ZeroDivisionError
        with pytest.raises(gearmap.SerializationError):
            client.map(lambda x: threading.Lock(), [1])


def test_the_innermost_cluster_is_the_current_one(kind):
    with gearmap.LocalCluster(1, server=kind) as outer:
        with gearmap.LocalCluster(0) as inner:
            assert gearmap.current_client() is inner
            assert gearmap.map(lambda x: os.getpid(), [1]) == [os.getpid()]
        assert gearmap.current_client() is outer
        assert gearmap.map(lambda x: os.getpid(), [1]) != [os.getpid()]


def test_a_closed_client_says_so(kind):
    with gearmap.LocalCluster(1, server=kind) as client:
        pending = client.submit(time.sleep, 60)
    with pytest.raises(gearmap.ClusterBroken, match="closed"):
        client.map(abs, [1])
    with pytest.raises(gearmap.ClusterBroken, match="closed"):
        pending.result(10)


def test_a_repr_says_where_tasks_run(cluster, kind):
    cluster.map(abs, [1])

    assert "local cluster, 2 workers" in repr(cluster)
    assert kind in repr(cluster)


def test_the_python_of_the_workers_is_this_one(cluster):
    assert cluster.submit(lambda: sys.version_info[:2]).result() == sys.version_info[:2]


def test_files_of_the_callers_folder_named_like_pythons_modules_disturb_nothing(kind, tmp_path, monkeypatch):
    for name in ("random", "selectors", "uuid", "socket", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not meant')\n")
    (tmp_path / "gearmap").mkdir()
    (tmp_path / "gearmap" / "__init__.py").write_text("raise RuntimeError('not meant')\n")
    monkeypatch.chdir(tmp_path)

    with gearmap.LocalCluster(1, server=kind) as cluster:
        assert cluster.map(lambda x: (os.getcwd(), x), [1]) == [(str(tmp_path), 1)]
