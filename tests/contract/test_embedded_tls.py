"""The embedded job server in TLS: who is let in, who is not, and what those may take who never finish."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import time
import warnings
import zlib
from pathlib import Path

import packets
import psutil
import pytest
from certificates import Authority
from transport_support import DEADLINE, echo, loop, other_loop, request  # noqa: F401

from gearmap.errors import ConfigurationError, TlsFailed
from gearmap.jobserver.process import start_job_server
from gearmap.jobserver.secured import HANDSHAKE_TIMEOUT, MAX_HANDSHAKES, SecureSocket
from gearmap.tls import TlsAddress, TlsFile, TlsFiles, TlsServerFiles, client_context, server_context
from gearmap.transport.admin import AdminSession
from gearmap.transport.client import SessionState
from gearmap.transport.events import ConnectFailed, WorkComplete

# ruff: noqa: F811

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def start(authority):
    """A function that starts a server, which lets in everybody or those with a certificate; it returns the address."""
    started = []

    def start_server(*, asks=False, pair=None, **options):
        pair = pair or authority.sign("server")
        files = TlsServerFiles.of_options(pair.certificate, pair.key, authority.file if asks else None)
        started.append(start_job_server("embedded", tls=files, **options))
        return started[-1]

    yield start_server
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def shown(authority):
    return authority.sign("client")


def secure(server, authority, pair=None):
    def named(path):
        return TlsFile(path, "a test")

    files = TlsFiles(ca=named(authority.file))
    if pair is not None:
        files = TlsFiles(ca=named(authority.file), cert=named(pair.certificate), key=named(pair.key))
    return TlsAddress(server.host, server.port, files)


def why_not(loop, address):
    session = loop.session(address)
    [failed] = loop.until_event(session, ConnectFailed)
    return failed.reason


# --------------------------------------------------------------------------------------------------------- who gets in


@pytest.mark.parametrize("asks", [False, True])
def test_jobs_and_questions_pass(start, authority, shown, loop, asks):
    server = start(asks=asks)
    assert server.kind == "embedded"
    address = secure(server, authority, shown if asks else None)
    session = loop.ready_session(address)
    loop.worker([address], on_job=echo)
    bodies = {token: os.urandom(1000 * token) for token in range(40)}
    session.submit([request(token, body) for token, body in bodies.items()])
    loop.until_event(session, WorkComplete, len(bodies))
    assert {event.token: bytes(event.data) for event in loop.of(session, WorkComplete)} == bodies
    with AdminSession(address) as asked:
        assert asked.getpid() == server.pid
        assert [row.function for row in asked.status()] == ["f"]


def test_who_has_no_certificate_is_told_so(start, authority, loop):
    error = why_not(loop, secure(start(asks=True), authority))
    assert type(error) is TlsFailed
    assert "wants a client certificate; give one" in str(error)


def test_who_has_one_of_another_authority_is_told_so(start, authority, tmp_path, loop):
    stranger = Authority(tmp_path, "other").sign("stranger")
    error = why_not(loop, secure(start(asks=True), authority, stranger))
    assert "refuses the client certificate" in str(error)
    assert "does not know the authority" in str(error)


def test_who_has_an_expired_one_is_told_so(start, authority, loop):
    error = why_not(loop, secure(start(asks=True), authority, authority.sign("old", expired=True)))
    assert "refuses the client certificate" in str(error)
    assert "expired" in str(error)


def test_who_speaks_plain_text_is_told_to_speak_tls(start, loop):
    server = start()
    error = why_not(loop, (server.host, server.port))
    assert str(error) == (
        f"the job server at '127.0.0.1:{server.port}' speaks TLS; name it 'tls://127.0.0.1:{server.port}'"
    )


def test_nothing_older_than_tls_1_2_is_spoken(start, authority):
    server = start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.file)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection((server.host, server.port), DEADLINE) as plain, pytest.raises(ssl.SSLError) as caught:
        context.wrap_socket(plain, server_hostname="127.0.0.1")
    assert caught.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"


def test_a_certificate_that_is_renewed_is_shown_without_a_restart(start, authority, loop):
    pair = authority.sign("renewed", expired=True)
    server = start(pair=pair)
    assert "has expired" in str(why_not(loop, secure(server, authority)))
    assert authority.sign("renewed") == pair
    loop.ready_session(secure(server, authority))


def test_a_certificate_that_goes_away_stays_in_use(start, authority, loop):
    pair = authority.sign("short-lived")
    server = start(pair=pair)
    Path(pair.certificate).unlink()
    loop.ready_session(secure(server, authority))


@pytest.mark.parametrize("kind", ["gearmand", "/bin/true"])
def test_only_the_embedded_server_can(kind, authority):
    pair = authority.sign("server")
    with pytest.raises(ConfigurationError, match="TLS is for the embedded job server"):
        start_job_server(kind, tls=TlsServerFiles.of_options(pair.certificate, pair.key, None))


def test_a_wrong_file_is_said_before_anything_is_started(authority):
    with pytest.raises(ConfigurationError, match=r"TLS key '/nowhere' \(from --tls-key\) cannot be read"):
        start_job_server("embedded", tls=TlsServerFiles.of_options(authority.sign("x").certificate, "/nowhere", None))


# ------------------------------------------------------------------------------------------------------ large and small


@SLOW
def test_large_bodies_pass_both_ways_at_a_speed_that_does_not_sink_with_their_size(start, authority, loop):
    address = secure(start(), authority)
    session = loop.ready_session(address)
    loop.worker([address], on_job=echo)
    seconds = {}
    for megabytes in (8, 64):
        body = os.urandom(1 << 20) * megabytes
        began = time.monotonic()
        session.submit([request(megabytes, body)])
        done = loop.until_event(session, WorkComplete, len(seconds) + 1, timeout=60.0)[-1]
        seconds[megabytes] = time.monotonic() - began
        assert zlib.crc32(done.data) == zlib.crc32(body)
    # Eight times as much takes eight times as long; what is quadratic would take 64 times as long.
    assert seconds[64] < 30 * max(seconds[8], 0.05)


@pytest.mark.parametrize("size", [1, 1000, 16384, 1 << 20])
def test_packets_may_end_and_begin_anywhere_in_a_record(start, authority, loop, size):
    """What is left of a record of which a body has taken its part is reported by nothing but OpenSSL."""
    server = start()
    loop.worker([secure(server, authority)], on_job=echo)
    bodies = [os.urandom(100_000), b"small", os.urandom(100_000), b"", os.urandom(70_000), b"last one"]
    data = b"".join(packets.request(packets.SUBMIT_JOB, b"f", b"%d" % i, body) for i, body in enumerate(bodies))
    first = data[: min(len(data), 300 * size)]
    context = ssl.create_default_context(cafile=authority.file)
    plain = socket.create_connection((server.host, server.port), DEADLINE)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
        for at in range(0, len(first), size):
            sock.sendall(first[at : at + size])
        sock.sendall(data[len(first) :])
        sock.setblocking(False)
        received = bytearray()

        def all_came():
            try:
                received.extend(sock.recv(1 << 20))
            except ssl.SSLWantReadError:
                pass
            return all(body in received for body in bodies)

        loop.until(all_came)


def test_a_reader_that_is_slow_gets_everything_in_order(start, authority, loop, other_loop):
    """The server cannot send on: OpenSSL then wants the very same bytes the next time."""
    address = secure(start(), authority)
    loop.worker([address], on_job=echo)
    slow = other_loop.ready_session(address)
    bodies = {token: bytes([token]) * (300 + token * 37) for token in range(200)}
    bodies[200] = os.urandom(3 << 20)
    bodies |= {token: bytes([token % 256]) * 50 for token in range(201, 1200)}
    slow.submit([request(token, body) for token, body in bodies.items()])
    loop.for_a_while(0.5)
    while len(other_loop.of(slow, WorkComplete)) < len(bodies):
        other_loop.step(0.0)
        loop.step(0.0)
    assert {event.token: bytes(event.data) for event in other_loop.of(slow, WorkComplete)} == bodies


def test_what_was_begun_to_be_sent_is_sent_whatever_is_offered_the_next_time(authority):
    """OpenSSL refuses to go on with other or fewer bytes; what is offered are parts, perhaps fewer the next time."""
    pair = authority.sign("server")
    context = server_context(TlsServerFiles.of_options(pair.certificate, pair.key, None))
    context.sslsocket_class = SecureSocket
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    near = context.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
    trusting = client_context(TlsFiles(ca=TlsFile(authority.file, "a test")))
    far = trusting.wrap_socket(theirs, server_hostname="127.0.0.1", do_handshake_on_connect=False)
    with near, far:
        for each in (far, near, far, near):
            with contextlib.suppress(ssl.SSLWantReadError):
                each.do_handshake()
        parts = [b"%06d" % number for number in range(1_000_000)]
        whole, sent = b"".join(parts), 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += near.send(whole[sent : sent + 60_000])
        received = bytearray(far.recv(1 << 20))
        sent += near.sendmsg([whole[sent : sent + 6], whole[sent + 6 : sent + 10]])
        while len(received) < len(whole):
            with contextlib.suppress(ssl.SSLWantReadError):
                received += far.recv(1 << 20)
            with contextlib.suppress(BlockingIOError):
                sent += near.send(whole[sent : sent + 60_000])
        assert received == whole
        assert sent == len(whole)


# --------------------------------------------------------------------------------------------- those who never finish


@SLOW
@pytest.mark.parametrize("says", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_who_does_not_finish_the_handshake_is_closed(start, authority, loop, says):
    server = start()
    with socket.create_connection((server.host, server.port), DEADLINE) as silent:
        silent.sendall(says)
        silent.settimeout(HANDSHAKE_TIMEOUT + 5.0 + DEADLINE)
        try:
            answer = silent.recv(100)
        except ConnectionResetError:
            answer = b""
        assert answer == b""
    loop.ready_session(secure(server, authority))


def test_who_resets_the_connection_with_something_said_harms_nobody(start, authority, loop):
    """Such a socket cannot be wrapped: Python has closed it by then, and its number belongs to the next one."""
    server = start()
    for number in range(100):
        sock = socket.create_connection((server.host, server.port), DEADLINE)
        sock.sendall(b"\x16\x03\x01" if number % 2 else b"version\n")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    loop.ready_session(secure(server, authority))
    assert server.alive


@SLOW
def test_thousands_who_begin_a_handshake_take_bounded_memory_and_keep_nobody_out(start, authority, loop):
    server = start()
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    opened = []
    try:
        for _ in range(MAX_HANDSHAKES + 500):
            opened.append(socket.create_connection((server.host, server.port), DEADLINE))
            opened[-1].sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        session = loop.session(secure(server, authority))
        loop.until(lambda: session.state is SessionState.READY)
        assert process.memory_info().rss - before < MAX_HANDSHAKES * 100_000
    finally:
        for each in opened:
            each.close()
