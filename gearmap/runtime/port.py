"""The end of a run that its caller holds.

Rule 1: the driver leaves mail here, and the caller takes all of it at once; neither waits for the other to work.
Rule 2: what the caller wants of the run it posts to the driver; it never touches the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gearmap.core import events as ev
from gearmap.core.snapshot import ProgressSnapshot
from gearmap.core.tally import Tally
from gearmap.errors import ClusterBroken, GearmapError
from gearmap.runtime.driver import Driver
from gearmap.runtime.failed import Failed
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.placed import content_bytes
from gearmap.runtime.run import Place, Run
from gearmap.runtime.travelling import check_job
from gearmap.wire.jobheader import BlockKind

__all__ = ["WAIT_STEP", "Mail", "RunPort"]

# The longest uninterrupted wait: Ctrl-C, the timeout and the progress display are looked at this often (seconds).
WAIT_STEP = 0.1

# What waits to be shown of tasks that run. Raised: a caller that looks rarely sees more live; lowered: less memory.
_MOST_PRINTED_CHARS = 131072


@dataclass(slots=True)
class Mail:
    """What has happened since the caller looked last.

    `results` are first task, number of tasks, batch, offset in the batch, and worker. `wanted` is the size of the next
    block, 0 if none is wanted. `printed` are task, stream and lines of tasks that run. After
    `error` or `end` nothing follows.
    """

    results: list[tuple[int, int, ResultBatch, int, str]] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    wanted: int = 0
    snapshot: ProgressSnapshot | None = None
    tally: Tally | None = None
    notice: str = ""
    printed: list[tuple[int, str, str]] = field(default_factory=list)
    error: GearmapError | None = None
    end: ProgressSnapshot | None = None


class RunPort:
    """The consumer of a run that one thread feeds and waits for.

    Parameters
    ----------
    function
        Digest and payload of the function that all tasks call.
    place
        Where they run.
    kind
        How the blocks hold their arguments.

    Attributes
    ----------
    run_id
        Id of the run, once it is open.
    """

    def __init__(self, driver: Driver, function: tuple[bytes, Any], place: Place, kind: BlockKind) -> None:
        self.run_id = ""
        self._driver = driver
        self._function = function
        self._place = place
        self._kind = kind
        self._next_block = 0
        self._condition = threading.Condition()
        self._mail = Mail()
        self._has_news = False
        self._told = False  # whether the caller is about to be told of results
        self._run: Run | None = None  # driver thread only

    # ----------------------------------------------------------------------------------------------- calling thread

    def open(self, make_run: Callable[[RunPort], Run]) -> None:
        """Begin; `make_run` is called in the driver thread."""
        self._driver.post(lambda: self._open(make_run), self)

    def add(
        self, first: int, size: int, payload: Any, *, done: tuple[ev.TaskRange, ...] = (), ended: bool = False
    ) -> int:
        """Add the pickled arguments of the tasks from `first` on; return their length in bytes.

        Tasks that are `done` are not run. If all are, there need be no arguments, and the payload is None.

        Raises
        ------
        SerializationError
            If that is more than a job server takes.
        """
        length = 0 if payload is None else content_bytes(payload)
        if payload is not None:
            check_job(self._function[1], payload, f"the arguments of {size} tasks from {first} on")
        block = ev.Block(self._next_block, first, size, self._function[0], length)
        self._next_block += 1
        self._driver.post(lambda: self._add(block, payload, done, ended), self)
        return length

    def end_input(self) -> None:
        """Say that no block will follow."""
        self._driver.post(self._end_input, self)

    def cancel(self) -> None:
        """End the run, if it has not ended."""
        self._driver.post(self._cancel, self)

    def interrupt(self) -> None:
        """Wake the thread that waits in `take`; called by others."""
        with self._condition:
            self._tell()

    def take(self, timeout: float) -> Mail:
        """Return what has come, after waiting at most `timeout` seconds for something to come."""
        with self._condition:
            if not self._has_news and timeout > 0:
                self._condition.wait(timeout)
            mail, self._mail = self._mail, Mail()
            has_news, self._has_news = self._has_news, False
        if not has_news and timeout > 0 and not self._driver.is_alive:
            mail.error = ClusterBroken("the client was closed before the run had ended")
        return mail

    # ------------------------------------------------------------------------------------------------ driver thread

    def _open(self, make_run: Callable[[RunPort], Run]) -> None:
        self._run = make_run(self)
        self.run_id = self._run.settings.run_id
        self._driver.add(self._run)
        self._run.tell(ev.Tick())

    def _add(self, block: ev.Block, payload: Any, done: tuple[ev.TaskRange, ...], ended: bool) -> None:
        run = self._run
        assert run is not None
        if payload is None:
            run.tell(ev.AddBlock(block, done))
        else:
            run.add_block(block, self._kind, payload, self._place, self._function, done)
        if ended:
            self._end_input()

    def _end_input(self) -> None:
        assert self._run is not None
        self._run.tell(ev.InputEnded())

    def _cancel(self) -> None:
        if self._run is not None and not self._run.closed:
            self._run.cancel()

    def _tell(self) -> None:
        self._has_news = True
        self._condition.notify()

    def claim(self, first: int, stop: int) -> Sequence[int]:
        return ()

    def delivered(self, first: int, size: int, batch: ResultBatch, offset: int, worker: str) -> None:
        with self._condition:
            self._mail.results.append((first, size, batch, offset, worker))
            told, self._told = self._told, True
        if not told:
            # In the driver's next round: a caller that unpickles now takes the interpreter lock, for milliseconds each
            # time, from a driver that is about to send the next job.
            self._driver.post(self._tell_of_results, self)

    def _tell_of_results(self) -> None:
        with self._condition:
            self._told = False
            self._tell()

    def failed(self, task: int, failure: Any, attempts: int, worker: str) -> None:
        self._failed(Failed(task, failure, attempts, worker))

    def gave_up(self, task: int, reason: GivenUp) -> None:
        self._failed(Failed(task, reason, reason.attempts, reason.worker))

    def _failed(self, failed: Failed) -> None:
        with self._condition:
            self._mail.failed.append(failed)
            self._tell()

    def broken(self, error: GearmapError) -> None:
        with self._condition:
            self._mail.error = error
            self._tell()

    def wanted(self, size: int) -> None:
        with self._condition:
            self._mail.wanted = size
            self._tell()

    def progressed(self, snapshot: ProgressSnapshot) -> None:
        with self._condition:
            self._mail.snapshot = snapshot
            self._mail.tally = self._tally()

    def noticed(self, text: str) -> None:
        with self._condition:
            self._mail.notice = text
            self._tell()

    def printed(self, task: int, stream: str, text: str) -> bool:
        with self._condition:
            if sum(len(each) for _, _, each in self._mail.printed) > _MOST_PRINTED_CHARS:
                return False  # the caller is busy elsewhere; it comes with the task's outcome
            self._mail.printed.append((task, stream, text))
            self._tell()
        return True

    def ended(self, snapshot: ProgressSnapshot) -> None:
        with self._condition:
            self._mail.end = snapshot
            self._mail.tally = self._tally()
            self._tell()

    def _tally(self) -> Tally | None:
        return None if self._run is None else self._run.engine.tally.copy()
