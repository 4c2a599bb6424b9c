"""Results that a node tells of together: there and back, and what does not fit is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import frame
from gearmap.wire.pieces import MOST_POSITION, Piece, are_pieces, decode_pieces, encode_pieces, joined_pieces

SHAPES = st.lists(
    st.tuples(st.integers(1, 1000), st.floats(0, 1e9), st.binary(min_size=1, max_size=50)), min_size=1, max_size=20
)


def pieces_from(first: int, shapes: list[tuple[int, float, bytes]]) -> list[Piece]:
    pieces = []
    for n_tasks, seconds, stream in shapes:
        pieces.append(Piece(first, n_tasks, seconds, stream))
        first += n_tasks
    return pieces


@given(st.integers(0, MOST_POSITION - 10**6), SHAPES, st.text(st.characters(exclude_categories=["Cs"])))
def test_what_was_encoded_is_read(first: int, shapes: list[tuple[int, float, bytes]], worker: str) -> None:
    pieces = pieces_from(first, shapes)
    header, body = encode_pieces(pieces, worker=worker)
    assert are_pieces(header)
    assert decode_pieces(header, b"".join(body)) == (worker, pieces)


@given(st.lists(st.booleans(), max_size=20))
def test_joined_or_not_everything_is_there_in_order(is_next: list[bool]) -> None:
    taken: list[bytes | Piece] = []
    position = 0
    for follows in is_next:
        taken.append(Piece(position, 1, 0.0, b"x") if follows else b"sealed")
        position += 1 if follows else 2
    flat: list[bytes | Piece] = []
    for each in joined_pieces(taken):
        if isinstance(each, list):
            assert [piece.first for piece in each] == list(range(each[0].first, each[0].first + len(each)))
            flat += each
        else:
            flat.append(each)
    assert flat == taken


@given(st.binary(max_size=60), st.binary(max_size=100))
def test_any_bytes_are_pieces_or_refused(header: bytes, body: bytes) -> None:
    try:
        decode_pieces(b"\2" + header, body)
    except EnvelopeError:
        pass


ROW = struct.Struct("<Id")
HEADER = struct.Struct("<cQQ")


@pytest.mark.parametrize(
    ("header", "payloads"),
    [
        (b"\2short", [[ROW.pack(1, 0.0)], [b"x"]]),
        (HEADER.pack(b"\2", 0, 1), [[ROW.pack(1, 0.0)]]),  # no results
        (HEADER.pack(b"\2", 0, 1), [[ROW.pack(1, 0.0)], [b"x", b"buffer"]]),
        (HEADER.pack(b"\2", 0, 2), [[ROW.pack(1, 0.0)], [b"x"], [b"y"]]),  # a row is missing
        (HEADER.pack(b"\2", 0, 2), [[ROW.pack(1, 0.0)], [b"x"]]),  # a task is missing
        (HEADER.pack(b"\2", 0, 0), [[ROW.pack(0, 0.0)], [b"x"]]),
        (HEADER.pack(b"\2", 0, 1), [[ROW.pack(1, -1.0)], [b"x"]]),
        (HEADER.pack(b"\2", 0, 1), [[ROW.pack(1, float("nan"))], [b"x"]]),
        (HEADER.pack(b"\2", 2**63, 2**63 + 1), [[ROW.pack(1, 0.0)], [b"x"]]),
        (HEADER.pack(b"\2", 0, 1) + b"\xff", [[ROW.pack(1, 0.0)], [b"x"]]),
    ],
)
def test_what_does_not_fit_together_is_refused(header: bytes, payloads: list[list[bytes]]) -> None:
    with pytest.raises(EnvelopeError):
        decode_pieces(header, b"".join(frame(payloads)))
