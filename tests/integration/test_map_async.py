"""`map_async`: a map that is not waited for, and what can be asked of it meanwhile."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import itertools
import os
import threading
import time
import warnings

import pytest
from integration_support import lane_of, wait_until

import gearmap
from gearmap.transport import admin


def slow(x):
    time.sleep(0.02)
    return x


def after(flag, *, waits):
    """A function of which the tasks `waits` end only when there is a file."""

    def work(x):
        while waits(x) and not flag.exists():
            time.sleep(0.01)
        return x

    return work


def test_it_returns_at_once_and_gives_the_results_in_order(cluster, tmp_path):
    flag = tmp_path / "go"
    run = cluster.map_async(after(flag, waits=lambda x: True), range(4), chunksize=1)
    assert isinstance(run, gearmap.MapFuture)
    assert not run.done()
    assert gearmap.last() is run
    flag.touch()
    assert run.result() == [0, 1, 2, 3]
    assert (run.done(), run.cancelled(), run.exception(), run.cancel()) == (True, False, None, False)


def test_an_iterable_is_read_at_the_call_and_in_the_calling_thread(cluster):
    threads = set()

    def numbers():
        for number in range(300):
            threads.add(threading.get_ident())
            yield number

    items = [1, 2, 3]
    run = cluster.map_async(slow, numbers())
    assert threads == {threading.get_ident()}
    other = cluster.map_async(lambda x, y: x + y, items, numbers())
    items.clear()
    assert other.result() == [1, 3, 5]
    assert run.result() == list(range(300))


@pytest.mark.parametrize(
    "endless", [itertools.count(), itertools.cycle("ab"), itertools.repeat(7)], ids=["count", "cycle", "repeat"]
)
def test_what_is_known_to_have_no_end_is_refused_alone_and_cut_beside_others(cluster, endless):
    with pytest.raises(gearmap.ConfigurationError, match=r"reads its iterables to their end, and .* has none; .*imap"):
        cluster.map_async(str, endless)
    with pytest.raises(ValueError, match="has none"):
        cluster.map_async(max, endless, itertools.count())
    pairs = cluster.map_async(lambda x, y: (x, y), endless, "xyz").result()
    assert [pair[1] for pair in pairs] == ["x", "y", "z"]


def test_a_warning_is_of_the_line_that_began_the_map(start_server, kind, connect):
    client = connect(start_server(kind))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = client.map_async(abs, [-1])
        line = inspect.currentframe().f_lineno - 1
        wait_until(lambda: bool(caught), "nobody serves the queue, and that is said")
    assert [(each.category, each.filename, each.lineno) for each in caught] == [(RuntimeWarning, __file__, line)]
    run.cancel()


def test_no_items_give_no_results_and_start_nothing():
    client = gearmap.LocalCluster(2)
    run = client.map_async(abs, [])
    assert (run.result(), run.done(), list(run), list(run.as_completed()), run.partial()) == ([], True, [], [], {})
    assert run.resume() == []
    assert client._processes.pids == ()


def test_pickling_happens_neither_here_nor_in_the_driver(cluster):
    threads = []

    class Watched:
        def __reduce__(self):
            threads.append(threading.current_thread().name)
            return (int, (1,))

    assert cluster.map_async(lambda x: x, [Watched(), Watched()]).result() == [1, 1]
    assert set(threads) == {"gearmap-map"}


def test_two_run_at_once(cluster):
    first = cluster.map_async(slow, range(20))
    second = cluster.map_async(slow, range(20, 40))
    assert second.result() == list(range(20, 40))
    assert first.result() == list(range(20))


def test_results_come_in_order_while_it_runs(cluster, tmp_path):
    flag = tmp_path / "go"
    run = cluster.map_async(after(flag, waits=lambda x: x > 20), range(40), chunksize=1)
    seen = []
    for result in run:
        assert run.done() is False or result > 20
        seen.append(result)
        if result == 20:
            flag.touch()
    assert seen == list(range(40))
    assert list(run) == list(range(40))


def test_iteration_raises_where_results_end(cluster):
    def check(x):
        if x == 5:
            raise LookupError("no 5")
        return x

    run = cluster.map_async(check, range(20), chunksize=1, max_workers=1)
    got = []
    with pytest.raises(LookupError, match="no 5"):
        got.extend(run)
    assert got == list(range(5))


def test_failures_in_place_are_in_place_in_iteration_too(cluster):
    run = cluster.map_async(lambda x: 10 // x, [5, 0, 2], return_exceptions=True)
    assert [type(each).__name__ for each in run] == ["int", "ZeroDivisionError", "int"]


def test_settled_tasks_come_as_they_complete_with_their_position(cluster, tmp_path):
    flag = tmp_path / "go"
    run = cluster.map_async(after(flag, waits=lambda x: x == 0), range(8), chunksize=1)
    futures = []
    for future in run.as_completed():
        futures.append(future)
        if len(futures) == 7:
            flag.touch()
    assert sorted((future.task_index, future.result()) for future in futures) == [(x, x) for x in range(8)]
    assert futures[-1].task_index == 0
    assert all(isinstance(future, gearmap.Future) and future.done() for future in futures)
    assert sorted(future.task_index for future in run.as_completed()) == list(range(8))


def test_failed_tasks_are_among_the_completed(cluster):
    run = cluster.map_async(lambda x: 1 // x, [1, 0, 1], return_exceptions=True)
    errors = {future.task_index: future.exception() for future in run.as_completed()}
    assert errors[0] is errors[2] is None
    assert isinstance(errors[1], ZeroDivisionError)

    run = cluster.map_async(lambda x: 1 // x, [0] * 50, chunksize=1)
    completed = list(run.as_completed())
    assert completed
    assert all(isinstance(future.exception(), ZeroDivisionError) for future in completed)


def test_partial_results_grow(cluster, tmp_path):
    flag = tmp_path / "go"
    run = cluster.map_async(after(flag, waits=lambda x: x > 4), range(60), chunksize=1)
    wait_until(lambda: run.partial() == {task: task for task in range(5)}, "the first results")
    assert ": running, 5 of 60 tasks done>" in repr(run)
    flag.touch()
    run.result()
    assert run.partial() == {task: task for task in range(60)}
    assert repr(run) == "<MapFuture of after.<locals>.work: done, 60 of 60 tasks done>"


def test_its_error_is_that_of_a_map_each_time_it_is_asked_for(cluster):
    run = cluster.map_async(lambda x: 1 // x, [1, 0], chunksize=2)
    assert isinstance(run.exception(30), ZeroDivisionError)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            run.result()
    told = "\n".join([*getattr(caught.value, "__notes__", ()), str(caught.value.__cause__)])
    assert "(most recent call last)" in told
    assert "failed: ZeroDivisionError, 1 of 2 tasks done, 1 failed" in repr(run)


def test_a_time_limit_is_that_of_a_map(cluster):
    run = cluster.map_async(lambda x: time.sleep(60), range(4), timeout=0.3)
    with pytest.raises(gearmap.RunTimeout, match=r"0 of 4 tasks done after timeout=0.3 s"):
        run.result(20)


def test_cancelling_drops_what_is_queued_stops_what_runs_and_keeps_what_is_done(
    kind, start_server, start_node, connect, key_file, tmp_path
):
    server = start_server(kind)
    start_node(server, workers=2)
    client = connect(server)
    lane = lane_of(key_file)

    def work(x):
        if x > 3:
            time.sleep(60)
            (tmp_path / "finished").touch()
        return x

    def jobs():
        rows = {row.function: row for row in admin.server_status((server.host, server.port), 5.0)}
        return (rows[lane].total, rows[lane].running) if lane in rows else (0, 0)

    run = client.map_async(work, range(50), chunksize=1)
    wait_until(lambda: len(run.partial()) == 4, "the first are done")
    assert run.cancel()
    assert (run.cancelled(), run.done(), run.cancel()) == (True, True, True)
    with pytest.raises(concurrent.futures.CancelledError):
        run.result()
    with pytest.raises(concurrent.futures.CancelledError):
        run.exception()
    wait_until(lambda: jobs() == (0, 0), "no job of the run is left", 10.0)
    assert not (tmp_path / "finished").exists()
    assert run.partial() == {0: 0, 1: 1, 2: 2, 3: 3}
    assert run.resume(lambda x: -x) == [0, 1, 2, 3, *range(-4, -50, -1)]


def test_resume_right_after_cancel_waits_for_the_end_of_the_first_run(cluster):
    run = cluster.map_async(slow, range(40), chunksize=1)
    with pytest.raises(gearmap.ConfigurationError, match="has not ended"):
        run.resume()
    run.cancel()
    assert run.resume() == list(range(40))


def test_another_thread_can_cancel_a_map_that_is_waited_for(cluster):
    before = gearmap.last()

    def cancel():
        wait_until(lambda: gearmap.last() is not before, "the map has begun")
        gearmap.last().cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(concurrent.futures.CancelledError):
        cluster.map(lambda x: time.sleep(60), range(4))
    thread.join()


def test_callbacks_are_called_once_at_the_end_or_at_once(cluster):
    called = []
    release = threading.Event()
    run = cluster.map_async(slow, range(10))

    def callback(future):
        called.append((future is run, future.done()))
        release.set()

    run.add_done_callback(lambda _: 1 / 0)  # logged, and of no consequence
    run.add_done_callback(callback)
    run.result()
    assert release.wait(20)
    run.add_done_callback(callback)
    assert called == [(True, True)] * 2


def test_it_can_be_awaited(cluster):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        results = await asyncio.gather(
            cluster.map_async(slow, range(30), chunksize=1)._wait_in_loop(),
            cluster.map_async(abs, [-1])._wait_in_loop(),
        )
        ticking.cancel()
        with pytest.raises(ZeroDivisionError):
            await cluster.map_async(lambda x: 1 // x, [0])
        return results, ticks

    results, ticks = asyncio.run(main())
    assert results == [list(range(30)), [1]]
    assert ticks > 5


def test_its_iterable_is_read_in_the_context_of_the_caller(cluster):
    def seen():
        yield wish.get()

    wish = contextvars.ContextVar("wish", default="none")
    wish.set("tea")

    assert cluster.map_async(str, seen()).result(20) == ["tea"]


def test_who_stops_awaiting_it_has_cancelled_it(cluster):
    async def main():
        run = cluster.map_async(lambda x: time.sleep(60), range(3))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(run._wait_in_loop(), 0.1)
        return run

    assert asyncio.run(main()).cancelled()


def test_a_client_that_is_closed_ends_it(kind):
    with gearmap.LocalCluster(1, server=kind) as client:
        run = client.map_async(lambda x: time.sleep(60), range(3))
    with pytest.raises(gearmap.ClusterBroken, match="closed"):
        run.result(20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_neither_waits_for_it_nor_disturbs_it(cluster):
    run = cluster.map_async(slow, range(30), chunksize=1)
    results = cluster.imap(slow, itertools.count())
    assert next(results) == 0
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            results.close()
            run.result(30)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    told = os.read(reader, 1000).decode()
    os.close(reader)
    assert told.startswith("ClusterBroken: this map runs in the process that was forked; resume()")
    assert next(results) == 1
    assert run.result() == list(range(30))
    results.close()


def test_nothing_is_left_in_the_process_when_it_is_over(cluster):
    run = cluster.map_async(abs, range(10))
    run.result()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "gearmap-map"], "its thread has ended")


def test_wrong_calls_are_told_at_once(cluster):
    for call, words in [
        (lambda: cluster.map_async(3, [1]), "fn must be callable"),
        (lambda: cluster.map_async(abs), "map_async needs at least one iterable"),
        (lambda: cluster.map_async(abs, 3), "must be an iterable"),
        (lambda: cluster.map_async(abs, [1], chunksize=0), "chunksize must be at least 1"),
    ]:
        with pytest.raises(gearmap.ConfigurationError, match=words):
            call()


def test_inline_it_is_over_when_the_call_returns():
    with gearmap.LocalCluster(0):
        run = gearmap.map_async(lambda x: (os.getpid(), x), itertools.islice(itertools.count(), 3))
        assert run.done()
        assert run.result() == [(os.getpid(), x) for x in range(3)]
        assert [future.task_index for future in run.as_completed()] == [0, 1, 2]
        failing = gearmap.map_async(lambda x: 1 // x, [1, 0])
        assert isinstance(failing.exception(), ZeroDivisionError)
        assert failing.resume(lambda x: x) == [1, 0]
