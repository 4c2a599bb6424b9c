"""Clients that are interrupted or die: their queued jobs are gone at once, their tasks stop, nobody else notices."""

from __future__ import annotations

import signal
import subprocess
import textwrap
import time

import pytest
from integration_support import in_background, run_script, seconds_until_end, wait_until
from programs import KINDS, require_kind

from gearmap.transport import admin

pytestmark = pytest.mark.parametrize("kind", KINDS)

# Running tasks are stopped within two seconds (the constants of the node engine say so, and a unit test adds them up);
# the rest is what a busy machine may add.
STOPPED_WITHIN = 2.0 + 2.0
AT_ONCE = 2.0


@pytest.fixture(autouse=True)
def _has_server(kind):
    require_kind(kind)


# Two tasks run, each in a worker of its own, and more wait. Each says who runs it.
CLIENT = """
    import os, sys, time, pathlib, gearmap
    server, key, folder = sys.argv[1:4]
    def work(x):
        (pathlib.Path(folder) / f"began-{x}").write_text(str(os.getpid()))
        time.sleep(60)
    with gearmap.Client(server, key=key) as client:
        try:
            client.map(work, range(50), chunksize=1, max_workers=6)
        except KeyboardInterrupt:
            again = client.map(abs, range(-3, 0), timeout=30)
            print("interrupted", again, client.submit(abs, -9).result(30), flush=True)
            sys.exit(7)
"""


class Victim:
    """A client that runs a map and is about to go."""

    def __init__(self, server, key_file, folder, client, running=2):
        self.server, self.folder = server, folder
        self.client = client
        wait_until(lambda: len(self.began()) >= running, f"{running} tasks run")
        wait_until(lambda: live_jobs(server) >= running + 2, "some more are queued")

    def began(self):
        return [int(text) for path in self.folder.glob("began-*") if (text := path.read_text())]


def live_jobs(server):
    """Jobs that somebody waits for; gearmand lists others until a worker asks for the next."""
    with admin.AdminSession((server.host, server.port)) as session:
        return sum(not job.is_ignored for job in session.show_jobs())


@pytest.fixture(scope="module")
def loop_of_jupyter():
    """The event loop that jupyter_client makes on its first use, and keeps."""
    return pytest.importorskip("jupyter_core.utils").ensure_event_loop()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tasks"
    path.mkdir()
    return path


@pytest.fixture
def other(kind, start_server, start_node, connect, tmp_path):
    """A server, and another client's task that has a worker of its own and runs until it is told to end."""
    server = start_server(kind)
    start_node(server, workers=1, name="other")
    end, runs = tmp_path / "end", tmp_path / "runs"

    def work():
        with runs.open("a") as file:
            file.write("x")
        while not end.exists():
            time.sleep(0.01)
        return "untouched"

    client = connect(server)
    future = client.submit(work)
    wait_until(runs.exists, "the other client's task runs")
    queued = in_background(lambda: client.map(abs, range(-20, 0), chunksize=1))

    def check():
        end.touch()
        assert queued() == list(range(20, 0, -1))
        assert future.result(30) == "untouched"
        assert runs.read_text() == "x"

    return server, check


def start_client(server, key_file, folder, **options):
    return run_script(CLIENT, f"127.0.0.1:{server.port}", str(key_file), str(folder), **options)


def check_gone(server, victim, began):
    """What a client that went leaves behind: nothing."""
    until_ended = seconds_until_end(victim.began(), STOPPED_WITHIN)
    assert until_ended < STOPPED_WITHIN
    wait_until(lambda: live_jobs(server) == 1, "only the other client's task is left", STOPPED_WITHIN)
    assert len(victim.began()) == began  # what was queued never ran


def test_a_killed_client_leaves_nothing_behind(kind, start_node, key_file, folder, other):
    server, others_are_untouched = other
    start_node(server, workers=2)
    victim = Victim(server, key_file, folder, start_client(server, key_file, folder))

    victim.client.kill()
    victim.client.wait()

    wait_until(lambda: live_jobs(server) == 1, "its jobs are gone", AT_ONCE)
    check_gone(server, victim, began=2)
    others_are_untouched()


def test_ctrl_c_stops_a_map_and_the_same_client_works_on(kind, start_node, key_file, folder, other):
    server, others_are_untouched = other
    start_node(server, workers=2)
    script = start_client(server, key_file, folder, stdout=subprocess.PIPE)
    victim = Victim(server, key_file, folder, script)

    script.send_signal(signal.SIGINT)

    assert seconds_until_end(victim.began(), STOPPED_WITHIN) < STOPPED_WITHIN
    out, _ = script.communicate(timeout=30)
    assert (script.returncode, out.strip()) == (7, b"interrupted [3, 2, 1] 9")
    check_gone(server, victim, began=2)
    others_are_untouched()


def test_a_frozen_client_keeps_its_work(kind, start_node, key_file, folder, other):
    """Nobody knows of a laptop that sleeps whether it comes back: its connection holds."""
    server, others_are_untouched = other
    start_node(server, workers=2)
    victim = Victim(server, key_file, folder, start_client(server, key_file, folder))

    victim.client.send_signal(signal.SIGSTOP)
    with pytest.raises(pytest.fail.Exception):
        seconds_until_end(victim.began(), 2.5)

    victim.client.kill()
    victim.client.wait()
    check_gone(server, victim, began=2)
    others_are_untouched()


@pytest.mark.parametrize("how", ["dies", "is interrupted"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_notebooks_kernel(kind, start_node, key_file, folder, other, how, loop_of_jupyter):
    manager = pytest.importorskip("jupyter_client.manager")
    server, others_are_untouched = other
    start_node(server, workers=2)
    kernel, channel = manager.start_new_kernel()
    try:
        arguments = ["cell", f"127.0.0.1:{server.port}", str(key_file), str(folder)]
        channel.execute(f"import sys; sys.argv = {arguments!r}\n" + textwrap.dedent(CLIENT))
        victim = Victim(server, key_file, folder, kernel)
        if how == "dies":
            kernel.signal_kernel(signal.SIGKILL)
            wait_until(lambda: live_jobs(server) == 1, "its jobs are gone", AT_ONCE)
        else:
            kernel.interrupt_kernel()
        check_gone(server, victim, began=2)
        others_are_untouched()
    finally:
        channel.stop_channels()
        kernel.shutdown_kernel(now=True)
        kernel.cleanup_resources()
