"""What a child and its node share of a stream: the beginning, the end, and how much is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gearmap.runtime.slate import HEAD_BYTES, SLATE_BYTES, TAIL_BYTES, Kept, Slate

KEPT_BYTES = HEAD_BYTES + TAIL_BYTES


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
    }
