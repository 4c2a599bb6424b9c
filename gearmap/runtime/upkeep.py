"""Between the tasks of a child: what the last one printed is collected, what it changed is put back.

What must not live here: what is put back, and how (`childstate`).

Rule 1: tiny tasks pay for one truth test. Whatever is to be done after a task leaves a mark in one list; only then,
after each millisecond of work and at a job's end, anything here is called.
Rule 2: what a task left comes after its outcome: that is in the pipe before the process is looked at closely, and a
process that cannot be mended runs no further task.
Rule 3: a forked copy of the process never speaks for it. It has no pipe, and where it comes back from a task it ends.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import sys
import traceback
from collections.abc import Hashable
from time import perf_counter

from gearmap.runtime.childstate import STATE, Surroundings, identity
from gearmap.runtime.committer import COMMIT_SECONDS, Committer
from gearmap.runtime.forking import watch_forks
from gearmap.runtime.outlets import ChildOutlets
from gearmap.runtime.slate import Slate
from gearmap.runtime.taskdisplay import TaskDisplay
from gearmap.runtime.tasknotes import TaskNotes
from gearmap.runtime.taskoutput import OUTPUT
from gearmap.wire.outcome import Printed

__all__ = ["NUDGED", "Upkeep"]

# For so many seconds of tasks the process is not looked at closely: of tiny ones, and of others, after each of which is
# looked for what they may have assigned. Raised: less is spent between tasks; lowered: fewer of them may see what one
# of them left. A close look costs 20 us, and 190 where a task has used the processor's caches for itself, as most do;
# a glance a fifth of it.
TINY_SECONDS_UNSEEN = 0.01
SECONDS_UNSEEN = 0.05

# Marks, beside those of `childstate` and `taskoutput`.
_CLOSELY = "closely"  # the function's tasks are looked at one by one
_FORKED = "forked"  # this is a forked copy
NUDGED = "nudged"
"""The mark that a group of tiny tasks is to end."""


class Upkeep:
    """Cares for the process between its tasks.

    Attributes
    ----------
    marks
        Not empty if something must be done before the next task.
    is_fit
        Whether the process may run further tasks.
    has_output
        Tells whether something was written to the descriptors 1 and 2, at half a microsecond.
    """

    def __init__(self, pipe: socket.socket, slate: Slate, outlets: ChildOutlets) -> None:
        self.marks: list[str] = []
        self.is_fit = True
        self._pipe = pipe
        self._pipe_fd = pipe.fileno()
        self._pipe_identity = identity(self._pipe_fd)
        self._shelf = slate.shelf
        self._outlets = outlets
        self.has_output = outlets.is_written
        self._notes = TaskNotes(slate.strips[TaskNotes.stream], self.marks)
        self._display = TaskDisplay(self.marks)
        self._display.listen()
        self._surroundings = Surroundings(slate, self.marks)
        self._new: set[Hashable] = set()  # functions of which no task was looked at
        self._untidy: set[Hashable] = set()  # functions of which one had left something
        self._function: Hashable = None
        self._unseen = 0.0  # seconds of work since the process was looked at
        self._began = 0.0
        self._n_modules = 0
        os.set_inheritable(pipe.fileno(), False)  # a program that a task starts must not hold the node's end open
        _draw_own_numbers()
        for stream in self._surroundings.streams:
            stream.before = self._take_written
        self._surroundings.take_over()
        self._notes.listen()
        watch_forks(self)

    # ----------------------------------------------------------------------------------------------- before the tasks

    def accept(self) -> None:
        """What was done to the process is there for all tasks from now on."""
        self._surroundings.snapshot()
        self.marks[:] = [mark for mark in self.marks if mark in (OUTPUT, _CLOSELY, _FORKED)]
        self._n_modules = len(sys.modules)

    def hear(self, log_level: int | None) -> None:
        """Log records of the tasks are wanted from a level on, or none."""
        if log_level != self._notes.log_level:
            self._notes.set_log_level(log_level)

    def loaded(self, function: Hashable) -> None:
        """A function was unpickled: its first task is looked at closely. What its imports did is there for all."""
        self._new.add(function)
        if self.marks or len(sys.modules) != self._n_modules:
            self.accept()
        self._to_log()

    def forget(self, function: Hashable) -> None:
        """A function is kept no longer."""
        self._new.discard(function)
        self._untidy.discard(function)

    def begin(self, function: Hashable) -> None:
        """A job begins, with tasks of a function."""
        if function != self._function:
            if self._unseen:
                self.restore()
                self.marks.clear()
            self._function = function
            self._to_log()
        if function in self._new or function in self._untidy:
            self.marks.append(_CLOSELY)
        self._began = perf_counter()

    # -------------------------------------------------------------------------------------------------- after a task

    def collect(self, position: int, committer: Committer, error: BaseException | None = None) -> None:
        """Hand what a task said to the committer. In a forked copy, which fell out of the task: end it."""
        marks = self.marks
        if _FORKED in marks:
            _leave(error)
        self._outlets.flush()
        self._take_written()
        if OUTPUT in marks:
            marks[:] = [mark for mark in marks if mark != OUTPUT]
            streams = self._surroundings.streams
            texts = [Printed(position, stream.stream, *stream.take()) for stream in streams]
            if self._display.has_some:
                texts.append(Printed(position, self._display.stream, self._display.take()))
            if self._notes.has_some:
                texts.append(Printed(position, self._notes.stream, *self._notes.take()))
            committer.printed([each for each in texts if each.data])

    def between(self, position: int, committer: Committer) -> bool:
        """Do what the marks ask for after a task; return whether the process is fit for the next."""
        self.collect(position, committer)
        if _CLOSELY in self.marks or STATE in self.marks:
            return self.restore()
        self._surroundings.restore_marked()
        self.marks.clear()
        return True

    def glance(self) -> None:
        """After a group of tiny tasks: leave a mark if one has assigned to what most others look at."""
        if self._surroundings.is_replaced():
            self.marks.append(STATE)

    def worked(self, elapsed: float, *, is_tiny: bool) -> bool:
        """Tasks took so many seconds, at least a millisecond; return whether the process is fit for another."""
        self._unseen += elapsed
        # Of tiny tasks a row is hardly longer than the millisecond; one that is has a long task in it.
        if is_tiny and elapsed < 2 * COMMIT_SECONDS:
            is_well = self._unseen < TINY_SECONDS_UNSEEN
        else:
            is_well = self._unseen < SECONDS_UNSEEN and not self._surroundings.is_reassigned()
        return is_well or self.restore()

    def restore(self) -> bool:
        """Look closely, and put back what is not as it was; return whether the process is fit for another task.

        Raises
        ------
        OSError
            If the task has closed the pipe. It is the one to be charged, and so before another begins.
        """
        if identity(self._pipe_fd) != self._pipe_identity:
            raise OSError(errno.EBADF, "a task has closed the descriptor by which its process reports to the worker")
        self._began = perf_counter()
        self._unseen = 0.0
        is_untidy, is_whole = self._surroundings.restore()
        self.marks.clear()
        if is_untidy:
            self._untidy.add(self._function)
        if self._function in self._untidy:
            self.marks.append(_CLOSELY)
        else:
            self._new.discard(self._function)
        self.is_fit = self.is_fit and is_whole
        return self.is_fit

    def end(self) -> None:
        """A job has ended, and its last outcome was written."""
        self._unseen += perf_counter() - self._began
        if self._unseen >= COMMIT_SECONDS or self.marks or self._surroundings.is_reassigned():
            self.restore()
            self.marks.clear()
            for stream in self._surroundings.streams:
                stream.take()  # what threads wrote since
            self._notes.take()
            self._display.take()
            self._to_log()

    def _take_written(self) -> None:
        """Take in what C code and started programs have written."""
        if self.has_output():
            self._untidy.add(self._function)  # from now on each of its tasks is looked at, or nobody knew whose it is
            self.marks.append(_CLOSELY)
            for stream, data in zip(self._surroundings.streams, self._outlets.read(), strict=True):
                stream.add(data)

    def _to_log(self) -> None:
        """No task has written what is there."""
        self._outlets.flush()
        if self.has_output():
            self._outlets.to_log()

    def _after_fork_in_child(self) -> None:
        self._pipe.close()
        self._shelf.close()
        self._surroundings.forked()
        self._notes.go_direct()
        self._display.go_direct()
        self.marks.append(_FORKED)


def _draw_own_numbers() -> None:
    """Give this process random numbers of its own: what forked it may have loaded numpy, whose state was copied."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _leave(error: BaseException | None) -> None:
    """End a forked copy of the process as a program would end."""
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
    os._exit(code)
