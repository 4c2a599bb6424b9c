"""A task's exception: described where it was raised, rebuilt where the caller waits.

What must not live here: retry decisions, and which errors of gearmap a failure may become.

Rule 1: `describe_exception` never raises, whatever the exception does when it is asked for its text or its parts.
Rule 2: `rebuild_exception` always gives something to raise: the task's own exception, or `RemoteError`.
"""

from __future__ import annotations

import os
import reprlib
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gearmap.errors import RemoteError, RemoteTraceback
from gearmap.wire.framing import Payload
from gearmap.wire.printed import NO_OUTPUT, Output
from gearmap.wire.serializer import loads, try_dumps
from gearmap.wire.sourcelines import FramePlace, places_without_source, with_source_lines

__all__ = ["TaskFailure", "comes_from_task", "describe_call", "describe_exception", "rebuild_exception"]

# Raising them makes headers larger (a chunk may hold thousands of failures); lowering them cuts texts that are read.
MAX_MESSAGE_CHARS = 4096
MAX_CALL_CHARS = 240
MAX_TRACEBACK_CHARS = 65536

# How the note with the remote traceback begins, after an empty line. "Traceback", as anywhere, then "Remote traceback".
_USUAL_HEAD = "Traceback (most recent call last):"
_REMOTE = "\nRemote traceback"

# The first that shows notes; below it, and where Python has none, the remote traceback is the exception's cause.
_IPYTHON_WITH_NOTES = (8, 14)

_PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

# An exception's own code may even exit; that must not end the process that describes it. Ctrl-C still does.
_USER_CODE_ERRORS = (Exception, SystemExit, GeneratorExit)

# Raised in the client these would mean something else: that it is to exit, that it was interrupted or cancelled, that
# an iterator has ended.
_NEVER_RAISED = (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration)
_NEVER_RAISED_NAMES = frozenset({"asyncio.exceptions.CancelledError", "concurrent.futures._base.CancelledError"})

_PICKLING_HOOKS = ("__reduce__", "__reduce_ex__", "__setstate__")
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class was made at run time, by a class statement


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailure:
    """What is known of a task's exception outside of the process that raised it.

    Attributes
    ----------
    position
        The task, counted from 0 in its job.
    type_name
        Qualified name of the exception's class; builtins without their module.
    message
        Its text, shortened.
    traceback
        The traceback as Python prints it, chained exceptions included, without gearmap's own frames; shortened.
    places
        The frames in it that had no source line where it was made.
    call
        The call that raised, with short representations of its arguments; empty if it is not known.
    exception
        The pickled exception, or None if it does not pickle.
    output
        What the task printed until then.
    seconds
        How long it took, or None if that is not known.
    """

    position: int
    type_name: str
    message: str
    traceback: str
    places: tuple[FramePlace, ...] = field(default=(), repr=False)
    call: str = ""
    exception: Payload | None = field(default=None, repr=False)
    output: Output = field(default=NO_OUTPUT, repr=False)
    seconds: float | None = None

    def readable_traceback(self) -> str:
        """The traceback with the source lines that only this process knows, those of its notebook's cells."""
        return with_source_lines(self.traceback, self.places)


def describe_exception(error: BaseException, position: int, *, call: str = "", note: str | None = None) -> TaskFailure:
    """Describe what a task raised; never raises itself.

    Parameters
    ----------
    error
        Any exception, with the traceback that it has.
    position
        The task, counted from 0 in its job.
    call
        What `describe_call` says of the task.
    note
        A line to show below the exception.
    """
    left_over = "" if note is None or _add_note(error, note) else f"{note}\n"
    places: tuple[FramePlace, ...] = ()
    type_name = _qualified_name(type(error))
    message = _message(error)
    try:
        text, places = _traceback_text(error)
    except _USER_CODE_ERRORS:  # an exception that cannot even be formatted
        text = f"{type_name}: {message}\n(its traceback cannot be shown)\n"
    return TaskFailure(
        position=position,
        type_name=type_name,
        message=_shortened(message, MAX_MESSAGE_CHARS),
        traceback=_shortened(text + left_over, MAX_TRACEBACK_CHARS),
        places=places,
        call=call,
        exception=_pickled(error),
    )


def describe_call(fn: object, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """Describe a call on one line, whatever its arguments do when they are asked for their text.

    >>> describe_call(pow, (2, "x" * 100), {"mod": 5})
    "pow(2, 'xxxxxxxxxxxx...xxxxxxxxxxxxx', mod=5)"
    """
    shown = [_short_repr(value) for value in args]
    shown += [f"{name}={_short_repr(value)}" for name, value in kwargs.items()]
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return _shortened(f"{name}({', '.join(shown)})", MAX_CALL_CHARS)


def _short_repr(value: object) -> str:
    try:
        return " ".join(reprlib.repr(value).split())
    except Exception:
        return f"<{type(value).__name__}>"


def rebuild_exception(failure: TaskFailure, *, notes: Sequence[str] = ()) -> BaseException:
    """The exception to raise for a failed task.

    Parameters
    ----------
    failure
        As it came from the worker.
    notes
        Lines to show below the exception.

    Returns
    -------
    BaseException
        The task's own exception, or `RemoteError` if that does not load here or would mean something else here. Its
        last note is the remote traceback. Where notes are not shown (Python 3.10, an old IPython, an exception that
        takes none), its `__cause__` is a `RemoteTraceback`, which ends with the notes.
    """
    error, reason = _load(failure)
    if error is None:
        error = RemoteError(f"{failure.type_name}: {failure.message}\n({reason})")
    text = failure.readable_traceback()
    for note in reversed(getattr(error, "__notes__", None) or ()):  # they are shown once, below the exception
        text = text.removesuffix(f"{note}\n")
    left_over = [note for note in notes if not _add_note(error, note)]
    if not left_over and _notes_are_shown() and _add_note(error, _remote_note(text)):
        return error
    if left_over:
        text = text.rstrip("\n") + "\n" + "".join(f"{note}\n" for note in left_over)
    # The class may refuse attributes (a frozen dataclass), a slot of BaseException cannot.
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))
    return error


def comes_from_task(error: BaseException) -> bool:
    """Whether `rebuild_exception` has made it: what is known of its place is in its remote traceback."""
    if isinstance(error.__cause__, RemoteTraceback):
        return True
    notes = getattr(error, "__notes__", None)
    return isinstance(notes, list) and any(isinstance(note, str) and note.startswith(_REMOTE) for note in notes)


def _remote_note(text: str) -> str:
    if text.startswith(_USUAL_HEAD):
        return f"{_REMOTE}{text.removeprefix('Traceback')}".rstrip("\n")
    return f"{_REMOTE}:\n{text}".rstrip("\n")


def _notes_are_shown() -> bool:
    ipython = sys.modules.get("IPython")
    version = getattr(ipython, "version_info", _IPYTHON_WITH_NOTES)
    return sys.version_info >= (3, 11) and tuple(version[:2]) >= _IPYTHON_WITH_NOTES


class _Constructed(NamedTuple):
    """An exception whose class has a constructor of its own, taken apart.

    Pickle would call that constructor with `args`, which are seldom its arguments: most classes pass a text to
    `super().__init__`. So it is left out, as pickle does for all other objects.
    """

    cls: type[BaseException]
    args: tuple[Any, ...]
    attributes: dict[str, Any]

    def rebuild(self) -> BaseException:
        builtin: Any = next(base for base in self.cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
        error: BaseException = builtin.__new__(self.cls, *self.args)
        builtin.__init__(error, *self.args)
        vars(error).update(self.attributes)
        return error


def _pickled(error: BaseException) -> Payload | None:
    """The payload of an exception, or None if it does not pickle."""
    cls = type(error)
    is_constructed = (
        isinstance(cls.__init__, types.FunctionType) or isinstance(cls.__new__, types.FunctionType)
    ) and all(getattr(cls, hook) is getattr(BaseException, hook) for hook in _PICKLING_HOOKS)
    try:
        return try_dumps(_Constructed(cls, error.args, dict(vars(error))) if is_constructed else error)
    except _USER_CODE_ERRORS:
        return None


def _load(failure: TaskFailure) -> tuple[BaseException | None, str]:
    """The exception itself, or None and the reason why it cannot be raised here."""
    if failure.exception is None:
        return None, "the exception itself could not be pickled"
    try:
        error = loads(failure.exception)
        if isinstance(error, _Constructed):
            error = error.rebuild()
    except Exception as problem:  # SerializationError, or what the class makes of its parts
        return None, f"the exception itself could not be rebuilt: {problem}"
    if not isinstance(error, BaseException):
        return None, f"the exception itself could not be rebuilt: it became a {type(error).__name__}"
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__}
    if isinstance(error, _NEVER_RAISED) or names & _NEVER_RAISED_NAMES:
        return None, f"a task that raises {type(error).__name__} has failed; it does not stop the caller"
    return error, ""


def _add_note(error: BaseException, note: str) -> bool:
    if sys.version_info < (3, 11):
        return False
    try:
        if note not in getattr(error, "__notes__", ()):  # an exception that is kept may be raised again
            error.add_note(note)
    except Exception:  # no attributes, or `__notes__` is something else
        return False
    return True


def _qualified_name(cls: type) -> str:
    module, name = getattr(cls, "__module__", ""), getattr(cls, "__qualname__", cls.__name__)
    return str(name) if module in ("builtins", "__main__") else f"{module}.{name}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except _USER_CODE_ERRORS:
        return "<its message cannot be shown>"


def _traceback_text(error: BaseException) -> tuple[str, tuple[FramePlace, ...]]:
    """The traceback, and those of its frames that have no source line here."""
    described = traceback.TracebackException(type(error), error, error.__traceback__)
    frames: list[traceback.FrameSummary] = []
    for part in _chain(described):
        part.stack = _without_own_frames(part.stack)
        frames += part.stack
    return "".join(described.format()), places_without_source(frames)


def _chain(described: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """`described`, what it came from, and the members of groups; each once."""
    pending = [described]
    seen: set[int] = set()
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        pending += [other for other in (part.__cause__, part.__context__) if other is not None]
        pending += getattr(part, "exceptions", None) or []


def _without_own_frames(stack: traceback.StackSummary) -> traceback.StackSummary:
    """Drop the outermost frames while they are gearmap's own: how the task was called is not the user's concern."""
    first = 0
    while first < len(stack) and stack[first].filename.startswith(_PACKAGE_DIR):
        first += 1
    return traceback.StackSummary.from_list(stack[first:])


def _shortened(text: str, max_chars: int) -> str:
    """The start and, mostly, the end: the innermost frames and the message are at the end of a traceback."""
    if len(text) <= max_chars:
        return text
    head = max_chars // 4
    left_out = len(text) - max_chars
    return f"{text[:head]}\n... {left_out} characters left out ...\n{text[head + left_out :]}"
