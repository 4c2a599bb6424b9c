"""TLS to a job server behind a proxy that ends it: gearmand itself is built without."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from transport_support import DEADLINE, echo, fake, loop, request, start_server  # noqa: F401

from gearmap.errors import ServerUnavailable
from gearmap.transport.admin import AdminSession
from gearmap.transport.connection import Connection
from gearmap.transport.events import ConnectFailed, WorkComplete

# ruff: noqa: F811


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that is its own authority: (certificate file, key file)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gearmap test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    directory = tmp_path_factory.mktemp("tls")
    certificate_file, key_file = directory / "certificate.pem", directory / "key.pem"
    certificate_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(certificate_file), str(key_file)


class TlsProxy:
    """Ends TLS and passes on the plain text, one thread per direction."""

    def __init__(self, target, certificate):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*certificate)
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


def test_jobs_travel_over_tls_both_ways(start_server, tls_proxy, certificate, loop):
    proxy = tls_proxy(start_server().address)
    trusted = ssl.create_default_context(cafile=certificate[0])
    session = loop.ready_session(proxy.address, tls=trusted)
    loop.worker([proxy.address], on_job=echo, tls=trusted)
    body = bytes(range(256)) * 4000
    session.submit([request(1, body), request(2, b"small")])
    loop.until_event(session, WorkComplete, 2)
    assert {event.token: bytes(event.data) for event in loop.of(session, WorkComplete)} == {
        1: body,
        2: b"small",
    }


def test_questions_travel_over_tls(start_server, tls_proxy, certificate):
    proxy = tls_proxy(start_server().address)
    trusted = ssl.create_default_context(cafile=certificate[0])
    with AdminSession(proxy.address, tls=trusted) as asked:
        assert asked.status() == []


def test_a_certificate_that_is_not_trusted_is_refused_by_name(start_server, tls_proxy, loop):
    proxy = tls_proxy(start_server().address)
    session = loop.session(proxy.address, tls=ssl.create_default_context())
    [failed] = loop.until_event(session, ConnectFailed)
    assert type(failed.reason) is ServerUnavailable
    assert "certificate verify failed" in str(failed.reason)


def test_a_plain_text_server_is_never_spoken_to_in_plain_text(fake, loop):
    session = loop.session(fake.address, tls=ssl.create_default_context())
    session.submit([request(1, b"secret")])
    fake.accept()
    loop.step()
    assert fake.peer.recv(65536)[:2] == b"\x16\x03"
    fake.send(b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n")
    [failed] = loop.until_event(session, ConnectFailed)
    assert type(failed.reason) is ServerUnavailable


def test_a_tls_server_is_told_apart_by_a_plain_text_client(tls_proxy, fake, loop):
    proxy = tls_proxy(fake.address)
    session = loop.session(proxy.address, connect_timeout=DEADLINE)
    loop.until_event(session, ConnectFailed)


def test_the_files_that_gearman3_takes_make_a_context_that_checks_the_server(certificate):
    connection = Connection("127.0.0.1", 1, certificate[1], certificate[0], certificate[0])
    assert connection.tls.verify_mode is ssl.CERT_REQUIRED
    assert connection.tls.check_hostname
