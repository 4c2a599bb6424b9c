"""Starting and stopping servers of both kinds; what happens to them when their parent goes away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from packets import ECHO_REQ, ECHO_RES, RawConnection
from programs import KINDS, require_kind

from gearmap.errors import ConfigurationError, ServerUnavailable
from gearmap.jobserver import process as module
from gearmap.jobserver.commandline import LaunchOptions, embedded_command, find_gearmand, gearmand_command
from gearmap.jobserver.process import launch, start_job_server

ROOT = str(Path(module.__file__).parents[2])
DEADLINE = 20.0


@pytest.fixture(params=KINDS)
def kind(request):
    require_kind(request.param)
    return request.param


def wait_until_gone(pid):
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
    raise AssertionError(f"process {pid} is still there")


def wait_until_refused(port):
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            return
    raise AssertionError(f"port {port} still answers")


def answers(server):
    with RawConnection(server.host, server.port) as connection:
        return connection.ask(ECHO_REQ, b"x") == (ECHO_RES, b"x")


def test_a_started_server_answers_and_a_stopped_one_is_gone(kind):
    server = start_job_server(kind)
    assert server.alive
    assert server.kind.startswith(kind)
    assert server.host == "127.0.0.1"
    assert answers(server)
    assert psutil.Process(server.pid).is_running()
    server.stop()
    assert not server.alive
    wait_until_gone(server.pid)
    wait_until_refused(server.port)
    server.stop()
    server.kill()


def test_a_server_is_a_context_manager(kind):
    with start_job_server(kind) as server:
        assert answers(server)
    assert not server.alive


def test_killing_leaves_nothing_behind(kind):
    server = start_job_server(kind)
    server.kill()
    assert not server.alive
    wait_until_gone(server.pid)
    server.kill()
    server.stop()


def test_a_server_that_crashed_is_not_alive(kind):
    server = start_job_server(kind)
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE
    while server.alive:
        assert time.monotonic() < deadline
    server.stop()


def test_a_frozen_server_is_killed(kind):
    server = start_job_server(kind)
    os.kill(server.pid, signal.SIGSTOP)
    server.stop(timeout=0.2)
    wait_until_gone(server.pid)
    assert not server.alive


def test_temporary_files_are_removed(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = start_job_server(kind)
    server.stop()
    server = start_job_server(kind)
    server.kill()
    assert list(tmp_path.iterdir()) == []


def test_launch_returns_before_the_server_answers(kind):
    pending = launch(kind)
    with pending.wait(DEADLINE) as server:
        assert answers(server)
        assert pending.wait() is server


def test_a_pending_server_can_be_stopped(kind):
    pending = launch(kind)
    pending.stop()
    pending.stop()


def test_a_taken_port_is_an_error_that_says_so(kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerUnavailable, match=str(port)):
            start_job_server(kind, port=port, deadline=DEADLINE)


def test_a_port_taken_by_another_job_server_is_an_error(kind):
    with start_job_server(kind) as first, pytest.raises(ServerUnavailable):
        start_job_server(kind, port=first.port, deadline=DEADLINE)


def test_a_free_port_that_is_taken_meanwhile_is_replaced(monkeypatch):
    require_kind("gearmand")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], module._free_port("127.0.0.1")]
        monkeypatch.setattr(module, "_free_port", lambda host: ports.pop(0))
        with start_job_server("gearmand") as server:
            assert answers(server)
            assert ports == []


def test_a_log_file_is_written_when_asked_for(kind, tmp_path):
    log = tmp_path / "server.log"
    with start_job_server(kind, log=str(log), verbose=2) as server:
        assert answers(server)
        with RawConnection(server.host, server.port) as connection:
            connection.send_bytes(b"\0BAD" + bytes(8))
            connection.expect_closed()
    assert log.stat().st_size > 0


def test_both_address_families_can_be_listened_on(kind):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with start_job_server(kind, host="::1") as server:
        assert answers(server)


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from gearmap.jobserver.process import start_job_server
server = start_job_server(sys.argv[2])
print(server.pid, server.port, flush=True)
{then}
time.sleep(60)
"""


@pytest.fixture
def start_parent(kind):
    """A function that starts a Python that starts a server; it gives the parent, the server's process id and port."""
    parents = []

    def start(then=""):
        command = [sys.executable, "-c", PARENT.format(then=then), ROOT, kind]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        parents.append(parent)
        pid, port = map(int, parent.stdout.readline().split())
        return parent, pid, port

    yield start
    for parent in parents:
        # With its children, which stay in its group when it is gone; the server has a session of its own.
        try:
            os.killpg(parent.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        parent.wait(DEADLINE)
        parent.stdout.close()


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_its_parent_however_it_ends(start_parent, signal_number):
    parent, pid, port = start_parent()
    os.kill(parent.pid, signal_number)
    parent.wait(DEADLINE)
    wait_until_gone(pid)
    wait_until_refused(port)


def test_a_forked_child_neither_stops_the_server_nor_keeps_it_alive(start_parent):
    then = """
import os
if os.fork() == 0:
    server.stop()
    assert not server.alive
    os.write(1, b"tried to stop it\\n")
    time.sleep(60)
    os._exit(0)
"""
    parent, pid, port = start_parent(then)
    assert parent.stdout.readline() == b"tried to stop it\n"
    socket.create_connection(("127.0.0.1", port), 5.0).close()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(DEADLINE)
    wait_until_gone(pid)


def test_other_children_of_the_parent_do_not_keep_the_server_alive(start_parent):
    then = "import os, subprocess\nsubprocess.Popen(['sleep', '60'], close_fds=False)\nos.write(1, b'started\\n')"
    parent, pid, _ = start_parent(then)
    assert parent.stdout.readline() == b"started\n"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(DEADLINE)
    wait_until_gone(pid)


def test_an_embedded_server_ignores_modules_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "socket.py").write_text("raise SystemExit('imported from the current directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with start_job_server("embedded") as server:
        assert answers(server)


def test_the_module_command_prints_one_line_and_ends_with_its_standard_input():
    command = [sys.executable, "-m", "gearmap.jobserver", "--lifeline"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as server:
        ready = json.loads(server.stdout.readline())
        assert ready["pid"] == server.pid
        with RawConnection(ready["host"], ready["port"]) as connection:
            assert connection.ask(ECHO_REQ, b"x") == (ECHO_RES, b"x")
        server.stdin.close()
        assert server.stdout.read() == b""
        assert server.wait(DEADLINE) == 0


def test_the_module_command_ends_cleanly_on_sigterm():
    command = [sys.executable, "-m", "gearmap.jobserver"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as server:
        json.loads(server.stdout.readline())
        server.terminate()
        assert server.wait(DEADLINE) == 0


# -- choosing a server


def test_auto_is_gearmand_where_it_is_installed():
    require_kind("gearmand")
    with start_job_server() as server:
        assert server.kind.startswith("gearmand ")


def test_auto_is_the_embedded_server_where_gearmand_is_not(monkeypatch):
    monkeypatch.setenv("GEARMAP_GEARMAND", "")
    with start_job_server() as server:
        assert server.kind == "embedded"


def test_auto_falls_back_when_gearmand_does_not_start(tmp_path, monkeypatch):
    broken = tmp_path / "gearmand"
    broken.write_text("#!/bin/sh\necho 'unknown option' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("GEARMAP_GEARMAND", str(broken))
    with start_job_server() as server:
        assert server.kind == "embedded"
    with pytest.raises(ServerUnavailable, match="unknown option"):
        start_job_server("gearmand")


def test_a_path_names_the_program():
    require_kind("gearmand")
    with start_job_server(find_gearmand()) as server:
        assert server.kind.startswith("gearmand ")


@pytest.mark.parametrize("kind", ["rabbitmq", "/nowhere/gearmand", ""])
def test_an_unknown_kind_is_a_configuration_error(kind):
    with pytest.raises(ConfigurationError):
        start_job_server(kind)


def test_gearmand_that_is_asked_for_and_missing_is_a_configuration_error(monkeypatch):
    monkeypatch.setenv("GEARMAP_GEARMAND", "")
    with pytest.raises(ConfigurationError, match="embedded"):
        start_job_server("gearmand")


@pytest.mark.parametrize("options", [{"port": 70_000}, {"port": -1}, {"job_retries": -1}, {"threads": -1}])
def test_impossible_options_are_configuration_errors(options):
    with pytest.raises(ConfigurationError):
        launch("embedded", **options)


def test_gearmand_is_found_outside_of_the_path(tmp_path, monkeypatch):
    program = tmp_path / "gearmand"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setattr("gearmap.jobserver.commandline.GEARMAND_DIRECTORIES", (str(tmp_path),))
    assert find_gearmand({"PATH": "/nowhere"}) == str(program)
    assert find_gearmand({"PATH": "/nowhere", "GEARMAP_GEARMAND": ""}) is None
    with pytest.raises(ConfigurationError):
        find_gearmand({"PATH": "/nowhere", "GEARMAP_GEARMAND": "/nowhere/gearmand"})


def test_the_flags_of_gearmand_stay_within_the_hard_limit_of_files(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    command = gearmand_command("gearmand", LaunchOptions(workers_wake_one=True), port=4730, pid_file="pid")
    assert command[command.index("-f") + 1] == "4096"
    assert command[command.index("-w") + 1] == "1"
    assert command[command.index("-L") + 1] == "127.0.0.1"


def test_the_flags_of_the_embedded_server_carry_the_options():
    command = embedded_command(LaunchOptions(port=4730, job_retries=7, workers_wake_one=True, verbose=2, log="x"))
    assert command[command.index("--job-retries") + 1] == "7"
    assert {"--lifeline", "--wake-one", "--log", "-v"} <= set(command)
