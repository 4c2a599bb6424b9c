"""What holds for executors of the standard library holds for ours: each test runs against theirs, too."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import executor_tasks as tasks
import pytest
from integration_support import DEADLINE, wait_until

import gearmap

LIMIT = DEADLINE

THREADS, PROCESSES, OURS = "threads", "processes", "gearmap"


@pytest.fixture(scope="module", autouse=True)
def own():
    """The cluster of all executors here; also what process pools start once for all of them."""
    multiprocessing.resource_tracker.ensure_running()
    multiprocessing.forkserver.ensure_running()
    with gearmap.LocalCluster(2) as cluster:
        cluster.map(abs, range(2))
        yield cluster


class Maker:
    """Makes executors of one kind, and ends them."""

    def __init__(self, kind, request):
        self.kind = kind
        self._request = request
        self._made = []

    def __call__(self, max_workers=2, **options):
        if self.kind == THREADS:
            executor = ThreadPoolExecutor(max_workers, **options)
        elif self.kind == PROCESSES:
            context = multiprocessing.get_context("forkserver")
            executor = ProcessPoolExecutor(max_workers, mp_context=context, **options)
        else:
            executor = self._request.getfixturevalue("own").executor(max_workers, **options)
        self._made.append(weakref.ref(executor))
        return executor

    def end(self):
        for reference in self._made:
            executor = reference()
            if executor is not None:
                executor.shutdown(cancel_futures=True)


@pytest.fixture(params=[THREADS, PROCESSES, OURS])
def make(request):
    maker = Maker(request.param, request)
    yield maker
    maker.end()


only = pytest.mark.parametrize


# -------------------------------------------------------------------------------------------------------------- submit


def test_a_call_gives_its_result(make):
    with make() as executor:
        assert executor.submit(pow, 2, 8).result(LIMIT) == 256


def test_a_calls_keywords_are_its_own(make):
    with make() as executor:
        future = executor.submit(tasks.capture, 1, self=2, fn=3, timeout=4)
        assert future.result(LIMIT) == ((1,), {"self": 2, "fn": 3, "timeout": 4})
        with pytest.raises(TypeError):
            executor.submit(fn=tasks.capture, arg=1)
        with pytest.raises(TypeError):
            executor.submit(arg=1)


def test_a_calls_exception_is_its_own_and_the_executor_goes_on(make):
    with make() as executor:
        future = executor.submit(tasks.fail, "text")
        with pytest.raises(ValueError, match="text"):
            future.result(LIMIT)
        assert isinstance(future.exception(), ValueError)
        assert executor.submit(abs, -1).result(LIMIT) == 1


def test_many_threads_use_one_executor(make):
    found = []
    with make() as executor:

        def work(start):
            futures = [executor.submit(abs, -number) for number in range(start, start + 20)]
            found.append([future.result(LIMIT) for future in futures])

        threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 120, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    assert sorted(itertools.chain.from_iterable(found)) == list(range(120))


def test_arguments_are_not_kept_once_the_call_has_ended(make):
    with make() as executor:
        thing = tasks.Thing()
        gone = weakref.ref(thing)
        future = executor.submit(thing.method)
        del thing
        future.result(LIMIT)
        wait_until(lambda: gc.collect() >= 0 and gone() is None, "the argument is let go")


@only("number", [0, -1])
def test_an_executor_has_a_worker_at_least(make, number):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        make(number)


def test_no_more_calls_run_at_once_than_there_are_workers(make):
    with make(1) as executor:
        spans = sorted(future.result(LIMIT) for future in [executor.submit(tasks.span, 0.05) for _ in range(5)])
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


# ----------------------------------------------------------------------------------------------------------------- map


@only("options", [{}, {"chunksize": 1}, {"chunksize": 3}, {"chunksize": 100}], ids=str)
def test_a_map_gives_results_in_order(make, options):
    with make() as executor:
        assert list(executor.map(pow, range(10), range(10), **options)) == list(map(pow, range(10), range(10)))
        assert list(executor.map(abs, [], **options)) == []
        assert list(executor.map(pow, [2, 3, 4], [1, 2], **options)) == [2, 9]


def test_a_maps_exception_comes_in_its_place_and_ends_it(make):
    with make() as executor:
        results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
        assert [next(results), next(results)] == [(0, 1), (0, 1)]
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


def test_a_map_takes_its_iterables_at_once(make):
    with make() as executor:
        items = iter(range(7))
        results = executor.map(abs, items)
        assert list(items) == []
        assert list(results) == list(range(7))


def test_a_maps_timeout_counts_from_its_call(make, tmp_path):
    flag = str(tmp_path / "go")
    with make(1) as executor:
        executor.submit(abs, -1).result(LIMIT)
        results = executor.map(tasks.wait_for, [flag] * 3, timeout=0.3)
        try:
            with pytest.raises(concurrent.futures.TimeoutError):
                next(results)
        finally:
            tasks.touch(flag)


def test_leaving_a_map_cancels_what_waits(make, tmp_path):
    flag, mark = str(tmp_path / "go"), str(tmp_path / "ran")
    with make(1) as executor:
        results = executor.map(tasks.wait_for, [flag] * 4)
        last = executor.submit(tasks.touch, mark)
        results.close()
        tasks.touch(flag)
        last.result(LIMIT)


def test_a_map_keeps_no_result_that_it_handed_out(make):
    with make() as executor:
        for thing in executor.map(tasks.make_thing, range(10)):
            reference = weakref.ref(thing)
            del thing
            gc.collect()
            assert reference() is None


def test_a_map_goes_on_when_the_executor_is_forgotten(make):
    executor = make()
    results = executor.map(abs, range(-5, 5))
    del executor
    gc.collect()
    assert list(results) == [abs(number) for number in range(-5, 5)]


# ------------------------------------------------------------------------------------------------------------ shutdown


def test_nothing_can_be_submitted_after_shutdown_which_may_be_repeated(make):
    executor = make()
    executor.submit(abs, -1).result(LIMIT)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, -1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(abs, [1])


def test_an_executor_that_was_never_used_can_be_shut_down(make):
    executor = make()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)


def test_leaving_the_block_waits_for_what_was_submitted(make):
    with make() as executor:
        futures = [executor.submit(tasks.sleep_and_return, 0.02, number) for number in range(20)]
        results = executor.map(abs, range(-3, 3))
    assert all(future.done() for future in futures)
    assert [future.result(0) for future in futures] == list(range(20))
    assert list(results) == [3, 2, 1, 0, 1, 2]


def test_shutdown_without_waiting_lets_the_work_end(make):
    executor = make()
    future = executor.submit(tasks.sleep_and_return, 0.3, "end")
    results = executor.map(abs, range(-5, 5))
    executor.shutdown(wait=False)
    assert not future.done()
    assert list(results) == [abs(number) for number in range(-5, 5)]
    assert future.result(LIMIT) == "end"


@only("wait", [True, False])
def test_shutdown_can_cancel_what_waits_and_what_runs_ends(make, wait, tmp_path):
    flag = str(tmp_path / "go")
    executor = make(2)
    futures = [executor.submit(tasks.wait_for, flag) for _ in range(20)]
    wait_until(lambda: futures[0].running(), "the first call runs")
    threading.Timer(0.2, tasks.touch, [flag]).start()

    executor.shutdown(wait, cancel_futures=True)

    # Not `wait`: the standard library's executors never tell it of these.
    wait_until(lambda: all(future.done() for future in futures), "all calls have ended")
    cancelled = [future for future in futures if future.cancelled()]
    others = [future for future in futures if not future.cancelled()]
    assert len(cancelled) >= 10
    assert others
    assert [future.result(0) for future in others] == [flag] * len(others)
    wait_until(lambda: Path(flag).exists(), "the timer is over")


def test_shutdown_right_after_a_cancelled_call_does_not_hang(make):
    executor = make(1)
    executor.submit(int).result(LIMIT)
    executor.submit(int).cancel()
    done = threading.Event()
    threading.Thread(target=lambda: (executor.shutdown(), done.set()), daemon=True).start()
    assert done.wait(LIMIT)


def test_a_forgotten_executor_ends_its_work(make):
    executor = make()
    futures = [executor.submit(tasks.sleep_and_return, 0.05, number) for number in range(6)]
    gone = weakref.ref(executor)
    del executor
    wait_until(lambda: gc.collect() >= 0 and gone() is None, "the executor is let go")
    assert [future.result(LIMIT) for future in futures] == list(range(6))


# ------------------------------------------------------------------------------------------------ the interpreter's end

PREAMBLE = {
    THREADS: "from concurrent.futures import ThreadPoolExecutor as Executor",
    PROCESSES: """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        def Executor(n):
            return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("forkserver"))
    """,
    OURS: "from gearmap import GearmanExecutor as Executor",
}


def run_script(kind, code, *arguments):
    """Run a program; return what it says on both streams."""
    folder = str(Path(__file__).parent)
    head = f"import sys; sys.path.insert(0, {folder!r}); import executor_tasks as tasks\n"
    text = (
        head
        + textwrap.dedent(PREAMBLE[kind])
        + "\nif __name__ == '__main__':\n"
        + textwrap.indent(textwrap.dedent(code), "    ")
    )
    done = subprocess.run(
        [sys.executable, "-c", text, *arguments], capture_output=True, text=True, timeout=2 * LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@only("how", ["", "executor.shutdown(wait=False)", "del executor"], ids=["as it is", "shut down", "forgotten"])
def test_pending_work_ends_before_the_interpreter_does(make, how, tmp_path):
    if make.kind == PROCESSES and how:
        pytest.skip("a process pool may hang then: https://github.com/python/cpython/issues/94777")
    code = f"""
    executor = Executor(2)
    for number in range(4):
        executor.submit(tasks.sleep_and_return, 0.2)
    executor.submit(tasks.touch, sys.argv[1]).add_done_callback(lambda done: print("called back", flush=True))
    {how}
    """
    flag = tmp_path / "done"
    out, err = run_script(make.kind, code, str(flag))
    assert flag.exists()
    assert out == "called back\n"
    assert "Traceback" not in err


def test_nothing_can_be_submitted_when_the_interpreter_ends(make):
    code = """
    import atexit

    @atexit.register
    def late():
        try:
            executor.submit(abs, -1)
        except RuntimeError as error:
            print(error)

    executor = Executor(2)
    assert executor.submit(abs, -1).result(60) == 1
    """
    out, _ = run_script(make.kind, code)
    assert out.startswith("cannot schedule new futures after")


# -------------------------------------------------------------------------------------------------------- initializers


def test_an_initializer_has_run_before_each_task(make):
    with make(2, initializer=tasks.initialize, initargs=("initialized",)) as executor:
        assert set(executor.map(tasks.get_state, range(6))) == {"initialized"}
    tasks.initialize("not initialized")  # threads have changed this process


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_initializer_breaks_the_executor(make):
    executor = make(2, initializer=tasks.fail_to_initialize)
    try:
        future = executor.submit(abs, -1)
    except concurrent.futures.BrokenExecutor:
        pass  # already
    else:
        with pytest.raises(concurrent.futures.BrokenExecutor):
            future.result(LIMIT)
    wait_until(lambda: bool(executor._broken), "the executor is broken")
    with pytest.raises(concurrent.futures.BrokenExecutor):
        executor.submit(abs, -1)
    executor.shutdown()


def test_an_initializer_is_a_callable(make):
    with pytest.raises(TypeError, match="initializer must be a callable"):
        make(2, initializer="load")


@only("limit", [1, 2])
def test_a_process_is_replaced_after_so_many_tasks(make, limit):
    if make.kind == THREADS or (make.kind == PROCESSES and sys.version_info < (3, 11)):
        pytest.skip("has no such option")
    with make(1, max_tasks_per_child=limit) as executor:
        counts = [executor.submit(tasks.count_calls).result(LIMIT)[1] for _ in range(4)]
    assert max(counts) <= limit


@only(("limit", "error"), [("many", TypeError), (0, ValueError), (1.5, TypeError)])
def test_a_limit_of_tasks_is_a_positive_int(make, limit, error):
    if make.kind == THREADS or (make.kind == PROCESSES and sys.version_info < (3, 11)):
        pytest.skip("has no such option")
    with pytest.raises(error, match="max_tasks_per_child must be"):
        make(1, max_tasks_per_child=limit)


# ---------------------------------------------------------------------------------------------------- states, callbacks


def test_what_waits_can_be_cancelled_and_what_runs_cannot(make, tmp_path):
    flag = str(tmp_path / "go")
    with make(1) as executor:
        futures = [executor.submit(tasks.wait_for, flag) for _ in range(10)]
        wait_until(lambda: futures[0].running(), "the first call runs")
        assert not futures[0].cancel()
        assert futures[-1].cancel()
        assert (futures[-1].cancelled(), futures[-1].done(), futures[-1].running()) == (True, True, False)
        with pytest.raises(concurrent.futures.CancelledError):
            futures[-1].result(LIMIT)
        tasks.touch(flag)
        assert futures[0].result(LIMIT) == flag


def test_who_waits_for_a_cancelled_call_is_woken(make, tmp_path):
    flag = str(tmp_path / "go")
    with make(1) as executor:
        futures = [executor.submit(tasks.wait_for, flag) for _ in range(10)]
        wait_until(lambda: futures[0].running(), "the first call runs")
        woken = threading.Event()

        def wait():
            assert concurrent.futures.wait([futures[-1]], LIMIT).done
            woken.set()

        threading.Thread(target=wait, daemon=True).start()
        assert futures[-1].cancel()
        tasks.touch(flag)
        assert woken.wait(LIMIT)


def test_callbacks_are_called_in_order_elsewhere_and_one_that_raises_is_logged(make, caplog):
    called, done = [], threading.Event()
    with make() as executor, caplog.at_level(logging.ERROR):
        future = executor.submit(tasks.sleep_and_return, 0.2, "value")
        future.add_done_callback(lambda done: called.append((1, done.result())))
        future.add_done_callback(lambda done: called[99])
        future.add_done_callback(lambda done: called.append((2, threading.get_ident())))
        future.add_done_callback(lambda _: done.set())
        assert done.wait(LIMIT)
        future.add_done_callback(lambda done: called.append((3, threading.get_ident())))
    assert called[0] == (1, "value")
    assert [number for number, _ in called] == [1, 2, 3]
    assert called[1][1] != threading.get_ident() == called[2][1]
    assert "exception calling callback" in caplog.text
    caplog.clear()  # its traceback keeps what the pool had open


def test_callbacks_have_been_called_when_shutdown_returns(make):
    called = []
    with make() as executor:
        for number in range(10):
            executor.submit(abs, -number).add_done_callback(lambda done: called.append(done.result()))
    assert sorted(called) == list(range(10))


def test_wait_and_as_completed(make, tmp_path):
    flag = str(tmp_path / "go")
    with make(2) as executor:
        slow, quick = executor.submit(tasks.wait_for, flag), executor.submit(abs, -1)
        done, pending = concurrent.futures.wait([slow, quick], LIMIT, concurrent.futures.FIRST_COMPLETED)
        assert (done, pending) == ({quick}, {slow})
        assert concurrent.futures.wait([slow], 0.05).not_done == {slow}
        bad = executor.submit(tasks.fail)
        done, _ = concurrent.futures.wait([slow, bad], LIMIT, concurrent.futures.FIRST_EXCEPTION)
        assert done == {bad}
        with pytest.raises(concurrent.futures.TimeoutError):
            list(concurrent.futures.as_completed([slow], timeout=0.05))
        completed = concurrent.futures.as_completed([slow, quick, bad, slow], LIMIT)
        assert {next(completed), next(completed)} == {quick, bad}
        tasks.touch(flag)
        assert list(completed) == [slow]


def test_asyncio_runs_calls_in_it(make):
    async def main(executor):
        loop = asyncio.get_running_loop()
        wrapped = [asyncio.wrap_future(executor.submit(abs, -number)) for number in range(3)]
        calls = [loop.run_in_executor(executor, abs, -number) for number in range(3, 6)]
        bad = loop.run_in_executor(executor, tasks.fail, "in a loop")
        results = await asyncio.wait_for(asyncio.gather(*wrapped, *calls, bad, return_exceptions=True), LIMIT)
        assert isinstance(results[-1], ValueError)
        return results[:-1]

    with make() as executor:
        assert asyncio.run(main(executor)) == list(range(6))


def test_a_future_tells_its_state_in_its_repr(make):
    with make() as executor:
        future = executor.submit(abs, -1)
        future.result(LIMIT)
        assert "state=finished" in repr(future)
        bad = executor.submit(tasks.fail)
        bad.exception(LIMIT)
        assert "state=finished raised ValueError" in repr(bad)
