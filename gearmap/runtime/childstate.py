"""What a task does to its process stays with the task: the state that is looked at, and put back.

What must not live here: when that happens (`childrun`), and what a task printed (`taskoutput`).

For whom it holds:

* What Python's functions change is put back before the next task, however short both are, because they tell of it
  (`entrypoints`, and an audit hook): the current folder and `os.environ`, signal handlers and the alarm, umask, locale,
  warning filters, recursion limit, switch interval, tracing and profiling, the garbage collector's switch, the default
  timeout of sockets, the descriptors 0 to 2.
* What `sys.stdin`, `stdout`, `stderr` and `os.environ` are is put back before the next job and after each millisecond
  of work; tiny tasks are run in groups of 0.2 milliseconds, and then it is after the group.
* What else is changed by assignment is put back before the next job and after each millisecond of work (of tiny tasks:
  ten): `sys.path`, `sys.argv`, the decimal context, and whether `sys.stdin` is closed.
* Those, and what C code has changed of all that was named, are put back before a job of another function, after a task
  that raised, and after each 50 milliseconds of work (of tiny tasks: ten). Within that a short task may see what an
  earlier one of the same job did (of the last: the same function), unless the function is known for it: after its first
  task in a process is looked closely, and if that task changed something, after each further one.
* Imports may add to `sys.path` and the warning filters on purpose: what changed while modules were imported stays.
* Random state, resource limits, context variables, threads, and what modules and libraries keep for themselves are
  left alone.

What the environment was is taken by `snapshot`: after a process has moved to the place of a run, after an initializer
and after a function was unpickled, so what those do is there for every task.
"""

from __future__ import annotations

import gc
import importlib
import locale
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gearmap.runtime.entrypoints import watch_entry_points
from gearmap.runtime.slate import Slate
from gearmap.runtime.taskoutput import OutputStream

__all__ = ["STATE", "Surroundings", "identity"]

STATE = "state"
"""The mark that a task has changed what only `restore` puts back."""

# The hook is told of these before they happen; the list is in Python's "audit events table".
_EVENTS = {
    "os.chdir": "folder",
    "os.putenv": "environment",
    "os.unsetenv": "environment",
    "sys.settrace": STATE,
    "sys.setprofile": STATE,
}

# Above what a process usually has open, so that `os.closerange(3, ...)` and hard-coded numbers miss them.
_SPARE_FD = 64

# What `signal.getsignal` calls. That makes enumerations of the answers, which costs ten times as much.
_get_handler: Callable[[int], Any] = importlib.import_module("_signal").getsignal


class Surroundings:
    """The state of a child's process that tasks share.

    Parameters
    ----------
    slate
        Keeps what tasks print.
    marks
        Gets "folder", "environment" or "filters" when a task is about to change it, and `STATE` when it changes
        something else that tells of it. Whoever sees that one calls `restore`, of others `restore_marked`.

    Attributes
    ----------
    streams
        What stands for `sys.stdout` and `sys.stderr`.
    """

    def __init__(self, slate: Slate, marks: list[str]) -> None:
        self._marks = marks
        self.streams = tuple(
            OutputStream(name, fd, slate.strips[name], marks) for name, fd in (("stdout", 1), ("stderr", 2))
        )
        self._armed: dict[str, _Alarm] = {}
        self._changed: set[str] = set()
        self._spares: list[int] = []
        self._fds: list[Any] = []
        self._signals = [int(number) for number in signal.valid_signals() if number < 32 and number not in _FIXED]

    def take_over(self) -> None:
        """Replace the standard streams and begin to watch; once, at the start of the process."""
        sys.stdout, sys.stderr = self.streams
        sys.addaudithook(self._armed.pop)
        watch_entry_points(lambda: self._ring(STATE), lambda: self._ring("filters"))
        self.snapshot()

    def snapshot(self) -> None:
        """From now on, what is, is what will be restored."""
        self._folder = _folder()
        self._environ = os.environ
        self._variables = dict(os.environ)
        self._standard = _standard_streams()
        self._settings = [read() for read, _ in _SETTINGS]
        self._importable: tuple[list[Any], list[str]] = (list(warnings.filters), list(sys.path))
        self._argv = list(sys.argv)
        self._n_modules = len(sys.modules)
        self._handlers = [_get_handler(number) for number in self._signals]
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._locale = locale.setlocale(locale.LC_ALL)
        self._decimal = _decimal_state()
        self._keep_descriptors()
        self._changed.clear()
        self._arm()

    def restore(self) -> tuple[bool, bool]:
        """Put back what differs; return whether anything did that marks do not tell, and whether all is well again."""
        was_changed = self._restore_interpreter()
        self.restore_marked()
        was_changed = self._restore_process() or was_changed
        fds_changed, is_whole = self._restore_fds()
        self._changed.clear()  # by ourselves
        self._arm()
        return was_changed or fds_changed, is_whole

    # ------------------------------------------------------------------------------------------- folder, environment

    def _arm(self) -> None:
        # The hook is a method of `dict`, and runs no Python: every audited event of every task costs what it costs, and
        # `open`, `import`, `id` and `sys._getframe` are among them. A hook in Python costs three times as much. What it
        # takes out of the dictionary is deleted at once, and only that runs code of ours.
        for event, what in _EVENTS.items():
            if event not in self._armed:
                self._armed[event] = _Alarm(self._ring, what)

    def _ring(self, what: str) -> None:
        if what not in self._changed:
            self._changed.add(what)
            self._marks.append(what)

    def restore_marked(self) -> None:
        """Put back the folder and the environment if they were changed."""
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        if "folder" in changed and self._folder is not None:
            try:
                os.chdir(self._folder)
            except OSError:
                pass  # it is gone; no process could go there
        if "environment" in changed and os.environ != self._variables:
            for name in [name for name in os.environ if name not in self._variables]:
                del os.environ[name]
            os.environ.update(self._variables)
        if "filters" in changed:
            self._restore_importable()
        self._changed.clear()  # by ourselves
        self._arm()

    # ---------------------------------------------------------------------------------------------------- interpreter

    def is_replaced(self) -> bool:
        """Whether another object is a standard stream, or the environment, than was; at a quarter of a microsecond."""
        return _standard_streams() != self._standard or os.environ is not self._environ

    def is_reassigned(self) -> bool:
        """Whether something is not what it was that any code may change by assignment; at about a microsecond."""
        stdin = self._standard[0]
        return (
            self.is_replaced()
            or (stdin is not None and stdin.closed)
            or sys.argv != self._argv
            or sys.path != self._importable[1]
            or _decimal_state() != self._decimal
        )

    def _restore_interpreter(self) -> bool:
        was_changed = os.environ is not self._environ
        if was_changed:
            os.environ = self._environ  # noqa: B003  # the very object that was there
        stdin = self._standard[0]
        if stdin is not None and stdin.closed:
            stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # for good
            self._standard = (stdin, *self._standard[1:])
        if _standard_streams() != self._standard:
            sys.stdin, sys.stdout, sys.stderr = self._standard
            was_changed = True
        for at, (read, write) in enumerate(_SETTINGS):
            if read() != self._settings[at]:
                write(self._settings[at])
                was_changed = True
        if sys.argv != self._argv:
            sys.argv = list(self._argv)
            was_changed = True
        if _decimal_state() != self._decimal:
            _restore_decimal(self._decimal)
            was_changed = True
        return self._restore_importable() or was_changed

    def _restore_importable(self) -> bool:
        filters, path = self._importable
        if warnings.filters == filters and sys.path == path:
            return False
        if len(sys.modules) != self._n_modules:
            self._n_modules = len(sys.modules)
            self._importable = (list(warnings.filters), list(sys.path))
            return False
        now: Any = warnings.filters  # a list, whatever it is declared as
        now[:] = filters
        getattr(warnings, "_filters_mutated", int)()
        sys.path[:] = path
        return True

    # -------------------------------------------------------------------------------------------------------- process

    def _restore_process(self) -> bool:
        was_changed = os.umask(self._umask) != self._umask
        handlers = [_get_handler(number) for number in self._signals]
        is_ticking = hasattr(signal, "setitimer") and signal.setitimer(signal.ITIMER_REAL, 0) != (0.0, 0.0)
        if handlers != self._handlers:
            self._restore_handlers(handlers)
            was_changed = True
        if locale.setlocale(locale.LC_ALL) != self._locale:
            locale.setlocale(locale.LC_ALL, self._locale)
            was_changed = True
        return was_changed or is_ticking

    def _restore_handlers(self, handlers: list[Any]) -> None:
        # Timers first: one that goes off after its handler has gone ends the process.
        for timer in (signal.ITIMER_VIRTUAL, signal.ITIMER_PROF) if hasattr(signal, "setitimer") else ():
            signal.setitimer(timer, 0)
        for number, handler, kept in zip(self._signals, handlers, self._handlers, strict=True):
            if handler != kept and kept is not None:  # None was installed by C code, which alone could install it again
                signal.signal(number, kept)

    def _keep_descriptors(self) -> None:
        fds = [identity(fd) for fd in range(3)]
        if fds != self._fds:
            for spare in self._spares:
                with suppress(OSError):  # a task may have closed it
                    os.close(spare)
            self._spares = [_spare(fd) for fd in range(3)]
            self._fds = [identity(fd) for fd in range(3)]

    def _restore_fds(self) -> tuple[bool, bool]:
        changed = [fd for fd in range(3) if identity(fd) != self._fds[fd]]
        mended = [_put_back(self._spares[fd], fd) for fd in changed]
        return bool(changed), all(mended)

    def forked(self) -> None:
        """This is a forked copy: nobody collects here what is printed."""
        for stream in self.streams:
            stream.go_direct()


class _Alarm:
    """Calls when it is deleted."""

    __slots__ = ("_call", "_what")

    def __init__(self, call: Callable[[str], None], what: str) -> None:
        self._call = call
        self._what = what

    def __del__(self) -> None:
        self._call(self._what)


# What is read and written by a pair of functions.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (sys.gettrace, sys.settrace),
    (sys.getprofile, sys.setprofile),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (gc.isenabled, lambda is_enabled: (gc.enable if is_enabled else gc.disable)()),
)

_FIXED = tuple(getattr(signal, name) for name in ("SIGKILL", "SIGSTOP") if hasattr(signal, name))


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _standard_streams() -> tuple[Any, ...]:
    get = vars(sys).get  # a task may have deleted one
    return get("stdin"), get("stdout"), get("stderr")


def identity(fd: int) -> tuple[int, int] | None:
    """What a descriptor stands for; None if it is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _spare(fd: int) -> int:
    """Return a copy of a standard descriptor, to restore it from; open it if it is not."""
    if identity(fd) is None:
        _put_back(-1, fd)
    if sys.platform == "win32":
        return os.dup(fd)
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SPARE_FD)


def _put_back(spare: int, fd: int) -> bool:
    """Make `fd` what it was, or at least something that can be read or written; return whether it is."""
    try:
        if spare >= 0:
            os.dup2(spare, fd)
            return True
    except OSError:
        pass  # the task closed the copy too
    try:
        null = os.open(os.devnull, os.O_RDWR)
        if null != fd:
            os.dup2(null, fd)
            os.close(null)
        os.set_inheritable(fd, True)
    except OSError:
        return False
    return True


def _decimal_state() -> tuple[Any, ...] | None:
    """What tells whether the decimal context was changed, with a copy of it at the end; None for the default one."""
    decimal: Any = sys.modules.get("decimal")
    if decimal is None:
        return None
    context = decimal.getcontext()
    state = (context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp)
    default = decimal.DefaultContext
    if state == (default.prec, default.rounding, default.Emin, default.Emax, default.capitals, default.clamp):
        return None
    return state


def _restore_decimal(state: tuple[Any, ...] | None) -> None:
    decimal: Any = sys.modules["decimal"]
    context = decimal.DefaultContext.copy()
    if state is not None:
        context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp = state
    decimal.setcontext(context)
