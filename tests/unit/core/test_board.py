"""The states of tasks and blocks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearmap.core.board import CANCELLED, DELAYED, DONE, FAILED, SENT, WAITING, TaskBoard
from gearmap.core.events import Block, Span

STATES = st.sampled_from([DONE, FAILED, CANCELLED])


def board_of(*sizes: int) -> TaskBoard:
    board = TaskBoard()
    for number, size in enumerate(sizes):
        board.add(Block(100 + number, board.size, size, "f"))
    return board


def test_a_block_is_finished_when_its_last_task_is_settled() -> None:
    board = board_of(3)
    assert board.settle(0, 2, DONE) == []
    assert board.settle(2, 3, FAILED) == [100]
    assert (board.open, board.counts[DONE], board.counts[FAILED]) == (0, 2, 1)


def test_a_range_over_several_blocks_finishes_those_that_it_completes() -> None:
    board = board_of(2, 3, 2)
    assert board.settle(1, 6, DONE) == [101]
    assert board.settle(6, 7, DONE) == [102]
    assert board.settle(0, 1, DONE) == [100]


def test_nothing_is_open_or_waits_where_everything_is_settled() -> None:
    board = board_of(10)
    board.settle(0, 4, DONE)
    board.settle(4, 6, FAILED)
    assert board.open_ranges(0, 6) == []
    assert board.waiting_ranges(0, 6) == []
    assert board.open_ranges(0, 7) == board.waiting_ranges(0, 7) == [(6, 7)]


def test_open_ranges_leave_out_what_is_settled_and_keep_what_is_sent() -> None:
    board = board_of(10)
    board.move(2, 4, WAITING, SENT)
    board.settle(4, 6, DONE)
    assert board.open_ranges(0, 10) == [(0, 4), (6, 10)]
    assert board.waiting_ranges(0, 10) == [(0, 2), (6, 10)]
    assert board.open_ranges(3, 5) == [(3, 4)]
    assert board.open_ranges(5, 5) == []


def test_the_spans_of_a_range_are_the_parts_of_its_blocks() -> None:
    board = board_of(2, 3, 2)
    spans = list(board.spans(1, 6))
    assert [(span.block.id, span.start, span.stop) for span in spans] == [(100, 1, 2), (101, 0, 3), (102, 0, 1)]
    assert all(isinstance(span, Span) for span in spans)


@pytest.mark.parametrize(("first", "size"), [(1, 1), (3, 1), (2, 0)])
def test_a_block_that_does_not_follow_or_is_empty_is_refused(first: int, size: int) -> None:
    board = board_of(2)
    with pytest.raises(ValueError, match="block 7"):
        board.add(Block(7, first, size, "f"))


def test_any_number_may_be_asked_whether_it_waits() -> None:
    board = board_of(2)
    board.move(0, 1, WAITING, SENT)
    assert [board.is_waiting(task) for task in (-1, 0, 1, 2)] == [False, False, True, False]


def test_cancelling_what_is_open_keeps_what_is_settled() -> None:
    board = board_of(2, 2, 2)
    board.settle(0, 3, DONE)
    board.move(3, 4, WAITING, SENT)
    assert board.cancel_open() == [101, 102]
    assert board.counts == [0, 0, 0, 3, 0, 3]
    assert board.open_ranges(0, 6) == []


def test_a_long_run_of_single_tasks_forgets_its_blocks() -> None:
    board = TaskBoard()
    for task in range(5000):
        board.add(Block(task, task, 1, "f"))
        assert board.settle(task, task + 1, DONE) == [task]
    assert len(board._firsts) <= 128
    assert not board._blocks
    assert not board._left
    assert len(board._states) <= 128


def test_what_was_forgotten_is_still_known_to_be_settled() -> None:
    board = TaskBoard()
    board.add(Block(0, 0, 10, "f"))
    board.settle(0, 9, DONE)
    for task in range(10, 1000):
        board.add(Block(task, task, 1, "f"))
        board.settle(task, task + 1, DONE)
    assert board.open_ranges(0, 1000) == [(9, 10)]
    assert board.settle(9, 10, FAILED) == [0]
    for task in range(1000, 1200):
        board.add(Block(task, task, 1, "f"))
        board.settle(task, task + 1, DONE)
    board.add(Block(1200, 1200, 3, "f"))
    assert board._base > 1000
    assert not board.is_open(5)
    assert not board.is_waiting(5)
    assert board.open_ranges(0, 900) == board.waiting_ranges(3, 3) == []
    assert board.open_ranges(0, 1203) == board.waiting_ranges(990, 1203) == [(1200, 1203)]
    board.move(1200, 1202, WAITING, SENT)
    assert board.waiting_ranges(0, 1203) == [(1202, 1203)]
    assert board.cancel_open() == [1200]
    assert (board.size, board.counts) == (1203, [0, 0, 0, 1199, 1, 3])


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=40),
    steps=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60), STATES), max_size=40),
)
def test_every_block_is_finished_once_and_the_counts_follow_a_plain_model(
    sizes: list[int], steps: list[tuple[int, int, int]]
) -> None:
    # given
    board = board_of(*sizes)
    model = [WAITING] * board.size
    finished: list[int] = []
    # when
    for start, length, state in steps:
        stop = min(board.size, start + length)
        for low, high in board.waiting_ranges(start, stop)[:1]:
            middle = (low + high + 1) // 2
            board.move(low, middle, WAITING, SENT)
            board.move(low, low + 1, SENT, DELAYED)
            model[low:middle] = [DELAYED, *[SENT] * (middle - low - 1)]
            assert (board.delayed_ranges(low, middle), board.is_waiting(low)) == ([(low, low + 1)], True)
            assert board.sent_ranges(low, middle) == [(low + 1, middle)][: middle - low - 1]
        for low, high in board.open_ranges(start + length // 2, stop):
            finished += board.settle(low, high, state)
            model[low:high] = [state] * (high - low)
    # then
    assert board.counts == [model.count(state) for state in range(6)]
    edges = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    done = [100 + n for n in range(len(sizes)) if all(one > SENT for one in model[edges[n] : edges[n + 1]])]
    assert sorted(finished) == done
    assert finished.count(100) <= 1
    assert sorted(finished + board.cancel_open()) == [100 + number for number in range(len(sizes))]
