"""More runs at once than there are sessions for: they share connections, and not one another's fate."""

from __future__ import annotations

import os
import time

import psutil
import pytest
from integration_support import is_alive, wait_until

from gearmap.core.leaving import MAX_SESSIONS
from gearmap.transport import admin

pytestmark = pytest.mark.usefixtures("functions_travel")

# Running tasks are stopped within two seconds; the rest is what a busy machine may add.
STOPPED_WITHIN = 2.0 + 2.0


def plus_one(x):
    return x + 1


def hold(folder, x):
    """Say which process runs this, until a file says that it may end."""
    (folder / f"pid-{x}").write_text(str(os.getpid()))
    while not (folder / "go").exists():
        time.sleep(0.01)
    return x


def fail_when_told(folder, x):
    while x == 0 and not (folder / "fail").exists():
        time.sleep(0.01)
    if x == 0:
        raise LookupError("told to")
    return hold(folder, x)


def connections_to(server):
    """How many connections this process has to a job server."""
    return sum(bool(each.raddr) and each.raddr.port == server.port for each in psutil.Process().net_connections("tcp"))


@pytest.fixture
def server(kind, start_server):
    return start_server(kind)


def live_jobs(server):
    """Jobs that somebody waits for; gearmand lists others until a worker asks for the next."""
    return sum(not job.is_ignored for job in admin.show_jobs((server.host, server.port)))


def occupy(client):
    """Use up the sessions that runs have for themselves: every set of options keeps one."""
    for number in range(MAX_SESSIONS):
        assert client.options(task_timeout=1000.0 + number).submit(abs, -number).result(30) == number


def worker_of(folder, x):
    """The process that runs task `x` of `hold`, once it does."""
    path = folder / f"pid-{x}"
    wait_until(lambda: path.exists() and path.read_text() != "", f"task {x} runs")
    return psutil.Process(int(path.read_text()))


def wait_for_end(process):
    wait_until(lambda: not is_alive(process), "the task is stopped", STOPPED_WITHIN)


def test_two_hundred_maps_at_once_share_connections(server, start_node, connect, tmp_path):
    start_node(server, workers=2)
    client = connect(server)
    runs = [client.map_async(hold, [tmp_path] * 2, [f"{number}a", f"{number}b"]) for number in range(200)]
    wait_until(lambda: live_jobs(server) >= 200, "all of them are under way", 60)
    assert connections_to(server) <= MAX_SESSIONS + 1
    (tmp_path / "go").touch()
    for number, run in enumerate(runs):
        assert run.result(60) == [f"{number}a", f"{number}b"]
    wait_until(lambda: connections_to(server) == 0, "the connections of runs that have ended are closed")


def test_two_hundred_sets_of_options_share_connections(server, start_node, connect):
    start_node(server, workers=2)
    client = connect(server)
    futures = [client.options(task_timeout=1000.0 + number).submit(plus_one, number) for number in range(200)]
    assert [future.result(60) for future in futures] == list(range(1, 201))
    assert connections_to(server) == MAX_SESSIONS + 1
    again = [client.options(task_timeout=1000.0 + number).submit(plus_one, number) for number in range(200)]
    assert [future.result(60) for future in again] == list(range(1, 201))


def test_a_cancelled_run_goes_job_by_job_and_its_neighbours_stay(server, start_node, connect, tmp_path):
    start_node(server, workers=2)
    client = connect(server)
    occupy(client)
    before = connections_to(server)
    neighbour = client.map_async(hold, [tmp_path] * 3, ["n1", "n2", "n3"], chunksize=1, max_workers=1)
    neighbours_worker = worker_of(tmp_path, "n1")
    victim = client.map_async(hold, [tmp_path] * 9, range(9), chunksize=1)
    victims_worker = worker_of(tmp_path, 0)
    wait_until(lambda: live_jobs(server) == 1 + 4, "some of its jobs are queued")
    assert connections_to(server) == before + 1

    assert victim.cancel()

    wait_for_end(victims_worker)
    wait_until(lambda: live_jobs(server) == 1, "only its neighbour's job is left", STOPPED_WITHIN)
    assert is_alive(neighbours_worker)
    (tmp_path / "go").touch()
    assert neighbour.result(30) == ["n1", "n2", "n3"]
    assert {path.name for path in tmp_path.glob("pid-?")} == {"pid-0"}


def test_a_task_that_has_run_for_a_while_is_stopped(server, start_node, connect, tmp_path):
    start_node(server, workers=1)
    client = connect(server)
    occupy(client)
    victim = client.map_async(hold, [tmp_path], [0])
    process = worker_of(tmp_path, 0)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 1.0, "its node has told of it")
    neighbour = client.map_async(plus_one, range(3))
    victim.cancel()
    wait_for_end(process)
    assert neighbour.result(30) == [1, 2, 3]


def test_the_first_error_of_a_run_stops_its_tasks_alone(server, start_node, connect, tmp_path):
    start_node(server, workers=3)
    client = connect(server)
    occupy(client)
    neighbour = client.map_async(hold, [tmp_path], ["n"])
    neighbours_worker = worker_of(tmp_path, "n")
    victim = client.map_async(fail_when_told, [tmp_path] * 9, range(9), chunksize=1)
    victims_worker = worker_of(tmp_path, 1)
    (tmp_path / "fail").touch()
    with pytest.raises(LookupError, match="told to"):
        victim.result(30)
    wait_for_end(victims_worker)
    wait_until(lambda: live_jobs(server) == 1, "only its neighbour's job is left", STOPPED_WITHIN)
    assert is_alive(neighbours_worker)
    (tmp_path / "go").touch()
    assert neighbour.result(30) == ["n"]


def test_a_job_server_that_dies_costs_shared_runs_nothing(kind, start_server, start_node, connect):
    servers = [start_server(kind), start_server(kind)]
    start_node(*servers, workers=2)
    client = connect(*servers)
    occupy(client)
    runs = [client.map_async(plus_one, range(number, number + 50), chunksize=5) for number in range(10)]
    servers[1].kill()
    for number, run in enumerate(runs):
        assert run.result(60) == list(range(number + 1, number + 51))
    assert client.map_async(plus_one, [1]).result(30) == [2]


def test_a_job_server_that_comes_back_serves_shared_runs_again(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    start_node(server, workers=2)
    client = connect(server)
    occupy(client)
    runs = [client.map_async(hold, [tmp_path], [number]) for number in range(4)]
    worker_of(tmp_path, 0)
    server.kill()
    start_server(kind, port=server.port)
    (tmp_path / "go").touch()
    assert [run.result(60) for run in runs] == [[0], [1], [2], [3]]
