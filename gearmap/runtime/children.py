"""The node's view of its children: starting, feeding, hearing and reaping them.

Law of the file: nothing here blocks, and nothing here decides. A child is a pollable; what it says comes out of
`take_reports`. Children are started by the thread that calls `start`, which must be the node's main thread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections import deque
from contextlib import suppress
from ctypes import c_byte
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gearmap.core.sizes import shown_bytes
from gearmap.memory import writable
from gearmap.runtime.child import (
    COMMIT,
    FINAL,
    FRAME,
    GROUPED,
    HANDED_OVER,
    INITIALIZING,
    LAST,
    NUDGE,
    PART,
    READY,
    REFUSED,
    ChildSettings,
    main,
)
from gearmap.runtime.memory_use import high_water_bytes, total_bytes
from gearmap.runtime.nodeline import NodeLine
from gearmap.runtime.outlets import ENDS, NodeOutlet, open_outlets
from gearmap.runtime.slate import SLATE_BYTES, Kept, Slate, Strip
from gearmap.wire.pieces import Piece, joined_pieces

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Child", "Committed", "Ended", "Ready", "Report", "child_context"]

# What the process that starts children has imported before: no child imports it again. Nothing of the user's belongs
# here: a library that starts threads and a fork are the classic deadlock.
PRELOAD = ("gearmap.runtime.childrun", "multiprocessing.sharedctypes")

# One read from a child's pipe. Raised: fewer system calls for medium outcomes; lowered: less memory is asked for and
# given back. What is left of a large outcome is read in place.
_READ_BYTES = 64 * 1024
_READS_A_ROUND = 64
_PIPE_BYTES = 1024 * 1024

# Up to here a job is one write. Raised: more is copied; lowered: more system calls.
_JOIN_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Ready:
    """The child answers."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The child committed an outcome; `last` if it is not to be given another job.

    A `part` of one is to be forwarded at once. Results of short tasks that follow each other come as they lay on the
    shelf, and the node seals them. With `is_refused` it is a text instead: the body of the job does not open.
    """

    sealed: bytes | memoryview | list[Piece]
    final: bool
    last: bool = False
    part: bool = False
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The child was reaped, and everything that it had committed came before this.

    `position` is the task that it was at; None if it was at none, or nobody knows at which. `loading` says that it did
    not run that task yet, `initializing` that it was in an initializer, `begun` that it had read its job.
    """

    position: int | None
    detail: str
    initializing: bool = False
    loading: bool = False
    begun: bool = True


Report = Ready | Committed | Ended


def child_context() -> Any:
    """Return the multiprocessing context for children: forkserver where there is one, else spawn."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        return context
    return multiprocessing.get_context("spawn")


class Child:
    """One child process.

    Attributes
    ----------
    unread
        What was in the pipes of its output when it had ended.
    """

    def __init__(self, number: int, context: Any, settings: ChildSettings) -> None:
        self.number = number
        self._context = context
        self._settings = settings
        self._memory = context.RawArray(c_byte, SLATE_BYTES)
        self._slate = Slate(self._memory)
        self._index = self._slate.index
        self._process: Any = None
        self._pipe: socket.socket | None = None
        self._reports: list[Report] = []
        self._outgoing: deque[memoryview] = deque()
        self._head = bytearray()
        self._kind = b""
        self._body: memoryview | None = None
        self._filled = 0
        self._report_change: Callable[[Child], object] = _nobody_watches
        self._has_rest = False
        self._is_held_back = False
        self._peak_bytes = 0
        self._end_detail: str | None = None
        self.unread: list[tuple[str, bytes]] = []
        self._outlets: dict[str, NodeOutlet] = {}
        self.sentinel = Sentinel(self)
        self.line = NodeLine()

    def start(self) -> None:
        """Start the process. It reports `Ready` when it can take a job.

        Raises
        ------
        OSError, EOFError
            If it cannot be started now. The process that starts children may have died; the next start makes another.
        """
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, _PIPE_BYTES)
        line, their_line = socket.socketpair()
        outlets = open_outlets(self._context)
        process = self._context.Process(
            target=main,
            args=(theirs, self._memory, self._settings, their_line, outlets),
            name=f"gearmap-child-{self.number}",
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            line.close()
            for reader, _ in outlets:
                reader.close()
            raise
        finally:
            theirs.close()
            their_line.close()
            for _, writer in outlets:
                writer.close()
        self._process = process
        self.line.connected(line)
        self._outlets = dict(zip(ENDS, (NodeOutlet(reader) for reader, _ in outlets), strict=False))
        ours.setblocking(False)
        self._pipe = ours

    @property
    def pollables(self) -> tuple[Any, ...]:
        """What is to be watched of it."""
        return self, self.sentinel, self.line

    @property
    def pid(self) -> int | None:
        """The process id."""
        return None if self._process is None else self._process.pid

    @property
    def position(self) -> int | None:
        """The position of the task that the child is at, as far as is known now; None in an initializer, among tiny
        tasks, and while the results of several are pickled."""
        index = int(self._index[0])
        if index <= HANDED_OVER:
            return None
        return index if index >= 0 else ~index

    @property
    def running(self) -> int | None:
        """The position of the task that runs, with a time limit; None if none does: nothing but loading goes on."""
        index = int(self._index[0])
        return index if index >= 0 else None

    def printed(self) -> list[tuple[str, Kept]]:
        """Return what the task that the child is at has printed so far, by the names of the streams."""
        kept = [(name, strip.read()) for name, strip in self._slate.strips.items()]
        return [each for each in kept if each[1].data]

    @property
    def strips(self) -> dict[str, Strip]:
        """What the task that it is at has printed, by the names of the streams; it may still be changing."""
        return self._slate.strips

    def progress_of(self, position: int) -> float | None:
        """Return how far the task at a position says that it is, or None."""
        return self._slate.progress.of(position)

    def read_outlets(self) -> list[tuple[str, bytes]]:
        """Take what C code and started programs have written since the last time, by the names of the streams."""
        read = [(name, outlet.read()) for name, outlet in self._outlets.items()]
        return [each for each in read if each[1]]

    def saw_memory(self, used_bytes: int = 0) -> None:
        """Take in how much memory the child uses with all that it started; how much it ever used is looked up here."""
        if self._process is not None:
            self._peak_bytes = max(self._peak_bytes, used_bytes, high_water_bytes(self._process.pid))

    def send_job(self, head: bytes, sealed: bytes | bytearray | memoryview) -> None:
        """Hand a job to the child."""
        self._index[0] = HANDED_OVER  # the child is idle: what it left there must not be charged to this one
        self._slate.shelf.clear()
        if len(sealed) <= _JOIN_BYTES:
            self._outgoing.append(memoryview(head + sealed))
        else:
            self._outgoing += (memoryview(head), memoryview(sealed))
        self.on_writable()

    def nudge(self) -> None:
        """Have the child note which task it is at, if it runs tiny ones."""
        if NUDGE is None or self._index[0] != GROUPED:
            return
        if self._process is not None and self._process.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, NUDGE)

    def kill(self) -> None:
        """End the child and everything that its task started."""
        if self._process is None or self._process.exitcode is not None:
            return
        pid = self._process.pid
        try:
            if hasattr(os, "killpg") and os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            else:
                self._process.kill()
        except ProcessLookupError:
            pass

    def take_reports(self) -> list[Report]:
        """Return what the child has reported since the last call."""
        reports, self._reports = self._reports, []
        if self._end_detail is not None:
            reports.append(self._ended(self._end_detail))
            self._end_detail = None
        return reports

    def _ended(self, detail: str) -> Ended:
        """Say where the child was in the end. Not before somebody asks: a dead child may have been given a job."""
        index = int(self._index[0])
        return Ended(
            self.position,
            detail,
            initializing=index == INITIALIZING,
            loading=HANDED_OVER < index < 0,
            begun=index != HANDED_OVER,
        )

    # -------------------------------------------------------------------------------------------------------- polling

    def watched_by(self, report_change: Callable[[Child], object]) -> None:
        """Have `report_change` called when the file descriptor or `wants_write` has changed."""
        self._report_change = report_change

    def fileno(self) -> int:
        return -1 if self._pipe is None else self._pipe.fileno()

    @property
    def wants_read(self) -> bool:
        return not self._is_held_back

    @property
    def wants_write(self) -> bool:
        return bool(self._outgoing)

    def hold_back(self, is_held_back: bool) -> None:
        """Let the child wait with what it writes, or no longer. Its end is noticed all the same."""
        self._is_held_back = is_held_back
        self._report_change(self)

    def on_writable(self) -> None:
        """Write what the pipe takes."""
        self._write()
        if bool(self._outgoing) != self._has_rest:
            self._has_rest = not self._has_rest
            self._report_change(self)

    def _write(self) -> None:
        while self._outgoing and self._pipe is not None:
            part = self._outgoing[0]
            try:
                sent = self._pipe.send(part)
            except BlockingIOError:
                return
            except OSError:
                self._outgoing.clear()  # the child is gone; its sentinel says the rest
                return
            if sent == len(part):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = part[sent:]

    def on_readable(self) -> None:
        # A large outcome is read on while there is more of it: a round of the node for each pipe-full would cost as
        # much as the copying. The budget keeps one child from holding up the others.
        budget = _READS_A_ROUND
        while self._read_once() and self._body is not None and budget:
            budget -= 1

    def _read_once(self) -> bool:
        """Read what is there once; return whether there may be more."""
        if self._pipe is None:
            return False
        try:
            if self._body is not None:
                return self._read_body()
            data = self._pipe.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close_pipe()
            return False
        self._take_apart(data)
        return True

    def _read_body(self) -> bool:
        assert self._body is not None
        assert self._pipe is not None
        count = self._pipe.recv_into(self._body[self._filled :])
        if count == 0:
            self._close_pipe()
            return False
        self._filled += count
        self._finish_body()
        return True

    def _take_apart(self, data: bytes) -> None:
        if self._body is None and not self._head and len(data) >= FRAME.size:
            kind, length = FRAME.unpack_from(data)
            if len(data) == FRAME.size + length:  # one frame, and all of it: nearly every small outcome
                self._add_report(kind, data[FRAME.size :])
                return
        self._take_pieces(memoryview(data))

    def _take_pieces(self, data: memoryview) -> None:
        while data:
            if self._body is None:
                need = FRAME.size - len(self._head)
                self._head += data[:need]
                data = data[need:]
                if len(self._head) < FRAME.size:
                    return
                self._kind, length = FRAME.unpack(self._head)
                self._head.clear()
                self._body, self._filled = writable(length), 0
            take = min(len(data), len(self._body) - self._filled)
            self._body[self._filled : self._filled + take] = data[:take]
            self._filled += take
            data = data[take:]
            self._finish_body()

    def _finish_body(self) -> None:
        body = self._body
        if body is None or self._filled < len(body):
            return
        self._body = None
        self._add_report(self._kind, body)

    def fetch(self) -> None:
        """Report what the child has committed to the shelf."""
        self._reports += [Committed(each, final=False) for each in joined_pieces(self._slate.shelf.take())]

    def _add_report(self, kind: bytes, body: bytes | memoryview) -> None:
        self.fetch()  # it lay there before the child wrote to the pipe
        if kind in (FINAL, COMMIT):
            self._reports.append(Committed(body, kind == FINAL))
        elif kind == LAST:
            self._reports.append(Committed(body, final=True, last=True))
        elif kind == PART:
            self._reports.append(Committed(body, final=False, part=True))
        elif kind == REFUSED:
            self._reports.append(Committed(body, final=True, is_refused=True))
        elif kind == READY:
            self._reports.append(Ready())

    # --------------------------------------------------------------------------------------------------------- ending

    def reap(self) -> None:
        """Take in everything that the dead process had written, then report its end."""
        while self._read_once():
            pass
        self.fetch()
        self._process.join()
        self.unread = self.read_outlets()
        detail = _describe_exit(self._process.exitcode) + _describe_memory(self._peak_bytes)
        self._end_detail = detail
        self.close()

    def close(self) -> None:
        """Let go of the pipe and the process's handle."""
        self._close_pipe()
        self.line.close()
        for outlet in self._outlets.values():
            outlet.close()
        self.sentinel.close()
        if self._process is not None and self._process.exitcode is not None:
            self._process.close()
            self._process = None

    def wait(self, timeout: float) -> bool:
        """Wait for the process to end; return whether it did."""
        if self._process is None:
            return True
        self._process.join(timeout)
        return self._process.exitcode is not None

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
            self._report_change(self)


def _nobody_watches(child: Child) -> None:
    """Until a Poller asks for it."""


class Sentinel:
    """A pollable that is readable once the child has ended."""

    wants_write = False

    def __init__(self, child: Child) -> None:
        self._child: Child | None = child

    def watched_by(self, report_change: Callable[[Sentinel], object]) -> None:
        """Its file descriptor lasts as long as it is watched."""

    def fileno(self) -> int:
        process = None if self._child is None else self._child._process
        return -1 if process is None else int(process.sentinel)

    def on_readable(self) -> None:
        if self._child is not None:
            self._child.reap()

    def on_writable(self) -> None:
        """Never wanted."""

    def close(self) -> None:
        # Not a flag: without the circle, the memory that the child shared is used again for the next at once, and not
        # when the collector comes by.
        self._child = None


def _describe_exit(code: int | None) -> str:
    """Say how a process ended."""
    if code is None:
        return "ended"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _describe_memory(peak_bytes: int) -> str:
    """Say how much memory a process had, if that was ever looked at."""
    if not peak_bytes:
        return ""
    total = total_bytes()
    return f" at {shown_bytes(peak_bytes)}" + (f" of {shown_bytes(total)}" if total else "")
