"""What a node enforces, with real processes: time, memory and use of its children, and how it leaves."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from integration_support import lane_of, wait_until, workers_of
from programs import KINDS

import gearmap

MB = 2**20


pytestmark = pytest.mark.usefixtures("functions_travel")


@pytest.fixture
def one_kind(kind):
    """For what a job server has no part in."""
    if kind != KINDS[0]:
        pytest.skip("does not depend on the job server")


def count_runs(folder: Path, task: int) -> None:
    """Leave a mark for one execution of a task."""
    with open(folder / str(task), "a", encoding="ascii") as file:
        file.write("x")


def runs_of(folder: Path) -> Counter[int]:
    return Counter({int(path.name): path.stat().st_size for path in folder.iterdir() if path.name.isdigit()})


# ------------------------------------------------------------------------------------------------------- task_timeout


def sleeps():
    time.sleep(60)


def sleeps_in_c_with_the_gil():
    ctypes.PyDLL(None).sleep(60)


def searches_for_ever():
    re.match(r"(a+)+$", "a" * 60 + "b")


def ignores_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass


@pytest.mark.parametrize("task", [sleeps, sleeps_in_c_with_the_gil, searches_for_ever, ignores_signals])
def test_a_task_is_stopped_after_its_time_whatever_it_does(kind, one_kind, task, cluster, tmp_path):
    limit = 0.4
    late = []
    mark = tmp_path / "began"

    def work():
        mark.write_text(str(time.time()))
        task()

    for _ in range(3):  # one of them is not held up by what else this machine does
        with pytest.raises(gearmap.TaskTimeout, match=r"ran longer than task_timeout=0\.4 s on "):
            cluster.options(task_timeout=limit).submit(work).result(30)
        late.append(time.time() - float(mark.read_text()) - limit)

    assert all(each >= 0 for each in late), "stopped before its time"
    assert min(late) < 0.2


def test_the_rest_of_a_chunk_is_neither_lost_nor_run_twice(kind, cluster, tmp_path):
    def work(x):
        count_runs(tmp_path, x)
        time.sleep(60 if x in (3, 7) else 0.01)
        return -x

    results = cluster.map(work, range(10), chunksize=10, task_timeout=0.5, return_exceptions=True)

    assert [x for x in results if isinstance(x, int)] == [-x for x in range(10) if x not in (3, 7)]
    assert isinstance(results[3], gearmap.TaskTimeout)
    assert isinstance(results[7], gearmap.TaskTimeout)
    assert runs_of(tmp_path) == dict.fromkeys(range(10), 1)


def test_a_slow_task_among_thousands_of_tiny_ones_is_found(kind, one_kind, cluster):
    def work(x):
        if x == 1500:
            time.sleep(60)
        return x

    results = cluster.map(work, range(3000), chunksize=1000, task_timeout=0.3, return_exceptions=True)

    assert isinstance(results[1500], gearmap.TaskTimeout)
    assert sum(x for x in results if isinstance(x, int)) == sum(range(3000)) - 1500


class SlowToLoad:
    def __reduce__(self):
        return load_slowly, ()


def load_slowly():
    time.sleep(0.7)
    return "loaded"


def test_loading_arguments_does_not_count(kind, one_kind, cluster):
    client = cluster.options(task_timeout=0.4)

    assert client.submit(str.upper, SlowToLoad()).result(30) == "LOADED"
    assert client.map(str.upper, [SlowToLoad(), SlowToLoad()], chunksize=1) == ["LOADED"] * 2
    assert client.map(str.upper, [SlowToLoad(), SlowToLoad()], chunksize=2) == ["LOADED"] * 2
    futures = [client.submit(str.upper, SlowToLoad()) for _ in range(4)]
    assert [future.result(30) for future in futures] == ["LOADED"] * 4


def test_a_result_that_takes_for_ever_to_pickle_is_stopped_too(kind, one_kind, cluster):
    class Endless:
        def __reduce__(self):
            time.sleep(60)
            raise AssertionError

    with pytest.raises(gearmap.TaskTimeout):
        cluster.options(task_timeout=0.3).submit(Endless).result(30)
    with pytest.raises(gearmap.TaskTimeout):
        cluster.map(lambda x: Endless(), [1, 2], chunksize=2, task_timeout=0.3)


def test_tasks_within_their_time_are_left_alone(kind, cluster, tmp_path):
    def work(x):
        count_runs(tmp_path, x)
        time.sleep(0.2)
        return x

    assert cluster.map(work, range(10), task_timeout=0.6, chunksize=5) == list(range(10))
    assert runs_of(tmp_path) == dict.fromkeys(range(10), 1)


# -------------------------------------------------------------------------------------------------------------- memory


def use_memory(megabytes: int, seconds: float) -> int:
    block = bytearray(megabytes * MB)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(seconds)
    return len(block)


LIMIT = 200 * MB


def test_a_task_above_the_memory_limit_is_a_loss_that_says_why_and_the_others_finish(
    kind, one_kind, start_server, start_node, connect
):
    server = start_server(kind)
    start_node(server, memory_limit=LIMIT)
    client = connect(server).options(max_worker_losses=2)

    def work(x):
        return use_memory(400, 20) if x == 5 else x

    results = client.map(work, range(10), chunksize=5, return_exceptions=True)

    assert [x for x in results if isinstance(x, int)] == [x for x in range(10) if x != 5]
    assert isinstance(results[5], gearmap.WorkerLost)
    said = re.search(r"memory limit of 200 MB \(it used (\d+) MB\)", str(results[5]))
    assert said, results[5]
    assert 200 < int(said[1]) < 700
    assert client.submit(use_memory, 20, 0).result(30) == 20 * MB


def test_memory_of_what_a_task_has_started_counts(kind, one_kind, start_server, start_node, connect):
    server = start_server(kind)
    start_node(server, workers=1, memory_limit=LIMIT)
    client = connect(server).options(max_worker_losses=1)
    program = "import time; b = bytearray(400 * 2**20); b[::4096] = b'x' * len(b[::4096]); time.sleep(20)"

    with pytest.raises(gearmap.WorkerLost, match=r"memory limit of 200 MB"):
        client.submit(subprocess.run, [sys.executable, "-c", program]).result(30)


def test_memory_that_short_tasks_leave_behind_ends_with_their_process(
    kind, one_kind, start_server, start_node, connect
):
    server = start_server(kind)
    start_node(server, workers=1, memory_limit=LIMIT)
    client = connect(server)

    def leak():
        import builtins

        builtins.kept = getattr(builtins, "kept", [])
        builtins.kept.append(bytearray(b"x") * (30 * MB))
        return os.getpid()

    pids = set()
    for _ in range(60):  # how many fit in between two looks is up to what else the machine does
        pids.add(client.submit(leak).result(30))
        if len(pids) > 2:
            break

    assert len(pids) > 2


def test_the_death_of_a_child_is_told_with_its_signal_and_its_memory(kind, one_kind, cluster):
    def work():
        use_memory(300, 0.8)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(gearmap.WorkerLost) as caught:
        cluster.options(max_worker_losses=1).submit(work).result(30)

    said = re.search(r"SIGKILL at (\d+) MB of [\d.]+ GB", str(caught.value))
    assert said, caught.value
    assert 300 <= int(said[1]) < 500


# ----------------------------------------------------------------------------------------------------------- recycling


def test_a_child_is_replaced_once_it_ran_so_many_tasks(kind, start_server, start_node, connect):
    server = start_server(kind)
    start_node(server, workers=1, max_tasks_per_child=3)
    client = connect(server)

    pids = [client.submit(os.getpid).result(30) for _ in range(9)]

    assert [count for _, count in Counter(pids).most_common()] == [3, 3, 3]
    assert pids == sorted(pids, key=pids.index)  # one after the other


def test_a_chunk_is_not_cut_for_the_nodes_own_limit(kind, one_kind, start_server, start_node, connect):
    server = start_server(kind)
    start_node(server, workers=1, max_tasks_per_child=3)

    pids = connect(server).map(lambda _: os.getpid(), range(20), chunksize=5)

    assert sorted(Counter(pids).values()) == [5, 5, 5, 5]


# --------------------------------------------------------------------------------------------------------------- drain


def test_a_drained_node_gives_back_what_runs_longer_than_its_grace(kind, start_server, start_node, connect, tmp_path):
    # given
    server = start_server(kind)
    node = start_node(server, workers=1, grace=0.3)
    client = connect(server).options(max_worker_losses=1)

    def work(x):
        count_runs(tmp_path, x)
        if runs_of(tmp_path)[x] == 1:
            time.sleep(60)
        return x

    future = client.submit(work, 0)
    wait_until(lambda: runs_of(tmp_path)[0] == 1, "the task runs")
    # when
    began = time.monotonic()
    node.drain()
    # then
    assert node.process.wait(10) == 0
    assert time.monotonic() - began >= 0.3
    start_node(server, workers=1)
    assert future.result(30) == 0
    assert runs_of(tmp_path) == {0: 2}


def test_what_a_drained_node_had_finished_of_a_chunk_is_not_run_again(
    kind, start_server, start_node, connect, tmp_path
):
    server = start_server(kind)
    node = start_node(server, workers=1, grace=0.0)
    client = connect(server)

    def work(x):
        count_runs(tmp_path, x)
        # What took longer than a millisecond is committed before the next task.
        time.sleep(60 if x == 3 and runs_of(tmp_path)[x] == 1 else 0.01)
        return x

    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(client.map, work, range(6), chunksize=6)
        wait_until(lambda: runs_of(tmp_path)[3] == 1, "the fourth task runs")
        node.drain()
        assert node.process.wait(10) == 0
        start_node(server, workers=1)

        assert results.result(30) == list(range(6))
    assert runs_of(tmp_path) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}


def test_the_idle_workers_of_a_draining_node_are_off_the_job_server_at_once(
    kind, start_server, start_node, connect, key_file, tmp_path
):
    server = start_server(kind)
    node = start_node(server, workers=3)
    client = connect(server)
    go, runs = tmp_path / "go", tmp_path / "runs"

    def work():
        runs.touch()
        until = time.monotonic() + 30
        while not go.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return "done"

    future = client.submit(work)
    wait_until(runs.exists, "the task runs")

    node.drain()

    wait_until(lambda: workers_of(server, lane_of(key_file)) == 1, "the idle ones have left")
    go.touch()
    assert future.result(30) == "done"
    assert node.process.wait(10) == 0
