"""`gearmap server` and `gearmap status`: a cluster from three terminals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from acceptance_support import DEADLINE, REPOSITORY, Command, eventually, free_port, run

import gearmap
from gearmap.jobserver.process import ServerProcess, find_gearmand

pytestmark = pytest.mark.slow

SCRIPT = """
import gearmap
base = 40
print(gearmap.current_client().where)
print(gearmap.map(lambda number: number + base, range(3), timeout=40))
"""


@pytest.fixture(params=["gearmand", "embedded"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each job server; where gearmand is not installed its tests are skipped, but not in continuous integration."""
    if request.param == "gearmand" and find_gearmand() is None:
        if os.environ.get("CI"):
            pytest.fail("gearmand is not installed, and CI is set")
        pytest.skip("gearmand is not installed")
    name: str = request.param
    return name


@pytest.fixture
def server(start: Callable[..., Command], kind: str, tmp_path: Path) -> tuple[Command, str]:
    """A running `gearmap server` and its address; the key file is made by it."""
    port = free_port()
    words = ["--embedded"] if kind == "embedded" else []
    key = {"GEARMAP_KEY_FILE": str(tmp_path / "shared.key")}
    command = start("server", "--port", str(port), *words, environment=key)
    command.wait_for("^Ctrl-C ends the server")
    return command, f"127.0.0.1:{port}"


def test_server_worker_status_and_map_from_four_processes_share_a_key_file(
    start: Callable[..., Command], server: tuple[Command, str], kind: str, tmp_path: Path
) -> None:
    command, place = server
    environment = {"GEARMAP_KEY_FILE": str(tmp_path / "shared.key"), "GEARMAP_SERVERS": place}
    worker = start("worker", "-w", "2", environment=environment)
    worker.wait_for("^connected to ")

    mapped = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    listed = run("status", environment=environment)

    assert mapped.stdout.splitlines() == [f"{place} (from GEARMAP_SERVERS)", "[40, 41, 42]"], mapped.stderr
    assert listed.returncode == 0
    assert re.search(rf"{place} +GEARMAP_SERVERS +up, {kind}", listed.stdout)
    assert re.search(r"default +3\.\d+ +[0-9a-f]{8} \(yours\) +0 +2 +0 +0", listed.stdout)
    assert re.search(rf"127\.0\.0\.1 +2 +0 +\d+ MB +default +3\.\d+ +[0-9a-f]{{8}} \(yours\) +{place}", listed.stdout)
    assert any(line.startswith(f"{kind}") and line.endswith(f"job server on {place}") for line in command.out)


def test_the_lines_to_paste_are_commands_that_work(
    start: Callable[..., Command], server: tuple[Command, str], tmp_path: Path
) -> None:
    command, place = server

    pasted = command.wait_for("^start workers: ").split(":", 1)[1].split()
    environment = {"GEARMAP_KEY_FILE": str(tmp_path / "shared.key")}

    assert pasted == ["gearmap", "worker", "-s", place]
    start(*pasted[1:], "-w", "1", environment=environment).wait_for("^connected to ")
    assert f"GEARMAP_SERVERS={place} jupyter lab" in command.wait_for("^use the cluster: ")


def test_the_key_is_named_by_file_and_id_and_never_shown(server: tuple[Command, str], tmp_path: Path) -> None:
    command, _ = server
    path = tmp_path / "shared.key"

    assert re.fullmatch(rf"key [0-9a-f]{{8}} in {re.escape(str(path))}", command.wait_for("^key "))
    assert path.read_text().strip() not in "\n".join(command.out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_leaves_no_process(server: tuple[Command, str], number: signal.Signals) -> None:
    import psutil

    command, place = server
    children = psutil.Process(command.pid).children(recursive=True)

    command.send(number)

    assert command.wait() == 0
    assert children
    eventually(lambda: not any(child.is_running() for child in children), "the job server has ended")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(place.rpartition(":")[2])), 5.0)


def test_a_killed_server_command_takes_its_server_with_it(server: tuple[Command, str]) -> None:
    import psutil

    command, _ = server
    children = psutil.Process(command.pid).children(recursive=True)

    command.send(signal.SIGKILL)

    command.wait()
    eventually(lambda: not any(child.is_running() for child in children), "the job server has ended")


def test_a_server_that_dies_is_an_error(server: tuple[Command, str], kind: str) -> None:
    import psutil

    command, _ = server
    for child in psutil.Process(command.pid).children(recursive=True):
        child.kill()

    assert command.wait() == 1
    assert re.fullmatch(rf"gearmap: the {kind}.* job server has ended by itself.*", command.err[-1])


def test_a_verbose_server_shows_its_log(start: Callable[..., Command], kind: str, key_file: Path) -> None:
    words = ["--embedded"] if kind == "embedded" else []
    port = free_port()

    command = start("server", "--port", str(port), "--key", str(key_file), "-vv", *words)

    command.wait_for("^Ctrl-C ends the server")
    run("status", "-s", f"127.0.0.1:{port}")
    command.wait_for(r"\b(INFO|DEBUG)\b")


def test_a_taken_port_is_an_error_that_says_who_has_it(place: str, job_server: ServerProcess) -> None:
    ended = run("server", "--port", str(job_server.port))

    assert ended.returncode == 1
    assert f"is taken by a job server, version 1.1.20+gearmap, pid {job_server.pid}" in ended.stderr
    assert f"gearmap status -s {place}" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_port_taken_by_something_else_is_an_error_that_says_how_to_find_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run("server", "--port", str(port))

    assert ended.returncode == 1
    assert "is taken by another program" in ended.stderr
    assert f"gearmap server --port {port + 1}" in ended.stderr


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    ended = run("server", "--host", "192.0.2.1", "--port", str(free_port()))

    assert ended.returncode == 1
    assert ended.stderr.startswith("gearmap: cannot listen on '192.0.2.1:")


def test_a_server_for_other_machines_says_to_copy_the_key() -> None:
    from gearmap.cli.common import FoundKey
    from gearmap.cli.server import advice
    from gearmap.config import ServerAddress
    from gearmap.keyfile import Keys
    from gearmap.secret import Secret

    key = FoundKey(Keys(Secret(bytes(32))), Path("/tmp/the key"))
    lines = advice("embedded", ServerAddress("0.0.0.0", 4730, "test"), key, explicit=True)

    text = "\n".join(lines)
    assert f"gearmap worker -s {socket.gethostname()}:4730 --key '/tmp/the key'" in text
    assert "Copy the key file to every other host first: '/tmp/the key'" in text


# ------------------------------------------------------------------------------------------------------------- status


def test_status_without_a_server_says_why_and_fails() -> None:
    place = f"127.0.0.1:{free_port()}"

    ended = run("status", "-s", place)

    assert ended.returncode == 1
    assert f"no job server answered at '{place}': Connection refused" in ended.stdout
    assert "gearmap server" in ended.stdout


def test_status_fails_only_if_no_server_answers_at_all(place: str) -> None:
    dead = f"127.0.0.1:{free_port()}"

    ended = run("status", "-s", dead, "-s", place)

    assert ended.returncode == 0
    assert re.search(rf"{dead} +-s +no job server answered", ended.stdout)
    assert re.search(rf"{place} +-s +up, embedded", ended.stdout)


def test_status_of_another_program_ends_with_its_name_and_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place = f"127.0.0.1:{mute.getsockname()[1]}"
        ended = run("status", "-s", place)

    assert ended.returncode == 1
    assert place in ended.stdout
    assert "Traceback" not in ended.stderr


def test_status_in_a_pipe_has_no_colours_and_a_sensible_width(place: str) -> None:
    for environment in ({}, {"TERM": "xterm-256color"}):
        ended = run("status", "-s", place, environment=environment)

        assert "\x1b" not in ended.stdout
        # Advice to paste is never broken into lines; tables are.
        table = ended.stdout.partition("no queues yet")[0].partition("no worker serves")[0]
        assert max(map(len, table.splitlines())) <= 120


def test_status_names_the_queue_that_waits_for_nobody(place: str, client: gearmap.Client, key_file: Path) -> None:
    future = client.options(queue="gpu").submit(abs, -1)

    def listed() -> str:
        return run("status", "-s", place, "--key", str(key_file)).stdout

    eventually(lambda: bool(re.search(r"gpu .* 0 +0 +1 +0", listed())), "the job is listed as queued")
    assert f"start one: gearmap worker -s {place} -q gpu" in listed()
    future.cancel()


def test_status_lists_functions_of_other_programs_apart_and_hides_what_nobody_uses(place: str) -> None:
    host, _, port = place.rpartition(":")
    with socket.create_connection((host, int(port)), 5.0) as worker:
        worker.sendall(b"\0REQ\0\0\0\x01\0\0\0\x06resize")  # CAN_DO
        worker.sendall(b"create function idle\r\n")
        worker.settimeout(DEADLINE)
        assert worker.recv(100).startswith(b"OK")  # so both have been handled

        listed = run("status", "-s", place).stdout

    assert re.search(r"other functions\s+function +workers +queued +running\s+\S+\s+resize +1 +0 +0", listed)
    assert "idle" not in listed
    assert "no queues yet" in listed


def test_a_reader_that_leaves_early_is_no_error(place: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "gearmap", "status", "-s", place],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        complaints = process.stderr.read()
        process.wait(DEADLINE)

    assert complaints == ""
