"""A map that failed, was cancelled or interrupted has lost nothing, and goes on where it stopped."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import signal
import threading
import time

import pytest

import gearmap
from gearmap.errors import RunTimeout


def notes_of(error: BaseException) -> str:
    return "".join(getattr(error, "__notes__", [])) + str(error.__cause__)


def runs_of(folder, task):
    path = folder / str(task)
    return path.stat().st_size if path.exists() else 0


def counted(folder):
    """A function that counts how often each task ran."""

    def work(x):
        with open(folder / str(x), "a") as file:
            file.write("x")
        return x * x

    return work


# ------------------------------------------------------------------------------------------------------- first error


def test_the_note_of_the_first_error_says_how_the_run_ended_and_how_it_goes_on(cluster):
    def check(x):
        if x == 17:
            raise LookupError("no 17")
        return x

    with pytest.raises(LookupError) as caught:
        cluster.map(check, range(1000), chunksize=5)

    told = notes_of(caught.value)
    assert "task 17 of 1000: check(17)" in told
    assert " done" in told
    assert " not run; gearmap.last().resume() goes on from here)" in told


def test_resume_runs_only_what_has_no_result_with_the_corrected_function(cluster, tmp_path):
    count = counted(tmp_path)

    def wrong(x):
        if x == 30:
            raise ValueError("wrong")
        time.sleep(0.002)
        return count(x)

    with pytest.raises(ValueError, match="wrong"):
        cluster.map(wrong, range(100), chunksize=4)
    run = gearmap.last()
    before = run.partial()
    assert before
    assert all(before[task] == task * task for task in before)
    assert 30 not in before
    assert [failed.task_index for failed in run.failed()] == [30]

    results = run.resume(lambda x: count(x))

    assert results == [x * x for x in range(100)]
    assert all(runs_of(tmp_path, task) == 1 for task in before)
    assert (run.result(), run.failed(), run.partial()[99]) == (results, [], 99 * 99)
    assert run.resume() is results
    assert gearmap.last() is run


def test_resume_may_fail_and_go_on_again_with_the_same_options(cluster):
    def picky(x):
        if x in (3, 6) and not os.path.exists(flags % x):
            open(flags % x, "w").close()
            raise KeyError(x)
        return x

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        flags = folder + "/%d"
        for expected in (3, 6):
            with pytest.raises(KeyError) as caught:
                cluster.map(picky, range(9), chunksize=1, max_workers=1) if expected == 3 else gearmap.last().resume()
            assert f"task {expected} of 9" in notes_of(caught.value)
        assert f"{expected} done, 2 not run" in notes_of(caught.value)
        assert gearmap.last().resume() == list(range(9))


def test_several_parts_of_one_block_are_run_again(cluster):
    def odd(x):
        if x % 3 == 1:
            raise ValueError(x)
        return x

    results = cluster.map(odd, range(60), chunksize=60, return_exceptions=True)
    assert [type(each) for each in results[:3]] == [int, ValueError, int]
    run = gearmap.last()
    assert len(run.failed()) == 20
    assert sorted(run.partial()) == [x for x in range(60) if x % 3 != 1]

    assert run.resume(lambda x: -x) == [-x if x % 3 == 1 else x for x in range(60)]


def test_resume_with_failures_in_place_gives_those_that_fail_again_in_place(cluster):
    cluster.map(lambda x: 10 // x, [0, 1, 0, 5], return_exceptions=True)

    again = gearmap.last().resume()

    assert [type(each).__name__ for each in again] == ["ZeroDivisionError", "int", "ZeroDivisionError", "int"]
    assert (again[1], again[3]) == (10, 2)


def test_the_rest_of_an_iterator_is_read_where_it_stopped(cluster):
    read = []

    def numbers():
        for number in range(200):
            read.append(number)
            yield number

    def check(x, wrong):
        time.sleep(0.002)
        if x == 40 and wrong:
            raise ValueError(x)
        return x

    with pytest.raises(ValueError, match="40"):
        cluster.map(lambda x: check(x, True), numbers(), chunksize=3)
    assert len(read) < 200

    assert gearmap.last().resume(lambda x: check(x, False)) == list(range(200))
    assert read == list(range(200))


def test_what_the_caller_does_to_the_list_meanwhile_is_of_no_consequence(cluster):
    items = list(range(50))
    with pytest.raises(ZeroDivisionError):
        cluster.map(lambda x: 1 // x, items, chunksize=1, max_workers=1)
    items.clear()
    assert gearmap.last().resume(lambda x: x) == [0, *range(1, 50)]


def test_an_iterable_that_broke_off_gives_what_it_gave_and_then_says_so(cluster):
    def numbers():
        yield from range(5)
        raise KeyError("midway")

    with pytest.raises(KeyError, match="midway"):
        cluster.map(lambda x: x, numbers(), chunksize=10)
    run = gearmap.last()
    with pytest.raises(gearmap.ConfigurationError, match="broken off by KeyError after 5 tasks"):
        run.resume()
    assert run.partial() == {x: x for x in range(5)}


def test_an_argument_that_does_not_pickle_loses_nothing(cluster):
    class Odd:
        may = False

        def __reduce__(self):
            if not Odd.may:
                raise TypeError("not yet")
            return (int, (7,))

    with pytest.raises(gearmap.SerializationError, match="task 3"):
        cluster.map(lambda x: x, iter([0, 1, 2, Odd(), 4]), chunksize=2)
    Odd.may = True
    assert gearmap.last().resume() == [0, 1, 2, 7, 4]


def test_a_function_that_does_not_pickle_leaves_everything_as_it_was(cluster):
    with pytest.raises(ZeroDivisionError):
        cluster.map(lambda x: 1 // x, [1, 0, 2], chunksize=1, max_workers=1)
    run = gearmap.last()
    lock = threading.Lock()
    with pytest.raises(gearmap.SerializationError):
        run.resume(lambda x: lock)
    with pytest.raises(ZeroDivisionError):
        run.result()
    assert run.resume(lambda x: x) == [1, 0, 2]


# ------------------------------------------------------------------------------------------------------------ clocks


def test_a_map_that_ran_out_of_time_goes_on(cluster):
    with pytest.raises(RunTimeout) as caught:
        cluster.map(lambda x: time.sleep(0.1) or x, range(14), timeout=0.5, chunksize=1)
    told = str(caught.value)
    assert " of 14 tasks done after timeout=0.5 s; the run was cancelled; gearmap.last().resume() goes on" in told
    run = gearmap.last()
    assert len(run.partial()) < 14

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            assert run.resume() == list(range(14))
            return
        except RunTimeout:
            continue
    pytest.fail("it did not get on")


def test_waiting_for_a_result_ends_nothing(cluster):
    run = cluster.map_async(lambda x: time.sleep(0.3) or x, range(4), chunksize=1)
    with pytest.raises(concurrent.futures.TimeoutError, match=r"0 of 4 tasks done after 0.01 s; the map goes on"):
        run.result(timeout=0.01)
    assert not run.done()
    assert run.result(30) == [0, 1, 2, 3]


def test_a_task_that_ran_too_long_can_be_resumed(cluster):
    with pytest.raises(gearmap.TaskTimeout, match=r"task 1 \(<lambda>\(1\)\) ran longer") as caught:
        cluster.map(lambda x: time.sleep(60 if x == 1 else 0), range(3), task_timeout=0.3)
    assert "resume()" in notes_of(caught.value)
    assert gearmap.last().resume(lambda x: x)[1] == 1


# --------------------------------------------------------------------------------------------------- other endings


def test_a_lost_worker_names_the_call_and_the_map_goes_on(cluster):
    def risky(x):
        if x == 2:
            os._exit(3)
        return x

    with pytest.raises(gearmap.WorkerLost):
        cluster.options(max_worker_losses=1).map(risky, range(5))
    (failed,) = gearmap.last().failed()
    assert (failed.task_index, failed.call) == (2, "risky(2)")
    assert "exit code 3" in repr(failed)
    assert gearmap.last().resume(lambda x: x) == list(range(5))


def test_ctrl_c_in_the_middle_loses_nothing(cluster):
    main = threading.get_ident()

    def interrupt():
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            run = gearmap.last()
            if run is not marker and len(run.partial()) > 5:
                signal.pthread_kill(main, signal.SIGINT)
                return
            time.sleep(0.01)

    marker = gearmap.last()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        cluster.map(lambda x: time.sleep(0.02) or x, iter(range(100)), chunksize=1)
    thread.join()

    run = gearmap.last()
    assert run.cancelled()
    assert 5 < len(run.partial()) < 100
    assert run.resume() == list(range(100))
    assert (run.cancelled(), run.exception()) == (False, None)


def test_the_last_map_goes_on_in_another_cluster_once_its_own_is_closed(kind):
    with gearmap.LocalCluster(1, server=kind) as first, pytest.raises(ZeroDivisionError):
        first.map(lambda x: 1 // x, [1, 0, 2], chunksize=1)
    run = gearmap.last()
    with pytest.raises(gearmap.ClusterBroken, match=r"LocalCluster is closed; open another"):
        run.resume()
    with gearmap.LocalCluster(0):
        assert run.resume(lambda x: (x, os.getpid()))[1] == (0, os.getpid())
    assert run.result()[0] == 1


def test_a_closed_client_begins_nothing_on_another(kind):
    closed = gearmap.LocalCluster(1, server=kind)
    closed.close()
    with gearmap.LocalCluster(0), pytest.raises(gearmap.ClusterBroken, match="closed"):
        closed.map(abs, [1])


# --------------------------------------------------------------------------------------------------- failed tasks


def test_a_failed_task_runs_again_here_with_copies_of_its_arguments(cluster):
    seen = []

    def strange(x, rows):
        if x == 1:
            rows.append("seen")
            seen.append(os.getpid())
            raise RuntimeError("here")
        return x

    rows = ["a"]
    with pytest.raises(RuntimeError):
        cluster.map(strange, range(3), itertools.repeat(rows))
    (failed,) = gearmap.last().failed()
    assert failed.attempts == 1
    assert isinstance(failed.exception, RuntimeError)
    assert repr(failed).startswith("<task 1: strange(1, ['a', 'seen']) raised RuntimeError: here on ")

    with pytest.raises(RuntimeError, match="here"):
        failed.rerun_here()
    assert seen == [os.getpid()]
    assert rows == ["a"]

    gearmap.last().resume(lambda x, rows: x)
    with pytest.raises(gearmap.ConfigurationError, match="arguments of task 1 are gone"):
        failed.rerun_here()


def test_large_arguments_of_a_failed_task_are_copied_for_a_rerun(cluster):
    numpy = pytest.importorskip("numpy")

    def spoil(array):
        array[:] = 0
        raise ValueError("spoilt")

    array = numpy.ones(100_000)
    with pytest.raises(ValueError, match="spoilt"):
        cluster.map(spoil, [array])
    with pytest.raises(ValueError, match="spoilt"):
        gearmap.last().failed()[0].rerun_here()
    assert array.sum() == 100_000


# ---------------------------------------------------------------------------------------------------------- report


def test_a_report_tells_what_happened_and_nothing_private(cluster):
    secret = "do not tell"

    def risky(x, word):
        if x == 5:
            os._exit(3)
        if x == 7:
            raise ValueError(word)
        return word

    cluster.map(risky, range(20), [secret] * 20, return_exceptions=True, chunksize=4, desc=secret)
    run = gearmap.last()
    text = run.report()
    assert "risky: done, 18 of 20 tasks done, 2 failed" in text
    assert "options: chunksize=4, return_exceptions=True" in text
    assert "child_died x3" in text
    assert "1 failures of tasks" in text
    assert cluster.where in text
    assert secret not in text
    run.resume(lambda x, word: x)
    assert "run 2 (" in run.report()
    assert "(18 before this run)" in run.report()
    assert secret not in run.report()


# ------------------------------------------------------------------------------------------------------------ last


def test_the_last_map_is_kept_until_the_next_or_until_it_is_forgotten(cluster):
    cluster.map(abs, [-1])
    first = gearmap.last()
    assert (first.result(), first.done(), first.partial()) == ([1], True, {0: 1})
    cluster.starmap(pow, [(2, 3)])
    assert gearmap.last() is not first
    assert gearmap.last().result() == [8]
    list(cluster.imap(abs, [-3]))
    cluster.map(abs, [])
    assert gearmap.last().result() == [8]
    gearmap.forget()
    assert gearmap.last() is None


def test_inline_maps_are_remembered_and_resumed_too():
    with gearmap.LocalCluster(0):
        with pytest.raises(ZeroDivisionError) as caught:
            gearmap.map(lambda x: 10 // x, [5, 0, 2])
        assert "task 1 of 3; 1 done, 1 not run; gearmap.last().resume() goes on" in notes_of(caught.value)
        run = gearmap.last()
        assert run.partial() == {0: 2}
        (failed,) = run.failed()
        assert (failed.task_index, failed.attempts, failed.worker) == (1, 1, None)
        with pytest.raises(ZeroDivisionError):
            failed.rerun_here()
        assert run.resume(lambda x: x) == [2, 0, 2]
        with pytest.raises(RunTimeout, match="1 of 3 tasks done"):
            gearmap.map(lambda x: time.sleep(0.3) or x, [1, 2, 3], timeout=0.2)
