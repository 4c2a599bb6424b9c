"""All `submit`s of a client with the same options: one open-ended run whose results are futures.

Rule 1: `submit` takes a call that was pickled in its thread and returns; the driver takes what was submitted in one go.
Rule 2: a future is claimed just before its task is sent: until then cancelling it is exact.
Rule 3: a submit waits for nothing but the answer to whether any job server is there, and only while none is.
Rule 4: one call adds one object that lives on, its future, and the bytes of its arguments. What can be said of many
calls at once is said once for a group of them: objects are what the garbage collector's time goes into.
Rule 5: Ctrl-C, a signal handler and the garbage collector may come at any step of a submit, and call in here again. So
the lock may be taken twice by one thread, and a call comes into its group together with its future, in one step.
Rule 6: tasks are numbered for the engine when the driver takes them, so that tiny calls of functions that take turns
still travel together. Nothing else overtakes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from gearmap.core import events as ev
from gearmap.core.snapshot import ProgressSnapshot
from gearmap.errors import ClusterBroken, GearmapError, ServerUnavailable
from gearmap.runtime.callgroup import CallGroup
from gearmap.runtime.chunkfuture import ChunkFuture
from gearmap.runtime.driver import Driver
from gearmap.runtime.futures import Future, PendingFailure, ResultBatch, begin, settle
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.placed import content_bytes
from gearmap.runtime.question import Question
from gearmap.runtime.run import Place, Run
from gearmap.runtime.travelling import check_job
from gearmap.runtime.wording import failure_note
from gearmap.wire.framing import Payload
from gearmap.wire.jobheader import BlockKind
from gearmap.wire.outcome import TaskFailure
from gearmap.wire.printed import NO_OUTPUT, Output

__all__ = ["CallRun"]

logger = logging.getLogger(__name__)

# Calls that together take less than this, as far as was measured, travel as one block. Raised: less work for each call
# in the driver; lowered: calls of uneven length are spread better.
BLOCK_SECONDS = 0.002

# Limits of such a block. Raised: less work for each call; lowered: less is at stake where a measurement misleads.
MAX_BLOCK_CALLS = 64
MAX_BLOCK_BYTES = 256 * 1024

# What a future tells of a task that runs, the newest. When it is settled it has the beginning, too.
LIVE_CHARS = 65536


class CallRun:
    """The consumer of an open-ended run.

    Parameters
    ----------
    max_block
        The most calls that may have to travel together.

    Attributes
    ----------
    over
        Whether nothing can be submitted any more.
    error
        Why, if it was an error.
    """

    def __init__(self, driver: Driver, make_run: Callable[[CallRun], Run], *, max_block: int = MAX_BLOCK_CALLS) -> None:
        self._driver = driver
        self._make_run = make_run
        self._max_block = min(max_block, MAX_BLOCK_CALLS)
        self._run: Run | None = None
        self._lock = threading.RLock()
        # Under the lock: submitted and not yet seen by the driver, the newest group last; the next index; whether the
        # driver will look for more by itself.
        self._groups: list[CallGroup] = []
        self._newest: CallGroup | None = None
        self._checked = b""  # the digest of the function that is known not to be too large
        self._next = 0
        self._told = False
        self.over = False
        self.error: GearmapError | None = None
        # Changed by the driver thread only: taken and not settled, by the engine's numbers; the next of these; whether
        # a job server is connected; who waits to know that, and who wants to know of the end.
        self._futures: dict[int, Future[Any]] = {}
        self._live: dict[int, Output] = {}  # what tasks that run have printed, by their index
        self._next_number = 0
        self._is_reached = False
        self._questions: list[Question] = []
        self._endings: list[Callable[[], object]] = []

    def submit(self, function: tuple[bytes, Any], call: bytes | Payload, place: Place) -> Future[Any]:
        """Add one call, pickled already; return its future.

        Raises
        ------
        ClusterBroken
            If the run is over.
        ServerUnavailable
            If no job server answers.
        SerializationError
            If that is more than a job server takes.
        """
        if not self._is_reached:
            self._ask()
        size = len(call) if type(call) is bytes else _size(call)
        if size > MAX_BLOCK_BYTES:
            check_job(function[1], call, "the arguments of a call")
        try:
            with self._lock:
                index = self._next
                future: Future[Any] = Future(index, self, self._lock)
                group = self._newest
                if (
                    group is None
                    or (group.function is not function and group.function[0] != function[0])
                    or group.place is not place
                    or group.n_bytes + size > MAX_BLOCK_BYTES
                ):
                    group = self._add_group(function, place)
                group.entries += (future, call)
                group.n_bytes += size
                self._next = index + 1
                told, self._told = self._told, True
            if not told:
                self._driver.post(self._take, self)
        except BaseException:
            self._told = False  # an interrupt may have come just before the driver was
            raise
        return future

    def submit_chunk(self, function: tuple[bytes, Any], columns: Payload, size: int, place: Place) -> ChunkFuture:
        """Add `size` calls that travel together, and with no others; return their future. Raises as `submit`.

        The payload is a tuple of one list for each parameter.
        """
        if not self._is_reached:
            self._ask()
        try:
            with self._lock:
                future = ChunkFuture(self._next, size, self, self._lock)
                group = self._add_group(function, place)
                self._newest = None
                group.entries += (future, columns)
                group.n_bytes = _size(columns)
                self._next += size
                told, self._told = self._told, True
            if not told:
                self._driver.post(self._take, self)
        except BaseException:
            self._told = False  # as in `submit`
            raise
        return future

    @property
    def pending(self) -> int:
        """How many tasks have no end yet, about."""
        return len(self._futures) + sum(len(group.entries) // 2 for group in list(self._groups))

    @property
    def is_broken_for_good(self) -> bool:
        """Whether another run would break as this one did, of `error`."""
        return self.over and self._run is not None and self._run.is_broken_for_good

    @property
    def has_driver(self) -> bool:
        """Whether somebody is there who lets it end."""
        return self._driver.is_alive

    @property
    def is_calling_back(self) -> bool:
        """Whether the caller is a callback of one of its futures, or of another run of its driver."""
        return self._driver.callbacks.is_current

    def cancel_waiting(self) -> None:
        """Cancel what was not sent yet. Any thread."""
        with self._lock:
            futures = [future for group in self._groups for future in group.futures]
        # The copy is made by one instruction, and so whole.
        for future in [*list(self._futures.values()), *futures]:
            future.cancel()
        self._driver.post(self._cancel_taken, self)  # what was on its way from here to there

    def _cancel_taken(self) -> None:
        for future in list(self._futures.values()):
            future.cancel()

    def cancel(self) -> None:
        """End the run at once, whatever runs. Any thread."""
        self._driver.post(self._cancel, self)

    def _cancel(self) -> None:
        self.over = True
        if self._run is not None and not self._run.closed:
            self._run.cancel()

    def finish(self, then: Callable[[], object]) -> None:
        """Let the run end when its tasks have; `then` is called where callbacks are, after theirs.

        Any thread, from within a garbage collection too: no lock is taken here.
        """
        self._driver.post(lambda: self._finish(then), self)

    def _ask(self) -> None:
        """Wait until a job server is there, or raise."""
        if not self._driver.is_current:
            question = Question()
            self._driver.post(lambda: self._pose(question), self)
            question.wait(self._driver)

    def _add_group(self, function: tuple[bytes, Any], place: Place) -> CallGroup:
        if self.over:
            raise ClusterBroken("the run is over")
        if function[0] != self._checked:
            check_job(function[1], b"", "the function")
            self._checked = function[0]
        group = CallGroup(function, place)
        self._groups.append(group)
        self._newest = group  # not before the driver would find it
        return group

    def _taken(self) -> list[CallGroup]:
        """Take the groups out; the caller holds the lock."""
        groups, self._groups, self._newest = self._groups, [], None
        return [group for group in groups if group.entries]  # an interrupt may have come before its first call

    # As the owner of its futures.

    def printed_so_far(self, future: Future[Any]) -> Output:
        return self._live.get(future.task_index, NO_OUTPUT)

    def cancelled(self, future: Future[Any]) -> None:
        self._driver.post(lambda: self._drop(future), self)

    def call_elsewhere(self, call: Callable[[], None]) -> bool:
        if self._driver.is_current:
            self._driver.callbacks.post(call)
            return True
        return False

    # ------------------------------------------------------------------------------------------------- driver thread

    def _open(self) -> Run:
        if self._run is None:
            self._run = self._make_run(self)
            self._run.feeder = self
            self._driver.add(self._run)
        return self._run

    def _take(self) -> None:
        self._open()
        self.feed(saturated=True)

    def _pose(self, question: Question) -> None:
        if self.over:
            question.answer(self.error or ClusterBroken("the run is over"))
        else:
            self._questions.append(question)
            self._open().reach()

    def reached(self) -> None:
        self._is_reached = True
        self._answer(None)

    def unreached(self, error: ServerUnavailable | None) -> None:
        self._is_reached = False
        if error is not None:
            self._answer(error)

    def _answer(self, error: GearmapError | None) -> None:
        questions, self._questions = self._questions, []
        for question in questions:
            question.answer(error)

    def _finish(self, then: Callable[[], object]) -> None:
        if self.over or self._run is None:
            self.over = True
            self._driver.callbacks.post(then)
        else:
            self._endings.append(then)
            self.feed(saturated=False)
            self._run.tell(ev.InputEnded())

    @property
    def has_more(self) -> bool:
        return bool(self._groups)

    def feed(self, *, saturated: bool) -> bool:
        with self._lock:
            groups = self._taken()
            if not groups:
                self._told = saturated
                return False
        for group in groups if len(groups) == 1 else self._regrouped(groups):
            self._add(group)
        return True

    def _regrouped(self, groups: Sequence[CallGroup]) -> list[CallGroup]:
        """Join groups of tiny calls that are apart because others came in between."""
        joined: dict[tuple[bytes, int], CallGroup] = {}
        result = []
        for group in groups:
            name = (group.function[0], id(group.place))
            known = joined.get(name)
            if known is not None and not group.is_chunk and known.n_bytes + group.n_bytes <= MAX_BLOCK_BYTES:
                known.take(group)
                continue
            result.append(group)
            if self._block_size(group) > 1 and not group.is_chunk:
                joined[name] = group
        return result

    def _block_size(self, group: CallGroup) -> int:
        """Return how many calls a block takes: one, until it is known how little time they take."""
        assert self._run is not None
        seconds = self._run.seconds_of(group.function[0])
        return 1 if seconds is None else max(1, min(self._max_block, int(BLOCK_SECONDS / max(seconds, 1e-6))))

    def _add(self, group: CallGroup) -> None:
        """Hand a group to the run as blocks."""
        run = self._run
        assert run is not None
        if group.is_chunk:
            self._add_chunk(run, group)
            return
        digest, calls, size = group.function[0], group.calls, len(group.calls)
        base = self._next_number
        self._next_number = base + size
        for number, future in enumerate(group.futures, base):
            future.number = number
            self._futures[number] = future
        step = self._block_size(group)
        for start in range(0, size, step):
            part = calls[start : start + step]
            first = base + start
            block = ev.Block(first, first, len(part), digest, group.n_bytes * len(part) // size)
            run.add_block(block, BlockKind.CALLS, part, group.place, group.function)

    def _add_chunk(self, run: Run, group: CallGroup) -> None:
        (future,), (columns,) = group.futures, group.calls
        assert isinstance(future, ChunkFuture)
        future.number = base = self._next_number
        self._next_number = base + future.size
        self._futures.update(dict.fromkeys(future.numbers, future))
        block = ev.Block(base, base, future.size, group.function[0], group.n_bytes, alone=True)
        run.add_block(block, BlockKind.COLUMNS, columns, group.place, group.function)

    def _drop(self, future: Future[Any]) -> None:
        """A future was cancelled while its task waited."""
        if self._groups:
            self._take()
        numbers = _numbers_of(future)
        dropped = [self._futures.pop(number, None) for number in numbers]
        if any(each is not None for each in dropped):
            future.let_run()
        if self._run is not None:
            for number in numbers:
                self._run.tell(ev.CancelTask(number))

    def claim(self, first: int, stop: int) -> Sequence[int]:
        get = self._futures.get
        futures = [get(task) for task in range(first, stop)]
        chunk = futures[0]
        if type(chunk) is ChunkFuture:  # and so are the others: it shares its jobs with nobody
            return self._claim_chunk(chunk)
        gone = {future.number for future in begin(filter(None, futures), self._lock)}
        if not gone and None not in futures:
            return ()
        for task in gone:
            del self._futures[task]
        return [task for task, future in enumerate(futures, first) if future is None or task in gone]

    def _claim_chunk(self, chunk: ChunkFuture) -> Sequence[int]:
        if not begin((chunk,), self._lock):
            return ()
        for number in chunk.numbers:
            self._futures.pop(number, None)
        return chunk.numbers

    def delivered(self, first: int, size: int, batch: ResultBatch, offset: int, worker: str) -> None:
        pop = self._futures.pop
        futures = [pop(task, None) for task in range(first, first + size)]
        chunk = futures[0]
        if type(chunk) is ChunkFuture:
            chunk.place(first, size, batch, offset)
        else:
            settle(futures, self._lock, batch, offset, worker)
            if self._live:
                for future in filter(None, futures):
                    self._live.pop(future.task_index, None)

    def failed(self, task: int, failure: Any, attempts: int, worker: str) -> None:
        future = self._futures.pop(task, None)
        if future is not None:
            assert isinstance(failure, TaskFailure)
            index = future.task_index + task - future.number
            note = failure_note(f"task {index}", failure, attempts=attempts, worker=worker)
            _end(future, task, PendingFailure(failure, (note,)), attempts, worker)
            self._live.pop(index, None)

    def gave_up(self, task: int, reason: GivenUp) -> None:
        future = self._futures.pop(task, None)
        if future is not None:
            index = future.task_index + task - future.number
            _end(future, task, PendingFailure(replace(reason, task=index)), reason.attempts, reason.worker)
            self._live.pop(index, None)

    def broken(self, error: GearmapError) -> None:
        with self._lock:
            self.over = True
            self._is_reached = False
            self.error = self.error or error
            groups = self._taken()
        self._answer(error)
        futures = chain(self._futures.values(), *(group.futures for group in groups))
        each = list(dict.fromkeys(futures))  # that of a chunk once
        self._futures.clear()
        for future in each:
            if future.let_run():
                future.put_exception(error)

    def wanted(self, size: int) -> None:
        """Nobody feeds this run but the user."""

    def progressed(self, snapshot: ProgressSnapshot) -> None:
        """Single tasks have no display."""

    def printed(self, task: int, stream: str, text: str) -> bool:
        future = self._futures.get(task)
        if future is not None and not isinstance(future, ChunkFuture):
            known = self._live.get(future.task_index, NO_OUTPUT)
            self._live[future.task_index] = known._replace(**{stream: (getattr(known, stream) + text)[-LIVE_CHARS:]})
        return True

    def noticed(self, text: str) -> None:
        logger.warning("%s", text)

    def ended(self, snapshot: ProgressSnapshot) -> None:
        self.broken(ClusterBroken("the client was closed before the task had ended"))
        for then in self._endings:
            self._driver.callbacks.post(then)
        self._endings.clear()


def _numbers_of(future: Future[Any]) -> Sequence[int]:
    return future.numbers if isinstance(future, ChunkFuture) else (future.number,)


def _end(future: Future[Any], task: int, failure: PendingFailure, attempts: int, worker: str | None) -> None:
    if isinstance(future, ChunkFuture):
        future.place_failure(task, failure)
    else:
        future.worker, future.attempts = worker, attempts
        future.put_exception(failure)


def _size(call: bytes | Payload) -> int:
    return len(call) if isinstance(call, bytes) else content_bytes(call)
