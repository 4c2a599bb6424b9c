"""Everything that gearmap does, over TLS: no connection may ever begin in plain text."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from certificates import Authority
from integration_support import DEADLINE, lane_of, wait_until
from programs import ends_with_us, require_kind
from stunnel import Stunnel

import gearmap
from gearmap.jobserver.process import start_job_server
from gearmap.tls import TlsAddress, TlsFile, TlsFiles, TlsServerFiles
from gearmap.transport.admin import server_status
from gearmap.transport.client import ServerSession

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
TLS_HELLO = 0x16


class Gate(threading.Thread):
    """Passes connections on to `target`, and notes the first byte of each."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakes = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakes, selectors.EVENT_READ)
        self._others: dict[socket.socket, socket.socket] = {}
        self._fresh: set[socket.socket] = set()
        self.address = self._listener.getsockname()
        self.first_bytes: list[int] = []
        self.start()

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wakes:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._others:
                    self._pass_on(key.fileobj)

    def close(self) -> None:
        self._waker.send(b"x")
        self.join(DEADLINE)
        for each in (self._listener, self._waker, self._wakes, *self._others):
            each.close()
        self._selector.close()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(self._target)
        self._others[near], self._others[far] = far, near
        self._fresh.add(near)
        for each in (near, far):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(each, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        sink = self._others[source]
        try:
            data = source.recv(1 << 20)
            if data and source in self._fresh:
                self._fresh.discard(source)
                self.first_bytes.append(data[0])
            sink.sendall(data)
        except OSError:
            data = b""
        if not data:
            for each in (source, sink):
                self._selector.unregister(each)
                self._fresh.discard(each)
                del self._others[each]
                each.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["embedded", "stunnel"])
def secure_server(request, authority, tmp_path):
    """A job server with TLS that wants client certificates; its address."""
    pair = authority.sign("server")
    if request.param == "embedded":
        files = TlsServerFiles.of_options(pair.certificate, pair.key, authority.file)
        with start_job_server("embedded", tls=files) as server:
            yield server.host, server.port
        return
    require_kind("gearmand")
    with start_job_server("gearmand") as server:
        stunnel = Stunnel(tmp_path, (server.host, server.port), pair, clients=authority.file)
        yield stunnel.address
        stunnel.stop()


@pytest.fixture
def gate(secure_server):
    gate = Gate(secure_server)
    yield gate
    gate.close()
    assert set(gate.first_bytes) == {TLS_HELLO}


@pytest.fixture
def environment(authority, key_file, monkeypatch):
    """The files of TLS and the key, for this process and those that it starts."""
    pair = authority.sign("client")
    monkeypatch.setenv("GEARMAP_TLS_CA", authority.file)
    monkeypatch.setenv("GEARMAP_TLS_CERT", pair.certificate)
    monkeypatch.setenv("GEARMAP_TLS_KEY", pair.key)
    monkeypatch.setenv("GEARMAP_KEY_FILE", str(key_file))
    return TlsFiles(
        ca=TlsFile(authority.file, "a test"),
        cert=TlsFile(pair.certificate, "a test"),
        key=TlsFile(pair.key, "a test"),
    )


@pytest.fixture
def start_worker(environment, key_file):
    """A function that starts `gearmap worker` and waits until it serves."""
    started = []

    def start(address, *words, workers=2):
        command = [sys.executable, "-m", "gearmap", "worker", "-s", f"tls://127.0.0.1:{address[1]}", "-w", str(workers)]
        process = subprocess.Popen(
            ends_with_us([*command, *words]),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(process)
        place, lane = TlsAddress(*address, environment), lane_of(key_file)
        wait_until(
            lambda: any(row.function == lane and row.workers >= workers for row in server_status(place)), "it serves"
        )
        return process

    yield start
    for process in started:
        process.terminate()
        process.terminate()
        process.wait(DEADLINE)


def test_whatever_is_done_no_connection_begins_in_plain_text(gate, start_worker):
    numpy = pytest.importorskip("numpy")
    table = numpy.arange(2**20)
    nested = 3
    worker = start_worker(gate.address)
    with gearmap.Client(f"tls://127.0.0.1:{gate.address[1]}") as client:
        assert client.wait_for_workers(2, timeout=DEADLINE) == 2
        assert client.map(lambda x: x * x, range(1000)) == [x * x for x in range(1000)]
        assert list(client.imap(lambda x: -x, range(100))) == [-x for x in range(100)]
        assert client.submit(divmod, 7, 2).result(DEADLINE) == (3, 1)
        # Captured arrays are fetched from the client, over connections of their own on both sides.
        assert client.map(lambda i: int(table[i]), range(3)) == [0, 1, 2]
        assert client.map(lambda x: sum(gearmap.map(abs, range(x))), [nested, nested]) == [3, 3]
        # Both ask nodes, and the first takes names off the job server.
        assert len(client.on_every_worker(os.getpid)) == 2
        assert len(client.status().nodes) == 1
        futures = [client.options(priority=name).submit(abs, -1) for name in ("low", "normal", "high")]
        assert [future.result(DEADLINE) for future in futures] == [1, 1, 1]
        with client.executor(2) as executor:
            assert list(executor.map(abs, [-1, -2])) == [1, 2]
        slow = client.submit(time.sleep, 60)
        wait_until(slow.running, "it runs")
    worker.terminate()
    worker.wait(DEADLINE)
    n_connections = len(gate.first_bytes)
    assert n_connections > 10


def test_a_large_payload_is_right_and_its_time_grows_with_its_size(gate, start_worker):
    start_worker(gate.address, workers=1)
    with gearmap.Client(f"tls://127.0.0.1:{gate.address[1]}") as client:
        seconds = {}
        for megabytes in (8, 64):
            payload = os.urandom(1 << 20) * megabytes
            began = time.monotonic()
            crc, back = client.submit(lambda data: (zlib.crc32(data), data), payload).result(DEADLINE)
            seconds[megabytes] = time.monotonic() - began
            assert (crc, back == payload) == (zlib.crc32(payload), True)
        # Eight times as much takes eight times as long; what is quadratic would take 64 times as long.
        assert seconds[64] < 30 * max(seconds[8], 0.1)


def test_a_client_without_a_certificate_is_told_what_is_missing(gate, environment, monkeypatch):
    monkeypatch.delenv("GEARMAP_TLS_CERT")
    monkeypatch.delenv("GEARMAP_TLS_KEY")
    place = f"tls://127.0.0.1:{gate.address[1]}"
    with gearmap.Client(place) as client, pytest.raises(gearmap.TlsFailed) as caught:
        client.map(abs, [-1])
    assert f"'{place}' (from the argument)" in str(caught.value)
    assert "client certificate" in str(caught.value)
    assert "start one" not in str(caught.value)


def test_an_address_without_tls_is_not_connected_by_guessing(secure_server, environment):
    place = f"127.0.0.1:{secure_server[1]}"
    with gearmap.Client(place) as client, pytest.raises(gearmap.ServerUnavailable, match=f"name it 'tls://{place}'"):
        client.map(abs, [-1])


def test_a_session_to_an_address_with_tls_sends_nothing_readable(environment):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        session = ServerSession(TlsAddress(*listener.getsockname(), environment))
        session.start(0.0)
        near, _ = listener.accept()
        session.on_writable()
        with near:
            assert near.recv(1) == bytes([TLS_HELLO])
        session.close()


def doctor(*words):
    command = [sys.executable, "-m", "gearmap", "doctor", *words]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, timeout=60)
    assert ended.stderr == b""
    return ended.returncode, ended.stdout.decode()


def test_the_doctor_says_that_it_is_tls_and_what_is_wrong_with_it(gate, start_worker, monkeypatch):
    start_worker(gate.address)
    place = f"tls://127.0.0.1:{gate.address[1]}"
    status, said = doctor("-s", place)
    assert f"ok    server {place}: TLS, and its certificate is right" in said
    assert "warn" not in said
    assert status == 0, said
    monkeypatch.delenv("GEARMAP_TLS_CA")
    status, said = doctor("-s", place)
    assert status == 1
    assert f"fail  server {place}: " in said
    assert "see to its certificate" in said
