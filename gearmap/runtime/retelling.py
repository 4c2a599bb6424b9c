"""What tasks warned of and logged is said again here, in the thread that takes their results.

What must not live here: how it came (`wire.notes`, `wire.printed`).

Rule 1: a warning that many tasks gave is said once, when all is known, with their number. It has its category and its
remote place, so the filters of this process decide what becomes of it, also whether it is raised.
Rule 2: a log record is handled at once by the logger of its name, if that is enabled for it here.
Rule 3: what is said is bounded, however many tasks say something else.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from bisect import insort
from collections.abc import Iterable
from time import monotonic
from typing import Any

from gearmap.wire.notes import Logged, Warned, read_notes
from gearmap.wire.shown import Bundle

__all__ = ["Retelling", "retell", "show", "shows"]

logger = logging.getLogger(__name__)

# Different warnings of one run. Raised: more of a run that warns of everything is seen; lowered: less to read.
MAX_WARNINGS = 50

# Log records of one run at once, and how many more with every second; the others are counted. Raised: more is seen of
# tasks that log much; lowered: it costs the caller, and a notebook, less.
BURST_RECORDS = 1000
RECORDS_PER_SECOND = 50.0

# Tasks that are named with a warning.
_NAMED_TASKS = 3


class _Warnings:
    """One warning, of however many tasks."""

    __slots__ = ("first", "n_tasks", "worker")

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.n_tasks = 0
        self.first: list[int] = []

    def add(self, task: int) -> None:
        self.n_tasks += 1
        insort(self.first, task)  # they come as they end
        del self.first[_NAMED_TASKS:]

    def __str__(self) -> str:
        where = f"; worker {self.worker}" if self.worker else ""
        if self.n_tasks == 1:
            return f"task {self.first[0]}{where}"
        first = ", ".join(map(str, self.first))
        return f"{self.n_tasks} tasks, first {first}{where}"


class Retelling:
    """Takes in what the tasks of a run said, and says it again."""

    def __init__(self) -> None:
        self._warnings: dict[Warned, _Warnings] = {}
        self._heard: dict[int, int] = {}  # the number of the last note of a task that runs
        self._n_missing = 0
        self._room = float(BURST_RECORDS)
        self._filled = monotonic()

    def take(self, task: int, text: str, *, is_live: bool = False) -> str:
        """Take in notes of a task; return them for people who look at that task.

        Parameters
        ----------
        is_live
            Whether the task still runs: more may follow.
        """
        shown = []
        last = self._heard.pop(task, 0)
        for note in read_notes(text):
            content = note.content
            if note.number <= last:
                last = 0  # of another attempt
            self._n_missing += note.number - last - (content is not None)
            last = note.number
            if isinstance(content, Warned):
                self._warned(task, note.worker, content)
                shown.append(_line(content))
            elif content is not None:
                self._handle(task, note.worker, content)
                shown.append(f"{logging.getLevelName(content.level)} {content.name}: {content.message}\n")
        if is_live:
            self._heard[task] = last
        return "".join(shown)

    def end(self, *, is_raising: bool = True) -> None:
        """Issue the warnings.

        Parameters
        ----------
        is_raising
            Whether one may be raised, if the filters of this process say so.
        """
        told, self._warnings = self._warnings, {}
        if self._n_missing:
            logger.warning(
                "... and %d more warnings and log records of tasks", self._n_missing, extra={"action": "cut_notes"}
            )
            self._n_missing = 0
        for warned, tasks in told.items():
            _issue(warned, f" ({tasks})", is_raising)

    def _handle(self, task: int, worker: str, logged: Logged) -> None:
        """Handle a record of a task."""
        to = logging.getLogger(None if logged.name == "root" else logged.name)
        if not to.isEnabledFor(logged.level):
            return
        now = monotonic()
        self._room = min(float(BURST_RECORDS), self._room + RECORDS_PER_SECOND * (now - self._filled))
        self._filled = now
        if self._room < 1.0:
            self._n_missing += 1
            return
        self._room -= 1.0
        to.handle(_record(task, worker, logged))

    def _warned(self, task: int, worker: str, warned: Warned) -> None:
        known = self._warnings.get(warned)
        if known is None:
            if len(self._warnings) >= MAX_WARNINGS:
                self._n_missing += 1
                return
            known = self._warnings[warned] = _Warnings(worker)
        known.add(task)


def retell(task: int, text: str, *, is_raising: bool = True) -> None:
    """Say again what one task said."""
    retelling = Retelling()
    retelling.take(task, text)
    retelling.end(is_raising=is_raising)


def shows() -> bool:
    """Whether what tasks displayed can be shown here: in a notebook's kernel."""
    return _shell() is not None


def show(outputs: Iterable[Bundle]) -> None:
    """Show what tasks displayed in the cell that runs now, if there is one."""
    shell = _shell()
    if shell is not None:
        for bundle in outputs:
            shell.display_pub.publish(data=dict(bundle), metadata=bundle.metadata)


def _shell() -> Any:
    """Return the shell of the kernel that this process is, or None; IPython is not imported to know it."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None or not hasattr(ipython, "get_ipython") else ipython.get_ipython()
    return None if getattr(shell, "kernel", None) is None else shell


def _line(content: Warned) -> str:
    return f"{content.filename}:{content.lineno}: {content.category.rpartition(':')[2]}: {content.message}\n"


def _record(task: int, worker: str, logged: Logged) -> logging.LogRecord:
    """Return the record as it was, with `gearmap_task` and `gearmap_worker`."""
    record = logging.LogRecord(
        logged.name, logged.level, logged.pathname, logged.lineno, logged.message, None, None, logged.function
    )
    record.exc_text = logged.traceback or None
    record.created = logged.created
    record.msecs = (logged.created % 1.0) * 1000.0
    record.process, record.processName = None, worker
    record.thread = record.threadName = None
    vars(record).update(gearmap_task=task, gearmap_worker=worker)
    return record


def _issue(warned: Warned, note: str, is_raising: bool) -> None:
    """Issue one warning."""
    try:
        # No registry: that of the module here knows nothing of what its namesake elsewhere has shown.
        message = _instance(warned, note)
        module = warned.module or warned.filename.removesuffix(".py")  # as Python does
        warnings.warn_explicit(message, type(message), warned.filename, warned.lineno, module=module)
    except Warning:
        if is_raising:
            raise


def _instance(warned: Warned, note: str) -> Warning:
    """Return a warning of the category that the task's had, if it is to be had here."""
    category = _category(warned.category)
    if category is None:
        return UserWarning(f"{warned.category.rpartition(':')[2]}: {warned.message}{note}")
    try:
        return category(warned.message + note)
    except Exception:  # its constructor wants something else
        return UserWarning(f"{category.__name__}: {warned.message}{note}")


def _category(name: str) -> type[Warning] | None:
    module_name, _, path = name.partition(":")
    try:
        found: Any = sys.modules.get(module_name) or importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception:  # what an import raises is anything
        return None
    return found if isinstance(found, type) and issubclass(found, Warning) else None
