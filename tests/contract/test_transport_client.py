"""A session with a real job server."""

from __future__ import annotations

import os
import socket
import time

import pytest
from allowed_differences import expected
from transport_support import echo, free_port, loop, request, start_server  # noqa: F401

from gearmap.errors import ConfigurationError, ConnectionLost, ServerUnavailable
from gearmap.transport.admin import AdminSession
from gearmap.transport.client import ServerSession, SessionState
from gearmap.transport.events import (
    Accepted,
    Connected,
    ConnectFailed,
    Lost,
    Rejected,
    StatusListing,
    StatusRow,
    UniqueStatus,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFailed,
    WorkStatus,
    WorkWarning,
)

# ruff: noqa: F811


class Chunks:
    """A lazy body of `size` bytes."""

    def __init__(self, size, chunk=b"y" * 1_000_000):
        self.size = size
        self.chunk = chunk
        self.made = 0

    def __len__(self):
        return self.size

    def __iter__(self):
        rest = self.size
        while rest:
            piece = self.chunk[:rest]
            rest -= len(piece)
            self.made += len(piece)
            yield piece


def test_jobs_submitted_while_connecting_are_sent_when_the_server_answers(start_server, loop):
    server = start_server()
    session = loop.session(server.address)
    assert session.state is SessionState.CONNECTING
    session.submit([request(1), request(2)])
    loop.worker([server.address], on_job=echo)
    loop.until_event(session, WorkComplete, 2)
    kinds = [type(event) for event in loop.events(session)]
    assert kinds[:3] == [Connected, Accepted, Accepted]
    assert session.server_version[:1].isdigit() or session.server_version


def test_everything_a_worker_sends_arrives_in_order(start_server, loop):
    server = start_server()

    def work(worker, job):
        assert worker.send_status(job, 1, 2)
        assert worker.send_data(job, b"part\0one")
        assert worker.send_warning(job, b"careful")
        assert worker.complete(job, b"whole")
        assert not worker.complete(job, b"again")

    session = loop.ready_session(server.address)
    loop.worker([server.address], on_job=work)
    session.submit([request("t")])
    loop.until_event(session, WorkComplete)
    handle = loop.of(session, Accepted)[0].handle
    assert loop.events(session) == [
        Accepted("t", handle),
        WorkStatus("t", "1", "2"),
        WorkData("t", b"part\0one"),
        WorkWarning("t", b"careful"),
        WorkComplete("t", b"whole"),
    ]


def test_failure_and_exception_are_terminal_and_an_exception_keeps_its_data(start_server, loop):
    server = start_server()

    def work(worker, job):
        worker.fail(job) if job.unique == "unique-1" else worker.exception(job, b"why")

    session = loop.ready_session(server.address)
    loop.worker([server.address], on_job=work)
    session.submit([request(1), request(2)])
    loop.until(lambda: len(loop.events(session)) >= 4)
    assert WorkFailed(1) in loop.events(session)
    assert WorkException(2, b"why") in loop.events(session)


def test_names_and_uniques_are_text_beyond_ascii(start_server, loop):
    server = start_server()
    jobs = []
    session = loop.ready_session(server.address)
    loop.worker([server.address], ["größe"], on_job=lambda worker, job: (jobs.append(job), echo(worker, job)))
    session.submit([request(1, function="größe", unique="ключ")])
    loop.until_event(session, WorkComplete)
    assert (jobs[0].function, jobs[0].unique) == ("größe", "ключ")


@pytest.mark.parametrize("body", [b"", b"\0\0", bytearray(b"array"), memoryview(b"view"), Chunks(3_000_000)])
def test_every_kind_of_body_arrives(start_server, loop, body):
    server = start_server()
    session = loop.ready_session(server.address)
    loop.worker([server.address], on_job=echo)
    expected = b"".join(body) if isinstance(body, Chunks) else bytes(body)
    session.submit([request(1, body)])
    assert loop.until_event(session, WorkComplete)[0].data == expected


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [10, 64])
def test_large_bodies_arrive_intact_both_ways(start_server, loop, megabytes):
    server = start_server()
    session = loop.ready_session(server.address)
    loop.worker([server.address], on_job=echo)
    body = os.urandom(1 << 20) * megabytes
    session.submit([request(1, body)])
    [done] = loop.until_event(session, WorkComplete, timeout=30)
    assert not memoryview(done.data).readonly
    assert done.data == body


def test_a_lazy_body_is_made_only_as_fast_as_the_server_takes_it(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    body = Chunks(200_000_000)
    server.freeze()
    session.submit([request(1, body)])
    loop.for_a_while(0.05)
    # What the two kernels buffer, and a little more.
    assert body.made < 40_000_000
    server.thaw()


def test_priorities_and_background_jobs_are_submitted_as_such(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    session.submit(
        [
            request("low", priority="low"),
            request("normal"),
            request("high", priority="high"),
            request("background", background=True, priority="high"),
        ]
    )
    loop.until_event(session, Accepted, 4)
    order = []
    loop.worker([server.address], on_job=lambda worker, job: (order.append(job.unique), echo(worker, job)))
    loop.until(lambda: len(order) == 4)
    loop.until_event(session, WorkComplete, 3)
    assert order == ["unique-high", "unique-background", "unique-normal", "unique-low"]
    assert {event.token for event in loop.of(session, WorkComplete)} == {"low", "normal", "high"}


def test_a_refused_job_is_rejected_and_its_neighbours_keep_their_handles(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    session.submit([request(0)])
    loop.until_event(session, Accepted)
    with AdminSession(server.address) as admin:
        admin.maxqueue("f", 2)
    session.submit([request(1), request(2), request(3, function="g")])
    loop.until(lambda: len(loop.events(session)) == 4)
    kinds = {event.token: type(event) for event in loop.events(session)}
    assert kinds == {0: Accepted, 1: Accepted, 2: Rejected, 3: Accepted}
    [rejected] = loop.of(session, Rejected)
    assert (rejected.code, rejected.text) == ("QUEUE_ERROR", "Job queue is full")
    loop.worker([server.address], ["f", "g"], on_job=lambda worker, job: worker.complete(job, job.unique.encode()))
    loop.until_event(session, WorkComplete, 3)
    assert {event.token: event.data for event in loop.of(session, WorkComplete)} == {
        0: b"unique-0",
        1: b"unique-1",
        3: b"unique-3",
    }


def test_two_requests_with_one_unique_both_get_every_event_once(start_server, loop):
    server = start_server()

    def work(worker, job):
        worker.send_data(job, b"1")
        worker.send_data(job, b"2")
        worker.complete(job, b"done")

    session = loop.ready_session(server.address)
    session.submit([request("a", unique="same"), request("b", unique="same")])
    loop.until_event(session, Accepted, 2)
    assert len({event.handle for event in loop.of(session, Accepted)}) == 1
    loop.worker([server.address], on_job=work)
    loop.until_event(session, WorkComplete, 2)
    session.submit([request("later")])
    loop.until_event(session, WorkComplete, 3)
    for token in ("a", "b"):
        mine = [event for event in loop.events(session) if getattr(event, "token", None) == token][1:]
        assert mine == [WorkData(token, b"1"), WorkData(token, b"2"), WorkComplete(token, b"done")]


def test_what_comes_after_a_terminal_event_is_dropped(start_server, loop):
    server = start_server()
    held = []
    session = loop.ready_session(server.address)
    loop.worker([server.address], on_job=lambda worker, job: held.append((worker, job)))
    session.submit([request(1)])
    loop.until(lambda: held)
    session.cancel(loop.of(session, Accepted)[0].handle)
    loop.until_event(session, WorkFailed)
    worker, job = held[0]
    worker.complete(job, b"late")  # gearmand sends it on to the client
    session.submit([request(2)])
    loop.until(lambda: len(held) == 2)
    held[1][0].complete(held[1][1], b"next")
    loop.until_event(session, WorkComplete)
    assert [type(event) for event in loop.events(session)] == [Accepted, WorkFailed, Accepted, WorkComplete]


def test_a_job_that_was_taken_before_it_was_cancelled_can_be_listened_to(start_server, loop):
    server = start_server()
    held = []
    session = loop.ready_session(server.address)
    loop.worker([server.address], on_job=lambda worker, job: held.append((worker, job)))
    session.submit([request(1)])
    loop.until(lambda: held)
    handle = loop.of(session, Accepted)[0].handle
    session.cancel(handle, listen=True)
    loop.until_event(session, WorkFailed)
    worker, job = held[0]
    session.query_unique("unique-1")
    loop.until_event(session, UniqueStatus)
    (status,) = loop.of(session, UniqueStatus)
    n_told = expected(server.process.kind, "one-verdict-per-client", gearmand=1, ours=0)
    assert (status.known, status.running, status.clients) == (True, True, n_told)
    worker.send_data(job, b"late")
    if n_told:
        loop.until_event(session, WorkData)
    session.forget(handle)
    worker.complete(job, b"later")
    session.submit([request(2)])
    loop.until(lambda: len(held) == 2)
    held[1][0].complete(held[1][1], b"next")
    loop.until_event(session, WorkComplete)
    assert [event.token for event in loop.of(session, WorkComplete)] == [2]


def test_status_and_unique_questions_are_answered_beside_running_work(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    session.submit([request(1), request(2)])
    session.request_status()
    session.query_unique("unique-1")
    session.query_unique("nobody")
    session.request_status()
    loop.until_event(session, StatusListing, 2)
    loop.until_event(session, UniqueStatus, 2)
    assert loop.of(session, StatusListing)[0].rows == (StatusRow("f", 2, 0, 0),)
    assert loop.of(session, UniqueStatus) == [
        UniqueStatus("unique-1", True, False, 0, 0, 1),
        UniqueStatus("nobody", False, False, 0, 0, 0),
    ]


def test_closing_a_session_drops_its_queued_jobs(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    session.submit([request(1)])
    loop.until_event(session, Accepted)
    session.close()
    other = loop.ready_session(server.address)
    seen = []
    loop.worker([server.address], on_job=lambda worker, job: (seen.append(job.unique), echo(worker, job)))
    other.submit([request(2)])
    loop.until_event(other, WorkComplete)
    assert seen == ["unique-2"]
    with pytest.raises(ConnectionLost, match="is closed"):
        session.submit([request(3)])


def test_a_killed_server_loses_exactly_the_unfinished_tokens(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    worker = loop.worker([server.address], on_job=lambda worker, job: job.unique == "unique-0" and echo(worker, job))
    session.submit([request(0), request(1), request(2, background=True)])
    loop.until_event(session, WorkComplete)
    loop.until_event(session, Accepted, 3)
    server.kill()
    [lost] = loop.until_event(session, Lost)
    assert isinstance(lost.reason, ConnectionLost)
    assert repr(server.address[1]) in str(lost.reason)
    assert lost.tokens == (1,)
    assert session.state is SessionState.CLOSED
    assert session.fileno() == -1
    worker.close()


def test_a_refused_connection_is_reported_in_words(loop):
    port = free_port()
    session = loop.session(("127.0.0.1", port))
    [failed] = loop.until_event(session, ConnectFailed)
    assert isinstance(failed.reason, ServerUnavailable)
    assert str(failed.reason) == f"no job server answered at '127.0.0.1:{port}': Connection refused"


def test_a_frozen_server_does_not_hold_up_submission(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    server.freeze()
    started = time.monotonic()
    session.submit([request(1, Chunks(50_000_000)), *(request(index) for index in range(2, 100))])
    assert time.monotonic() - started < 1.0
    server.thaw()
    loop.until_event(session, Accepted, 99)


def test_a_server_that_is_frozen_from_the_start_fails_at_the_deadline(start_server, loop):
    server = start_server()
    server.freeze()
    session = loop.session(server.address, connect_timeout=0.2)
    session.submit([request(1)])
    [failed] = loop.until_event(session, ConnectFailed)
    assert str(failed.reason) == f"no job server answered at '127.0.0.1:{server.port}' within 0.2 s"


def test_ipv6_and_localhost_work(start_server, loop):
    try:
        port = free_port("::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert port
    server = start_server(host="::1")
    session = loop.ready_session(server.address)
    loop.worker([("localhost", server.port)], on_job=echo)
    session.submit([request(1)])
    loop.until_event(session, WorkComplete)


@pytest.mark.parametrize(
    "bad",
    [
        request(1, unique="u" * 64),
        request(1, unique="a\0b"),
        request(1, function="f\0"),
        request(1, Chunks(2**32)),
    ],
)
def test_what_gearman_cannot_carry_is_refused_before_anything_is_queued(start_server, loop, bad):
    server = start_server()
    session = loop.ready_session(server.address)
    with pytest.raises(ConfigurationError):
        session.submit([request(0), bad])
    session.request_status()
    assert loop.until_event(session, StatusListing)[0].rows == ()


def test_a_unique_of_63_bytes_keeps_the_data_whole(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    loop.worker([server.address], on_job=echo)
    session.submit([request(1, b"data", unique="u" * 63)])
    assert loop.until_event(session, WorkComplete)[0].data == b"data"


def test_sockets_have_keepalive_nodelay_and_a_user_timeout(start_server, loop):
    session = loop.ready_session(start_server().address)
    with socket.socket(fileno=os.dup(session.fileno())) as copy:
        assert copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            assert copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_session_alive(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    session.submit([request(1)])
    loop.until_event(session, Accepted)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0)
    try:
        session.close()
        asker = loop.ready_session(server.address)

        def nobody_waits():
            asker.query_unique("unique-1")
            seen = len(loop.of(asker, UniqueStatus))
            return loop.until_event(asker, UniqueStatus, seen + 1)[-1].clients == 0

        loop.until(nobody_waits)
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_a_session_that_was_never_started_can_be_closed():
    session = ServerSession(("127.0.0.1", 1))
    assert session.fileno() == -1
    assert not session.wants_write
    session.close()
    assert session.take_events() == []
