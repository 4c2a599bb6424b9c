"""Cutting bytes into packets: any split, any bytes, no memory ahead of what came."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.errors import ProtocolError
from gearmap.jobserver.blocks import BLOCK_BYTES, BlockPool, LargeData
from gearmap.jobserver.protocol import (
    HIGHEST_COMMAND,
    MAX_ARGS_BYTES,
    RESPONSE_MAGIC,
    TEXT_LINE,
    WITH_DATA,
    leading_int,
    reply,
    split_args,
    split_data,
)
from gearmap.jobserver.reader import LARGE_BODY_BYTES, MAX_LINE_BYTES, MEMORY_AHEAD, PacketReader


def packet(command, body, magic=b"\0REQ"):
    return magic + struct.pack(">II", command, len(body)) + body


def read_all(reader):
    packets = []
    while (item := reader.next_packet()) is not None:
        packets.append(item)
    return packets


def receive_bodies(reader, data):
    return [item.body for item in receive_packets(reader, data)]


def receive(reader, data):
    return [(item.command, bytes(item.body)) for item in receive_packets(reader, data)]


def receive_packets(reader, data):
    """Give `data` to the reader as the shell does: into its own buffer while it has one."""
    packets = []
    view = memoryview(data)
    while view:
        vacancy = reader.vacancy()
        if vacancy is None:
            reader.feed(bytes(view[:LARGE_BODY_BYTES]))
            view = view[LARGE_BODY_BYTES:]
        else:
            n_bytes = min(len(vacancy), len(view))
            vacancy[:n_bytes] = view[:n_bytes]
            reader.filled(n_bytes)
            view = view[n_bytes:]
        del vacancy
        packets += read_all(reader)
    return packets


BODIES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda size, seed: bytes([seed]) * size,
        st.sampled_from([LARGE_BODY_BYTES, BLOCK_BYTES, 2 * BLOCK_BYTES]).flatmap(
            lambda size: st.integers(size - 2, size + LARGE_BODY_BYTES)
        ),
        st.integers(0, 255),
    ),
)
ITEMS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, HIGHEST_COMMAND), st.binary(max_size=200)),
        st.tuples(st.sampled_from(sorted(WITH_DATA)), BODIES),
        st.tuples(
            st.just(TEXT_LINE),
            st.binary(min_size=1, max_size=80).filter(lambda line: line[0] != 0 and not set(line) & {10, 13}),
        ),
    ),
    max_size=8,
)


def encode(items):
    return b"".join(body + b"\r\n" if command == TEXT_LINE else packet(command, body) for command, body in items)


@given(ITEMS, st.lists(st.integers(0, 3_000_000), max_size=12))
def test_any_split_of_a_stream_gives_the_same_packets(items, cuts):
    stream = encode(items)
    reader = PacketReader()
    received = []
    edges = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    for begin, end in itertools.pairwise(edges):
        received += receive(reader, stream[begin:end])
    assert received == items
    assert not reader.is_partial


def test_a_stream_may_come_byte_by_byte():
    items = [(16, b"hello"), (TEXT_LINE, b"status"), (7, b"f\0u\0data"), (TEXT_LINE, b"x"), (9, b"")]
    reader = PacketReader()
    received = []
    for byte in encode(items):
        received += receive(reader, bytes([byte]))
    assert received == items


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_arbitrary_bytes_give_packets_or_the_protocol_error(chunks):
    reader = PacketReader()
    try:
        for chunk in chunks:
            receive(reader, chunk)
    except ProtocolError:
        pass


@given(st.binary(min_size=12, max_size=400))
def test_arbitrary_headers_give_packets_or_the_protocol_error(data):
    reader = PacketReader()
    try:
        receive(reader, b"\0REQ" + data)
    except ProtocolError:
        pass


def test_an_announced_length_allocates_nothing():
    reader = PacketReader(max_body_bytes=2**32)
    reader.feed(b"\0REQ" + struct.pack(">II", 16, 2**32 - 1) + b"first bytes")
    assert reader.next_packet() is None
    assert reader.held_bytes == 12 + len(b"first bytes")
    reader.feed(bytes(LARGE_BODY_BYTES // 2))
    assert reader.next_packet() is None
    assert reader.is_in_large_body
    vacancy = reader.vacancy()
    assert vacancy is not None
    assert len(vacancy) <= BLOCK_BYTES
    assert reader.held_bytes == BLOCK_BYTES


@pytest.mark.parametrize("size", [LARGE_BODY_BYTES, BLOCK_BYTES, 2**31 - 1])
def test_who_announces_much_and_sends_little_takes_little(size):
    reader = PacketReader()
    came = min(size, BLOCK_BYTES) // MEMORY_AHEAD
    for byte in b"\0REQ" + struct.pack(">II", 7, size) + bytes(came - 1):
        reader.feed(bytes([byte]))
        assert reader.next_packet() is None
        assert reader.held_bytes <= 12 + came
    reader.feed(b"\0")
    assert reader.next_packet() is None
    assert reader.came_bytes == came
    assert reader.held_bytes == min(size, BLOCK_BYTES)


@given(st.integers(0, HIGHEST_COMMAND), st.integers(MAX_ARGS_BYTES + 1, 2**32 - 1))
def test_only_what_ends_in_data_may_be_long(command, size):
    reader = PacketReader()
    reader.feed(b"\0REQ" + struct.pack(">II", command, size))
    if command in WITH_DATA and size < 2**31:
        assert reader.next_packet() is None
    else:
        with pytest.raises(ProtocolError, match=f"command {command} of {size} bytes"):
            reader.next_packet()


def test_a_connection_between_two_packets_holds_no_buffer():
    reader = PacketReader()
    assert receive(reader, packet(16, b"x" * 60_000)) == [(16, b"x" * 60_000)]
    assert reader.held_bytes == 0
    assert reader._buffer == b""


def test_a_body_above_the_limit_is_refused_at_its_header():
    reader = PacketReader(max_body_bytes=1000)
    reader.feed(packet(16, b"x" * 1000) + b"\0REQ" + struct.pack(">II", 16, 1001))
    assert reader.next_packet() == (16, b"x" * 1000)
    with pytest.raises(ProtocolError, match="1001 bytes"):
        reader.next_packet()


@pytest.mark.parametrize("size", [LARGE_BODY_BYTES, 3 * BLOCK_BYTES])
def test_a_large_body_is_handed_over_where_it_was_received(size):
    reader = PacketReader()
    reader.feed(packet(13, b"h\0" + b"x" * size)[: LARGE_BODY_BYTES // 2 + 100])
    assert reader.next_packet() is None
    buffers = []
    while (vacancy := reader.vacancy()) is not None:
        vacancy[:] = b"y" * len(vacancy)
        reader.filled(len(vacancy))
        buffers.append(vacancy.obj)
    item = reader.next_packet()
    assert item is not None
    split = split_data(item.body, 1)
    assert split is not None
    assert split[0] == [b"h"]
    assert isinstance(split[1], LargeData)
    assert [view.obj for view in split[1].views] == buffers
    assert len(split[1]) == size


def test_blocks_go_back_when_the_last_part_of_their_body_goes():
    pool = BlockPool()
    reader = PacketReader(pool=pool)
    (body,) = receive_bodies(reader, packet(13, b"h\0" + b"x" * 2 * BLOCK_BYTES))
    (_, data) = split_data(body, 1)
    del body
    assert pool.spare_bytes == 0
    del data
    assert pool.spare_bytes == 3 * BLOCK_BYTES


def test_what_came_of_a_body_is_dropped_with_its_connection():
    pool = BlockPool()
    reader = PacketReader(pool=pool)
    receive_bodies(reader, packet(13, b"h\0" + b"x" * 2 * BLOCK_BYTES)[:-1])
    reader.drop()
    assert not reader.is_partial
    assert pool.spare_bytes == 3 * BLOCK_BYTES


def test_arguments_that_are_longer_than_any_sensible_one_are_not_looked_for():
    (body,) = receive_bodies(PacketReader(), packet(7, b"f" * MAX_ARGS_BYTES + b"\0u\0" + b"x" * LARGE_BODY_BYTES))
    assert split_data(body, 2) is None


def test_the_magic_of_responses_is_told_apart():
    reader = PacketReader()
    reader.feed(packet(16, b"x", magic=b"\0RES"))
    assert reader.next_packet() == (RESPONSE_MAGIC, b"x")


@pytest.mark.parametrize("stream", [b"\0BAD" + bytes(8), packet(HIGHEST_COMMAND + 1, b""), packet(2**32 - 1, b"")])
def test_what_is_no_packet_is_a_protocol_error(stream):
    reader = PacketReader()
    reader.feed(stream)
    with pytest.raises(ProtocolError):
        reader.next_packet()


def test_a_line_without_an_end_is_bounded():
    reader = PacketReader()
    reader.feed(b"x" * (MAX_LINE_BYTES - 1))
    assert reader.next_packet() is None
    reader.feed(b"x")
    with pytest.raises(ProtocolError):
        reader.next_packet()


def test_arguments_are_split_and_missing_ones_are_seen():
    assert split_args(b"a\0b\0c\0d", 3) == [b"a", b"b", b"c\0d"]
    assert split_args(b"a\0b", 3) is None
    assert split_data(b"a\0b\0", 2) == ([b"a", b"b"], b"")
    assert split_data(b"a\0b", 2) is None
    assert split_data(LargeData([memoryview(b"a\0b")]), 2) is None


def test_a_reply_is_a_packet_of_its_length():
    assert reply(17, b"hello") == b"\0RES\0\0\0\x11\0\0\0\x05hello"


@given(st.binary(max_size=40))
def test_leading_int_never_raises(text):
    assert isinstance(leading_int(text), int)
