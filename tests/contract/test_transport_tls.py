"""What travels over TLS to a job server behind a proxy that ends it; `test_tls_failures` has what can go wrong."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest
from certificates import Authority
from transport_support import DEADLINE, echo, fake, loop, request, start_server  # noqa: F401

from gearmap.errors import TlsFailed
from gearmap.tls import TlsAddress, TlsFile, TlsFiles, client_context
from gearmap.transport.admin import AdminSession
from gearmap.transport.connection import Connection
from gearmap.transport.events import ConnectFailed, WorkComplete

# ruff: noqa: F811


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def certificate(authority):
    return authority.sign("server")


@pytest.fixture(scope="module")
def trusting(authority):
    """What makes an address one that TLS is spoken with, by who trusts the authority."""
    files = TlsFiles(ca=TlsFile(authority.file, "a test"))
    return lambda address: TlsAddress(*address, files)


class TlsProxy:
    """Ends TLS and passes on the plain text, one thread per direction."""

    def __init__(self, target, certificate):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate.certificate, certificate.key)
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.sockets = []
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self):
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            try:
                near = self.context.wrap_socket(plain, server_side=True)
            except (ssl.SSLError, OSError):
                plain.close()
                continue
            far = socket.create_connection(self.target)
            self.sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                self.threads.append(threading.Thread(target=self.pump, args=(source, sink)))
                self.threads[-1].start()

    @staticmethod
    def pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        for each in self.sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self.threads:
            thread.join(DEADLINE)
        for each in (*self.sockets, self.listener):
            each.close()


@pytest.fixture
def tls_proxy(certificate):
    proxies = []

    def start(target):
        proxies.append(TlsProxy(target, certificate))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


def test_jobs_travel_over_tls_both_ways(start_server, tls_proxy, trusting, loop):
    address = trusting(tls_proxy(start_server().address).address)
    session = loop.ready_session(address)
    loop.worker([address], on_job=echo)
    body = bytes(range(256)) * 4000
    session.submit([request(1, body), request(2, b"small")])
    loop.until_event(session, WorkComplete, 2)
    assert {event.token: bytes(event.data) for event in loop.of(session, WorkComplete)} == {
        1: body,
        2: b"small",
    }


def test_questions_travel_over_tls(start_server, tls_proxy, trusting):
    address = trusting(tls_proxy(start_server().address).address)
    with AdminSession(address) as asked:
        assert asked.status() == []


def test_a_plain_text_server_is_never_spoken_to_in_plain_text(fake, trusting, loop):
    session = loop.session(trusting(fake.address))
    session.submit([request(1, b"secret")])
    fake.accept()
    loop.step()
    assert fake.peer.recv(65536)[:2] == b"\x16\x03"
    fake.send(b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n")
    [failed] = loop.until_event(session, ConnectFailed)
    assert type(failed.reason) is TlsFailed
    assert "does not speak TLS: it answered in plain text" in str(failed.reason)


def test_the_files_that_gearman3_takes_make_a_connection_that_checks_the_server(authority, certificate):
    connection = Connection("127.0.0.1", 1, certificate.key, certificate.certificate, authority.file)
    context = client_context(connection.address.tls)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
