"""The arguments of a map, block by block: the same tasks as the builtin `map`, whatever the iterables and the sizes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count, starmap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.errors import SerializationError
from gearmap.runtime.arguments import ArgumentSource, pickle_block
from gearmap.wire.jobheader import BlockKind


def tasks_of(source: ArgumentSource, sizes: Iterable[int]) -> list[tuple[Any, ...]]:
    """Take blocks of these sizes; return the argument tuples of their tasks."""
    tasks: list[tuple[Any, ...]] = []
    for size in sizes:
        value, taken = source.take(len(tasks), size)
        source.forget(len(tasks) + taken)
        assert taken <= size
        rows = value if source.kind is BlockKind.ROWS else list(zip(*value, strict=True))
        assert len(rows) == taken
        assert rows == [source.arguments(value, task) for task in range(taken)]
        tasks += rows
    return tasks


@pytest.mark.parametrize("items", [[1, 2, 3, 4, 5], (1, 2, 3, 4, 5), range(1, 6)])
def test_lists_tuples_and_ranges_are_sliced(items: Any) -> None:
    source = ArgumentSource([items])
    assert source.take(0, 2) == ((items[:2],), 2)
    (part,), taken = source.take(2, 2)
    assert (type(part), list(part), taken) == (type(items), [3, 4], 2)
    assert source.has_more(4)
    assert source.take(4, 10) == ((items[4:],), 1)
    assert not source.has_more(5)


def test_a_slice_of_a_huge_range_stays_a_range() -> None:
    (part,), taken = ArgumentSource([range(10**12)]).take(0, 10**9)
    assert (part, taken) == (range(10**9), 10**9)


def test_a_subclass_is_iterated_for_its_slices_may_mean_something_else() -> None:
    class Odd(list[int]):
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("sliced")

    assert tasks_of(ArgumentSource([Odd([1, 2, 3])]), [2, 2]) == [(1,), (2,), (3,)]


def test_a_generator_is_advanced_only_as_far_as_its_blocks_go() -> None:
    # given
    advanced: list[int] = []

    def items() -> Iterator[int]:
        for number in count():
            advanced.append(number)
            yield number

    source = ArgumentSource([items()])
    # then
    assert (source.total, source.has_more(0), advanced) == (None, True, [])
    assert source.take(0, 3) == (([0, 1, 2],), 3)
    assert advanced == [0, 1, 2]
    assert source.has_more(3)
    assert advanced == [0, 1, 2]


def test_a_block_can_be_taken_again_until_it_is_forgotten() -> None:
    source = ArgumentSource([count()])
    assert source.take(0, 3) == (([0, 1, 2],), 3)
    assert source.take(0, 5) == (([0, 1, 2, 3, 4],), 5)
    source.forget(3)
    assert source.take(3, 1) == (([3],), 1)
    assert source.take(4, 2) == (([4, 5],), 2)


def test_rows_that_can_be_read_only_once_can_be_taken_again() -> None:
    source = ArgumentSource([[iter([1, 2]), iter([3])]], rows=True)
    assert source.take(0, 2) == source.take(0, 2) == ([(1, 2), (3,)], 2)


def test_a_slow_iterator_is_asked_for_no_more_than_fits_into_the_time() -> None:
    source = ArgumentSource([count()])
    assert source.take(0, 1000, patience=0.0) == (([0],), 1)
    assert source.take(0, 1000, patience=60.0)[1] == 1000
    assert source.has_more(1000)


def test_patience_takes_nothing_from_the_end() -> None:
    source = ArgumentSource([iter([1, 2, 3])])
    assert source.take(0, 10, patience=60.0) == (([1, 2, 3],), 3)
    assert not source.has_more(3)


def test_the_end_of_a_generator_shows_as_a_block_that_is_too_small() -> None:
    source = ArgumentSource([iter([1, 2, 3])])
    assert source.take(0, 3) == (([1, 2, 3],), 3)
    assert source.has_more(3)
    assert source.take(3, 3)[1] == 0
    assert not source.has_more(3)
    assert source.take(3, 3)[1] == 0


def test_an_iterator_that_has_ended_is_not_asked_again() -> None:
    asked = []

    class Once:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            asked.append(1)
            if len(asked) > 2:
                raise StopIteration
            return 7

    source = ArgumentSource([Once()])
    assert source.take(0, 5) == (([7, 7],), 2)
    assert source.take(2, 5)[1] == 0
    assert len(asked) == 3


def test_an_error_of_the_iterable_is_its_own() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("mine")

    source = ArgumentSource([items()])
    with pytest.raises(LookupError, match="mine"):
        source.take(0, 5)
    assert isinstance(source.broken, LookupError)
    # what came before the error is not lost
    assert source.held(0, 5) == (([1],), 1)
    source.forget(1)
    assert source.held(1, 5)[1] == 0
    assert source.take(1, 5)[1] == 0
    assert not source.has_more(1)


@pytest.mark.parametrize(
    ("iterables", "total"),
    [
        ([[1, 2, 3]], 3),
        ([range(5), "ab"], 2),
        ([{1, 2}, {3: 4}, deque([5])], 1),
        ([[1, 2], iter([1])], None),
        ([iter([])], None),
        ([[]], 0),
        ([[1, 2], []], 0),
    ],
)
def test_the_total_is_known_where_all_lengths_are(iterables: list[Any], total: int | None) -> None:
    assert ArgumentSource(iterables).total == total


@pytest.mark.parametrize("iterables", [[[]], [range(0)], [set()], [{}], [[1], []], ["", [1]]])
@pytest.mark.parametrize("size", [1, 7])
def test_an_empty_source_is_known_to_be_before_anything_is_taken(iterables: list[Any], size: int) -> None:
    source = ArgumentSource(iterables)
    assert not source.has_more(0)
    assert source.take(0, size)[1] == 0


def test_columns_of_several_iterables_are_lists() -> None:
    value, taken = ArgumentSource([[1, 2, 3], "abc"]).take(0, 2)
    assert (value, taken) == (([1, 2], ["a", "b"]), 2)


def test_unequal_iterables_end_with_the_shortest() -> None:
    source = ArgumentSource([count(), "abc", [1, 2, 3, 4]])
    assert tasks_of(source, [2, 2, 2]) == [(0, "a", 1), (1, "b", 2), (2, "c", 3)]


@pytest.mark.parametrize("rows", [[(1, 2), (3, 4)], [[1, 2], [3, 4]], ["ab", "cd"], [(1,), (1, 2, 3)], [(), ()]])
def test_rows_are_tuples_of_any_width(rows: list[Any]) -> None:
    source = ArgumentSource([rows], rows=True)
    assert source.kind is BlockKind.ROWS
    assert source.take(0, 5) == ([tuple(row) for row in rows], 2)


def test_rows_may_be_generated() -> None:
    source = ArgumentSource([zip("ab", count(), strict=False)], rows=True)
    assert tasks_of(source, [1, 5]) == [("a", 0), ("b", 1)]


class Guess:
    """Says how long it is, and is not."""

    def __init__(self, says: int, items: int) -> None:
        self.says, self.items = says, items

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.items))


@pytest.mark.parametrize(("says", "items"), [(2, 5), (0, 3), (5, 2), (3, 3)])
@pytest.mark.parametrize("size", [1, 2, 10])
def test_a_length_that_was_only_a_guess_loses_no_task(says: int, items: int, size: int) -> None:
    source = ArgumentSource([Guess(says, items)])
    tasks: list[tuple[Any, ...]] = []
    while source.has_more(len(tasks)):
        (part,), _ = source.take(len(tasks), size)
        tasks += [(item,) for item in part]
    assert tasks == [(number,) for number in range(items)]


ITEMS = st.lists(st.integers(), max_size=12)
WRAPPED = ITEMS.flatmap(
    lambda items: st.sampled_from(
        [lambda: list(items), lambda: tuple(items), lambda: iter(items), lambda: deque(items)]
    )
)


@given(iterables=st.lists(WRAPPED, min_size=1, max_size=3), sizes=st.lists(st.integers(1, 5), min_size=12, max_size=12))
def test_the_tasks_are_those_of_the_builtin_map(iterables: list[Any], sizes: list[int]) -> None:
    expected = list(map(lambda *arguments: arguments, *(make() for make in iterables)))  # the model
    assert tasks_of(ArgumentSource([make() for make in iterables]), sizes) == expected


@given(rows=st.lists(st.lists(st.integers(), max_size=3), max_size=12), sizes=st.lists(st.integers(1, 5), min_size=12))
def test_the_tasks_of_rows_are_those_of_starmap(rows: list[list[int]], sizes: list[int]) -> None:
    expected = list(starmap(lambda *arguments: arguments, rows))
    assert tasks_of(ArgumentSource([rows], rows=True), sizes) == expected


def test_an_argument_that_does_not_pickle_is_named_with_its_task() -> None:
    source = ArgumentSource([[1, 2, 3], [1, 2, threading.Lock()]])
    value, taken = source.take(0, 3)
    with pytest.raises(SerializationError, match=r"argument 1 of task 12: .*lock"):
        pickle_block(source, value, 10, taken)
