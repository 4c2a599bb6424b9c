"""Nodes, job servers and clients that end for real, while work is under way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from integration_support import in_background, is_alive, lane_of, run_script, wait_until, workers_of
from programs import KINDS, require_kind

import gearmap
from gearmap.core.childstarts import MAX_FAILED_STARTS
from gearmap.core.names import control_name, node_ids
from gearmap.keyfile import load_key, new_secret
from gearmap.runtime.controlrequest import open_answer, seal_request
from gearmap.transport import admin
from gearmap.transport.client import ServerSession
from gearmap.transport.events import Connected, JobRequest, WorkComplete, WorkFailed
from gearmap.transport.poller import Poller
from gearmap.wire import seal

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _has_server(kind):
    require_kind(kind)


# ------------------------------------------------------------------------------------------------------- nodes


def test_a_killed_node_takes_its_children_with_it(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    node = start_node(server)
    client = connect(server)
    flag = tmp_path / "running"
    future = client.submit(lambda: (flag.touch(), time.sleep(60)))
    wait_until(flag.exists, "the task runs")
    children = node.children()
    assert children

    node.kill()

    wait_until(lambda: not any(map(is_alive, children)), "the children end", 10.0)
    assert not future.done()


def test_a_killed_nodes_work_goes_to_another_node(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    first = start_node(server, name="first")
    client = connect(server)
    flag = tmp_path / "running"

    def work(x):
        flag.touch()
        time.sleep(0.05)
        return x

    result = in_background(lambda: client.map(work, range(60)))
    wait_until(flag.exists, "the map runs")
    start_node(server, name="second")
    first.kill()

    assert result() == list(range(60))


def test_a_draining_node_finishes_its_job_takes_nothing_new_and_ends_well(
    kind, start_server, start_node, connect, key_file, tmp_path
):
    server = start_server(kind)
    node = start_node(server, workers=1)
    client = connect(server)
    flag = tmp_path / "running"
    running = client.submit(lambda: (flag.touch(), time.sleep(0.6), "finished")[2])
    wait_until(flag.exists, "the task runs")

    node.drain()
    waiting = client.submit(abs, -1)

    assert running.result(30) == "finished"
    assert node.process.wait(10) == 0
    names = [row.function for row in admin.server_status((server.host, server.port), 5.0)]
    assert not node_ids(names, seal.key_id(load_key(key_file, "a test")))
    assert not waiting.done()
    start_node(server)
    assert waiting.result(30) == 1


def test_what_a_stopping_node_gives_back_is_run_elsewhere_uncharged(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    first = start_node(server, workers=1)
    client = connect(server).options(max_worker_losses=1)
    flag = tmp_path / "running"

    def work():
        again = flag.exists()
        flag.touch()
        if not again:
            time.sleep(60)
        return "second time"

    future = client.submit(work)
    wait_until(flag.exists, "the task runs")
    first.drain()
    first.process.send_signal(signal.SIGINT)  # the second signal does not wait for the task

    assert first.process.wait(10) == 0
    start_node(server)
    assert future.result(30) == "second time"


def test_a_node_that_loses_a_child_has_another_at_once(kind, start_server, start_node, connect):
    server = start_server(kind)
    start_node(server, workers=1)
    client = connect(server)
    first = client.submit(os.getpid).result(30)
    began = time.monotonic()

    os.kill(first, signal.SIGKILL)

    assert client.submit(os.getpid).result(30) != first
    assert time.monotonic() - began < 5


def test_a_node_survives_the_end_of_what_starts_its_children(kind, start_server, start_node, connect):
    # given: it waits for a child that is being started
    server = start_server(kind)
    node = start_node(server, workers=1, max_tasks_per_child=1)
    client = connect(server)

    def starters():
        return [each for each in psutil.Process(node.pid).children() if len(each.children()) == 2]

    wait_until(starters, "there is a child and a spare one")
    (starter,) = starters()
    open_files = psutil.Process(node.pid).num_fds
    before = open_files()
    starter.suspend()
    try:
        assert client.submit(abs, -1).result(30) == 1
        wait_until(lambda: open_files() > before, "it starts the next child")
    finally:
        # when
        starter.kill()  # also when something fails: what is suspended does not see that its node has gone
    # then
    assert client.submit(abs, -2).result(30) == 2
    assert node.process.poll() is None


# Found by Python where it starts: keeps what the starter of children forks until it may go on.
HELD_UP = """
    import os, pathlib, sys, time
    def wait():
        while not pathlib.Path({flag!r}).exists():
            time.sleep(0.01)
    if "multiprocessing.forkserver" in " ".join(sys.orig_argv):
        os.register_at_fork(after_in_child=wait)
"""


def test_a_node_survives_that_all_its_children_end_while_they_start(
    kind, start_server, start_node, connect, tmp_path, monkeypatch
):
    # given: more children than failures it bears
    server = start_server(kind)
    workers = 2 * MAX_FAILED_STARTS
    go_on = tmp_path / "go on"
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(HELD_UP.format(flag=str(go_on))))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def starters():
        nodes = [each for each in psutil.Process().children() if "gearmap.runtime.node_main" in each.cmdline()]
        return [each for node in nodes for each in node.children() if len(each.children()) > workers]

    def kill():
        wait_until(starters, "its children start")
        (starter,) = starters()
        starting = starter.children()
        go_on.touch()
        for process in (starter, *starting):
            process.kill()

    # when
    killed = in_background(kill)
    node = start_node(server, workers=workers)
    killed()
    # then
    assert connect(server).map(abs, range(-50, 0), chunksize=1) == list(range(50, 0, -1))
    assert node.process.poll() is None


# ------------------------------------------------------------------------------------------------- job servers


def test_a_restarted_job_server_loses_nothing_of_a_map(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    start_node(server)
    client = connect(server)
    flag = tmp_path / "running"

    def work(x):
        flag.touch()
        time.sleep(0.02)
        return x

    result = in_background(lambda: client.map(work, range(80)))
    wait_until(flag.exists, "the map runs")
    port = server.port
    server.kill()
    start_server(kind, port=port)

    assert result() == list(range(80))


def test_one_of_two_job_servers_killed_for_good_loses_nothing(kind, start_server, start_node, connect, tmp_path):
    stays, goes = start_server(kind), start_server(kind)
    start_node(stays, goes, workers=2)
    client = connect(stays, goes)
    flag = tmp_path / "running"

    def work(x):
        flag.touch()
        time.sleep(0.02)
        return x

    result = in_background(lambda: client.map(work, range(80)))
    wait_until(flag.exists, "the map runs")
    goes.kill()

    assert result() == list(range(80))


def test_two_job_servers_are_both_used(kind, start_server, start_node, connect, key_file):
    one, two = start_server(kind), start_server(kind)
    start_node(one, two, workers=2)
    client = connect(one, two)

    assert client.map(lambda x: (time.sleep(0.005), x)[1], range(100), chunksize=1) == list(range(100))

    lane = lane_of(key_file)
    wait_until(lambda: workers_of(one, lane) == workers_of(two, lane) == 2, "both servers have both workers")


# ---------------------------------------------------------------------------------------------- who cannot be reached


def test_an_unreachable_job_server_is_named_with_its_origin_in_time(kind, start_server, connect):
    server = start_server(kind)
    client = connect(server)
    server.stop()
    began = time.monotonic()

    with pytest.raises(gearmap.ServerUnavailable) as caught:
        client.map(abs, [1])
    with pytest.raises(gearmap.ServerUnavailable):
        client.submit(abs, 1).result(30)

    assert time.monotonic() - began < 6
    assert f"'127.0.0.1:{server.port}' (from the argument)" in str(caught.value)
    assert "gearmap server" in str(caught.value)


# -------------------------------------------------------------------------------------------------------- clients


LOCAL = """
    import sys, time, pathlib, gearmap
    kind, folder = sys.argv[1:]
    cluster = gearmap.LocalCluster(2, server=kind)
    cluster.map(abs, [1])
    (pathlib.Path(folder) / "pids").write_text(" ".join(map(str, cluster._processes.pids)))
    if sys.stdin.readline():
        cluster.map(lambda x: (pathlib.Path(folder) / f"began-{x}").touch() or time.sleep(60), [1, 2])
"""


@pytest.mark.parametrize("how", ["normally", "by SIGKILL in a map"])
def test_a_local_cluster_ends_with_its_process(kind, how, tmp_path):
    script = run_script(LOCAL, kind, str(tmp_path), stdin=subprocess.PIPE)
    pids = tmp_path / "pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, "the cluster runs")
    processes = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    everyone = processes + [child for process in processes for child in process.children(recursive=True)]
    if how == "normally":
        script.communicate(b"", timeout=20)
        assert script.returncode == 0
    else:
        script.stdin.write(b"go\n")
        script.stdin.flush()
        wait_until(lambda: len(list(tmp_path.glob("began-*"))) == 2, "two tasks run")
        script.kill()
        script.wait()
        script.stdin.close()

    wait_until(lambda: not any(map(is_alive, everyone)), f"the cluster ends: {everyone}", 10.0)


def test_a_script_needs_no_main_guard(kind, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import gearmap
            from dataclasses import dataclass

            @dataclass
            class Point:
                x: int

            def shift(point):
                return Point(point.x + 1)

            with gearmap.LocalCluster(2, server={kind!r}):
                print(gearmap.map(shift, [Point(1), Point(2)]))
            """
        )
    )

    out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)

    assert (out.stdout.strip(), out.returncode) == ("[Point(x=2), Point(x=3)]", 0), out.stderr
    assert out.stderr == ""


def test_a_local_cluster_whose_processes_die_says_so(kind):
    with gearmap.LocalCluster(1, server=kind) as cluster:
        cluster.map(abs, [1])
        result = in_background(lambda: cluster.map(time.sleep, [60]))
        _, node = cluster._processes.pids
        os.kill(node, signal.SIGKILL)

        with pytest.raises(gearmap.ClusterBroken, match="node has ended"):
            result(20)


def test_a_forked_process_keeps_no_session_alive(kind, start_server, start_node, connect, key_file, tmp_path):
    server = start_server(kind)
    start_node(server, workers=1)
    flag = tmp_path / "running"
    source = """
        import os, sys, time, pathlib, gearmap
        server, key, flag = sys.argv[1:]
        client = gearmap.Client(server, key=key)
        client.submit(lambda: (pathlib.Path(flag).touch(), time.sleep(60)))
        while not os.path.exists(flag):
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            os.close(1)
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        time.sleep(60)
    """
    script = run_script(source, f"127.0.0.1:{server.port}", str(key_file), str(flag), stdout=subprocess.PIPE)
    assert script.stdout is not None
    forked = int(script.stdout.readline())
    try:
        script.kill()
        script.communicate()

        def nothing_runs():
            rows = admin.server_status((server.host, server.port), 5.0)
            return all(row.running == 0 for row in rows)

        wait_until(nothing_runs, "the task is stopped", 5.0)
    finally:
        os.kill(forked, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------- control function


def ask_node(server, function, request, secret):
    """Ask a node's control function as a client of it would."""
    poller = Poller()
    session = ServerSession((server.host, server.port))
    unique, session_id = os.urandom(8).hex(), os.urandom(16)
    key = seal.session_key(secret, session_id)
    sealed = seal_request(
        request, session_key=key, session_id=session_id, function=function, unique=unique, now=time.time()
    )
    session.start(time.monotonic())
    poller.add(session)
    until = time.monotonic() + 10
    try:
        while time.monotonic() < until:
            poller.dispatch(0.1)
            for event in session.take_events():
                if isinstance(event, Connected):
                    session.submit([JobRequest(1, function, unique, sealed)])
                elif isinstance(event, WorkComplete):
                    return open_answer(event.data, session_key=key, function=function, unique=unique)
                elif isinstance(event, WorkFailed):
                    return None
            poller.update(session)
        pytest.fail("the node does not answer")
    finally:
        poller.remove(session)
        session.close()
        poller.close()


@pytest.fixture
def node_function(kind, start_server, start_node, key_file):
    server = start_server(kind)
    start_node(server, workers=2, name="asked", memory_limit=2**32, max_tasks_per_child=100_000, grace=20.0)
    secret = load_key(key_file, "a test")

    def functions():
        return [row.function for row in admin.server_status((server.host, server.port), 5.0) if row.workers]

    wait_until(lambda: bool(node_ids(functions(), seal.key_id(secret))), "the node serves its control function")
    (node_id,) = node_ids(functions(), seal.key_id(secret))
    return server, control_name(node_id, seal.key_id(secret)), secret


def test_a_node_describes_itself_to_who_has_the_key(kind, node_function):
    server, function, secret = node_function

    answer = ask_node(server, function, {"op": "describe"}, secret)

    assert answer["ok"]
    assert (answer["name"], len(answer["workers"]), answer["queues"]) == ("asked", 2, ["default"])
    assert answer["limits"] == {"memory_limit": 2**32, "max_tasks_per_child": 100_000, "grace": 20.0}


def test_a_node_stops_an_execution_when_asked(kind, node_function, connect, tmp_path):
    server, function, secret = node_function
    client = connect(server)
    flag = tmp_path / "running"

    def work():
        again = flag.exists()
        flag.touch()
        if not again:
            time.sleep(60)
        return "second time"

    future = client.submit(work)
    wait_until(flag.exists, "the task runs")
    busy = [w for w in ask_node(server, function, {"op": "describe"}, secret)["workers"] if w["busy"]]

    answer = ask_node(server, function, {"op": "stop", "execution": busy[0]["execution"]}, secret)

    assert answer == {"ok": True}
    assert future.result(30) == "second time"


def test_a_node_refuses_a_control_request_with_another_key(kind, node_function):
    server, function, _ = node_function

    assert ask_node(server, function, {"op": "drain", "grace": 0}, new_secret()) is None


def test_an_unknown_control_operation_is_answered_as_such(kind, node_function):
    server, function, secret = node_function

    answer = ask_node(server, function, {"op": "format"}, secret)

    assert answer == {"ok": False, "error": "unknown operation 'format'"}


def refused(server, jobs):
    """Submit (function, unique, body); return the numbers of those that the worker gave up, in order."""
    poller, session = Poller(), ServerSession((server.host, server.port))
    session.start(time.monotonic())
    poller.add(session)
    answers = []
    until = time.monotonic() + 10
    while len(answers) < len(jobs) and time.monotonic() < until:
        poller.dispatch(0.1)
        for event in session.take_events():
            if isinstance(event, Connected):
                session.submit([JobRequest(n, *job) for n, job in enumerate(jobs)])
            elif isinstance(event, WorkFailed):
                answers.append(event.token)
        poller.update(session)
    poller.remove(session)
    session.close()
    poller.close()
    return sorted(answers)


def test_forged_and_damaged_jobs_are_refused_and_the_worker_goes_on(kind, start_server, start_node, connect, key_file):
    server = start_server(kind)
    start_node(server, workers=1)
    client = connect(server)
    assert client.submit(abs, -1).result(30) == 1
    lane = lane_of(key_file)
    bodies = [b"", b"GM\x01" + os.urandom(200), b'{"cmd": "rm"}']

    assert refused(server, [(lane, os.urandom(8).hex(), body) for body in bodies]) == [0, 1, 2]
    assert client.submit(abs, -2).result(30) == 2


def test_a_job_whose_unique_is_not_text_is_refused_and_the_node_goes_on(kind, node_function, connect, key_file):
    server, control, _ = node_function
    forged = b"GM\x01" + os.urandom(200)

    assert refused(server, [(name, "\udcff\udcfe", forged) for name in (lane_of(key_file), control)]) == [0, 1]
    assert connect(server).submit(abs, -2).result(30) == 2


def test_the_secret_is_in_no_command_line_and_no_environment(kind, tmp_path):
    with gearmap.LocalCluster(1, server=kind) as cluster:
        cluster.map(abs, [1])
        secret = cluster._processes.secret.reveal().hex()
        everyone = [p for pid in cluster._processes.pids for p in (psutil.Process(pid),)]
        everyone += [child for process in everyone for child in process.children(recursive=True)]
        for process in everyone:
            assert secret not in " ".join(process.cmdline())
            assert secret not in " ".join(process.environ().values())
        assert secret not in repr(cluster) + repr(cluster._processes)
        in_child = cluster.submit(lambda: Path("/proc/self/environ").read_bytes()).result(30)
        assert secret.encode() not in in_child
