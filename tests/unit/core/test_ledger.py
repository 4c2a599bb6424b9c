"""Which tasks of a map have a result, and what a run that goes on is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.core.ledger import Ledger, Piece


def ledger_of(*sizes: int) -> Ledger[str]:
    ledger: Ledger[str] = Ledger()
    for number, size in enumerate(sizes):
        ledger.add(ledger.size, size, f"block {number}")
    return ledger


def test_a_block_is_kept_until_all_of_its_tasks_have_results() -> None:
    ledger = ledger_of(3, 2)
    ledger.done(0, 2)
    assert ledger.block_of(2) == (0, "block 0")
    ledger.done(2, 5)
    assert ledger.block_of(2) is None
    assert ledger.block_of(4) is None
    assert ledger.is_complete


def test_failed_and_unfinished_tasks_keep_their_block() -> None:
    ledger = ledger_of(3)
    ledger.failed(1)
    ledger.done(0, 1)
    ledger.done(2, 3)
    assert ledger.block_of(1) == (0, "block 0")
    assert (ledger.n_done, ledger.is_complete, ledger.is_done(1)) == (2, False, False)


def test_a_run_that_goes_on_gets_every_task_in_order() -> None:
    ledger = ledger_of(2, 3, 2, 4)
    ledger.done(0, 3)
    ledger.done(5, 7)
    ledger.failed(4)
    assert list(ledger.pieces()) == [
        Piece(0, 2, None, ((0, 2),)),
        Piece(2, 3, "block 1", ((2, 3),)),
        Piece(5, 2, None, ((5, 7),)),
        Piece(7, 4, "block 3", ()),
    ]
    assert list(ledger_of().pieces()) == []


def test_tasks_that_are_all_done_at_the_end_are_known_to_a_run_that_goes_on() -> None:
    ledger = ledger_of(1, 2)
    ledger.done(0, 3)
    assert list(ledger.pieces()) == [Piece(0, 3, None, ((0, 3),))]


def test_what_is_settled_in_order_counts_failures_until_another_run_begins() -> None:
    ledger = ledger_of(5)
    ledger.done(0, 2)
    ledger.failed(2)
    ledger.done(3, 4)
    assert ledger.settled_until(0) == ledger.settled_until(3) == 4
    ledger.reopen()
    assert ledger.settled_until(0) == 2
    assert ledger.done_ranges() == [(0, 2), (3, 4)]
    assert ledger.done_ranges(1, 3) == [(1, 2)]


def test_a_block_whose_adding_was_interrupted_can_be_added_again() -> None:
    ledger = ledger_of(2)
    ledger._blocks[2] = (3, "half")
    ledger._firsts.append(2)
    assert [piece.first for piece in ledger.pieces()] == [0]
    ledger.add(2, 4, "whole")
    ledger.done(2, 4)
    assert ledger.block_of(4) == (2, "whole")
    assert ledger.block_of(1) == (0, "block 0")


def test_what_is_done_again_or_was_half_done_changes_nothing() -> None:
    ledger = ledger_of(2, 2)
    ledger.done(0, 2)
    ledger.done(0, 2)
    ledger._states[2:4] = b"\x01\x01"  # interrupted before the block went
    assert ledger.is_complete
    assert [piece.done for piece in ledger.pieces()] == [((0, 2),), ((2, 4),)]


@pytest.mark.parametrize(("first", "size"), [(1, 1), (3, 1), (2, 0)])
def test_a_block_that_does_not_follow_or_is_empty_is_refused(first: int, size: int) -> None:
    with pytest.raises(ValueError, match="expected one from 2"):
        ledger_of(2).add(first, size, "x")


def test_a_task_that_is_not_known_has_neither_result_nor_block() -> None:
    ledger = ledger_of(2)
    assert not ledger.is_done(-1)
    assert not ledger.is_done(2)
    assert ledger.block_of(2) is None
    assert ledger_of().block_of(0) is None


def test_the_books_of_many_small_blocks_stay_small() -> None:
    ledger: Ledger[str] = Ledger()
    for task in range(5000):
        ledger.add(task, 1, "x")
        if task != 7:
            ledger.done(task, task + 1)
    assert len(ledger._firsts) <= 128
    assert ledger.block_of(7) == (7, "x")


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    steps=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 20), st.booleans()), max_size=40),
)
def test_the_books_follow_a_plain_model(sizes: list[int], steps: list[tuple[int, int, bool]]) -> None:
    ledger = ledger_of(*sizes)
    done: set[int] = set()
    for start, length, good in steps:
        first, stop = min(start, ledger.size - 1), min(ledger.size, start + length)
        if not good and first not in done:
            ledger.failed(first)
        elif first < stop and not done & set(range(first, stop)):
            ledger.done(first, stop)
            done |= set(range(first, stop))
    assert {task for low, high in ledger.done_ranges() for task in range(low, high)} == done
    assert ledger.n_done == len(done)
    pieces = list(ledger.pieces())
    assert [piece.first for piece in pieces] == [sum(each.size for each in pieces[:at]) for at in range(len(pieces))]
    assert sum(piece.size for piece in pieces) == ledger.size
    assert {task for piece in pieces for low, high in piece.done for task in range(low, high)} == done
    for task in set(range(ledger.size)) - done:
        first, content = ledger.block_of(task) or (-1, "")
        number = int(content.partition(" ")[2])
        assert first == sum(sizes[:number]) <= task < first + sizes[number]
    for piece in pieces:
        whole = all(task in done for task in range(piece.first, piece.first + piece.size))
        assert (piece.content is None) == whole
