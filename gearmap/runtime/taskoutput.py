"""What a task writes to `sys.stdout` and `sys.stderr`: kept for its outcome, with bounds.

What must not live here: whose output it is (`childrun`), how it travels (`wire.outcome`), and the descriptors 1
and 2 (`outlets`).

Rule 1: memory is bounded, however much a task writes: its beginning and its end are kept, and how much is missing. It
is memory that the node has too (`slate`), so what a task printed survives the process that it ends.
Rule 2: a task cannot tell it from a text file by anything that people use: `buffer`, `fileno`, `reconfigure` are there,
and `close` does nothing, because the next task writes to it too.
Rule 3: a line that is drawn again and again after a carriage return is a progress bar. As on a terminal only its last
state is seen, and its percentage is how far the task is. Of bars below each other only the first is seen.
Rule 4: in a forked copy of the process nobody collects, so what is written there goes straight to the descriptor.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import threading
from collections.abc import Callable
from typing import Any

from gearmap.runtime.slate import Kept, Strip
from gearmap.runtime.task import report_progress

__all__ = ["OUTPUT", "OutputStream"]

# So much of a line that is not complete is held. Raised: less work for those who write in small pieces; lowered: less
# is lost with the process.
_HELD_CHARS = 4096

_PERCENTAGE = re.compile(r"(\d{1,3})%\|")  # of a tqdm bar

_UP = "\x1b[A"  # the cursor goes up a line

OUTPUT = "output"
"""The mark that there is something to collect."""


class OutputStream(io.TextIOBase):
    """Stands where `sys.stdout` or `sys.stderr` did.

    Parameters
    ----------
    name
        "stdout" or "stderr".
    fd
        The descriptor of the stream that it stands for.
    strip
        Keeps what is written.
    marks
        Gets `OUTPUT` when there is something to collect.

    Attributes
    ----------
    before
        Called before a line is stored, so that what others wrote earlier stands before it.
    """

    before: Callable[[], object] | None = None
    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    write_through = False
    mode = "w"

    def __init__(self, name: str, fd: int, strip: Strip, marks: list[str]) -> None:
        self.stream = name
        self.name = f"<{name}>"
        self._fd = fd
        self._strip = strip
        self._marks = marks
        self._lock = threading.RLock()  # a signal handler may print while its thread does
        self._is_direct = False
        self._is_marked = False
        self._parts: list[str] = []
        self._held = 0  # characters in the parts, about
        self._buffer: _Bytes | None = None
        self._below: list[str] = []  # what may be a bar below the one that is held, see `_waits`

    def write(self, text: str) -> int:
        """Keep text for the task's outcome."""
        size = str.__len__(text)  # a TypeError for anything else, as from every text file
        if self._is_direct:
            self._write_through(text)
            return size
        if not self._is_marked and size:
            self._is_marked = True
            self._marks.append(OUTPUT)
        if not ((self._below or text[:1] == "\n") and self._waits(text)):
            self._keep(text)
        return size

    def _keep(self, text: str) -> None:
        if text[:1] == "\r":
            self._redraw(text)
        # Always to the same list: another thread may be storing it, and takes out only what it has read.
        self._parts.append(text)
        self._held += len(text)
        if "\n" in text or self._held > _HELD_CHARS:
            self._store()

    def _waits(self, text: str) -> bool:
        """Whether it depends on what follows what is to become of the text.

        For a bar below another tqdm goes down, draws it, and comes up again, in three writes. The first of them also
        ends a bar, so nothing is known before the third.
        """
        below = self._below
        if len(below) == 2 and text[: len(_UP)] == _UP:
            below.clear()
            return True
        if len(below) == 1 and text[:1] == "\r":
            below.append(text)
            return True
        self._keep_below()
        if text.strip("\n") or not self._parts or self._parts[0][:1] != "\r":
            return False
        self._below.append(text)
        return True

    def _keep_below(self) -> None:
        """It was no bar below another."""
        below, self._below = self._below, []
        for text in below:
            self._keep(text)

    def _redraw(self, text: str) -> None:
        """A line begins again: what stood there of the bar that it was goes."""
        with self._lock:
            if self._parts and self._parts[0][:1] == "\r":
                self._parts.clear()
        self.flush()
        percentage = _PERCENTAGE.search(text)
        if percentage is not None:
            report_progress(float(percentage[1]), 100.0)

    def add(self, data: bytes) -> None:
        """Keep what C code wrote, before what is held of a line."""
        if data:
            if not self._is_marked:
                self._is_marked = True
                self._marks.append(OUTPUT)
            with self._lock:
                self._strip.append(data)

    def _store(self) -> None:
        """Put what is held where it survives this process, after what C code has written until now."""
        if self.before is not None:
            self.before()
        self._put()

    def _put(self) -> None:
        with self._lock:
            parts = self._parts
            count = len(parts)
            text = "".join(parts[:count])
            del parts[:count]
            self._held = 0
            self._strip.append(text.encode("utf-8", "backslashreplace"))

    def take(self) -> Kept:
        """Return what was written since the last call."""
        self._keep_below()
        self._put()
        with self._lock:
            kept = self._strip.read()
            self._strip.clear()
            self._is_marked = False
        return kept

    def go_direct(self) -> None:
        """From now on write to the descriptor."""
        self._is_direct = True

    def _write_through(self, text: str) -> None:
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    # ------------------------------------------------------------------------------------- what other text files have

    @property
    def buffer(self) -> _Bytes:
        """Takes bytes, as `sys.stdout.buffer` does."""
        if self._buffer is None:
            self._buffer = _Bytes(self)
        return self._buffer

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        """Make what was written survive this process; a line that is complete does so by itself, a bar not before."""
        if self._parts and self._parts[0][:1] != "\r":
            self._store()

    def close(self) -> None:
        """The next task writes to it too."""

    def reconfigure(self, **options: Any) -> None:
        """Nothing depends on it here."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r}>"


class _Bytes(io.BufferedIOBase):
    """The bytes' side of an output stream."""

    mode = "wb"

    def __init__(self, text: OutputStream) -> None:
        self._text = text
        self.name = text.name
        self._decode = codecs.getincrementaldecoder(text.encoding)("replace").decode

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._text.write(self._decode(view.tobytes()))
        return view.nbytes

    def fileno(self) -> int:
        return self._text.fileno()

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._text.flush()

    def close(self) -> None:
        """The next task writes to it too."""
