"""The blocking questions to a job server, and what goes wrong with them."""

from __future__ import annotations

import threading

import pytest
from transport_support import FakeServer, echo, fake, free_port, loop, packet, request, start_server  # noqa: F401

from gearmap.errors import ConfigurationError, ConnectionLost, ProtocolError, ServerUnavailable
from gearmap.transport import admin
from gearmap.transport.admin import AdminSession, JobRow
from gearmap.transport.events import Accepted, ServerUp, StatusRow, WorkFailed

# ruff: noqa: F811


def test_every_listing_is_text_and_numbers(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    worker = loop.worker([server.address], ["größe"], "node/0")
    session.submit([request(1), request(2)])
    handles = [event.handle for event in loop.until_event(session, Accepted, 2)]
    loop.until_event(worker, ServerUp)
    with AdminSession(server.address) as asked:
        assert set(asked.status()) == {StatusRow("f", 2, 0, 0), StatusRow("größe", 0, 0, 1)}
        assert [(row.client_id, row.functions) for row in asked.workers() if row.functions] == [("node/0", ("größe",))]
        assert {row.handle: (row.retries, row.is_ignored) for row in asked.show_jobs()} == dict.fromkeys(
            handles, (0, False)
        )
        assert all(isinstance(row, JobRow) for row in asked.show_jobs())
        assert set(asked.show_unique_jobs()) == {"unique-1", "unique-2"}
        assert asked.getpid() == server.process.pid
        assert 0 < asked.ping() < 5
        assert not asked.version().startswith("OK")


def test_each_question_can_be_asked_in_one_call(start_server, loop):
    address = start_server().address
    session = loop.ready_session(address)
    session.submit([request(1)])
    [accepted] = loop.until_event(session, Accepted)
    assert admin.server_status(address) == [StatusRow("f", 1, 0, 0)]
    assert len(admin.server_workers(address)) >= 1
    assert admin.server_version(address)
    assert [row.handle for row in admin.show_jobs(address)] == [accepted.handle]
    assert admin.show_unique_jobs(address) == ["unique-1"]
    assert admin.cancel_job(address, accepted.handle) is True
    loop.until_event(session, WorkFailed)
    assert admin.cancel_job(address, "H:nowhere:99") is False
    assert admin.drop_function(address, "never-heard-of") is False


def test_functions_are_created_and_dropped_under_their_whole_name(start_server):
    with AdminSession(start_server().address) as asked:
        asked.create_function("foo")
        assert [row.function for row in asked.status()] == ["foo"]
        assert asked.drop_function("foo") is True
        assert asked.drop_function("foo") is False
        assert asked.status() == []


def test_maxqueue_is_confirmed(start_server):
    with AdminSession(start_server().address) as asked:
        asked.maxqueue("f", 5)


def test_a_shutdown_is_refused_with_the_way_to_do_it(start_server):
    with AdminSession(start_server().address) as asked, pytest.raises(ProtocolError, match="SIGTERM"):
        asked.shutdown()


def test_a_refused_connection_names_the_address():
    port = free_port()
    with pytest.raises(ServerUnavailable, match=f"'127.0.0.1:{port}': Connection refused"):
        admin.server_status(("127.0.0.1", port))


def test_a_silent_server_fails_at_the_timeout_naming_the_address(fake):
    with pytest.raises(ServerUnavailable, match=rf"'127.0.0.1:{fake.address[1]}' within 0.1 s"):
        admin.server_status(fake.address, timeout=0.1)


def answering(fake, answer):
    """Answer the first question that comes, in a thread of its own."""

    def serve():
        fake.accept()
        fake.peer.recv(65536)
        fake.send(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        ("status", b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n"),
        ("status", b"no tabs here\n.\n"),
        ("workers", b"nonsense\n.\n"),
        ("show_jobs", b"H:1\t0\n.\n"),
        ("getpid", b"OK soon\n"),
        ("ping", packet(17, b"something else")),
        ("status", b"HTTP/1.1 400 Bad Request\r\n.\r\n"),
        ("status", packet(19, b"CODE", b"text")),
        ("status", packet(42, b"u", b"0", b"0", b"0", b"0", b"0")),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_protocol_error(fake, ask, answer):
    thread = answering(fake, answer)
    with AdminSession(fake.address) as asked, pytest.raises(ProtocolError):
        getattr(asked, ask)()
    thread.join()


def test_a_broken_connection_is_reported_and_the_next_question_connects_anew(fake):
    thread = answering(fake, b"f\t1")
    with AdminSession(fake.address, timeout=2.0) as asked:

        def close_after():
            thread.join()
            fake.peer.close()

        closer = threading.Thread(target=close_after)
        closer.start()
        with pytest.raises(ConnectionLost):
            asked.status()
        closer.join()
        thread = answering(fake, b"f\t1\t0\t0\n.\n")
        assert asked.status() == [StatusRow("f", 1, 0, 0)]
        thread.join()


@pytest.mark.parametrize("name", ["", "two words", "line\nbreak", "nul\0"])
def test_a_name_that_is_not_one_word_is_refused(name):
    with AdminSession(("127.0.0.1", 1)) as asked, pytest.raises(ConfigurationError):
        asked.drop_function(name)
