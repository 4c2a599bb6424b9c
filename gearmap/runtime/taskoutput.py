"""What a task writes to `sys.stdout` and `sys.stderr`: kept for its outcome, with bounds.

What must not live here: whose output it is (`childrun`), how it travels (`wire.outcome`), and file descriptors: what C
code writes to 1 and 2 goes where the node's own goes.

Rule 1: memory is bounded, however much a task writes: its beginning and its end are kept, and how much is missing.
Rule 2: a task cannot tell it from a text file by anything that people use: `buffer`, `fileno`, `reconfigure` are there,
and `close` does nothing, because the next task writes to it too.
Rule 3: in a forked copy of the process nobody collects, so what is written there goes straight to the descriptor.
"""

from __future__ import annotations

import codecs
import io
import os
from typing import Any

__all__ = ["KEPT_CHARS", "OUTPUT", "OutputStream"]

# What is kept of one task's stream. Raised: more of a chatty task is seen; lowered: smaller outcomes.
KEPT_CHARS = 65536

# So much is gathered before the middle is thrown away. Raised: less copying; lowered: less memory.
_GATHERED_CHARS = 4 * KEPT_CHARS

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
    marks
        Gets `OUTPUT` when there is something to collect.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = False
    write_through = False
    mode = "w"

    def __init__(self, name: str, fd: int, marks: list[str]) -> None:
        self.stream = name
        self.name = f"<{name}>"
        self._fd = fd
        self._marks = marks
        self._is_direct = False
        self._buffer: _Bytes | None = None
        self._head = ""
        self._parts: list[str] = []
        self._chars = 0  # in the parts
        self._dropped = 0

    def write(self, text: str) -> int:
        """Keep text for the task's outcome."""
        size = str.__len__(text)  # a TypeError for anything else, as from every text file
        if self._is_direct:
            self._write_through(text)
            return size
        if not self._chars and size:
            self._marks.append(OUTPUT)
        self._parts.append(text)
        self._chars += size
        if self._chars > _GATHERED_CHARS:
            self._drop_middle()
        return size

    def take(self) -> str:
        """Return what was written since the last call; what was left out of it is said in its middle."""
        if len(self._head) + self._chars > KEPT_CHARS:
            self._drop_middle()
        head, rest, dropped = self._head, "".join(self._parts), self._dropped
        self._head, self._parts, self._chars, self._dropped = "", [], 0, 0
        return f"{head}\n... {dropped} characters left out ...\n{rest}" if dropped else head + rest

    def _drop_middle(self) -> None:
        text = "".join(self._parts)
        room = KEPT_CHARS // 2 - len(self._head)
        self._head += text[:room]
        tail = text[room:][-(KEPT_CHARS // 2) :]
        self._dropped += len(text) - room - len(tail)
        self._parts, self._chars = [tail], len(tail)

    def go_direct(self) -> None:
        """From now on write to the descriptor."""
        self._is_direct = True

    def _write_through(self, text: str) -> None:
        data = memoryview(text.encode(self.encoding, self.errors))
        while data:
            data = data[os.write(self._fd, data) :]

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
        """Nothing is held back."""

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
        """Nothing is held back."""

    def close(self) -> None:
        """The next task writes to it too."""
