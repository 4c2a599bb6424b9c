"""A session with peers that misbehave: other protocols, silence, torn packets, unknown handles."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from transport_support import DEADLINE, FakeServer, fake, loop, packet, request  # noqa: F401

from gearmap.errors import ConnectionLost, ProtocolError, ServerUnavailable, TlsFailed, TransportError
from gearmap.transport import connection
from gearmap.transport.client import ServerSession, SessionState
from gearmap.transport.events import (
    Accepted,
    Connected,
    ConnectFailed,
    Lost,
    WorkComplete,
    WorkData,
    WorkFailed,
)

# ruff: noqa: F811


def ready(loop, fake):
    session = loop.session(fake.address)
    fake.greet(loop)
    loop.until(lambda: session.state is SessionState.READY)
    return session


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"-ERR unknown command 'version'\r\n",
    ],
)
def test_a_server_of_another_protocol_is_named_with_what_it_sent(loop, fake, answer):
    session = loop.session(fake.address)
    session.submit([request(1)])
    fake.accept()
    loop.step()
    fake.send(answer)
    [failed] = loop.until_event(session, ConnectFailed)
    assert type(failed.reason) is ProtocolError
    assert str(failed.reason).startswith(
        f"'127.0.0.1:{fake.address[1]}' does not speak the Gearman protocol (it sent b"
    )
    assert repr(answer[:5])[2:-1] in str(failed.reason)


@pytest.mark.parametrize("alert", [b"\x15\x03\x01\x00\x02\x02\x46", b"\x15\x03\x03\x00\x02\x02\x0a"])
def test_a_server_that_answers_in_tls_is_told_apart(loop, fake, alert):
    session = loop.session(fake.address)
    fake.accept()
    loop.step()
    fake.send(alert)
    [failed] = loop.until_event(session, ConnectFailed)
    assert type(failed.reason) is TlsFailed
    assert str(failed.reason).endswith(f"speaks TLS; name it 'tls://127.0.0.1:{fake.address[1]}'")


def test_a_real_http_server_is_told_apart_and_does_not_hang(loop):
    import http.server

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            session = loop.session(("127.0.0.1", server.server_address[1]), connect_timeout=DEADLINE)
            [failed] = loop.until_event(session, ConnectFailed)
        finally:
            server.shutdown()
            thread.join()
    assert "does not speak the Gearman protocol" in str(failed.reason)


def test_a_peer_that_never_answers_fails_at_the_deadline_and_nothing_was_sent(loop, fake):
    session = loop.session(fake.address, connect_timeout=0.15)
    session.submit([request(1, b"secret body")])
    fake.accept()
    [failed] = loop.until_event(session, ConnectFailed)
    assert type(failed.reason) is ServerUnavailable
    assert "within 0.15 s" in str(failed.reason)
    assert b"secret body" not in fake.receive_until(b"gearmap")


def test_a_connection_that_fails_at_once_is_due_at_once(loop):
    session = ServerSession(("255.255.255.255", 1))
    session.start(time.monotonic())
    assert session.fileno() == -1
    assert session.deadline == 0.0
    [failed] = session.take_events()
    assert type(failed) is ConnectFailed
    assert session.deadline is None


def test_a_black_holed_address_does_not_block(loop):
    # A listener whose backlog is full drops every further SYN.
    full = FakeServer(backlog=0)
    fillers = []
    try:
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.address)
            fillers.append(filler)
        started = time.monotonic()
        session = loop.session(full.address, connect_timeout=0.2)
        session.submit([request(1)])
        assert time.monotonic() - started < 0.1
        assert session.deadline is not None
        [failed] = loop.until_event(session, ConnectFailed)
        assert "within 0.2 s" in str(failed.reason)
    finally:
        full.close()
        for filler in fillers:
            filler.close()


def test_a_name_is_looked_up_without_blocking(loop, fake, monkeypatch):
    release = threading.Event()
    lookup = socket.getaddrinfo

    def slow(host, port, *arguments, flags=0, **options):
        if flags & socket.AI_NUMERICHOST:
            return lookup(host, port, *arguments, flags=flags, **options)
        assert release.wait(DEADLINE)
        return lookup("127.0.0.1", port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    started = time.monotonic()
    session = loop.session(("head.example", fake.address[1]), connect_timeout=DEADLINE)
    session.submit([request(1)])
    loop.step()
    assert time.monotonic() - started < 1.0
    assert session.state is SessionState.CONNECTING
    release.set()
    fake.greet(loop)
    loop.until_event(session, Connected)


def test_a_name_that_does_not_resolve_is_said_so(loop, monkeypatch):
    lookup = socket.getaddrinfo

    def fails(host, port, *arguments, flags=0, **options):
        if flags & socket.AI_NUMERICHOST:
            return lookup(host, port, *arguments, flags=flags, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    session = loop.session(("head.example", 4730))
    [failed] = loop.until_event(session, ConnectFailed)
    assert str(failed.reason) == "no job server at 'head.example:4730': Name or service not known"


def test_the_next_address_of_a_name_is_tried_when_the_first_refuses(loop, fake, monkeypatch):
    closed = FakeServer()
    closed.close()
    endpoints = [
        (socket.AF_INET, closed.address),
        (socket.AF_INET, closed.address),
        (socket.AF_INET, fake.address),
    ]
    monkeypatch.setattr(connection, "resolve_at_once", lambda address: list(endpoints))
    session = loop.session(("several", fake.address[1]))
    loop.step()
    fake.greet(loop)
    loop.until_event(session, Connected)


def test_end_of_stream_in_the_middle_of_a_packet_loses_the_request(loop, fake):
    session = ready(loop, fake)
    session.submit([request(1)])
    fake.receive_until(b"unique-1\0x")
    fake.send(packet(8, b"H:1") + packet(13, b"H:1", b"x" * 200_000)[:100_000])
    loop.until_event(session, Accepted)
    fake.peer.close()
    [lost] = loop.until_event(session, Lost)
    assert type(lost.reason) is ConnectionLost
    assert "closed in the middle of a packet" in str(lost.reason)
    assert lost.tokens == (1,)


def test_what_arrived_before_a_reset_still_counts(loop, fake):
    session = ready(loop, fake)
    session.submit([request(1), request(2)])
    fake.receive_until(b"unique-2\0x")
    fake.send(packet(8, b"H:1") + packet(8, b"H:2") + packet(13, b"H:1", b"done"))
    loop.until_event(session, WorkComplete)
    fake.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    fake.peer.close()
    [lost] = loop.until_event(session, Lost)
    assert lost.tokens == (2,)


def test_outcomes_received_before_the_server_went_are_kept_when_the_next_send_fails(loop, fake):
    session = ready(loop, fake)
    session.submit([request(1)])
    fake.receive_until(b"unique-1\0x")
    fake.send(packet(8, b"H:1") + packet(13, b"H:1", b"done"))
    fake.peer.close()
    while session.state is SessionState.READY:  # not a step of the loop: only sends
        session.submit([request("late", b"z" * 100_000)])
    loop.step()
    assert WorkComplete(1, b"done") in loop.events(session)
    assert "late" in loop.of(session, Lost)[0].tokens


@pytest.mark.parametrize(
    "sent",
    [
        b"text",
        b"\0REQ\0\0\0\x06\0\0\0\0",
        packet(4711),
        packet(31, b"H", b"f", b"u", b"data"),
        packet(8, b"H:9"),
    ],
)
def test_a_violation_of_the_protocol_ends_the_session(loop, fake, sent):
    session = ready(loop, fake)
    fake.send(sent)
    [lost] = loop.until_event(session, Lost)
    assert type(lost.reason) is ProtocolError
    assert session.state is SessionState.CLOSED


def test_unknown_handles_and_trailing_nuls_do_no_harm(loop, fake):
    session = ready(loop, fake)
    session.submit([request(1), request(2)])
    fake.receive_until(b"unique-2\0x")
    fake.send(
        packet(8, b"H:1")
        + packet(8, b"H:2\0")
        + packet(28, b"H:nobody", b"data")
        + packet(12, b"H:nobody", b"1", b"2")
        + packet(13, b"H:nobody", b"data")
        + packet(14, b"H:nobody")
        + packet(20, b"H:nobody", b"1", b"1", b"0", b"0")
        + packet(14, b"H:1\0")
        + packet(28, b"H:1", b"late")
        + packet(28, b"H:2", b"data")
    )
    loop.until_event(session, WorkData)
    assert loop.events(session)[1:] == [
        Accepted(1, "H:1"),
        Accepted(2, "H:2"),
        WorkFailed(1),
        WorkData(2, b"data"),
    ]


def test_packets_sent_one_byte_at_a_time_are_understood(loop, fake):
    session = ready(loop, fake)
    session.submit([request(1)])
    fake.receive_until(b"unique-1\0x")
    fake.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in packet(8, b"H:1") + packet(12, b"H:1", b"0.5", b"x") + packet(13, b"H:1", b"done"):
        fake.send(bytes([byte]))
        loop.step()
    loop.until_event(session, WorkComplete)


def test_a_body_that_fails_while_it_is_sent_loses_the_connection_and_not_the_process(loop, fake):
    class Broken:
        def __len__(self):
            return 10

        def __iter__(self):
            yield b"x"
            raise ZeroDivisionError("sealing failed")

    session = ready(loop, fake)
    session.submit([request(1, Broken())])
    [lost] = loop.until_event(session, Lost)
    assert isinstance(lost.reason, TransportError)
    assert "sealing failed" in str(lost.reason)
    assert lost.tokens == (1,)


def test_many_small_requests_are_one_send(loop, fake):
    session = ready(loop, fake)
    session.submit([request(index) for index in range(200)])
    received = fake.peer.recv(1 << 20)
    assert received.count(b"unique-") == 200


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc to read the peak of memory")
def test_a_64_mb_packet_is_received_with_about_its_own_size_of_memory(loop, fake, tmp_path):
    """Measured in a process of its own, as growth of the peak of its resident memory."""
    program = tmp_path / "receive.py"
    program.write_text(_RECEIVE_64_MB)
    size = 64 << 20
    with subprocess.Popen(
        [sys.executable, str(program), str(fake.address[1])],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        fake.accept()
        fake.receive_until(b"gearmap")
        fake.send(b"OK fake\n" + packet(17, b"gearmap"))
        fake.receive_until(b"unique\0x")
        fake.send(packet(8, b"H:1"))
        fake.send(struct.pack("!4sII", b"\0RES", 13, size + 4) + b"H:1\0")
        for _ in range(64):
            fake.send(b"z" * (1 << 20))
        grown = int(process.communicate(timeout=DEADLINE)[0])
    assert size * 0.9 < grown < size * 1.3


_RECEIVE_64_MB = """
import sys, time
from gearmap.transport.client import ServerSession
from gearmap.transport.events import JobRequest, WorkComplete
from gearmap.transport.poller import Poller

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

poller = Poller()
session = ServerSession(("127.0.0.1", int(sys.argv[1])))
session.start(time.monotonic())
poller.add(session)
session.submit([JobRequest(1, "f", "unique", b"x")])
before = peak()
end = time.monotonic() + 10
while time.monotonic() < end:
    poller.dispatch(1.0)
    done = [event for event in session.take_events() if isinstance(event, WorkComplete)]
    if done:
        assert len(done[0].data) == 64 << 20
        break
print(peak() - before)
session.close()
poller.close()
"""
