"""What only our executors do: find a cluster, outlive lost workers, take chunks and buffers, end what they started."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import os
import signal
import threading
import weakref
from collections import Counter

import executor_tasks as tasks
import psutil
import pytest
from integration_support import DEADLINE, is_alive, wait_until
from programs import KINDS, require_kind

import gearmap

LIMIT = DEADLINE


@pytest.fixture(scope="module", autouse=True)
def own():
    with gearmap.LocalCluster(2) as cluster:
        cluster.map(abs, range(2))
        yield cluster


@pytest.fixture
def make(own):
    made = []

    def make(*arguments, **options):
        made.append(own.executor(*arguments, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(cancel_futures=True)


def processes_of(executor):
    return [psutil.Process(pid) for pid in executor._work.backend.processes.pids]


# -------------------------------------------------------------------------------------------------------- which cluster


def test_it_uses_the_current_client(own):
    with gearmap.GearmanExecutor() as executor:
        assert executor.submit(os.getppid).result(LIMIT) == own.submit(os.getppid).result(LIMIT)
    assert own.submit(abs, -1).result(LIMIT) == 1


def test_servers_that_are_named_come_before_the_current_client(start_server, start_node, key_file):
    server = start_server(KINDS[0])
    start_node(server, name="elsewhere")
    with gearmap.GearmanExecutor(servers=f"127.0.0.1:{server.port}", key=key_file) as executor:
        future = executor.submit(abs, -1)
        assert future.result(LIMIT) == 1
        assert future.worker.startswith("elsewhere")
        assert f"127.0.0.1:{server.port} (from the argument)" in repr(executor)


@pytest.fixture
def nobody_is_current(own):
    from gearmap import current

    current.leave(own)
    yield
    current.enter(own)


def test_the_environment_comes_before_a_cluster_of_its_own(
    start_server, start_node, key_file, monkeypatch, nobody_is_current
):
    server = start_server(KINDS[0])
    start_node(server)
    monkeypatch.setenv("GEARMAP_SERVERS", f"127.0.0.1:{server.port}")
    monkeypatch.setenv("GEARMAP_KEY_FILE", str(key_file))
    with gearmap.GearmanExecutor() as executor:
        assert executor.submit(abs, -1).result(LIMIT) == 1
        assert "(from GEARMAP_SERVERS)" in repr(executor)


def test_a_cluster_of_its_own_has_so_many_workers_and_ends_with_it(nobody_is_current):
    with gearmap.GearmanExecutor(3) as executor:
        assert executor.submit(abs, -1).result(LIMIT) == 1
        assert "3 workers" in repr(executor)
        processes = processes_of(executor)
    wait_until(lambda: not any(map(is_alive, processes)), "its processes end")


def test_a_forgotten_executor_ends_its_cluster_after_its_work(nobody_is_current):
    executor = gearmap.GearmanExecutor(1)
    future = executor.submit(tasks.sleep_and_return, 0.2, "end")
    processes = processes_of(executor)
    gone = weakref.ref(executor)
    del executor
    wait_until(lambda: gc.collect() >= 0 and gone() is None, "the executor is let go")
    assert future.result(LIMIT) == "end"
    wait_until(lambda: not any(map(is_alive, processes)), "its processes end")


def test_shutdown_without_waiting_ends_its_cluster_after_its_work(nobody_is_current):
    executor = gearmap.GearmanExecutor(1)
    future = executor.submit(tasks.sleep_and_return, 0.2, "end")
    processes = processes_of(executor)
    executor.shutdown(wait=False)
    assert future.result(LIMIT) == "end"
    wait_until(lambda: not any(map(is_alive, processes)), "its processes end")


def test_an_address_in_first_place_is_told_where_it_belongs():
    with pytest.raises(
        gearmap.ConfigurationError,
        match="max_workers must be an int, got 'head:4730'; servers are given as servers=",
    ):
        gearmap.GearmanExecutor("head:4730")


@pytest.mark.parametrize(("name", "value"), [("chunksize", 1), ("timeout", 3.0), ("return_exceptions", True)])
def test_options_of_maps_are_refused(own, name, value):
    for make in (gearmap.GearmanExecutor, own.executor):
        with pytest.raises(gearmap.ConfigurationError, match=f"the option '{name}' means nothing to an executor"):
            make(2, **{name: value})


def test_no_job_server_is_said_at_once_and_later_it_works(start_server, start_node, key_file):
    server = start_server(KINDS[0])
    port = server.port
    server.stop()
    with gearmap.GearmanExecutor(servers=f"127.0.0.1:{port}", key=key_file) as executor:
        with pytest.raises(gearmap.ServerUnavailable, match=str(port)):
            executor.submit(abs, -1)
        start_node(start_server(KINDS[0], port=port))
        assert executor.submit(abs, -1).result(LIMIT) == 1


def test_closing_the_client_breaks_its_executors(start_server, start_node, connect):
    server = start_server(KINDS[0])
    start_node(server)
    client = connect(server)
    executor = client.executor(2)
    future = executor.submit(tasks.sleep_and_return, 60)
    wait_until(future.running, "the task runs")
    client.close()
    with pytest.raises(concurrent.futures.BrokenExecutor):
        future.result(LIMIT)
    with pytest.raises(concurrent.futures.BrokenExecutor, match="closed"):
        executor.submit(abs, -1)
    executor.shutdown()


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_killed_worker_breaks_nothing(make, tmp_path):
    flag = str(tmp_path / "once")
    executor = make(2)

    def die_once():
        if not os.path.exists(flag):
            tasks.touch(flag)
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    assert executor.submit(die_once).result(LIMIT) == "alive"
    with pytest.raises(gearmap.WorkerLost):
        executor.submit(os._exit, 1).result(LIMIT)
    assert executor.submit(abs, -1).result(LIMIT) == 1


def test_a_broken_executor_says_what_its_initializer_raised(make):
    executor = make(2, initializer=tasks.fail_to_initialize)
    with pytest.raises(concurrent.futures.BrokenExecutor, match="ValueError: error in initializer") as caught:
        executor.submit(abs, -1).result(LIMIT)
    told = "\n".join([*getattr(caught.value, "__notes__", ()), str(caught.value.__cause__)])
    assert "(most recent call last)" in told
    with pytest.raises(concurrent.futures.BrokenExecutor, match="ValueError: error in initializer"):
        executor.submit(abs, -1)
    with pytest.raises(concurrent.futures.BrokenExecutor, match="ValueError: error in initializer"):
        executor.map(abs, [1])


def test_executors_with_equal_initializers_share_no_child(make):
    first, second = (make(2, initializer=tasks.initialize, initargs=("x",)) for _ in range(2))
    pids = [{executor.submit(os.getpid).result(LIMIT) for _ in range(6)} for executor in (first, second)]
    assert not pids[0] & pids[1]


def test_options_of_single_calls_are_those_of_an_executor(make, tmp_path):
    executor = make(1, retries=1, retry_delay=0.0, task_timeout=30.0, priority="high")
    flag = str(tmp_path / "once")

    def fail_once():
        if not os.path.exists(flag):
            tasks.touch(flag)
            raise ValueError("once")
        return "twice"

    future = executor.submit(fail_once)
    assert future.result(LIMIT) == "twice"
    assert future.attempts == 2


def test_a_clients_options_are_its_executors(own, tmp_path):
    with own.options(task_timeout=0.3).executor(1) as executor, pytest.raises(gearmap.TaskTimeout):
        executor.submit(tasks.sleep_and_return, 30).result(LIMIT)


# --------------------------------------------------------------------------------------------------------------- chunks


def test_a_chunk_stays_together_and_is_no_larger_than_a_child_may_run(make):
    pids = Counter(pid for pid, _ in make(2, max_tasks_per_child=4).map(tasks.count_calls, range(16), chunksize=4))
    assert set(pids.values()) == {4}
    pids = Counter(pid for pid, _ in make(2, max_tasks_per_child=2).map(tasks.count_calls, range(16), chunksize=8))
    assert max(pids.values()) <= 2


def test_one_failure_leaves_the_results_of_its_chunk_alone(make):
    results = make(2).map(lambda number: 1 // (3 - number), range(6), chunksize=6)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
def test_sizes_are_positive(make, name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        make().map(abs, [1], **{name: value})


def test_a_buffersize_is_an_int(make):
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        make().map(abs, [1], buffersize=2.5)


@pytest.mark.parametrize("chunksize", [None, 1, 2, 100], ids=str)
@pytest.mark.parametrize("buffersize", [1, 4])
def test_a_buffer_bounds_what_was_taken_and_not_handed_out(make, buffersize, chunksize):
    taken = 0

    def items():
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield number

    results = make().map(abs, items(), buffersize=buffersize, chunksize=chunksize)
    assert taken == buffersize
    for number in range(20):
        assert next(results) == number
        assert taken - number - 1 <= buffersize
    results.close()


def test_a_buffered_map_ends_with_its_items_and_takes_no_more_for_a_forgotten_executor(own):
    executor = own.executor(2)
    assert list(executor.map(abs, range(10), buffersize=3)) == list(range(10))
    results = executor.map(abs, itertools.count(), buffersize=3)
    gone = weakref.ref(executor)
    del executor
    wait_until(lambda: gc.collect() >= 0 and gone() is None, "the executor is let go")
    assert list(results) == [0, 1, 2]


# ---------------------------------------------------------------------------------------------------- inline, callbacks


def test_inline_tasks_run_in_this_process_after_the_initializer():
    with gearmap.LocalCluster(0) as cluster, cluster.executor(2, initializer=tasks.initialize, initargs=("i",)) as it:
        assert it.submit(os.getpid).result(0) == os.getpid()
        assert list(it.map(pow, [2, 3], [3, 2], chunksize=2)) == [8, 9]
        assert it.submit(tasks.get_state).result(0) == "i"
        tasks.initialize("not initialized")
        broken = cluster.executor(1, initializer=tasks.fail_to_initialize)
        for _ in range(2):
            with pytest.raises(concurrent.futures.BrokenExecutor, match="error in initializer"):
                broken.submit(abs, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        it.submit(abs, 1)


def test_a_callback_may_shut_its_executor_down(make):
    executor, ended = make(1), threading.Event()
    executor.submit(abs, -1).add_done_callback(lambda _: (executor.shutdown(), ended.set()))
    assert ended.wait(LIMIT)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)


def test_an_executor_on_either_server(kind, cluster):
    require_kind(kind)
    with cluster.executor(2, max_tasks_per_child=3) as executor:
        assert sorted(executor.map(abs, range(-20, 20), buffersize=5)) == sorted(map(abs, range(-20, 20)))
