"""What is known of a map, whoever runs it and however often: it outlives its runs.

Rule 1: one thread at a time keeps the record, the one that runs the map; others read it. What they wait for is told
under `condition`.
Rule 2: nothing that was finished is lost to an interrupt. Results are put in their place first and counted then.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from gearmap.config import RunOptions
from gearmap.core.events import TaskRange
from gearmap.core.ledger import Ledger, Piece
from gearmap.errors import ConfigurationError, RunTimeout
from gearmap.runtime.arguments import ArgumentSource, pickle_block
from gearmap.runtime.failed import Failed
from gearmap.runtime.placed import ArgumentPlacer, PlacedPayload
from gearmap.runtime.report import RunNotes
from gearmap.wire.printed import NO_OUTPUT, Output
from gearmap.wire.serializer import loads

__all__ = ["MapRecord"]

# Runs of a map that are spoken of in a report, the newest.
KEPT_NOTES = 10

# What tasks printed, of all of them together. Raised: more can be asked for later; lowered: less memory.
KEPT_OUTPUT_CHARS = 4 * 1024 * 1024

# How a message says that nothing is lost.
GOES_ON = "; gearmap.last().resume() goes on"


class MapRecord:
    """One map: function, arguments, results so far.

    Attributes
    ----------
    fn
        The function, as the user gave it last.
    failed
        The tasks that failed in the newest run, in the order of their failing.
    condition
        Told whenever something was settled.
    notes
        What is to be said of its runs, newest last.
    store
        Where large buffers of arguments go in the newest run, if there is such a place.
    """

    def __init__(self, fn: Callable[..., Any], source: ArgumentSource, options: RunOptions) -> None:
        self.fn = fn
        self.options = options
        self.failed: dict[int, Failed] = {}
        self.condition = threading.Condition()
        self.store: ArgumentPlacer | None = None
        self.notes: deque[RunNotes] = deque(maxlen=KEPT_NOTES)
        self._source = source
        self._ledger: Ledger[Any] = Ledger()
        self._results: list[Any] = []
        self._readers: list[deque[TaskRange]] = []
        self._outputs: dict[int, Output] = {}
        self._output_chars = 0

    # -------------------------------------------------------------------------------------------- for whoever runs it

    @property
    def kind(self) -> Any:
        """How the blocks hold their arguments."""
        return self._source.kind

    @property
    def total(self) -> int | None:
        """How many tasks there are, if the iterables told."""
        return self._source.total

    @property
    def size(self) -> int:
        """How many tasks were taken from the iterables so far."""
        return self._ledger.size

    @property
    def has_more(self) -> bool:
        """Whether there are tasks to take."""
        return self._source.has_more(self._ledger.size)

    @property
    def n_done(self) -> int:
        """How many tasks have results."""
        return self._ledger.n_done

    def pieces(self) -> Iterator[Piece[Any]]:
        """Yield what an earlier run has left, done or not."""
        for piece in self._ledger.pieces():
            content = piece.content
            if isinstance(content, PlacedPayload) and content.store is not self.store:
                piece = replace(piece, content=content.inline())  # that run was on another cluster
            yield piece

    def goes_by_reference(self, by_reference: bool) -> None:
        """Say whether the arguments that are taken from now on go to workers of any Python."""
        self._source.by_reference = by_reference

    def reopen(self) -> None:
        """Another run begins."""
        with self.condition:
            self.failed = {}
            self._ledger.reopen()

    def take(self, size: int) -> tuple[int, int, Any]:
        """Take and pickle the next block: return its first task, its size, 0 at the end, and its payload.

        Raises
        ------
        SerializationError
            If an argument does not pickle. The block is taken again by whoever goes on.
        BaseException
            What the iterable raises.
        """
        first = self._ledger.size
        value, taken = self._source.take(first, size)
        if not taken:
            return first, 0, None
        payload = pickle_block(self._source, value, first, taken, self.store)
        self._results.extend([None] * (first + taken - len(self._results)))
        self._ledger.add(first, taken, payload)
        self._source.forget(first + taken)
        return first, taken, payload

    def place(self, first: int, values: list[Any]) -> None:
        """Take in the results of the tasks from `first` on."""
        stop = first + len(values)
        self._results[first:stop] = values
        with self.condition:
            self._ledger.done(first, stop)
            self._tell(first, stop)

    def fail(self, failed: Failed) -> None:
        """Take in that a task has no result."""
        self.printed(failed.task, failed.output)
        with self.condition:
            self.failed[failed.task] = failed
            self._ledger.failed(failed.task)
            self._tell(failed.task, failed.task + 1)

    def printed(self, task: int, output: Output) -> None:
        """Keep what a task printed; what others printed before may have to go for it."""
        if not any(output):
            return
        with self.condition:
            self._output_chars += sum(map(len, output)) - sum(map(len, self._outputs.pop(task, NO_OUTPUT)))
            while self._outputs and self._output_chars > KEPT_OUTPUT_CHARS:
                self._output_chars -= sum(map(len, self._outputs.pop(next(iter(self._outputs)))))
            self._outputs[task] = output

    def _tell(self, first: int, stop: int) -> None:
        for reader in self._readers:
            reader.append((first, stop))
        self.condition.notify_all()

    def keep(self) -> None:
        """The run has ended early: what is left of the arguments is kept for another, as it is now."""
        self._source.keep()

    def check_source(self) -> None:
        """Raise if the iterable has broken off: what seems to be its end is not.

        Raises
        ------
        ConfigurationError
            If so.
        """
        broken = self._source.broken
        if broken is not None and not self._source.has_more(self._ledger.size):
            raise ConfigurationError(
                f"the iterable was broken off by {type(broken).__name__} after {self.size} tasks and gives no more; "
                "gearmap.last().partial() has their results"
            ) from (broken if isinstance(broken, Exception) else None)

    def first_error(self, *, done: int, others: int, not_run: int | None) -> BaseException:
        """Return the first failing task's own error, with a note that says how the run ended, as far as is known."""
        failed = next(iter(self.failed.values()))
        noun = "task" if others == 1 else "tasks"
        more = f", {others} other {noun} failed" if others > 0 else ""
        rest = "" if not_run is None else f", {not_run} not run"
        counts = f"; {done} done{more}{rest}{GOES_ON} from here"
        return failed.error(total=self.total, counts=counts)

    def timed_out(self) -> RunTimeout:
        """Return the error for a run that took too long."""
        of = "" if self.total is None else f" of {self.total}"
        return RunTimeout(
            f"{self.n_done}{of} tasks done after timeout={self.options.timeout:g} s; the run was cancelled{GOES_ON}"
        )

    def all_results(self) -> list[Any]:
        """Return the results of a map that has ended well; failures that were asked for in their places."""
        if not self.failed:
            return self._results
        results = list(self._results)
        for task, failed in self.failed.items():
            results[task] = failed.error(total=self.total)
        return results

    # ------------------------------------------------------------------------------------------------- for any reader

    def result_ranges(self) -> list[TaskRange]:
        """Return the tasks that have results."""
        with self.condition:
            return self._ledger.done_ranges()

    def results_of(self, first: int, stop: int) -> list[Any]:
        """Return the results of tasks that have some."""
        return self._results[first:stop]

    def is_done(self, task: int) -> bool:
        """Whether the task has a result."""
        return self._ledger.is_done(task)

    def settled_until(self, first: int) -> int:
        """Return the first task from `first` on that is not settled, or the number of tasks known."""
        return self._ledger.settled_until(first)

    def output_of(self, task: int) -> Output:
        """Return what a task printed, as far as it is kept."""
        return self._outputs.get(task, NO_OUTPUT)

    def subscribe(self) -> deque[TaskRange]:
        """Return what is settled now, to be appended to whatever is settled from now on."""
        with self.condition:
            reader = deque(self._ledger.done_ranges())
            reader.extend((task, task + 1) for task in self.failed)
            self._readers.append(reader)
            return reader

    def unsubscribe(self, reader: deque[TaskRange]) -> None:
        """Append no more to it."""
        with self.condition:
            self._readers = [each for each in self._readers if each is not reader]

    def arguments_of(self, task: int) -> tuple[Any, ...] | None:
        """Return copies of the arguments of a task without a result, or None if they are not known."""
        with self.condition:
            found = self._ledger.block_of(task)
        if found is None:
            return None
        first, payload = found
        value = loads([payload[0], *map(bytearray, payload[1:])])  # what it changes in them is not to be seen elsewhere
        return self._source.arguments(value, task - first)
