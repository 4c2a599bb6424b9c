"""Functions that capture large arrays, on nodes that share nothing with the client: each node fetches them once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import psutil
import pytest
from integration_support import run_script, wait_until

import gearmap
from gearmap.transport.admin import server_status
from gearmap.transport.client import ServerSession
from gearmap.transport.events import JobRequest, WorkFailed
from gearmap.transport.poller import Poller

numpy = pytest.importorskip("numpy")

MEGABYTES = 8


@pytest.fixture
def table():
    return numpy.arange(MEGABYTES * 2**20 // 8, dtype=numpy.int64)


@pytest.fixture
def server(kind, start_server):
    return start_server(kind)


def mapped():
    """Which blobs this process has mapped: device and inode."""
    with open("/proc/self/maps") as file:
        return sorted({tuple(line.split()[3:5]) for line in file if "gearmap-blob" in line})


def open_blobs(pid):
    """How many blobs a node holds."""
    try:
        return sum("gearmap-blob" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:  # it has just closed one
        return -1


def services(server):
    """The names by which clients give blobs."""
    rows = server_status((server.host, server.port), 5.0)
    return [row.function for row in rows if row.function.startswith("gearmap1.blobs.")]


def test_every_node_fetches_an_array_once_and_its_children_share_it(server, start_node, connect, table):
    nodes = [start_node(server, name=name) for name in ("one", "two")]
    client = connect(server)

    def look(number):
        return int(table[number * 1000]), os.getppid(), tuple(mapped())

    seen = set()
    for _ in range(2):  # the second time nothing is fetched
        results = client.map(look, range(60), chunksize=1)
        assert [value for value, *_ in results] == [number * 1000 for number in range(60)]
        seen |= {places for _, _, places in results}
    assert len(seen) <= len(nodes)
    assert all(len(places) == 1 for places in seen)
    assert {open_blobs(node.pid) for node in nodes} <= {0, 1}


def test_tasks_read_the_array_as_it_was_when_the_map_began(server, start_node, connect, table):
    start_node(server)
    wanted = [int(table[number * 100]) for number in range(40)]

    def items():
        for number in range(40):
            table[:] = -1
            yield number

    assert connect(server).map(lambda number: int(table[number * 100]), items()) == wanted


def test_what_a_task_writes_into_the_array_stays_in_its_process(server, start_node, connect, table):
    start_node(server)

    def write(_):
        table[0] = os.getpid()
        return int(table[0]) == os.getpid()

    assert all(connect(server).map(write, range(20)))
    assert table[0] == 0


def test_submitted_calls_and_nested_functions_get_the_array(server, start_node, connect, table):
    start_node(server)
    client = connect(server)
    futures = [client.submit(lambda number: int(table[number]), number) for number in range(10)]
    assert [future.result(60) for future in futures] == list(range(10))


def test_more_arrays_than_the_cache_holds(server, start_node, connect):
    node = start_node(server, workers=1, blob_cache=1)
    client = connect(server)
    arrays = [numpy.full(2**18, number) for number in range(6)]
    first, second = arrays[:3], arrays[3:]
    for _ in range(2):
        assert client.map(lambda number: int(sum(each[number] for each in first)), range(4)) == [3] * 4
        assert client.map(lambda number: int(sum(each[number] for each in second)), range(4)) == [12] * 4
    wait_until(lambda: open_blobs(node.pid) == 0, "what no job needs is let go")


def test_a_failed_task_still_tells_its_call(server, start_node, connect, table):
    start_node(server)

    def fail(number):
        os.kill(os.getpid(), signal.SIGKILL)
        return table[number]

    with pytest.raises(gearmap.WorkerLost, match=r"fail\(3\)"):
        connect(server).submit(fail, 3).result(60)


def test_a_node_that_is_killed_while_it_fetches_costs_no_result(server, start_node, connect):
    large = numpy.ones(2**23)  # 64 MB
    doomed = start_node(server, name="doomed")
    client = connect(server)
    done = []
    thread = threading.Thread(target=lambda: done.extend(client.map(lambda number: large[number], range(8))))
    thread.start()
    try:
        wait_until(lambda: open_blobs(doomed.pid) > 0, "it fetches")
        doomed.kill()
        start_node(server, name="other")
    finally:
        thread.join(60)
    assert done == [1.0] * 8


def test_a_client_that_is_killed_while_it_gives_leaves_the_workers_free(server, start_node, connect, key_file):
    node = start_node(server)
    script = run_script(
        """
        import sys
        import numpy
        import gearmap

        large = numpy.ones(2**24)
        with gearmap.Client(sys.argv[1], key=sys.argv[2]) as client:
            client.map(lambda number: large[number], range(100000))
        """,
        f"{server.host}:{server.port}",
        str(key_file),
    )
    wait_until(lambda: open_blobs(node.pid) > 0, "the node fetches")
    script.kill()
    script.wait()
    assert connect(server).map(abs, range(-20, 0)) == list(range(20, 0, -1))


def test_a_client_that_is_suspended_while_it_gives_loses_nothing(server, start_node, key_file):
    node = start_node(server, patience={"blob_timeout": 1.0})
    script = run_script(
        """
        import sys
        import numpy
        import gearmap

        large = numpy.ones(2**24)
        with gearmap.Client(sys.argv[1], key=sys.argv[2]) as client:
            print(client.map(lambda number: float(large[number]), range(8)))
        """,
        f"{server.host}:{server.port}",
        str(key_file),
        stdout=subprocess.PIPE,
    )
    try:
        wait_until(lambda: open_blobs(node.pid) > 0, "the node fetches")
        script.send_signal(signal.SIGSTOP)
        wait_until(lambda: open_blobs(node.pid) == 0, "the node gives it up")
    finally:
        script.send_signal(signal.SIGCONT)
    said, _ = script.communicate(timeout=60)
    assert (said.decode().strip(), script.returncode) == (str([1.0] * 8), 0)


def test_a_job_server_that_comes_back_while_a_node_fetches_costs_no_result(kind, start_server, start_node, connect):
    server = start_server(kind)
    node = start_node(server)
    client = connect(server)
    large = numpy.ones(2**24)
    done = []
    thread = threading.Thread(target=lambda: done.extend(client.map(lambda number: large[number], range(8))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread.start()
        try:
            wait_until(lambda: open_blobs(node.pid) > 0, "it fetches")
            server.stop()
            start_server(kind, port=server.port)
        finally:
            thread.join(100)
    assert done == [1.0] * 8


def test_a_client_that_gives_nothing_does_not_hold_the_workers_for_ever(
    server, start_node, connect, table, monkeypatch
):
    monkeypatch.setattr("gearmap.core.retry._FETCH_DELAY", 0.1)
    start_node(server, patience={"blob_timeout": 1.0})
    client = connect(server)
    client._backend.arguments._source._begin = lambda: None  # nobody answers
    with pytest.raises(gearmap.SerializationError, match="could not be fetched from the client"):
        client.map(lambda number: int(table[number]), range(4))
    assert client.map(abs, [-1, -2]) == [1, 2]


def test_the_client_takes_the_name_of_its_service_along(server, start_node, connect, table):
    start_node(server)
    client = connect(server)
    assert services(server) == []
    client.map(lambda number: int(table[number]), range(4))
    assert len(services(server)) == 1
    client.close()
    assert services(server) == []


def answers_to(server, function, bodies, deadline=30.0):
    """What a job server says of jobs with these bodies."""
    session, poller, events = ServerSession((server.host, server.port)), Poller(), []
    until = time.monotonic() + deadline
    session.start(time.monotonic())
    poller.add(session)
    session.submit([JobRequest(number, function, f"forged-{number}", body) for number, body in enumerate(bodies)])
    while len(events) < len(bodies) and time.monotonic() < until:
        poller.dispatch(0.1)
        events += [event for event in session.take_events() if type(event).__name__.startswith("Work")]
    poller.remove(session)
    session.close()
    poller.close()
    return events


def test_who_has_not_the_key_gets_nothing_and_stops_nobody(server, start_node, connect, table, caplog):
    start_node(server)
    client = connect(server)
    assert client.map(lambda number: int(table[number]), range(4)) == [0, 1, 2, 3]
    (service,) = services(server)
    forged = [b"", b"{}", b"\0" * 200, b'{"op": "piece", "blob": "x", "offset": 0, "size": 10}', os.urandom(500)]
    answers = answers_to(server, service, forged)
    assert [type(answer) for answer in answers] == [WorkFailed] * len(forged)
    assert caplog.text.count("a request for a large array was refused") == len(forged)
    table[:] = 5
    assert client.map(lambda number: int(table[number]), range(4)) == [5] * 4


def test_with_two_job_servers_one_may_go(kind, start_server, start_node, connect):
    pair = [start_server(kind), start_server(kind)]
    start_node(*pair)
    client = connect(*pair)
    first, second = numpy.ones(2**18), numpy.full(2**18, 2.0)
    assert client.map(lambda number: float(first[number]), range(40), chunksize=1) == [1.0] * 40
    pair[0].kill()
    assert client.map(lambda number: float(second[number]), range(40), chunksize=1) == [2.0] * 40


def test_a_forked_process_gives_its_own(server, start_node, connect, table):
    start_node(server)
    client = connect(server)

    def run(offset):
        return client.map(lambda number: int(table[number + offset]), range(4))

    assert run(0) == [0, 1, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons warn of a fork beside threads
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if run(5) == [5, 6, 7, 8] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run(9) == [9, 10, 11, 12]


@pytest.mark.skipif(sys.platform != "linux", reason="its memory is read from /proc")
def test_the_job_server_holds_little_of_what_three_nodes_fetch(server, start_node, connect):
    large = numpy.arange(2**23 // 4)  # 16 MB
    for name in ("one", "two", "three"):
        start_node(server, workers=1, name=name)
    client = connect(server)
    client.map(abs, range(30))
    before = psutil.Process(server.pid).memory_info().rss
    assert client.map(lambda number: int(large[number]), range(60), chunksize=1) == list(range(60))
    with open(f"/proc/{server.pid}/status") as file:
        high_water = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    assert high_water - before < 16 * 2**20
