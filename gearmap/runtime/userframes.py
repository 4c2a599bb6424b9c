"""What a traceback shows of the way from a user's call to its error: the user's own frames.

What must not live here: what is told of the frames in the worker (`wire.failure`).

Rule 1: frames of a user's code are never dropped, whether they are above gearmap's (who called) or below (an iterable
that raised, a task of this process).
Rule 2: of an error that nobody has raised on purpose, every frame stays: whoever mends gearmap needs them.
Rule 3: with `GEARMAP_TRACEBACK=full` nothing is dropped.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import CancelledError
from types import TracebackType

from gearmap.errors import GearmapError
from gearmap.wire.failure import comes_from_task

__all__ = ["own_frames_hidden", "raised_anew"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_INSTALLED = ("site-packages" + os.sep, "dist-packages" + os.sep)


class _OwnFramesHidden:
    """A `with` block whose errors look as if the caller's line had raised them.

    It leaves no frame of the function that it stands in either: what goes on after `__exit__` has seen it gets an entry
    in the next function only. Python 3.10 has made that entry before, so it stays there. Rejected: a decorator; its
    frame would be in every profile and debugger.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, entry: TracebackType | None
    ) -> None:
        if error is None or entry is None or os.environ.get("GEARMAP_TRACEBACK", "").lower() == "full":
            return
        kept = _first_of_user(entry)
        if kept is None and not _is_meant(error):
            return
        if sys.version_info >= (3, 11):
            BaseException.with_traceback(error, kept)  # the class may refuse attributes
        else:
            entry.tb_next = kept


own_frames_hidden = _OwnFramesHidden()


def raised_anew(error: BaseException) -> BaseException:
    """Return an error that is kept, of a task without who has asked for it before; their frames are not its history."""
    return BaseException.with_traceback(error, None) if comes_from_task(error) else error


def _first_of_user(entry: TracebackType | None) -> TracebackType | None:
    """Return the outermost entry that is neither gearmap's nor of what gearmap calls in the standard library."""
    while entry is not None and _is_own(entry.tb_frame.f_code.co_filename):
        entry = entry.tb_next
    return entry


def _is_own(file: str) -> bool:
    is_library = file.startswith((_LIBRARY, "<frozen ")) and not any(part in file for part in _INSTALLED)
    return is_library or file.startswith(_PACKAGE)


def _is_meant(error: BaseException) -> bool:
    """Whether gearmap, or who interrupts it, has raised it for its user to see."""
    if isinstance(error, GearmapError | CancelledError | KeyboardInterrupt):
        return True
    return comes_from_task(error) or type(error).__name__ == "CancelledError"  # that of asyncio, which is not loaded
