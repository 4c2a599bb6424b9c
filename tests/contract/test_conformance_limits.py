"""What a job server does with bytes that are wrong, huge, half, or not read."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct

import psutil
import pytest
from allowed_differences import ALLOWED_DIFFERENCES, expected
from packets import (
    CAN_DO_TIMEOUT,
    ECHO_REQ,
    ECHO_RES,
    ERROR,
    SUBMIT_JOB,
    SUBMIT_JOB_BG,
    WORK_COMPLETE,
    WORK_DATA,
    WORK_EXCEPTION,
    WORK_STATUS,
    request,
)

MIB = 1 << 20


def is_answering(connection):
    return connection.ask(ECHO_REQ, b"still there") == (ECHO_RES, b"still there")


# -- wrong bytes


def test_the_magic_of_responses_is_refused_politely(connect):
    peer = connect()
    peer.send_bytes(request(ECHO_REQ, b"x", magic=b"\0RES"))
    assert peer.read() == (ERROR, b"INVALID_MAGIC\0Request magic expected")
    assert is_answering(peer)


@pytest.mark.parametrize("command", [6, 8, 10, 11, 17, 19, 20, 27])
def test_commands_of_servers_are_not_expected_from_clients(connect, command):
    peer = connect()
    answer = peer.ask(command, b"a", b"b", b"c", b"d", b"e") if command in (11, 20) else peer.ask(command, b"a", b"b")
    assert answer == (ERROR, b"INVALID_COMMAND\0Command not expected")
    assert is_answering(peer)


@pytest.mark.parametrize("command", [0, 43, 44, 1000, 2**31 - 1])
def test_an_unknown_command_closes_the_connection(connect, command):
    peer, witness = connect(), connect()
    peer.send(command, b"a", b"b", b"c")
    peer.expect_closed()
    assert is_answering(witness)


def test_a_command_number_from_two_to_the_31_on(own_job_server, connections):
    server = own_job_server()
    peer = connections(server)
    peer.send(2**31)
    peer.expect_closed()
    if expected(server.kind, "high-command-numbers", gearmand="dies", ours="lives") == "lives":
        assert is_answering(connections(server))


@pytest.mark.parametrize("junk", [b"\0BAD\0\0\0\x10\0\0\0\0", b"\0" * 64, b"\0R\0E\0Q" * 10])
def test_a_wrong_magic_closes_the_connection(connect, junk):
    peer, witness = connect(), connect()
    peer.send_bytes(junk)
    peer.expect_closed()
    assert is_answering(witness)


def test_http_gets_lines_of_errors(connect):
    peer = connect()
    peer.send_bytes(b"GET / HTTP/1.0\r\nHost: here\r\n")
    assert peer.read_line() == b"ERR UNKNOWN_COMMAND Unknown+server+commandGET\r\n"
    assert peer.read_line() == b"ERR UNKNOWN_COMMAND Unknown+server+commandHost:\r\n"


@pytest.mark.parametrize(
    "packet",
    [
        request(SUBMIT_JOB, b"f", b"unique only"),
        request(CAN_DO_TIMEOUT, b"f"),
        request(WORK_COMPLETE, b"H:nobody:1"),
        request(WORK_DATA, b"H:nobody:1"),
        request(WORK_EXCEPTION, b"H:nobody:1"),
        request(WORK_STATUS, b"H:nobody:1", b"1"),
    ],
    ids=["submit", "can-do-timeout", "complete", "data", "exception", "status"],
)
def test_too_few_arguments(job_server, connect, packet):
    peer = connect()
    peer.send_bytes(packet)
    if expected(job_server.kind, "short-packets-close", gearmand="stalls", ours="closes") == "closes":
        peer.expect_closed()
        return
    # Nothing tells that nothing comes: the shortest deadline that would show an answer.
    peer.send(ECHO_REQ, b"more")
    peer.socket.settimeout(0.1)
    try:
        assert peer.socket.recv(100) == b""
    except TimeoutError:
        pass


def test_epoch_and_reduce_jobs(job_server, connect, f):
    for command, args in ((36, (f, b"", b"0", b"data")), (37, (f, b"", b"reducer", b"", b"data"))):
        peer = connect()
        peer.send(command, *args)
        if expected(job_server.kind, "no-epoch-no-reduce", gearmand="accepted", ours="closed") == "closed":
            peer.expect_closed()
        else:
            peer.submit_read(peer.read())


# -- pieces


def test_a_packet_may_come_byte_by_byte(connect, f):
    client, worker = connect(), connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = b"version\r\n" + request(SUBMIT_JOB, f, b"", b"slow") + b"verbose\n"
    for n in range(len(stream)):
        client.send_bytes(stream[n : n + 1])
    assert client.read_line().startswith(b"OK 1.1.20")
    handle = client.submit_read(client.read())
    assert client.read_line() == b"OK ERROR\n"
    worker.can_do(f)
    assert worker.grab() == [handle, f, b"", b"slow"]


def test_a_half_packet_disturbs_nobody_else(job_server, connect):
    half, witness = connect(), connect()
    half.send_bytes(request(ECHO_REQ, b"whole")[:-3])
    assert is_answering(witness)
    assert ALLOWED_DIFFERENCES["half-packets-time-out"]
    half.send_bytes(b"ole")
    half.expect(ECHO_RES, b"whole")


def test_a_header_that_announces_gigabytes_allocates_nothing(job_server, connect):
    process = psutil.Process(job_server.pid)
    witness = connect()
    before = process.memory_info().rss
    announcing = []
    for _ in range(10):
        peer = connect()
        peer.send_bytes(b"\0REQ" + struct.pack(">II", SUBMIT_JOB_BG, 2**31 - 1) + b"f\0u\0" + b"x" * 1000)
        announcing.append(peer)
        assert is_answering(witness)
    assert process.memory_info().rss - before < 32 * MIB


def test_a_body_of_four_gigabytes(job_server, connect):
    peer, witness = connect(), connect()
    peer.send_bytes(b"\0REQ" + struct.pack(">II", ECHO_REQ, 2**32 - 1))
    if expected(job_server.kind, "body-limit", gearmand="waits", ours="closed") == "closed":
        peer.expect_closed()
    assert is_answering(witness)


# -- many


def test_five_hundred_connections_at_once_are_accepted_quickly(job_server, connect):
    peers = [connect() for _ in range(500)]
    for peer in peers:
        peer.send(ECHO_REQ, b"hello")
    for peer in peers:
        peer.expect(ECHO_RES, b"hello")


def test_a_long_queue_is_dropped_with_its_client(connect, f):
    client, worker = connect(), connect()
    n_jobs = 20_000
    packet = request(SUBMIT_JOB, f, b"", b"x")
    for _ in range(20):
        client.send_bytes(packet * (n_jobs // 20))
        for _ in range(n_jobs // 20):
            client.read()
    client.close()
    worker.can_do(f)
    while worker.grab() is not None:
        pass
    while f + b"\t0\t0\t1" not in worker.ask_lines(b"status"):
        assert worker.grab() is None


# -- slow readers


def test_a_client_that_does_not_read_costs_a_bounded_amount_of_memory(own_job_server, connections, f):
    server = own_job_server()
    process = psutil.Process(server.pid)
    client, worker, witness = connections(server), connections(server), connections(server)
    before = process.memory_info().rss
    client.send_bytes(request(SUBMIT_JOB, f, b"", b""))
    worker.can_do(f)
    handle = worker.must_grab()
    worker.timeout = 0.5
    part = request(WORK_DATA, handle, bytes(MIB))
    n_parts = 100
    n_sent = 0
    try:
        while n_sent < n_parts:
            worker.send_bytes(part)
            n_sent += 1
    except TimeoutError:
        pass
    is_held_back = expected(server.kind, "slow-readers-hold-back", gearmand=False, ours=True)
    assert (n_sent < n_parts) == is_held_back
    if is_held_back:
        assert process.memory_info().rss - before < 64 * MIB
    # Whatever happens between these two, everybody else is served.
    assert is_answering(witness)


def test_what_was_held_back_arrives_when_the_client_reads_again(own_job_server, connections, f):
    server = own_job_server()
    client, worker = connections(server), connections(server)
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    part = bytes(range(256)) * (MIB // 256)
    pending = memoryview(request(WORK_DATA, handle, part) * 60 + request(WORK_COMPLETE, handle, b"end"))
    worker.socket.setblocking(False)
    n_parts = 0
    while True:
        # Fill until the server takes no more, then read one packet.
        try:
            while pending:
                pending = pending[worker.socket.send(pending) :]
        except BlockingIOError:
            pass
        packet = client.read()
        if packet.command == WORK_COMPLETE:
            break
        assert packet == (WORK_DATA, handle + b"\0" + part)
        n_parts += 1
    assert n_parts == 60
    assert not pending


def test_a_client_that_goes_away_frees_those_who_fed_it(own_job_server, connections, f):
    server = own_job_server()
    client, worker = connections(server), connections(server)
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    worker.socket.settimeout(0.3)
    part = request(WORK_DATA, handle, bytes(MIB))
    rest = memoryview(b"")
    for _ in range(60):
        rest = memoryview(part)
        try:
            while rest:
                rest = rest[worker.socket.send(rest) :]
        except TimeoutError:
            break
    client.close()
    worker.timeout = 10.0
    worker.send_bytes(bytes(rest))
    assert is_answering(worker)


def test_a_client_may_send_for_long_before_it_reads(connect, f):
    client = connect()
    n_jobs = 20_000
    client.send_bytes(request(SUBMIT_JOB, f, b"", b"x") * n_jobs)
    for _ in range(n_jobs):
        client.submit_read(client.read())


# -- the end


def test_a_terminated_server_says_goodbye_to_its_peers(own_job_server, connections):
    server = own_job_server()
    peer = connections(server)
    assert is_answering(peer)
    os.kill(server.pid, signal.SIGTERM)
    peer.expect_closed()


def test_a_killed_server_s_port_can_be_used_again_at_once(own_job_server, connections):
    server = own_job_server()
    peer = connections(server)
    assert is_answering(peer)
    server.kill()
    peer.expect_closed()
    again = own_job_server(port=server.port)
    assert again.port == server.port
    assert is_answering(connections(again))


# -- the table itself


def test_every_allowed_difference_is_asserted_by_a_test():
    here = os.path.dirname(__file__)
    used = set()
    for name in os.listdir(here):
        if name.startswith("test_") and name.endswith(".py"):
            with open(os.path.join(here, name), encoding="utf-8") as file:
                used |= set(re.findall(r'"([a-z0-9-]+)"', file.read()))
    assert set(ALLOWED_DIFFERENCES) - used - {"order-of-listings"} == set()
