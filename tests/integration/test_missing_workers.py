"""Tasks that nobody will run: it is said in time, with what helps, and `timeout=` ends the wait all the same."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from integration_support import in_background, run_script, wait_until
from programs import KINDS, require_kind

import gearmap
from gearmap.keyfile import make_key

pytestmark = pytest.mark.parametrize("kind", KINDS)

# Within two seconds, and what a busy machine may add.
SAID_WITHIN = 2.0 + 1.5

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
OTHER = (3, 12) if sys.version_info[:2] != (3, 12) else (3, 11)


@pytest.fixture(autouse=True)
def _has_server(kind):
    require_kind(kind)


@dataclass
class Said:
    at: float
    text: str
    filename: str


@pytest.fixture
def said(monkeypatch):
    """Every warning, and when it came."""
    found: list[Said] = []

    def show(message, category, filename, *rest, **more):
        found.append(Said(time.monotonic(), str(message), filename))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        yield found


def map_that_waits(client, capsys, timeout=3.5):
    """Run a map that finds nobody; return when it began and what its bar has shown."""
    began = time.monotonic()
    with pytest.raises(gearmap.RunTimeout, match=f"0 of 1 tasks done after timeout={timeout:g} s"):
        client.map(abs, [-1], timeout=timeout, progress=True)
    assert timeout <= time.monotonic() - began < timeout + 3
    return began, capsys.readouterr().err


def check(said, waited, server, *facts):
    (only,) = said
    began, shown = waited
    assert only.at - began < SAID_WITHIN
    assert only.filename == __file__  # it points at the caller
    for fact in facts:
        assert fact in only.text
    assert only.text.endswith(f"start one: gearmap worker -s 127.0.0.1:{server.port}")
    assert "no worker serves queue 'default'" in shown


def test_no_worker_at_all_and_one_that_comes_late(kind, start_server, start_node, connect, said, capsys):
    server = start_server(kind)
    start_node(server, queue="other")
    client = connect(server)

    waited = map_that_waits(client, capsys)

    check(said, waited, server, f"for Python {HERE} with your key", "2 serve 'other'")
    future = client.submit(abs, -1)
    start_node(server)
    assert future.result(30) == 1


def with_packages(version):
    """An interpreter of the version that can run a node, as the checks of this repository install them, or None."""
    place = Path(__file__).parents[2] / f".venv-ci-{version[0]}.{version[1]}" / "bin" / "python"
    packages = "import gearmap, gearman, cloudpickle, cryptography"
    if place.exists() and subprocess.run([place, "-c", packages], capture_output=True).returncode == 0:
        return str(place)
    return None


@pytest.mark.parametrize("how", ["a real one", "by name only"])
def test_only_workers_of_another_python(kind, start_server, start_node, connect, said, capsys, how):
    interpreter = with_packages(OTHER) if how == "a real one" else sys.executable
    if interpreter is None:
        pytest.skip(f"no Python {OTHER[0]}.{OTHER[1]} with gearmap's packages here")
    server = start_server(kind)
    start_node(server, workers=3, interpreter=interpreter, python=OTHER)

    waited = map_that_waits(connect(server), capsys)

    check(said, waited, server, f"for Python {HERE}", f"3 serve it with Python {OTHER[0]}.{OTHER[1]}")


def test_only_workers_with_another_key(kind, start_server, start_node, connect, said, capsys, tmp_path):
    server = start_server(kind)
    make_key(tmp_path / "another")
    start_node(server, key=tmp_path / "another")

    waited = map_that_waits(connect(server), capsys)

    check(said, waited, server, "with your key", "2 have another key")


def test_workers_on_two_servers_are_counted_once_and_both_stand_in_the_command(
    kind, start_server, start_node, connect, said, capsys
):
    servers = start_server(kind), start_server(kind)
    start_node(*servers, queue="other")

    map_that_waits(connect(*servers), capsys)

    (only,) = said
    assert "2 serve 'other'" in only.text
    assert only.text.endswith("start one: gearmap worker" + "".join(f" -s 127.0.0.1:{s.port}" for s in servers))


def test_submitted_tasks_say_it_in_the_log(kind, start_server, connect, caplog):
    server = start_server(kind)
    future = connect(server).submit(abs, -1)

    command = f"start one: gearmap worker -s 127.0.0.1:{server.port}"
    wait_until(lambda: command in caplog.text, "it is said", SAID_WITHIN)
    assert not future.done()


def test_workers_that_all_go_are_missed_and_a_new_one_goes_on(kind, start_server, start_node, connect, said, tmp_path):
    server = start_server(kind)
    node = start_node(server)
    client = connect(server)
    began = tmp_path / "began"

    def work(x):
        began.touch()
        time.sleep(0.05)
        return x

    result = in_background(lambda: client.map(work, range(60), chunksize=1))
    wait_until(began.exists, "the map runs")
    node.kill()
    warnings.simplefilter("always")  # a test that ends a node is spared them otherwise
    wait_until(lambda: bool(said), "the missing workers are said")
    start_node(server)

    assert result() == list(range(60))
    assert "no worker serves queue 'default'" in said[0].text


AT_EXIT = """
    import sys, gearmap
    executor = gearmap.GearmanExecutor(servers=sys.argv[1], key=sys.argv[2])
    future = executor.submit(abs, -1)
    print("the end", flush=True)
"""


def test_a_program_that_ends_before_its_executors_calls_says_what_it_waits_for(kind, start_server, key_file):
    address = f"127.0.0.1:{start_server(kind).port}"
    pipe = subprocess.PIPE
    with run_script(AT_EXIT, address, str(key_file), stdout=pipe, stderr=pipe) as program:
        guard = threading.Timer(30.0, program.kill)
        guard.start()
        try:
            assert program.stdout.readline() == b"the end\n"
            began = time.monotonic()
            text = program.stderr.readline().decode()
            assert time.monotonic() - began < SAID_WITHIN
            assert "no worker serves queue 'default'" in text
            assert f"start one: gearmap worker -s {address}" in text
            assert program.poll() is None  # as with the standard library's executors, what was submitted is waited for
            program.send_signal(signal.SIGINT)
            interrupted = time.monotonic()
            program.wait(20.0)
            assert time.monotonic() - interrupted < 5.0
        finally:
            guard.cancel()
            program.kill()
