"""What waits for a peer: nothing is lost, doubled or reordered, however much the system takes at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gearmap.jobserver.blocks import BLOCK_BYTES, BlockPool, LargeData
from gearmap.jobserver.outbox import CHUNK_BYTES, CHUNK_PARTS, Outbox

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.lists(st.binary(max_size=20).map(memoryview), min_size=1, max_size=4).map(LargeData),
    ),
    max_size=6,
)


@given(st.lists(st.tuples(PIECES, st.integers(0, 60)), max_size=8))
def test_what_is_sent_is_what_was_put_in_its_order(turns):
    outbox = Outbox()
    put, received = b"", b""
    for pieces, n_taken in [*turns, ([], 10_000)]:
        outbox.put(pieces)
        put += b"".join(map(bytes, pieces))
        taken = b"".join(outbox.chunk())[:n_taken]
        outbox.sent(len(taken))
        received += taken
        assert outbox.n_bytes == len(put) - len(received)
    assert received == put
    assert outbox.chunk() == []


def test_a_chunk_is_bounded_in_bytes_and_in_parts():
    outbox = Outbox()
    outbox.put([b"x"] * (CHUNK_PARTS + 1))
    assert len(outbox.chunk()) == CHUNK_PARTS
    outbox.clear()
    outbox.put([bytes(CHUNK_BYTES // 2)] * 3)
    assert sum(map(len, outbox.chunk())) == CHUNK_BYTES


def test_blocks_are_kept_until_their_last_byte_was_sent():
    pool = BlockPool()
    outbox = Outbox()
    outbox.put([LargeData.in_blocks(pool, [pool.take(), pool.take()], BLOCK_BYTES + 10)])
    outbox.sent(BLOCK_BYTES + 9)
    assert pool.spare_bytes == 0
    outbox.sent(1)
    assert pool.spare_bytes == 2 * BLOCK_BYTES


def test_spare_blocks_are_bounded_and_what_is_not_needed_goes_back_to_the_system():
    pool = BlockPool(2 * BLOCK_BYTES)
    pool.give_back([pool.take() for _ in range(3)])
    assert pool.spare_bytes == 2 * BLOCK_BYTES
    pool.trim()
    pool.give_back([pool.take()])
    pool.trim()
    assert pool.spare_bytes == BLOCK_BYTES
    pool.trim()
    assert pool.spare_bytes == 0
