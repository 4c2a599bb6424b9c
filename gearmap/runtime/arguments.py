"""The arguments of a map's tasks, taken from the user's iterables block by block, and pickled.

Law of the file: nothing that was taken is lost. What an iterator gave stays here until `forget`, so that a block whose
pickling failed, or was interrupted, can be taken again; and no more is asked for than the blocks need. Only the thread
that waits for the run comes here: this is where the user's code runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, cycle, islice, repeat
from operator import length_hint
from time import monotonic
from typing import Any

from gearmap.errors import SerializationError
from gearmap.runtime.placed import ArgumentPlacer
from gearmap.wire.framing import Payload
from gearmap.wire.jobheader import BlockKind
from gearmap.wire.serializer import dumps

__all__ = ["ArgumentSource", "is_endless", "pickle_block", "taken_whole"]


def is_endless(iterable: object) -> bool:
    """Whether an iterable is of a kind that has no end; of most kinds nobody can know.

    >>> is_endless(count()), is_endless(repeat(1)), is_endless(repeat(1, 5)), is_endless([1])
    (True, True, False, False)
    """
    return type(iterable) in (count, cycle) or (type(iterable) is repeat and length_hint(iterable, -1) < 0)


def taken_whole(iterables: Sequence[Iterable[Any]]) -> list[Sequence[Any]]:
    """Return what iterables give, of endless ones as much as of the shortest other; one of them must have an end.

    >>> taken_whole([count(1), "abc", repeat(0)])
    [[1, 2, 3], ['a', 'b', 'c'], [0, 0, 0]]
    """
    taken: list[Any] = [
        None if is_endless(each) else each if isinstance(each, range | tuple) else list(each) for each in iterables
    ]
    shortest = min(len(each) for each in taken if each is not None)
    return [
        list(islice(each, shortest)) if known is None else known for each, known in zip(iterables, taken, strict=True)
    ]


class ArgumentSource:
    """The arguments of a map's tasks.

    Lists, tuples and ranges are sliced; a slice of a range is pickled as a range, whatever its length. Everything else
    is iterated. Several iterables are zipped and travel as columns, which pickle faster than rows.
    """

    def __init__(self, iterables: Sequence[Iterable[Any]], *, rows: bool = False) -> None:
        self.kind = BlockKind.ROWS if rows else BlockKind.COLUMNS
        self.total = _shortest(iterables)
        self.by_reference = False  # whether they go to workers of any Python
        self.broken: BaseException | None = None  # what the iterable raised
        self._n_columns = len(iterables)
        self._sliced: Any = None
        self._iterator: Iterator[Any] | None = None
        self._ended = False  # the iterator has no more
        self._held: tuple[int, list[Any]] = (0, [])  # what the iterator gave, from which task on
        if rows:
            self._iterator = map(tuple, iterables[0])
        elif len(iterables) == 1 and type(iterables[0]) in (list, tuple, range):
            self._sliced = iterables[0]
        else:
            self._iterator = iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)

    def take(self, first: int, size: int, *, patience: float | None = None) -> tuple[Any, int]:
        """Return the value to pickle for tasks from `first` on, and how many they are: fewer than `size` at the end.

        Parameters
        ----------
        patience
            Seconds after which a slow iterator is asked for no more: the block is what it gave until then, one item at
            least. None is for ever.

        Raises
        ------
        BaseException
            What the iterable raised. What it gave before is `held`.
        """
        if self._iterator is not None:
            items = self._from(first)
            if len(items) < size:
                self._fill(items, size, patience)
        return self.held(first, size)

    def held(self, first: int, size: int) -> tuple[Any, int]:
        """Return what `take` does, of the items that are here already."""
        part: Any = self._sliced[first : first + size] if self._iterator is None else self._from(first)[:size]
        if self.kind is BlockKind.ROWS:
            return part, len(part)
        if self._n_columns == 1:
            return (part,), len(part)
        return tuple(map(list, zip(*part, strict=True))), len(part)

    def arguments(self, value: Any, task: int) -> tuple[Any, ...]:
        """Return the arguments of one task of a block's value."""
        if self.kind is BlockKind.ROWS:
            return tuple(value[task])
        return tuple(column[task] for column in value)

    def forget(self, stop: int) -> None:
        """Let go of the items before task `stop`: somebody else has them now."""
        if self._iterator is not None:
            self._from(stop)

    def keep(self) -> None:
        """Make what the caller does to a list from now on of no consequence here."""
        if type(self._sliced) is list:
            self._sliced = self._sliced[:]

    def has_more(self, first: int) -> bool:
        """Whether there are tasks from `first` on; True if only asking the iterable for one too many would tell."""
        if self._iterator is None:
            return first < len(self._sliced)
        items = self._from(first)
        if items or self._ended:
            return bool(items)
        if self.total is not None and first >= self.total:
            # A length may be a guess (of a data loader, a progress bar): what comes after it is not to be lost.
            self._fill(items, 1, None)
            return bool(items)
        return True

    def _from(self, first: int) -> list[Any]:
        start, items = self._held
        if first > start:
            items = items[first - start :]
            self._held = (first, items)  # one assignment: an interrupt leaves the old state or the new
        return items

    def _fill(self, items: list[Any], size: int, patience: float | None) -> None:
        assert self._iterator is not None
        until = None if patience is None else monotonic() + patience
        step = size if patience is None else 1
        try:
            while len(items) < size and not self._ended:
                wanted = min(step, size - len(items))
                before = len(items)
                items.extend(islice(self._iterator, wanted))  # what comes before an exception stays in the list
                self._ended = len(items) - before < wanted
                if len(items) > before:
                    self.broken = None  # it went on
                if until is not None and monotonic() >= until:
                    return
                step *= 2
        except BaseException as error:
            self.broken = error
            raise


def pickle_block(
    source: ArgumentSource, value: Any, first: int, size: int, store: ArgumentPlacer | None = None
) -> Payload:
    """Pickle a block's value; its large buffers go into the store, if there is one.

    Raises
    ------
    SerializationError
        If it does not pickle; names the argument and the task that it fails for.
    """
    try:
        payload = dumps(value, name=_name_block(first, size), by_reference=source.by_reference)
    except SerializationError:
        for task in range(size):
            for number, argument in enumerate(source.arguments(value, task)):
                name = f"argument {number} of task {first + task}"
                dumps(argument, name=name, by_reference=source.by_reference)
        raise
    return payload if store is None else store.place(payload, snapshot=False)


def _name_block(first: int, size: int) -> str:
    return f"the arguments of task {first}" if size == 1 else f"the arguments of tasks {first} to {first + size - 1}"


def _shortest(iterables: Sequence[Iterable[Any]]) -> int | None:
    """Return how many tasks there will be, where all iterables know their length."""
    lengths = []
    for each in iterables:
        try:
            lengths.append(len(each))  # type: ignore[arg-type]  # asking is the check
        except TypeError:
            return None
    return min(lengths)
