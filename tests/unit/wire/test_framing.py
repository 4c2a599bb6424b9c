"""Payloads laid out and sliced again."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import ALIGNMENT, frame, unframe

payloads_of_bytes = st.lists(st.lists(st.binary(max_size=150), max_size=4), max_size=5)


def joined(payloads):
    return b"".join(frame(payloads))


@settings(max_examples=200)
@given(payloads_of_bytes)
def test_any_payloads_survive_the_round_trip(payloads):
    assert unframe(joined(payloads)) == payloads


@settings(max_examples=100)
@given(payloads_of_bytes)
def test_out_of_band_buffers_start_at_aligned_places(payloads):
    data = joined(payloads)
    marks = memoryview(bytes(range(256)) * (len(data) // 256 + 1))
    # The same table in front of a body in which each byte tells its own position modulo 256.
    framed = data[: _table_bytes(payloads)] + bytes(marks[_table_bytes(payloads) : len(data)])
    for payload in unframe(framed):
        for buffer in payload[1:]:
            if len(buffer):
                assert buffer[0] % ALIGNMENT == 0


def _table_bytes(payloads):
    return 4 + 4 * len(payloads) + 8 * sum(map(len, payloads))


def test_framing_copies_no_buffer_and_unframing_gives_slices():
    large = bytearray(b"x" * 1000)

    framed = frame([[b"stream", memoryview(large)]])
    data = bytearray(b"".join(framed))
    (payload,) = unframe(data)

    assert any(isinstance(buffer, memoryview) and buffer.obj is large for buffer in framed)
    assert payload[1].obj is data
    assert not payload[1].readonly


def test_views_of_numbers_are_measured_in_bytes():
    numbers = memoryview(bytearray(range(32))).cast("d")
    assert unframe(joined([[b"s", numbers]])) == [[b"s", bytes(range(32))]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        struct.pack("<I", 1),
        struct.pack("<I", 2**32 - 1) + bytes(100),
        struct.pack("<II", 1, 2**32 - 1) + bytes(100),
        struct.pack("<IIQ", 1, 1, 1),
        struct.pack("<IIQ", 1, 1, 2**64 - 1) + bytes(10),
        struct.pack("<IIQQ", 1, 2, 0, 1),
        struct.pack("<IIQ", 1, 1, 1) + b"ab",
        struct.pack("<I", 0) + b"x",
    ],
)
def test_lengths_that_do_not_fit_are_refused(data):
    with pytest.raises(EnvelopeError):
        unframe(data)


@settings(max_examples=300)
@given(st.binary(max_size=120))
def test_garbage_gives_payloads_or_an_envelope_error_and_nothing_else(data):
    with contextlib.suppress(EnvelopeError):
        unframe(data)


@settings(max_examples=100)
@given(payloads_of_bytes, st.data())
def test_a_body_cut_off_anywhere_is_refused(payloads, data):
    whole = joined(payloads)
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(EnvelopeError):
        unframe(whole[:length])
