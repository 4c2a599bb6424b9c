"""The embedded server of a local cluster: on a Unix socket, for its own user alone."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from transport_support import DEADLINE, Loop, echo, loop, request  # noqa: F401

import gearmap.jobserver
from gearmap.errors import ServerUnavailable
from gearmap.jobserver import process as module
from gearmap.jobserver.process import ServerProcess, start_job_server
from gearmap.jobserver.sockets import SOCKET_NAME, listen_in_folder
from gearmap.transport.admin import AdminSession, server_status
from gearmap.transport.client import ServerSession
from gearmap.transport.events import ConnectFailed, Lost, WorkComplete

# ruff: noqa: F811

ROOT = str(Path(gearmap.jobserver.__file__).parents[2])

# The classic "nobody": a user that owns nothing here.
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    """A private server, whose folder is the only thing in its temporary directory."""
    short = Path(tempfile.mkdtemp(prefix="t"))  # pytest's own are too long for a socket's path
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    with start_job_server("embedded", private=True, workers_wake_one=True) as server:
        yield server
    assert list(short.iterdir()) == []
    short.rmdir()


def address_of(server: ServerProcess) -> tuple[str, int]:
    return (server.host, server.port)


def as_nobody(path: str, act: str) -> str:
    """Connect to a Unix socket as another user; return what came of it."""
    code = f"""
import os, socket
os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(5)
    peer.connect({path!r})
    {act}
except Exception as error:
    print(type(error).__name__)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20).stdout.strip()


def test_a_private_server_serves_clients_workers_and_administrators_on_its_socket(private, loop):
    address = address_of(private)
    session = loop.ready_session(address)
    loop.worker([address], ["f"], "node/0", on_job=echo)
    session.submit([request(1, b"x" * 3_000_000), request(2)])
    done = loop.until_event(session, WorkComplete, 2)
    assert sorted(len(event.data) for event in done) == [1, 3_000_000]
    with AdminSession(address) as admin:
        assert admin.getpid() == private.pid
        assert {row.ip for row in admin.workers()} == {"unix"}
    assert [row.function for row in server_status(address, 5.0)] == ["f"]


def test_only_its_user_can_look_into_the_folder(private):
    folder = os.path.dirname(private.host)
    status = os.stat(folder)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, os.geteuid())
    assert "unix:" + private.host in repr(private)
    assert private.port == 0
    assert psutil.Process(private.pid).net_connections("inet") == []


@needs_root
def test_another_user_cannot_connect(private):
    # On the way to the folder nothing else stops them.
    os.chmod(os.path.dirname(os.path.dirname(private.host)), 0o755)
    assert as_nobody(private.host, "print('connected')") == "PermissionError"


@needs_root
def test_another_user_is_refused_even_where_the_folder_was_opened(private):
    os.chmod(private.host, 0o777)
    folders = [each for each in Path(private.host).parents if each.stat().st_mode & 0o777 == 0o700]
    act = "peer.sendall(b'status\\n'); print(repr(peer.recv(100)))"
    try:
        for folder in folders:
            folder.chmod(0o755)
        assert as_nobody(private.host, act) in ("b''", "ConnectionResetError", "BrokenPipeError")
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert server_status(address_of(private), 5.0) == []


def test_a_folder_that_others_may_enter_is_not_listened_in(tmp_path):
    tmp_path.chmod(0o750)
    with pytest.raises(PermissionError, match="is not a folder of this user alone"):
        listen_in_folder(str(tmp_path))
    link = tmp_path / "link"
    (tmp_path / "real").mkdir(mode=0o700)
    link.symlink_to(tmp_path / "real")
    with pytest.raises(PermissionError):
        listen_in_folder(str(link))


def test_a_server_that_was_killed_leaves_no_socket_behind(private):
    private.kill()
    assert not os.path.exists(os.path.dirname(private.host))


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from gearmap.jobserver.process import start_job_server
server = start_job_server("embedded", private=True)
print(server.pid, server.host, flush=True)
time.sleep(60)
"""


def test_a_server_whose_parent_was_killed_removes_its_socket():
    with subprocess.Popen([sys.executable, "-c", PARENT, ROOT], stdout=subprocess.PIPE) as parent:
        pid, path = parent.stdout.readline().decode().split()
        assert os.path.exists(path)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE
    while psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not os.path.exists(os.path.dirname(path))


def test_where_temporary_files_have_long_names_the_socket_is_elsewhere(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with start_job_server("embedded", private=True) as server:
        assert os.path.basename(server.host) == SOCKET_NAME
        assert len(server.host) <= module.MAX_SOCKET_PATH
    assert list(deep.iterdir()) == []


def test_without_unix_sockets_a_private_server_is_one_on_loopback(monkeypatch):
    monkeypatch.delattr(socket, "AF_UNIX")
    with start_job_server("embedded", private=True) as server:
        assert server.host == "127.0.0.1"
        assert server_status(address_of(server), 5.0) == []


def test_a_socket_that_is_not_there_or_that_nobody_serves_is_named(tmp_path, loop):
    missing = str(tmp_path / "missing")
    with pytest.raises(ServerUnavailable, match=f"'unix:{missing}'"):
        server_status((missing, 0), 1.0)
    dead = str(tmp_path / "dead")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(dead)
    session: ServerSession = loop.session((dead, 0))
    (down,) = loop.until_event(session, ConnectFailed)
    assert f"'unix:{dead}'" in str(down.reason)


def test_a_server_that_takes_no_more_connections_is_one_that_does_not_answer(tmp_path, loop):
    path = str(tmp_path / "full")
    crowd = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        while len(crowd) < 100:
            crowd.append(socket.socket(socket.AF_UNIX))
            crowd[-1].setblocking(False)
            if crowd[-1].connect_ex(path):
                break
        session = loop.session((path, 0))
        (down,) = loop.until_event(session, ConnectFailed)
        assert f"no job server answered at 'unix:{path}'" in str(down.reason)
    for peer in crowd:
        peer.close()


def test_a_session_on_a_socket_notices_the_end_of_its_server_at_once(private, loop: Loop):
    session = loop.ready_session(address_of(private))
    private.kill()
    assert loop.until_event(session, Lost)
