"""What an `imap` may hold: bounds on number and bytes, and enough for all workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.core.buffering import BLOCK_BYTES, BLOCK_TASKS, MAX_BYTES, AsTheyCome, Buffer, InOrder
from gearmap.core.engine import JOBS_PER_WORKER


def filled(buffer: Buffer, *, wanted: int, workers: int | None = 2, task_bytes: int = 10) -> list[int]:
    """Take blocks until there is no room; return their sizes."""
    sizes: list[int] = []
    while size := buffer.next_block(wanted, workers):
        buffer.took(size, size * task_bytes)
        sizes.append(size)
        assert len(sizes) < 10_000
    return sizes


def test_there_are_blocks_for_every_job_at_the_servers_and_spare_ones() -> None:
    for workers in (1, 2, 50):
        assert len(filled(Buffer(), wanted=7, workers=workers)) > JOBS_PER_WORKER * workers


def test_while_nobody_knows_the_workers_some_are_assumed() -> None:
    assert len(filled(Buffer(), wanted=1, workers=None)) > 2
    assert len(filled(Buffer(), wanted=1, workers=0)) > 2


def test_blocks_are_those_the_engine_wants_up_to_a_bound() -> None:
    assert Buffer().next_block(7, 2) == 7
    assert Buffer().next_block(10**9, 2) == BLOCK_TASKS


def test_the_bytes_of_arguments_and_results_bound_a_block() -> None:
    buffer = Buffer()
    buffer.took(10, 10 * 1000)
    assert buffer.next_block(10**9, 2) == BLOCK_BYTES // 1000
    buffer.arrived(10, 10 * 3000)
    assert buffer.next_block(10**9, 2) == BLOCK_BYTES // 4000


def test_a_slow_consumer_stops_the_taking_until_it_is_done_with_a_block() -> None:
    buffer = Buffer()
    sizes = filled(buffer, wanted=5)
    buffer.handed_out(4)
    assert buffer.next_block(5, 2) == 0
    buffer.handed_out(1)
    assert buffer.next_block(5, 2) == 5
    assert buffer.held == sum(sizes) - 5


def test_huge_tasks_are_as_few_as_keeps_every_worker_busy() -> None:
    buffer = Buffer()
    buffer.took(1, MAX_BYTES)
    assert len(filled(buffer, wanted=1, workers=8, task_bytes=MAX_BYTES)) == 7
    assert buffer.held == 8


@pytest.mark.parametrize(("buffersize", "workers"), [(1, 2), (5, 2), (5, 100), (1000, 2)])
def test_the_users_bound_is_kept(buffersize: int, workers: int) -> None:
    buffer = Buffer(buffersize=buffersize)
    sizes = filled(buffer, wanted=10**6, workers=workers)
    assert buffersize - max(sizes) < buffer.held <= buffersize
    assert len(sizes) >= min(buffersize, JOBS_PER_WORKER * workers)


def test_the_users_chunksize_is_kept_whatever_the_bytes_say() -> None:
    assert set(filled(Buffer(chunksize=100), wanted=100, task_bytes=10**6)) == {100}


def test_a_chunk_is_smaller_than_the_user_says_if_no_child_may_run_so_many() -> None:
    assert set(filled(Buffer(chunksize=100), wanted=3)) == {3}


def test_a_chunksize_beyond_the_buffer_is_cut() -> None:
    assert filled(Buffer(chunksize=100, buffersize=30), wanted=100) == [30]


def test_max_workers_bounds_the_workers_that_are_counted_on() -> None:
    assert len(filled(Buffer(max_workers=1), wanted=1, workers=50)) == len(filled(Buffer(), wanted=1, workers=1))


@given(
    buffersize=st.none() | st.integers(1, 50),
    chunksize=st.none() | st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**7), st.integers(0, 60)), max_size=60),
)
def test_an_empty_buffer_always_has_room_and_a_full_one_never_more_than_its_bound(
    buffersize: int | None, chunksize: int | None, steps: list[tuple[int, int, int]]
) -> None:
    buffer = Buffer(buffersize=buffersize, chunksize=chunksize)
    for wanted, task_bytes, consumed in steps:
        size = buffer.next_block(wanted, 3)
        assert size >= 1 or buffer.held
        if size:
            buffer.took(size, size * task_bytes)
            buffer.arrived(size, size * task_bytes)
        assert buffersize is None or buffer.held <= buffersize
        buffer.handed_out(min(consumed, buffer.held))


@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=12), data=st.data())
def test_in_order_hands_out_every_run_in_the_order_of_its_tasks(cuts: list[int], data: st.DataObject) -> None:
    runs = [(sum(cuts[:at]), size) for at, size in enumerate(cuts)]
    waiting: InOrder[int] = InOrder()
    out = []
    for first, size in data.draw(st.permutations(runs)):
        waiting.add(first, size, first)
        while waiting.ready:
            out.append(waiting.pop())
    assert out == [(size, first) for first, size in runs]


def test_as_they_come_hands_out_at_once() -> None:
    waiting: AsTheyCome[str] = AsTheyCome()
    assert not waiting.ready
    waiting.add(5, 2, "late")
    waiting.add(0, 1, "early")
    assert [waiting.pop(), waiting.pop()] == [(2, "late"), (1, "early")]
    assert not waiting.ready
