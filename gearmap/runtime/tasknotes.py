"""What a task warns of and logs is kept for its outcome, beside what it prints.

What must not live here: whose it is (`upkeep`), and what is made of it (`retelling`, in the client).

Rule 1: a task that says nothing pays nothing. Python's own hooks are replaced, once in a child, before any code of
users; whoever replaces them again, or records warnings with `catch_warnings`, has them for himself.
Rule 2: each task is heard as if it were alone: what one has warned of, the next may warn of again.
Rule 3: handlers that a task's code configures do their work; a record that one of them prints comes back as what the
task printed, and not as a record.
Rule 4: memory and time are bounded, however much a task says.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from time import monotonic
from typing import Any

from gearmap.runtime.slate import Kept, Strip
from gearmap.runtime.task import running_worker
from gearmap.runtime.taskoutput import OUTPUT, OutputStream
from gearmap.wire.jobheader import WARNING
from gearmap.wire.notes import Logged, Warned, note_line

__all__ = ["TaskNotes"]

# Different warnings of one task. Raised: more of a task that warns of everything is seen; lowered: less to read.
MAX_WARNINGS = 20

# Notes of one task at once, and how many more with every second; the others are counted. Raised: more is seen of a
# task that says much; lowered: it costs less.
BURST_NOTES = 200
NOTES_PER_SECOND = 20.0

# Frames in which the module is looked for that a warning is of.
_MAX_FRAMES = 32


class TaskNotes:
    """Listens for what tasks have to say.

    Parameters
    ----------
    strip
        Keeps it, where it survives this process.
    marks
        Gets `OUTPUT` when there is something to collect.

    Attributes
    ----------
    log_level
        From which level on log records are kept; None for none.
    """

    stream = "notes"

    def __init__(self, strip: Strip, marks: list[str]) -> None:
        self._strip = strip
        self._marks = marks
        self._lock = threading.RLock()  # a signal handler may warn while its thread does
        self._number = 0
        self._written = 0
        self._warned: set[Warned] = set()
        self._room = float(BURST_NOTES)
        self._filled = 0.0  # when
        self._is_direct = False
        self.log_level: int | None = WARNING
        self._root_level: tuple[int, int] | None = None  # of the root logger: what it was, what it was made
        # Not the wrapped one: that tells of a task that changes filters.
        self._forget_warnings: Callable[[], object] = getattr(warnings, "_filters_mutated", lambda: None)
        self._show_warning: Callable[..., object] = warnings.showwarning

    def listen(self) -> None:
        """Begin; once, at the start of the process."""
        warnings.showwarning = self._warn
        logger_class: Any = logging.Logger
        logger_class.callHandlers = self._watched(logger_class.callHandlers)
        logging.lastResort = _LastResort(self, logging.lastResort)
        logging.basicConfig = _only_if_asked(logging.basicConfig)

    def set_log_level(self, level: int | None) -> None:
        """Keep records from a level on; also those that Python would not even make."""
        self.log_level = level
        root = logging.getLogger()
        if self._root_level is not None and root.level == self._root_level[1]:
            root.setLevel(self._root_level[0])
        self._root_level = None
        if level is not None and level < root.level:
            self._root_level = (root.level, level)
            root.setLevel(level)

    def keeps(self, record: logging.LogRecord) -> bool:
        """Whether records of this level are kept."""
        return not self._is_direct and self.log_level is not None and record.levelno >= self.log_level

    @property
    def has_some(self) -> bool:
        """Whether there is something to take."""
        return self._number > 0

    def take(self) -> Kept:
        """Return what was said since the last call."""
        with self._lock:
            if self._written < self._number:
                self._strip.append(note_line(self._number, running_worker()))
            kept = self._strip.read()
            self._strip.clear()
            self._number = self._written = 0
            has_warned = bool(self._warned)
            self._warned.clear()
        if has_warned:
            self._forget_warnings()  # else Python shows each only once in a process
        return kept

    def go_direct(self) -> None:
        """From now on this is a forked copy, where nobody collects: everything goes to standard error."""
        self._lock = threading.RLock()
        self._is_direct = True

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        """Stands for `warnings.showwarning`."""
        if self._is_direct or file is not None:
            self._show_warning(message, category, filename, lineno, file, line)
            return
        name = f"{category.__module__}:{category.__qualname__}"
        warned = Warned(name, _text(message), str(filename), int(lineno), _module_at(filename, lineno))
        with self._lock:
            if warned not in self._warned:
                is_one_more = len(self._warned) < MAX_WARNINGS
                if is_one_more:
                    self._warned.add(warned)
                self._put(warned, is_wanted=is_one_more)

    def _watched(self, call_handlers: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(call_handlers)
        def call(logger: logging.Logger, record: logging.LogRecord) -> None:
            call_handlers(logger, record)
            if self.keeps(record) and not _is_printed(logger, record):
                logged = _logged(record)
                with self._lock:
                    self._put(logged)

        return call

    def _put(self, note: Warned | Logged, *, is_wanted: bool = True) -> None:
        """Keep a note; the caller holds the lock."""
        if not self._number:
            self._marks.append(OUTPUT)
        self._number += 1
        now = monotonic()
        self._room = min(float(BURST_NOTES), self._room + NOTES_PER_SECOND * (now - self._filled))
        self._filled = now
        if is_wanted and self._room >= 1.0:
            self._room -= 1.0
            self._written = self._number
            self._strip.append(note_line(self._number, running_worker(), note))


class _LastResort(logging.Handler):
    """What `logging` turns to if there is no other handler: records that are kept are not printed, too."""

    def __init__(self, notes: TaskNotes, original: logging.Handler | None) -> None:
        super().__init__(original.level if original else logging.CRITICAL + 1)
        self._notes = notes
        self._original = original

    def handle(self, record: logging.LogRecord) -> bool:
        """Print a record that is not kept."""
        return self._original is not None and not self._notes.keeps(record) and bool(self._original.handle(record))


def _only_if_asked(configure: Callable[..., None]) -> Callable[..., None]:
    """Let nobody but a task configure `logging`: `logging.warning` and its like do, to have the record printed."""

    @functools.wraps(configure)
    def call(**options: Any) -> None:
        if sys._getframe(1).f_globals is not vars(logging):
            configure(**options)

    return call


def _is_printed(logger: logging.Logger, record: logging.LogRecord) -> bool:
    """Whether a handler of the task's own has put a record where its output is kept."""
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            if record.levelno >= handler.level and isinstance(getattr(handler, "stream", None), OutputStream):
                return True
        at = at.parent if at.propagate else None
    return False


def _logged(record: logging.LogRecord) -> Logged:
    try:
        text = record.getMessage()
    except Exception as error:
        text = f"{record.msg!s:.200} (its arguments do not fit: {type(error).__name__})"
    traceback = record.exc_text or ""
    if not traceback and record.exc_info and record.exc_info[0] is not None:
        traceback = logging.Formatter().formatException(record.exc_info)
    function, path = str(record.funcName or ""), str(record.pathname)
    return Logged(
        str(record.name),
        int(record.levelno),
        text,
        path,
        int(record.lineno),
        function,
        float(record.created),
        traceback,
    )


def _text(message: object) -> str:
    try:
        return str(message)
    except Exception as error:
        return f"(its text is not to be had: {type(error).__name__})"


def _module_at(filename: str, lineno: int) -> str:
    """Return the name of the module that a line belongs to which runs just now; "" if it is not found."""
    frame: Any = sys._getframe(2)
    for _ in range(_MAX_FRAMES):
        if frame is None:
            break
        if frame.f_lineno == lineno and frame.f_code.co_filename == filename:
            return str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    return ""
