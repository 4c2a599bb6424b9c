"""Sealed messages: round trips, and everything that must not open."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearmap.errors import EnvelopeError, SealError, WireError
from gearmap.wire import envelope, layout, opening
from gearmap.wire.envelope import (
    PIECE_BYTES,
    PREFIX_BYTES,
    Kind,
    make_context,
    open_arriving,
    open_body,
    open_header,
    parse_prefix,
    seal_message,
    split_messages,
)

KEY = bytes(range(32))
CONTEXT = make_context(b"gearmap1.default.py311.0a1b2c3d", b"0123456789abcdef0123456789abcdef")
EXPIRY = 1_800_000_000

SMALL_PIECE_BYTES = 64


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 64 bytes, so that messages of many pieces are small."""
    _use_small_pieces(monkeypatch)


def _use_small_pieces(monkeypatch):
    for module in (envelope, layout, opening):
        monkeypatch.setattr(module, "PIECE_BYTES", SMALL_PIECE_BYTES)
        monkeypatch.setattr(module, "SEALED_PIECE_BYTES", SMALL_PIECE_BYTES + 16)
    monkeypatch.setattr(envelope, "_SMALL_BYTES", 256)


def seal(header=b"header", body=(), **changes):
    options = {
        "kind": Kind.OUTCOME,
        "key": KEY,
        "session_id": b"s" * 16,
        "execution_id": b"e" * 16,
        "sequence": 3,
        "expiry": EXPIRY,
        "context": CONTEXT,
    }
    return seal_message(header=header, body=body, **{**options, **changes})


def open_all(data, key=KEY, context=CONTEXT):
    prefix = parse_prefix(data)
    return open_header(data, prefix, key, context), bytes(open_body(data, prefix, key, context))


def pattern(n_bytes):
    return (bytes(range(251)) * (n_bytes // 251 + 1))[:n_bytes]


def test_a_prefix_says_what_was_sealed():
    message = seal(b"abc", [b"12", b"345"])
    data = message.to_bytes()

    prefix = parse_prefix(data)

    assert (prefix.kind, prefix.session_id, prefix.execution_id) == (Kind.OUTCOME, b"s" * 16, b"e" * 16)
    assert (prefix.sequence, prefix.expiry) == (3, EXPIRY)
    assert (prefix.header_bytes, prefix.body_bytes) == (3 + 16, 5 + 16)
    assert prefix.total_bytes == len(message) == len(data) == PREFIX_BYTES + 40
    assert prefix.pack() == data[:PREFIX_BYTES]


@pytest.mark.parametrize("n_bytes", [0, 1, 63, 64, 65, 128, 129, 1000])
@pytest.mark.parametrize("container", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_what_was_sealed_opens_from_any_kind_of_buffer(small_pieces, n_bytes, container):
    body = pattern(n_bytes)
    message = seal(body=[body[: n_bytes // 3], body[n_bytes // 3 :]])

    data = message.to_bytes()

    assert len(data) == len(message)
    assert open_all(container(data)) == (b"header", body)


@pytest.mark.parametrize("n_bytes", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 17])
def test_bodies_around_the_real_piece_size_open(n_bytes):
    body = pattern(n_bytes)
    data = seal(body=[body]).to_bytes()
    assert open_all(data) == (b"header", body)
    assert open_all(bytearray(data)) == (b"header", body)


def test_buffers_of_other_shapes_and_formats_are_sealed_as_their_bytes(small_pieces):
    square = memoryview(bytearray(pattern(160))).cast("B", (16, 10))
    numbers = memoryview(bytearray(pattern(80))).cast("d")
    empty = memoryview(bytes(8)).cast("d")[:0]

    data = seal(body=[square, empty, numbers]).to_bytes()

    assert open_all(data)[1] == pattern(160) + pattern(80)


def test_an_opened_body_is_writable_whatever_its_size(small_pieces):
    for n_bytes in (0, 10, 500):
        data = seal(body=[pattern(n_bytes)]).to_bytes()
        assert not open_body(data, parse_prefix(data), KEY, CONTEXT).readonly


def test_a_large_body_is_opened_inside_a_writable_buffer_and_aligned(small_pieces):
    ctypes = pytest.importorskip("ctypes")
    body = pattern(1000)
    for n_header in range(16):
        data = bytearray(seal(b"h" * n_header, [body]).to_bytes())
        prefix = parse_prefix(data)

        opened = open_body(data, prefix, KEY, CONTEXT)

        assert opened == body
        assert opened.obj is data
        assert ctypes.addressof(ctypes.c_char.from_buffer(opened)) % 16 == 0
        assert open_header(data, prefix, KEY, CONTEXT) == b"h" * n_header


def test_opening_a_large_body_in_place_needs_little_more_than_one_piece():
    data = bytearray(seal(body=[bytes(8 * PIECE_BYTES)]).to_bytes())
    prefix = parse_prefix(data)
    open_body(bytearray(data), prefix, KEY, CONTEXT)  # imports what it needs

    tracemalloc.start()
    try:
        opened = open_body(data, prefix, KEY, CONTEXT)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(opened) == 8 * PIECE_BYTES
    assert peak_bytes < 2.5 * PIECE_BYTES  # scratch, and one piece where there is no `decrypt_into`


def test_sealing_a_large_body_never_holds_it_twice():
    message = seal(body=[bytes(4 * PIECE_BYTES), bytes(4 * PIECE_BYTES + 1)])

    tracemalloc.start()
    try:
        total_bytes = sum(len(chunk) for chunk in message)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert total_bytes == len(message)
    assert peak_bytes < 3.5 * PIECE_BYTES  # the piece gathered from two buffers, and one or two sealed ones


def test_a_small_message_is_one_bytes_object_and_a_large_one_comes_in_pieces(small_pieces):
    assert len(list(seal(body=[bytes(60)]))) == 1
    assert len(list(seal())) == 1
    large = list(seal(body=[bytes(300)]))
    assert len(large) == 1 + 5
    assert large[0][:2] == b"GM"


def test_a_message_is_sealed_while_it_is_iterated_over(small_pieces):
    body = bytearray(300)
    message = seal(body=[body])
    chunks = iter(message)
    data = next(chunks) + next(chunks)
    body[64:] = b"x" * 236

    data += b"".join(chunks)

    assert open_all(data)[1] == bytes(64) + b"x" * 236


def test_a_message_cannot_be_sealed_twice():
    message = seal(body=[b"body"])
    message.to_bytes()
    with pytest.raises(RuntimeError, match="once"):
        iter(message)
    with pytest.raises(RuntimeError, match="once"):
        message.to_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"session_id": b"short"},
        {"execution_id": b""},
        {"sequence": -1},
        {"sequence": 2**48},
        {"key": b"short"},
    ],
)
def test_impossible_messages_are_refused_when_sealing(change):
    with pytest.raises(ValueError):
        seal(**change)


def test_a_flipped_bit_anywhere_never_opens(small_pieces):
    data = seal(b"head", [pattern(150)]).to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(WireError):
            open_all(damaged)


def test_a_flipped_bit_is_seen_by_whoever_opens_the_body_only(small_pieces):
    data = seal(b"head", [pattern(150)]).to_bytes()
    header = range(PREFIX_BYTES, PREFIX_BYTES + 4 + 16)
    for position in set(range(len(data))) - set(header):
        damaged = bytearray(data)
        damaged[position] ^= 0x80
        with pytest.raises(WireError):
            open_body(damaged, parse_prefix(damaged), KEY, CONTEXT)


def test_an_empty_body_is_authenticated_by_whoever_opens_it():
    data = bytearray(seal().to_bytes())
    assert open_body(data, parse_prefix(data), KEY, CONTEXT) == b""
    data[-1] ^= 1
    with pytest.raises(SealError):
        open_body(data, parse_prefix(data), KEY, CONTEXT)


@pytest.mark.parametrize("n_bytes", [0, 10, 64, 128, 150])
def test_a_message_cut_off_anywhere_does_not_open(small_pieces, n_bytes):
    data = seal(body=[pattern(n_bytes)]).to_bytes()
    for length in range(len(data)):
        with pytest.raises(EnvelopeError):
            parse_prefix(data[:length])
        with pytest.raises(SealError):
            open_body(data[:length], parse_prefix(data), KEY, CONTEXT)


@pytest.mark.parametrize("n_pieces", [0, 1, 2])
def test_a_body_shortened_by_whole_pieces_does_not_open(small_pieces, n_pieces):
    whole = seal(body=[pattern(192)]).to_bytes()
    prefix = parse_prefix(whole)
    shorter = bytearray(whole[: PREFIX_BYTES + prefix.header_bytes + 80 * n_pieces])
    shorter[56:64] = (80 * n_pieces).to_bytes(8, "big")

    assert parse_prefix(shorter).body_bytes == 80 * n_pieces
    with pytest.raises(SealError):
        open_header(shorter, parse_prefix(shorter), KEY, CONTEXT)
    with pytest.raises(SealError):
        open_body(shorter, parse_prefix(shorter), KEY, CONTEXT)


def test_pieces_in_another_order_do_not_open(small_pieces):
    data = seal(body=[pattern(192)]).to_bytes()
    start = PREFIX_BYTES + parse_prefix(data).header_bytes
    first, second, third = (data[start + 80 * index : start + 80 * (index + 1)] for index in range(3))
    assert open_all(data[:start] + first + second + third)[1] == pattern(192)
    for order in (
        (second, first, third),
        (first, third, second),
        (first, first, third),
        (third, second, first),
    ):
        with pytest.raises(SealError):
            open_all(data[:start] + b"".join(order))


@pytest.mark.parametrize(
    "change",
    [
        {"key": bytes(32)},
        {"sequence": 4},
        {"expiry": EXPIRY + 1},
        {"kind": Kind.NODE},
        {"session_id": b"t" * 16},
        {"execution_id": b"f" * 16},
        {"context": make_context(b"gearmap1.gpu.py311.0a1b2c3d", b"0" * 32)},
        {"context": make_context(b"gearmap1.default.py311.0a1b2c3d", b"1" * 32)},
    ],
)
def test_header_of_one_message_with_the_body_of_another_does_not_open(change):
    mine = seal(body=[b"mine"]).to_bytes()
    other = seal(body=[b"evil"], **change).to_bytes()
    start = PREFIX_BYTES + parse_prefix(mine).header_bytes
    assert len(mine) == len(other)

    for spliced in (mine[:start] + other[start:], other[:start] + mine[start:], mine[:64] + other[64:]):
        with pytest.raises(SealError):
            open_all(spliced)


@pytest.mark.parametrize(
    ("key", "context"),
    [
        (bytes(32), CONTEXT),
        (KEY, CONTEXT + b"0"),
        (KEY, b""),
        (KEY, make_context(b"gearmap1.default.py312.0a1b2c3d", b"0123456789abcdef0123456789abcdef")),
    ],
)
def test_another_key_function_or_unique_opens_neither_header_nor_body(key, context):
    data = seal(body=[b"body"]).to_bytes()
    prefix = parse_prefix(data)
    with pytest.raises(SealError):
        open_header(data, prefix, key, context)
    with pytest.raises(SealError):
        open_body(data, prefix, key, context)


def test_a_wire_version_that_we_do_not_read_is_named():
    data = bytearray(seal().to_bytes())
    data[2] = 9
    with pytest.raises(EnvelopeError, match="version 9; this side reads version 1"):
        parse_prefix(data)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "too few"),
        (b"GM\1\1", "too few"),
        (b"<html>" + bytes(100), "starts with b'<h'"),
        (b"GM\1\7" + bytes(100), "kind 7"),
        (b"GM\1\1" + bytes(60), "impossible"),
        (b"GM\1\1" + b"\xff" * 80, "impossible"),
    ],
)
def test_what_is_no_envelope_is_refused_with_the_reason(data, match):
    with pytest.raises(EnvelopeError, match=match):
        parse_prefix(data)


@pytest.mark.parametrize("body_bytes", [1, 15, 16, 1048592 + 16, 2 * 1048592 + 1])
def test_a_body_length_that_no_body_can_have_is_refused(body_bytes):
    data = bytearray(seal().to_bytes()) + bytes(2**22)
    data[56:64] = body_bytes.to_bytes(8, "big")
    with pytest.raises(EnvelopeError, match="impossible"):
        parse_prefix(data)


def test_messages_behind_one_another_are_told_apart(small_pieces):
    messages = [seal(sequence=index, body=[pattern(100 * index)]).to_bytes() for index in range(4)]
    data = bytearray(b"".join(messages))

    parts = split_messages(data)

    assert parts == messages
    assert [bytes(open_body(part, parse_prefix(part), KEY, CONTEXT)) for part in parts] == [
        pattern(100 * index) for index in range(4)
    ]


@pytest.mark.parametrize("rest", [b"x", b"GM", bytes(64), b"GM\1\1" + bytes(100)])
def test_messages_followed_by_something_else_are_refused(rest):
    with pytest.raises(EnvelopeError):
        split_messages(seal().to_bytes() + rest)
    with pytest.raises(EnvelopeError):
        split_messages(b"")


@settings(max_examples=60, deadline=None)
@given(
    header=st.binary(max_size=200),
    body=st.lists(st.binary(max_size=200), max_size=6),
    sequence=st.integers(0, 2**48 - 1),
    expiry=st.integers(0, 2**64 - 1),
    kind=st.sampled_from(Kind),
    in_place=st.booleans(),
)
def test_any_message_survives_the_round_trip(header, body, sequence, expiry, kind, in_place):
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use_small_pieces(monkeypatch)
        message = seal(header, body, sequence=sequence, expiry=expiry, kind=kind)
        data = message.to_bytes()
        assert len(data) == len(message)
        assert open_all(bytearray(data) if in_place else data) == (header, b"".join(body))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_with_an_envelope_error(data, with_magic):
    with pytest.raises(WireError):
        open_all(b"GM\1\1" + data if with_magic else data)


def arriving(data, here):
    """Open a message of which `here` bytes have come."""
    rest = memoryview(data)[here:]

    def receive(into):
        nonlocal rest
        if len(rest) < len(into):
            raise ConnectionResetError
        into[:] = rest[: len(into)]
        rest = rest[len(into) :]

    prefix = parse_prefix(data[:here], len(data))
    return open_arriving(data[:here], prefix, KEY, CONTEXT, receive)


@pytest.mark.parametrize("n_bytes", [0, 1, 64, 65, 128, 1000])
@pytest.mark.parametrize("here", [PREFIX_BYTES, PREFIX_BYTES + 5, PREFIX_BYTES + 30, PREFIX_BYTES + 200, 10_000])
def test_a_message_opens_while_it_arrives(small_pieces, n_bytes, here):
    body = pattern(n_bytes)
    data = seal(body=[body]).to_bytes()

    header, opened = arriving(data, min(here, len(data)))

    assert (header, bytes(opened)) == (b"header", body)
    assert not opened.readonly


def test_a_bit_that_flips_while_a_message_arrives_is_seen(small_pieces):
    data = seal(b"head", [pattern(150)]).to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(WireError):
            arriving(damaged, PREFIX_BYTES)


def test_a_message_that_stops_arriving_is_not_opened(small_pieces):
    data = seal(body=[pattern(150)]).to_bytes()
    with pytest.raises(ConnectionResetError):
        open_arriving(data[:-1], parse_prefix(data), KEY, CONTEXT, _nothing_comes)


def _nothing_comes(into):
    raise ConnectionResetError


def test_the_length_that_was_announced_is_what_a_prefix_is_checked_against():
    data = seal(body=[pattern(150)]).to_bytes()
    assert parse_prefix(data[:PREFIX_BYTES], len(data)).total_bytes == len(data)
    with pytest.raises(EnvelopeError):
        parse_prefix(data[:PREFIX_BYTES], len(data) - 1)


@pytest.mark.parametrize("n_bytes", [0, 1, 64, 65, 128, 1000])
def test_a_message_is_written_as_it_is_iterated(small_pieces, n_bytes):
    body = [pattern(n_bytes)[:30], pattern(n_bytes)[30:]]
    written = []

    seal(body=body).write_to(lambda part: written.append(bytes(part)))

    assert b"".join(written) == seal(body=body).to_bytes()


def test_a_message_is_written_once_only():
    message = seal(body=[b"body"])
    message.write_to(len)
    with pytest.raises(RuntimeError):
        message.write_to(len)
    with pytest.raises(RuntimeError):
        iter(message)
