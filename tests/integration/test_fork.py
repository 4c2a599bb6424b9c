"""A process that was forked from a client: it shares nothing with its parent, and finds its own way to the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from integration_support import DEADLINE, is_alive, lane_of, wait_until
from programs import KINDS, ends_with_us, require_kind

from gearmap.transport import admin

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.parametrize("kind", KINDS),
]

# Python 3.12 warns about forking with threads, which is what these tests are about.
HEADER = """
import os, pathlib, sys, time, warnings
warnings.simplefilter("ignore")
import gearmap

def in_child(call):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            call()
            status = 0
        except BaseException as error:
            print(f"in the child: {type(error).__name__}: {error}", flush=True)
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.fixture(autouse=True)
def _has_server(kind):
    require_kind(kind)


def script(code: str) -> list[str]:
    return [sys.executable, "-c", HEADER + textwrap.dedent(code)]


def run(code: str, *arguments: str, key_file: Path | None = None) -> str:
    """Run a program to its end, which must be a good one; return what it printed."""
    environ = dict(os.environ)
    if key_file is not None:
        environ["GEARMAP_KEY_FILE"] = str(key_file)
    done = subprocess.run(
        [*script(code), *arguments], capture_output=True, text=True, timeout=2 * DEADLINE, env=environ, check=False
    )
    # On a busy machine a node that is late is warned about.
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in done.stderr, said
    return done.stdout


def queued(server, lane):
    """How many jobs wait or run for a function."""
    rows = admin.server_status((server.host, server.port), 5.0)
    return {row.function: row.total for row in rows}.get(lane, 0)


def test_a_killed_clients_queued_jobs_vanish_at_once_though_a_forked_process_lives_on(
    kind, start_server, start_node, connect, key_file, tmp_path
):
    server = start_server(kind)
    flag = tmp_path / "forked"
    code = """
    client = gearmap.Client(sys.argv[1])  # it sends two calls at most to nobody
    futures = [client.submit((pathlib.Path(sys.argv[2]).parent / f"ran-{n}").touch) for n in range(2)]
    while not all(future.running() for future in futures):
        time.sleep(0.01)
    pid = os.fork()
    if pid == 0:
        time.sleep(300)
        os._exit(0)
    pathlib.Path(sys.argv[2]).write_text(str(pid))
    time.sleep(300)
    """
    environ = {**os.environ, "GEARMAP_KEY_FILE": str(key_file)}
    client = subprocess.Popen(ends_with_us([*script(code), f"127.0.0.1:{server.port}", str(flag)]), env=environ)
    forked = None
    try:
        wait_until(lambda: flag.exists() and bool(flag.read_text()), "the client has forked")
        forked = psutil.Process(int(flag.read_text()))
        lane = lane_of(key_file)
        wait_until(lambda: queued(server, lane) >= 2, "the jobs are queued")

        client.send_signal(signal.SIGKILL)
        client.wait()

        # gearmand forgets them when it is asked for work the next time; the jobs of a client that is there go first.
        start_node(server, workers=1)
        assert connect(server).submit(abs, -1).result(DEADLINE) == 1
        assert is_alive(forked)
        assert not list(tmp_path.glob("ran-*"))
        assert queued(server, lane) == 0
    finally:
        client.kill()
        client.wait()
        if forked is not None:
            forked.kill()
            wait_until(lambda: not is_alive(forked), "the forked process ends")


def test_a_client_of_named_servers_works_on_in_the_forked_process_and_in_its_parent(
    kind, start_server, start_node, key_file
):
    server = start_server(kind)
    start_node(server)
    code = """
    client = gearmap.connect(sys.argv[1])
    assert client.map(abs, [-1]) == [1]
    slow = client.submit(time.sleep, 1)

    def child():
        assert client.submit(abs, -2).result(30) == 2
        assert client.map(abs, [-3]) == gearmap.map(abs, [-3]) == [3]
        client.close()
        try:
            client.map(abs, [1])
        except gearmap.ClusterBroken:
            pass

    assert in_child(child) == 0
    slow.result(30)
    assert client.map(abs, [-4]) == [4]
    assert in_child(child) == 0
    print("done")
    """
    assert run(code, f"127.0.0.1:{server.port}", key_file=key_file) == "done\n"


def test_a_local_cluster_is_the_parents_alone_and_bare_calls_get_one_of_their_own(kind):
    code = """
    kind = sys.argv[1]
    cluster = gearmap.LocalCluster(1, server=kind)
    with cluster:
        assert gearmap.map(abs, [-1]) == [1]
        parent = gearmap.submit(os.getppid).result(30)

        def child():
            assert cluster.is_closed
            for use in (cluster.map, cluster.submit):
                try:
                    use(abs, [1])
                except gearmap.ClusterBroken as error:
                    assert "belongs to the process that this one was forked from" in str(error), error
                else:
                    raise AssertionError("the cluster of the parent was used")
            cluster.close()
            own = gearmap.options(retries=1).submit(os.getppid)
            assert own.result(30) != parent
            gearmap.current_client().close()

        assert in_child(child) == 0
        assert gearmap.submit(os.getppid).result(30) == parent
    print("done")
    """
    assert run(code, kind) == "done\n"


def test_the_end_of_a_forked_process_leaves_the_parents_cluster_alone(kind):
    code = """
    import subprocess
    from gearmap import api
    assert gearmap.map(abs, [-1]) == [1]   # the automatic cluster, which is stopped at exit
    pid = os.fork()
    if pid == 0:
        sys.exit(0)                        # runs what was registered for the exit
    assert os.waitpid(pid, 0)[1] == 0
    assert gearmap.map(abs, [-2]) == [2]
    print("done")
    """
    assert run(code) == "done\n"


def test_a_forked_process_does_not_keep_the_local_cluster_of_its_killed_parent_alive(kind, tmp_path):
    flag = tmp_path / "pids"
    code = """
    with gearmap.LocalCluster(1, server=sys.argv[1]) as cluster:
        cluster.map(abs, [-1])
        pid = os.fork()
        if pid == 0:
            time.sleep(300)
            os._exit(0)
        text = " ".join(map(str, [pid, *cluster._processes.pids]))
        pathlib.Path(sys.argv[2]).write_text(text)
        time.sleep(300)
    """
    client = subprocess.Popen(ends_with_us([*script(code), kind, str(flag)]))
    processes: list[psutil.Process] = []
    try:
        wait_until(lambda: flag.exists() and bool(flag.read_text()), "the cluster runs")
        processes = [psutil.Process(int(pid)) for pid in flag.read_text().split()]

        client.kill()
        client.wait()

        wait_until(lambda: not any(map(is_alive, processes[1:])), "job server and node end", 10.0)
        assert is_alive(processes[0])
    finally:
        client.kill()
        client.wait()
        for process in processes:
            if is_alive(process):
                process.kill()


def test_a_multiprocessing_pool_forked_from_a_client_can_use_it(kind, start_server, start_node, key_file):
    server = start_server(kind)
    start_node(server)
    code = """
    import multiprocessing
    client = gearmap.connect(sys.argv[1])
    assert client.map(abs, [-1]) == [1]

    def work(number):
        return client.submit(abs, -number).result(30)

    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(work, range(4)) == [0, 1, 2, 3]
        pool.close()
        pool.join()
    assert client.map(abs, [-1]) == [1]
    print("done")
    """
    assert run(code, f"127.0.0.1:{server.port}", key_file=key_file) == "done\n"


def test_an_executor_of_the_parent_works_on_in_both_processes_unless_its_cluster_is_the_parents(
    kind, start_server, start_node, key_file
):
    server = start_server(kind)
    start_node(server)
    code = """
    from concurrent.futures import BrokenExecutor
    named = gearmap.GearmanExecutor(servers=sys.argv[1])
    local = gearmap.GearmanExecutor(1)
    assert named.submit(abs, -1).result(30) == local.submit(abs, -1).result(30) == 1
    slow = named.submit(time.sleep, 0.5)

    def child():
        assert named.submit(abs, -2).result(30) == 2
        named.shutdown()
        try:
            local.submit(abs, -1)
        except BrokenExecutor as error:
            assert "this GearmanExecutor belongs to the process" in str(error)
        else:
            raise AssertionError("the cluster of the parent was used")
        local.shutdown()

    assert in_child(child) == 0
    assert slow.result(30) is None
    assert named.submit(abs, -3).result(30) == local.submit(abs, -3).result(30) == 3

    pid = os.fork()
    if pid == 0:
        sys.exit(0)  # waits for nothing of the parent's
    local.submit(time.sleep, 0.3)
    assert os.waitpid(pid, 0)[1] == 0
    assert local.submit(abs, -4).result(30) == 4
    print("done")
    """
    assert run(code, f"127.0.0.1:{server.port}", key_file=key_file) == "done\n"
