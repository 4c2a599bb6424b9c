"""Two job servers, alike or not, of which one or both go: for good, or to come back without memory."""

from __future__ import annotations

import time

import pytest
from integration_support import in_background, lane_of, run_script, seconds_until_end, wait_until, workers_of
from programs import require_kind

from gearmap.transport import admin

PAIRS = [("gearmand", "gearmand"), ("embedded", "embedded"), ("gearmand", "embedded"), ("embedded", "gearmand")]

# Jobs that a client has at one of two servers at most: it takes four workers for granted before it has counted them.
WINDOW = 4


@pytest.fixture(params=PAIRS, ids=" and ".join)
def pair(request, start_server):
    """Two servers and their kinds; tests kill the second."""
    for kind in request.param:
        require_kind(kind)
    return [start_server(kind) for kind in request.param]


@pytest.fixture
def work(tmp_path):
    """A task that says that it runs, and a function that counts how often each did."""
    runs = tmp_path / "runs"

    def task(x):
        with runs.open("a") as file:
            file.write(f"{x}\n")
        time.sleep(0.03)
        return x

    def counted():
        lines = runs.read_text().split() if runs.exists() else []
        return {int(x): lines.count(x) for x in set(lines)}

    return task, counted


def test_one_that_dies_for_good_costs_at_most_its_unfinished_chunks(pair, start_node, connect, work):
    task, counted = work
    start_node(*pair)
    client = connect(*pair)
    result = in_background(lambda: client.map(task, range(100), chunksize=1))
    wait_until(lambda: len(counted()) > 10, "the map runs")

    pair[1].kill()

    assert result() == list(range(100))
    assert set(counted()) == set(range(100))
    assert sum(times - 1 for times in counted().values()) <= WINDOW
    assert client.map(abs, range(-50, 0), chunksize=1) == list(range(50, 0, -1))


def test_one_that_comes_back_is_used_again(pair, start_server, start_node, connect, work, key_file):
    task, counted = work
    start_node(*pair)
    client = connect(*pair)
    result = in_background(lambda: client.map(task, range(100), chunksize=1))
    wait_until(lambda: len(counted()) > 10, "the map runs")

    pair[1].kill()
    back = start_server(pair[1].kind.split()[0], port=pair[1].port)

    assert result() == list(range(100))
    assert sum(times - 1 for times in counted().values()) <= WINDOW
    wait_until(lambda: workers_of(back, lane_of(key_file)) == 2, "the workers are there again")
    pair[0].kill()
    assert client.map(abs, range(-50, 0), chunksize=1) == list(range(50, 0, -1))


def test_both_may_go_and_come_back(pair, start_server, start_node, connect, work):
    task, counted = work
    start_node(*pair)
    client = connect(*pair)
    result = in_background(lambda: client.map(task, range(100), chunksize=1))
    wait_until(lambda: len(counted()) > 10, "the map runs")

    for server in pair:
        server.kill()
    for server in pair:
        start_server(server.kind.split()[0], port=server.port)

    assert result() == list(range(100))
    assert sum(times - 1 for times in counted().values()) <= 2 * WINDOW


CLIENT = """
    import os, sys, time, pathlib, gearmap
    servers, key, folder = sys.argv[1:4]
    def work(x):
        (pathlib.Path(folder) / f"began-{x}").write_text(str(os.getpid()))
        time.sleep(60)
    gearmap.Client(servers, key=key).map(work, range(50), chunksize=1)
"""


def test_a_client_that_dies_leaves_nothing_on_either(pair, start_node, key_file, tmp_path):
    start_node(*pair)
    script = run_script(CLIENT, ",".join(f"127.0.0.1:{s.port}" for s in pair), str(key_file), str(tmp_path))

    def running():
        return [int(text) for path in tmp_path.glob("began-*") if (text := path.read_text())]

    def live(server):
        with admin.AdminSession((server.host, server.port)) as session:
            return sum(not job.is_ignored for job in session.show_jobs())

    wait_until(lambda: len(running()) == 2, "two tasks run")
    wait_until(lambda: all(live(server) for server in pair), "both servers have jobs of it")

    script.kill()
    script.wait()

    assert seconds_until_end(running(), 4.0) < 4.0
    wait_until(lambda: not any(live(server) for server in pair), "its jobs are gone", 4.0)
    assert len(running()) == 2
