"""Large results that travel, as from other hosts: in parts, which nobody on the way holds all of."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest
from integration_support import wait_until

from gearmap import backend

numpy = pytest.importorskip("numpy")

pytestmark = pytest.mark.usefixtures("functions_travel")

MEGABYTE = 2**20
TASK_TIMEOUT = 4.0


def array_of(value, megabytes=24):
    return numpy.full(megabytes * MEGABYTE, value, dtype=numpy.uint8)


def is_all(array, value, megabytes=24):
    return array.nbytes == megabytes * MEGABYTE and bool((array == value).all())


def most_bytes(pid):
    """The most memory that a process has had since `forget_most`."""
    with open(f"/proc/{pid}/status") as file:
        (line,) = (line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget_most(pid):
    with open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


@pytest.fixture
def far(kind, start_server, start_node, connect, monkeypatch):
    """A server, a node and a client that share no memory."""
    monkeypatch.setattr(backend, "can_share", lambda: False)
    server = start_server(kind)
    client = connect(server)
    return server, start_node(server), client


def test_large_results_of_every_kind_of_call_come_whole(far):
    _, _, client = far
    assert all(is_all(array, value) for value, array in enumerate(client.map(array_of, range(6))))
    assert all(is_all(array, value) for value, array in enumerate(client.imap(array_of, range(6))))
    futures = [client.submit(array_of, value) for value in range(4)]
    assert all(is_all(future.result(60), value) for value, future in enumerate(futures))


@pytest.mark.parametrize("n_bytes", [4 * MEGABYTE - 200, 4 * MEGABYTE, 4 * MEGABYTE + 1, 5 * MEGABYTE + 17])
def test_results_about_as_large_as_what_goes_ahead_come_whole(far, n_bytes):
    _, _, client = far

    def task(number):
        return bytes([number]) * n_bytes

    assert client.map(task, range(3)) == [bytes([number]) * n_bytes for number in range(3)]


def test_small_results_failures_and_output_stand_between_large_ones(far, capsys):
    _, _, client = far

    def task(number):
        print("task", number)
        if number == 3:
            raise ValueError(number)
        return array_of(number, 6) if number % 2 else number

    results = client.options(return_exceptions=True, chunksize=6).map(task, range(6))
    assert isinstance(results[3], ValueError)
    assert [results[at] for at in (0, 2, 4)] == [0, 2, 4]
    assert all(is_all(results[at], at, 6) for at in (1, 5))
    assert [line for line in capsys.readouterr().out.splitlines() if "task" in line][-1].endswith("task 5")


def test_a_caller_may_write_to_a_result(far):
    _, _, client = far
    result = client.submit(array_of, 1).result(60)
    result[:] = 7
    assert is_all(result, 7)


def test_a_node_holds_little_of_a_large_result(far):
    _, node, client = far
    client.map(array_of, range(2))
    forget_most(node.pid)
    before = most_bytes(node.pid)
    assert is_all(client.submit(array_of, 1, 300).result(60), 1, 300)
    assert most_bytes(node.pid) - before < 64 * MEGABYTE


WAITS = """
import sys
import gearmap
from gearmap import backend

backend.can_share = lambda: False

def task(number, marker):
    import os
    from pathlib import Path

    draft = Path(marker + ".draft")
    draft.write_text(str(os.getpid()))
    draft.rename(marker)
    while not Path(marker + ".go").exists():
        pass
    return bytes([number]) * 100_000_000

with gearmap.Client([sys.argv[1]], key=sys.argv[2]) as client:
    client.map(abs, [-1])
    future = client.options(task_timeout=float(sys.argv[3])).submit(task, 7, sys.argv[4])
    print("submitted", flush=True)
    result = future.result(60)
    print(len(result), set(result), future.attempts, flush=True)
"""


@pytest.fixture
def waits(key_file):
    """Start a client that waits for one large result, in a process that can be stopped."""
    started = []

    def start(server, task_timeout, marker):
        command = [sys.executable, "-c", WAITS, f"{server.host}:{server.port}", str(key_file)]
        command += [str(task_timeout), str(marker)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout.readline() == "submitted\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def held(start_server, start_node, waits, tmp_path):
    """The embedded server, a node whose child cannot write, and the client, which is stopped."""
    marker = tmp_path / "runs"
    server = start_server("embedded")
    node = start_node(server, workers=1)
    client = waits(server, TASK_TIMEOUT, marker)
    wait_until(marker.exists, "the task runs")
    client.send_signal(signal.SIGSTOP)
    (tmp_path / "runs.go").touch()
    busy = psutil.Process(int(marker.read_text()))
    wait_until(lambda: is_at_rest(busy), "its process waits until its pipe is read")
    return node, client, busy


def is_at_rest(process, looks=5):
    """Whether a process waits, whenever it is looked at."""
    seen = set()
    for _ in range(looks):
        seen.add((process.status(), process.cpu_times().user))
        time.sleep(0.02)
    return len(seen) == 1 and process.status() == psutil.STATUS_SLEEPING


def test_a_client_that_does_not_read_costs_its_task_nothing(held):
    node, client, _ = held
    most = psutil.Process(node.pid).memory_info().rss
    time.sleep(TASK_TIMEOUT + 1.0)  # longer than the task may take: this is the fault
    assert psutil.Process(node.pid).memory_info().rss - most < 8 * MEGABYTE
    client.send_signal(signal.SIGCONT)
    assert client.communicate(timeout=60)[0] == "100000000 {7} 1\n"


def test_a_child_that_dies_in_the_middle_of_a_result_costs_another_run_only(held):
    _, client, busy = held
    busy.kill()
    client.send_signal(signal.SIGCONT)
    assert client.communicate(timeout=60)[0] == "100000000 {7} 2\n"
