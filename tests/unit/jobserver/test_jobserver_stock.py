"""What the state machine keeps is bounded, whatever comes; and hostile bytes reach it without breaking anything."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gearmap.errors import ProtocolError
from gearmap.jobserver import protocol as p
from gearmap.jobserver.admin import KEPT_TIMES, SLOW_LISTING, Listings
from gearmap.jobserver.limits import Limits, Stock
from gearmap.jobserver.machine import Machine
from gearmap.jobserver.reader import PacketReader
from gearmap.jobserver.records import Peer, ServerOptions
from gearmap.jobserver.state import ABILITY_BYTES, FUNCTION_BYTES, JOB_BYTES

SMALL = Stock(
    max_jobs=6,
    max_jobs_bytes=6 * JOB_BYTES + 200,
    max_names_bytes=5 * (FUNCTION_BYTES + 10),
    max_abilities=4,
    max_abilities_bytes=6 * (ABILITY_BYTES + 10),
    max_held=2,
    max_awaited=4,
    max_waits=3,
    max_namesakes=2,
)


class Small:
    """A machine that has room for little."""

    def __init__(self, stock=SMALL):
        self.machine = Machine(ServerOptions(stock=stock))
        self.table = self.machine.table

    def peer(self):
        peer = Peer()
        self.machine.connect(peer)
        return peer

    def say(self, peer, command, *args):
        self.machine.handle(peer, command, b"\0".join(args))
        self.machine.take_touched()
        answers, peer.out = [bytes(piece) for piece in peer.out], []
        return [(struct.unpack_from(">I", answer, 4)[0], answer[12:]) for answer in answers]

    def is_taken(self, peer, name=b"f", unique=b"", data=b"x", command=p.SUBMIT_JOB):
        ((answer, body),) = self.say(peer, command, name, unique, data)
        if answer == p.ERROR:
            assert body == b"QUEUE_ERROR\0Job queue is full"
        return answer == p.JOB_CREATED


def test_jobs_are_counted_over_all_functions():
    small = Small()
    assert [small.is_taken(small.peer(), b"f%d" % (number % 3)) for number in range(7)] == [True] * 6 + [False]


def test_payloads_are_counted_and_a_single_job_may_be_larger_than_all():
    small = Small()
    client = small.peer()
    assert small.is_taken(client, data=bytes(100_000))
    assert not small.is_taken(client)
    small.machine.disconnect(client)
    assert small.table.jobs_bytes == 0
    assert small.is_taken(small.peer())


def test_a_connection_waits_for_a_bounded_number_of_jobs_and_background_jobs_are_none_of_them():
    small = Small()
    client = small.peer()
    assert [small.is_taken(client) for _ in range(5)] == [True] * 4 + [False]
    assert small.is_taken(client, command=p.SUBMIT_JOB_BG)


def test_a_job_is_joined_a_bounded_number_of_times():
    small = Small()
    clients = [small.peer() for _ in range(4)]
    assert [small.is_taken(client, unique=b"u") for client in clients] == [True] * 3 + [False]
    small.machine.disconnect(clients[0])
    assert small.is_taken(clients[3], unique=b"u")


def test_a_unique_stands_for_a_bounded_number_of_jobs():
    small = Small()
    client = small.peer()
    assert [small.is_taken(client, name, b"u") for name in (b"f", b"g", b"h")] == [True, True, False]
    assert [small.is_taken(client, name, b"") for name in (b"f", b"g")] == [True, True]


def test_a_worker_holds_a_bounded_number_of_jobs():
    small = Small()
    worker = small.peer()
    small.say(worker, p.CAN_DO, b"f")
    for _ in range(3):
        assert small.is_taken(small.peer())
    answers = [small.say(worker, p.GRAB_JOB)[0][0] for _ in range(3)]
    assert answers == [p.JOB_ASSIGN, p.JOB_ASSIGN, p.NO_JOB]


def test_functions_in_use_are_never_forgotten_and_the_others_oldest_first():
    small = Small()
    worker, client = small.peer(), small.peer()
    small.say(worker, p.CAN_DO, b"served")
    assert small.is_taken(client, b"queued")
    for number in range(10):
        small.machine.handle(client, p.TEXT_LINE, b"create function idle-%d" % number)
    assert set(small.table.functions) == {b"served", b"queued", b"idle-7", b"idle-8", b"idle-9"}


def test_where_all_functions_are_in_use_new_ones_are_refused():
    small = Small()
    for number in range(5):
        assert small.is_taken(small.peer(), b"f%d" % number)
    admin = small.peer()
    small.machine.handle(admin, p.TEXT_LINE, b"create function more")
    assert admin.out.pop().startswith(b"ERR ")
    assert not small.is_taken(small.peer(), b"more")
    with pytest.raises(ProtocolError):
        small.say(small.peer(), p.CAN_DO, b"more")


def test_one_connection_and_all_serve_a_bounded_number_of_functions():
    small = Small()
    first, second = small.peer(), small.peer()
    for _ in range(4):
        small.say(first, p.CAN_DO, b"f")
    with pytest.raises(ProtocolError):
        small.say(first, p.CAN_DO, b"f")
    small.say(second, p.CAN_DO, b"long name")
    small.say(second, p.CAN_DO, b"long name")
    with pytest.raises(ProtocolError):
        small.say(second, p.CAN_DO, b"long name")
    small.say(first, p.CANT_DO, b"f")
    small.machine.disconnect(second)
    assert small.table.abilities_bytes == 0


def test_a_listing_that_took_long_is_given_again_for_a_while_and_then_made_anew():
    now = [0.0]
    made = []

    def make():
        now[0] += 1.0
        made.append(now[0])
        return b"%d" % len(made)

    listings = Listings(lambda: now[0])
    assert listings.answer(b"status", make) == listings.answer(b"status", make) == b"1"
    assert listings.answer(b"workers", make) == b"2"
    now[0] += KEPT_TIMES
    listings.trim()
    assert listings.answer(b"status", make) == b"3"


def test_a_listing_that_took_no_time_is_made_anew_each_time():
    now = [0.0]
    made = []

    def make():
        now[0] += SLOW_LISTING / 2
        made.append(1)
        return b"%d" % len(made)

    listings = Listings(lambda: now[0])
    assert [listings.answer(b"status", make) for _ in range(3)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "line", [b"status", b" STATUS x", b"status\0", b"show  jobs", b"SHOW Unique Jobs", b"Workers 1 2"]
)
def test_however_a_listing_is_asked_for_it_is_the_kept_one(line):
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    machine = Machine(ServerOptions(), clock=clock)
    peer = Peer()
    machine.connect(peer)
    machine.handle(peer, p.TEXT_LINE, line)
    first = peer.out[0]
    machine.table.function(b"new")
    machine.table.submit(peer, b"new", b"u", b"")
    machine.handle(peer, p.TEXT_LINE, line)
    assert peer.out[1] == first


@given(st.integers(0, 2**60), st.integers(0, 2**60))
def test_limits_of_any_machine_are_in_order(memory_bytes, max_files):
    limits = Limits.of_machine(memory_bytes=memory_bytes, max_files=max_files)
    assert 0 < limits.max_connections <= max(16, max_files)
    stock = Stock.of_machine(memory_bytes=memory_bytes)
    assert stock.max_jobs_bytes + limits.all_halves_bytes + limits.all_outboxes_bytes <= memory_bytes


# ------------------------------------------------------------------------------------------------------- hostile bytes


def packet(command, *args):
    body = b"\0".join(args)
    return b"\0REQ" + struct.pack(">II", command, len(body)) + body


_ARGUMENTS = st.one_of(
    st.sampled_from([b"", b"f", b"g", b"h", b"-", b"u", b"H:embedded:1", b"H:embedded:2", b"1", b"exceptions"]),
    st.binary(max_size=40),
    st.integers(0, 12).map(lambda power: b"n" * 2**power),
)
_PACKETS = st.builds(lambda command, args: packet(command, *args), st.integers(0, 43), st.lists(_ARGUMENTS, max_size=5))
_LINES = st.builds(
    lambda words: b" ".join(words) + b"\n",
    st.lists(
        st.one_of(
            st.sampled_from(
                [b"status", b"workers", b"show", b"jobs", b"unique", b"cancel", b"job", b"create", b"drop"]
                + [b"function", b"maxqueue", b"prioritystatus", b"version", b"getpid", b"f", b"H:embedded:1", b"-1"]
            ),
            st.binary(min_size=1, max_size=10).filter(lambda word: word[0] != 0),
        ),
        min_size=1,
        max_size=7,
    ),
)
_MUTATIONS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=3)


def mutated(stream, mutations):
    data = bytearray(stream)
    for position, byte in mutations:
        if data:
            data[position % len(data)] = byte
    return bytes(data)


_TALK = st.builds(mutated, st.lists(st.one_of(_PACKETS, _LINES), max_size=12).map(b"".join), _MUTATIONS)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(_TALK, st.binary(max_size=60))), max_size=12), st.booleans())
@example([(0, packet(p.SUBMIT_JOB, b"f", b"u", b"x") * 9), (1, packet(p.CAN_DO, b"f") + packet(p.GRAB_JOB) * 9)], True)
def test_whatever_peers_send_nothing_breaks_and_the_stock_is_kept(talks, wake_one):
    machine = Machine(ServerOptions(stock=SMALL, wake_one=wake_one, job_retries=2))
    table = machine.table
    peers, readers = [], []
    for _ in range(4):
        peers.append(Peer())
        readers.append(PacketReader(max_body_bytes=100_000))
        machine.connect(peers[-1])
    for who, data in talks:
        try:
            # As the shell does: a large body has memory of its own.
            vacancy = readers[who].vacancy()
            if vacancy is None:
                readers[who].feed(data)
            else:
                n_bytes = min(len(vacancy), len(data))
                vacancy[:n_bytes] = data[:n_bytes]
                readers[who].filled(n_bytes)
            while (item := readers[who].next_packet()) is not None:
                machine.handle(peers[who], item.command, item.body)
        except ProtocolError:
            machine.disconnect(peers[who])
            peers[who], readers[who] = Peer(), PacketReader(max_body_bytes=100_000)
            machine.connect(peers[who])
        for peer in machine.take_touched():
            for piece in peer.out:
                assert bytes(piece)[:4] == b"\0RES" or peer is peers[who]
            peer.out = []
        check_stock(table)
    for peer in peers:
        machine.disconnect(peer)
    assert table.abilities_bytes == 0
    assert all(job.background for job in table.jobs.values())


def check_stock(table):
    assert len(table.jobs) <= SMALL.max_jobs
    assert table.jobs_bytes == sum(len(job.data) + JOB_BYTES for job in table.jobs.values())
    assert table.jobs_bytes <= SMALL.max_jobs_bytes + JOB_BYTES or len(table.jobs) == 1
    assert table.names_bytes == sum(len(name) + FUNCTION_BYTES for name in table.functions)
    assert table.names_bytes <= SMALL.max_names_bytes
    assert table.abilities_bytes <= SMALL.max_abilities_bytes
    assert all(len(jobs) <= SMALL.max_namesakes for jobs in table.by_unique.values())
    assert all(len(job.clients) <= SMALL.max_waits for job in table.jobs.values())
    for peer in table.peers:
        assert len(peer.abilities) <= SMALL.max_abilities
        assert len(peer.running) <= SMALL.max_held
        assert len(peer.waiting) <= SMALL.max_awaited
