"""The packet reader: any split of the stream gives the same commands, and other protocols are told apart."""

from __future__ import annotations

import struct

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearmap.errors import ConfigurationError, ProtocolError
from gearmap.transport.protocol import LARGE_BYTES, TEXT_COMMAND, PacketReader, frame_head

WORK_COMPLETE = 13
WORK_STATUS = 12
NOOP = 6
STATUS_RES_UNIQUE = 42


def packet(command: int, *arguments: bytes) -> bytes:
    body = b"\0".join(arguments)
    return struct.pack("!4sII", b"\0RES", command, len(body)) + body


def read(stream: bytes, *, step: int = 0, text: bool = False) -> list[tuple[int, tuple[bytes, ...]]]:
    reader = PacketReader("'peer:1'")
    reader.is_text_due = text
    for start in range(0, len(stream), step or len(stream)):
        reader.feed(stream[start : start + (step or len(stream))])
    assert not reader.is_mid_packet
    return list(reader.commands)


SERVER_STREAM = (
    b"OK 1.1.20\r\n"
    + packet(8, b"H:host:1")
    + packet(WORK_STATUS, b"H:host:1", b"1", b"2")
    + packet(NOOP)
    + b"f\t1\t0\t0\n.\n"
    + packet(WORK_COMPLETE, b"H:host:1", b"a\0b\0")
    + packet(19, b"QUEUE_ERROR", b"Job queue is full")
    + packet(STATUS_RES_UNIQUE, b"u", b"1", b"0", b"0", b"0", b"2")
    + packet(WORK_COMPLETE, b"H:host:2", b"")
)
SERVER_COMMANDS = [
    (TEXT_COMMAND, (b"OK 1.1.20",)),
    (8, (b"H:host:1",)),
    (WORK_STATUS, (b"H:host:1", b"1", b"2")),
    (NOOP, ()),
    (TEXT_COMMAND, (b"f\t1\t0\t0",)),
    (TEXT_COMMAND, (b".",)),
    (WORK_COMPLETE, (b"H:host:1", b"a\0b\0")),
    (19, (b"QUEUE_ERROR", b"Job queue is full")),
    (STATUS_RES_UNIQUE, (b"u", b"1", b"0", b"0", b"0", b"2")),
    (WORK_COMPLETE, (b"H:host:2", b"")),
]


def test_a_stream_fed_byte_by_byte_gives_the_same_commands_as_at_once():
    assert read(SERVER_STREAM, text=True) == SERVER_COMMANDS
    assert read(SERVER_STREAM, step=1, text=True) == SERVER_COMMANDS


@pytest.mark.parametrize("cut", range(1, len(SERVER_STREAM)))
def test_a_stream_cut_anywhere_gives_the_same_commands(cut):
    reader = PacketReader("'peer:1'")
    reader.is_text_due = True
    reader.feed(SERVER_STREAM[:cut])
    reader.feed(SERVER_STREAM[cut:])
    assert list(reader.commands) == SERVER_COMMANDS


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 1000, LARGE_BYTES - 9, LARGE_BYTES, LARGE_BYTES + 1, 300_000]), max_size=6),
    step=st.sampled_from([1013, 65_536, 262_144, 10_000_000]),
)
def test_sizes_around_every_limit_arrive_intact(sizes, step):
    bodies = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    stream = b"".join(packet(WORK_COMPLETE, b"H:host:1", body) for body in bodies)
    assert [arguments[1] for _, arguments in read(stream, step=step)] == bodies


def test_large_data_is_a_writable_buffer_of_its_own_and_small_data_is_bytes():
    stream = packet(WORK_COMPLETE, b"H", b"x" * LARGE_BYTES) + packet(WORK_COMPLETE, b"H", b"x" * 100)
    (_, (handle, large)), (_, (_, small)) = read(stream)
    assert type(handle) is bytes
    assert type(large) is memoryview
    assert not large.readonly
    assert type(small) is bytes


def test_an_announced_length_takes_no_memory_before_the_bytes_have_come():
    reader = PacketReader("'peer:1'")
    head = struct.pack("!4sII", b"\0RES", WORK_COMPLETE, 2**32 - 100)
    before = psutil.Process().memory_info().rss
    reader.feed(head + b"H:host:1\0" + b"x" * 100)
    after = psutil.Process().memory_info().rss
    assert reader.is_mid_packet
    assert after - before < 16 * 1024 * 1024


def test_a_packet_larger_than_the_limit_is_refused_by_its_header():
    reader = PacketReader("'peer:1'", max_packet_bytes=1000)
    reader.feed(packet(WORK_COMPLETE, b"H", b"x" * 900))
    with pytest.raises(ProtocolError, match="'peer:1' sent Gearman command 13 with 1000 bytes"):
        reader.feed(struct.pack("!4sII", b"\0RES", WORK_COMPLETE, 1000))


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"SSH-2.0-OpenSSH",
        b"\0REQ\0\0\0\1\0\0\0\0",
        b"\0abc",
        b"\0\0",
    ],
)
def test_another_protocol_is_named_with_what_it_sent(sent):
    with pytest.raises(ProtocolError, match="'peer:1' does not speak the Gearman protocol") as caught:
        PacketReader("'peer:1'").feed(sent)
    assert repr(sent[:40]) in str(caught.value)


def test_binary_rubbish_is_refused_even_while_text_is_due():
    reader = PacketReader("'peer:1'")
    reader.is_text_due = True
    with pytest.raises(ProtocolError):
        reader.feed(b"\x15\x03\x01\x00\x02\x02\x46")


def test_a_line_without_end_is_refused():
    reader = PacketReader("'peer:1'")
    reader.is_text_due = True
    with pytest.raises(ProtocolError):
        reader.feed(b"a" * 200_000)


@pytest.mark.parametrize(
    "sent",
    [
        packet(0),
        packet(4711),
        packet(0x80000001),
        packet(NOOP, b"data"),
        packet(WORK_COMPLETE, b"handle without data"),
        packet(WORK_COMPLETE, b"x" * 100_000),
        packet(NOOP, b"x" * 100_000),
    ],
)
def test_a_malformed_packet_is_a_protocol_error(sent):
    with pytest.raises(ProtocolError, match="'peer:1' sent"):
        PacketReader("'peer:1'").feed(sent)


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_never_raise_anything_but_a_protocol_error(data, text):
    reader = PacketReader("'peer:1'")
    reader.is_text_due = text
    try:
        reader.feed(data)
    except ProtocolError:
        pass


def test_a_packed_command_has_its_arguments_in_order_and_text_as_utf8():
    head = frame_head(7, {"data": b"", "unique": b"u", "task": "größe"}, 5)
    assert head == struct.pack("!4sII", b"\0REQ", 7, 15) + "größe".encode() + b"\0u\0"


def test_nul_in_an_argument_and_too_large_data_are_the_callers_fault():
    with pytest.raises(ConfigurationError, match="NUL"):
        frame_head(1, {"task": "a\0b"}, 0)
    with pytest.raises(ConfigurationError, match="4 GiB"):
        frame_head(13, {"job_handle": b"H"}, 2**32)
