"""The current folder, asked for once for each call that is submitted.

`os.getcwd` lets go of the interpreter lock. Where calls are submitted one after another that invites the driver thread
in at every call, for a few microseconds of work and two switches between threads, which together take longer than all
the rest. No event tells of a changed folder, so it has to be asked for, but the answer is there at once: libc is asked
without letting go.

Law of the file: whatever is unusual (no libc, a very long path, a folder that has gone) is left to `os.getcwd`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["CurrentFolder"]

# Questions that go to `os.getcwd` before `ctypes` is imported, which takes ten milliseconds. Raised: more programs
# never import it; lowered: many calls become cheap sooner.
PATIENCE = 64

_LONGEST_PATH = 4096


class CurrentFolder:
    """Answers like `os.getcwd`; any thread may ask."""

    def __init__(self) -> None:
        self._left = PATIENCE
        self._ask: Callable[[], bytes | None] | None = None
        self._known: tuple[bytes | None, str] = (None, "")

    def path(self) -> str:
        """Return the current folder.

        Raises
        ------
        FileNotFoundError
            If it was removed.
        """
        if self._ask is not None:
            now = self._ask()
            known, path = self._known
            if now is not None and now == known:
                return path
        elif self._left:
            self._left -= 1
            if not self._left:
                self._ask = _ask_libc()
        path = os.getcwd()
        self._known = (os.fsencode(path), path)
        return path


def _ask_libc() -> Callable[[], bytes | None] | None:
    """Return what asks libc for the current folder without letting go of the interpreter lock, or None."""
    if os.name != "posix":
        return None
    try:
        import ctypes  # only who submits many calls needs it

        getcwd = ctypes.PyDLL(None).getcwd  # PyDLL is what keeps the lock; CDLL lets go of it
    except (ImportError, OSError, AttributeError):
        return None
    buffer = ctypes.create_string_buffer(_LONGEST_PATH)
    getcwd.restype = ctypes.c_void_p
    target, size = ctypes.byref(buffer), ctypes.c_size_t(_LONGEST_PATH)

    def ask() -> bytes | None:
        # Another thread may ask between these two: the answer is as good.
        return buffer.value if getcwd(target, size) else None

    return ask
