"""Where descriptors 1 and 2 of a child lead: pipes, so that what C code and started programs write is the task's, too.

What must not live here: whose output it is, and what becomes of it (`upkeep` in the child, `node` in the node).

Rule 1: both ends are read, by the child between its tasks and by the node while one lasts. A byte is read once; who has
read it tells of it. So nobody who writes waits for long, and nothing grows.
Rule 2: while a task lasts the pipe holds only what this task has written: the child empties it before the next begins.
Rule 3: an end that a task has closed is no error. What was 1 or 2 is put back with the other descriptors; where the
child cannot read any more the node still does.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["ENDS", "ChildOutlets", "NodeOutlet", "open_outlets", "read_some"]

ENDS = ("stdout", "stderr")
"""The streams, in the order of their descriptors 1 and 2."""

# One read. As much as a pipe holds.
_READ_BYTES = 65536

# Reads of the node at once from a child that goes on writing. Raised: who writes much waits less; lowered: others wait
# less for the node.
_READS_A_LOOK = 16

# Above what a process usually has open; see `childstate`.
_HIGH_FD = 64

_READABLE = 1  # POLLIN, everywhere

_LINE_BUFFERED = 1  # _IOLBF of glibc, musl, macOS and the BSDs


def open_outlets(context: Any) -> list[tuple[Any, Any]]:
    """Return a pipe for each stream: the end to read from, the end to write to. None where this is not possible."""
    if sys.platform == "win32":
        return []
    pipes = [context.Pipe(duplex=False) for _ in ENDS]
    for reader, _ in pipes:
        os.set_blocking(reader.fileno(), False)
    return pipes


def read_some(fd: int) -> bytes:
    """Return what a pipe holds, as much as one read gives; nothing if it is empty or gone."""
    try:
        return os.read(fd, _READ_BYTES)
    except OSError:  # empty, most of all
        return b""


class ChildOutlets:
    """The child's side.

    Parameters
    ----------
    pipes
        What `open_outlets` made, as it came to this process.
    """

    def __init__(self, pipes: Sequence[tuple[Any, Any]]) -> None:
        self._pipes = pipes
        self._readers: list[int] = []
        self._logs: list[int] = []
        self._poll: Callable[[int], Any] = lambda timeout: ()
        self._flush: Callable[[Any], Any] = lambda file: 0

    def take_over(self) -> None:
        """Put the pipes in the place of the descriptors; once, at the start of the process."""
        if not self._pipes:
            return
        import select

        poll = select.poll()
        for fd, (reader, writer) in enumerate(self._pipes, 1):
            self._logs.append(_high(fd) if _is_open(fd) else -1)
            os.dup2(writer.fileno(), fd)
            self._readers.append(_high(reader.fileno()))
            poll.register(self._readers[-1], select.POLLIN)
            reader.close()
            writer.close()
        self._poll = poll.poll
        self._flush = _buffer_lines()

    @property
    def log(self) -> int:
        """The descriptor of the node's standard error."""
        return self._logs[1] if self._logs else 2

    def is_written(self) -> bool:
        """Whether there is something to read. Costs half a microsecond."""
        try:
            ready = self._poll(0)
        except OSError:  # a task may have changed the limit of descriptors
            return False
        return bool(ready) and any(event & _READABLE for _, event in ready)

    def flush(self) -> None:
        """Have C code write what it holds back of a line."""
        self._flush(None)

    def read(self) -> list[bytes]:
        """Return what there is of each stream."""
        return [read_some(fd) for fd in self._readers]

    def to_log(self) -> None:
        """Hand on what no task has written to where the node's own output goes."""
        for data, log in zip(self.read(), self._logs, strict=True):
            with suppress(OSError):  # nobody reads it
                if data and log >= 0:
                    os.write(log, data)


class NodeOutlet:
    """The node's side of one stream."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def read(self) -> bytes:
        """Return what there is."""
        if self._reader.closed:
            return b""
        data = read_some(self._reader.fileno())
        if len(data) < _READ_BYTES // 2:
            return data
        parts = [data]
        while data and len(parts) < _READS_A_LOOK:
            data = read_some(self._reader.fileno())
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        """Let go of the pipe."""
        self._reader.close()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _high(fd: int) -> int:
    """Return a copy of a descriptor where tasks that close numbers miss it."""
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)


def _buffer_lines() -> Callable[[Any], Any]:
    """Have the C library write each line at once, as to a terminal, for the node may look; return its `fflush`."""
    try:
        library = ctypes.CDLL(None)
        library.fflush.argtypes = (ctypes.c_void_p,)
        library.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)
        name = "__stdoutp" if sys.platform == "darwin" else "stdout"
        library.setvbuf(ctypes.c_void_p.in_dll(library, name), None, _LINE_BUFFERED, 0)
    except (AttributeError, OSError, ValueError):
        return lambda file: 0
    flush: Callable[[Any], Any] = library.fflush
    return flush
