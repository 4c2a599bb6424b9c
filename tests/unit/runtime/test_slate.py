"""What a child and its node share of a stream: the beginning, the end, and how much is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gearmap.runtime.slate import HEAD_BYTES, SHELF_BYTES, SLATE_BYTES, TAIL_BYTES, Kept, Slate, Strip
from gearmap.wire.pieces import MOST_POSITION, Piece, encode_pieces, joined_pieces

KEPT_BYTES = HEAD_BYTES + TAIL_BYTES

PIECES = st.builds(
    Piece,
    st.integers(0, MOST_POSITION),
    st.integers(0, MOST_POSITION),
    st.floats(allow_nan=False),
    st.binary(max_size=400),
)


def kept_of(data: bytes) -> Kept:
    if len(data) <= KEPT_BYTES:
        return Kept(data)
    return Kept(data[:HEAD_BYTES] + data[-TAIL_BYTES:], HEAD_BYTES, len(data) - KEPT_BYTES)


@given(st.lists(st.integers(min_value=0, max_value=2 * KEPT_BYTES), max_size=8))
def test_whatever_is_written_its_beginning_and_end_are_read_by_whoever_shares_the_memory(sizes: list[int]) -> None:
    memory = bytearray(SLATE_BYTES)
    writer, reader = Slate(memory).strips["stdout"], Slate(memory).strips["stdout"]
    whole = b""
    for number, size in enumerate(sizes):
        data = bytes((number + at) % 251 for at in range(min(size, 300))) * (size // 300 + 1)
        data = data[:size]
        writer.append(data)
        whole += data
        assert reader.read() == kept_of(whole)
        assert reader.written == len(whole)
    writer.clear()
    assert reader.read() == Kept()


def test_streams_and_index_are_apart() -> None:
    memory = bytearray(SLATE_BYTES)
    slate = Slate(memory)
    slate.index[0] = -(2**62)
    for name, strip in slate.strips.items():
        strip.append(name.encode() * KEPT_BYTES)
    other = Slate(memory)
    assert other.index[0] == -(2**62)
    assert {name: set(strip.read().data) for name, strip in other.strips.items()} == {
        "stdout": set(b"stdout"),
        "stderr": set(b"stderr"),
        "notes": set(b"notes"),
    }


@given(st.lists(st.binary(max_size=400) | PIECES), st.sets(st.integers(min_value=0, max_value=100)))
def test_what_is_put_on_the_shelf_is_fetched_once_and_in_order(outcomes: list[bytes | Piece], looks: set[int]) -> None:
    # given
    memory = bytearray(SLATE_BYTES)
    child, node = Slate(memory).shelf, Slate(memory).shelf
    fetched: list[bytes | Piece] = []
    # when
    for number, outcome in enumerate(outcomes):
        assert child.put_piece(outcome) if isinstance(outcome, Piece) else child.put(outcome)
        if number in looks:
            fetched += node.take()
    # then
    assert fetched + node.take() == outcomes
    assert node.take() == []
    node.clear()
    assert child.put(b"next")
    assert node.take() == [b"next"]


def test_what_has_no_room_on_the_shelf_is_not_put_there_and_harms_nothing() -> None:
    memory = bytearray(SLATE_BYTES)
    shelf = Slate(memory).shelf
    assert not shelf.put(bytes(SHELF_BYTES))
    while shelf.put(b"x" * 1000):
        pass
    assert Slate(memory).shelf.take() == [b"x" * 1000] * (SHELF_BYTES // 1004)


def test_a_piece_that_has_no_room_on_the_shelf_is_not_put_there_and_harms_nothing() -> None:
    memory = bytearray(SLATE_BYTES)
    shelf = Slate(memory).shelf
    piece = Piece(7, 1, 0.25, b"x" * 1000)
    while shelf.put_piece(piece):
        pass
    assert Slate(memory).shelf.take() == [piece] * (SHELF_BYTES // 1020)


def test_a_forked_copy_puts_nothing_on_the_shelf() -> None:
    memory = bytearray(SLATE_BYTES)
    shelf = Slate(memory).shelf
    shelf.close()
    assert not shelf.put(b"x")
    assert not shelf.put_piece(Piece(0, 1, 0.0, b"x"))
    assert Slate(memory).shelf.take() == []


@given(st.binary(min_size=64, max_size=64), st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_a_shelf_that_a_task_has_scribbled_on_is_read_to_an_end(noise: bytes, count: int) -> None:
    memory = bytearray(SLATE_BYTES)
    memory[24:32] = count.to_bytes(8, "little", signed=True)
    memory[-SHELF_BYTES:] = noise * (SHELF_BYTES // 64)
    taken = Slate(memory).shelf.take()
    assert sum(len(each.stream if isinstance(each, Piece) else each) for each in taken) <= SHELF_BYTES
    for each in joined_pieces(taken):
        if isinstance(each, list):
            encode_pieces(each, worker="w")  # whatever it says: who opens it refuses it


@given(st.integers(0, 3 * KEPT_BYTES), st.integers(0, 3 * KEPT_BYTES), st.integers(1, TAIL_BYTES))
def test_the_newest_since_an_offset_is_read_wherever_it_lies(written: int, start: int, limit: int) -> None:
    whole = (b"0123456789abcdef!" * (written // 17 + 1))[:written]
    strip = Strip.private()
    strip.append(whole[: written // 2])
    strip.append(whole[written // 2 :])
    begin, data = strip.since(start, limit)
    if start >= written:
        assert data == b""
    else:
        assert begin == max(start, written - limit)
        assert data == whole[begin:]
