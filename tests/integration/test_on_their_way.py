"""Results that a child has finished and not sent: seen while a long task runs, and kept when the child dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import gearmap

pytestmark = pytest.mark.usefixtures("functions_travel")


def ran(folder: Path) -> dict[int, int]:
    return {int(path.name): path.stat().st_size for path in folder.iterdir() if path.name.isdigit()}


def counting(folder, then):
    """A function that counts how often each task runs, then does what is to be done with it."""

    def work(x):
        with open(folder / str(x), "a") as file:
            file.write("x")
        time.sleep(0.005)
        then(x, (folder / str(x)).stat().st_size)
        return x * 10

    return work


@pytest.fixture(params=["gearmand", "embedded"])
def client(request, start_server, start_node, connect):
    server = start_server(request.param)
    start_node(server, workers=1)
    client = connect(server)
    client.wait_for_workers(1, timeout=60)
    return client


def test_results_before_a_long_task_of_their_chunk_are_seen_while_it_runs(client, tmp_path):
    go = tmp_path / "go"

    def hold(x, run):
        while x == 3 and not go.exists():
            time.sleep(0.01)

    run = client.map_async(counting(tmp_path, hold), range(5), chunksize=5)
    until = time.monotonic() + 60
    while len(run.partial()) < 3 and time.monotonic() < until:
        time.sleep(0.02)

    assert run.partial() == {0: 0, 1: 10, 2: 20}
    go.touch()
    assert run.result(60) == [0, 10, 20, 30, 40]
    assert ran(tmp_path) == dict.fromkeys(range(5), 1)


def test_what_was_finished_before_a_death_is_not_run_again(client, tmp_path):
    def die(x, run):
        if x == 3 and run == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    assert client.map(counting(tmp_path, die), range(6), chunksize=6) == [x * 10 for x in range(6)]
    assert ran(tmp_path) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}


def test_what_was_finished_before_a_task_ran_out_of_time_is_not_run_again(client, tmp_path):
    def sleep(x, run):
        if x == 3:
            time.sleep(60)

    results = client.map(counting(tmp_path, sleep), range(6), chunksize=6, task_timeout=0.5, return_exceptions=True)

    assert isinstance(results[3], gearmap.TaskTimeout)
    assert [x for x in results if isinstance(x, int)] == [0, 10, 20, 40, 50]
    assert ran(tmp_path) == dict.fromkeys(range(6), 1)


def test_large_and_small_results_keep_their_places(client):
    def work(x):
        time.sleep(0.003)
        return b"x" * 100_000 if x % 3 == 0 else x

    results = client.map(work, range(30), chunksize=10)

    assert results == [b"x" * 100_000 if x % 3 == 0 else x for x in range(30)]
