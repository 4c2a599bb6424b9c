"""The process that runs user code: one job at a time, from one pipe to the node.

What must not live here: what is done with a job (`childrun`).

Rule 1: nothing of gearmap stands at the top: the node imports this module, and each child whose starter has not.
Rule 2: the secret never comes here: a job brings the two keys of its execution.
Rule 3: the node sends the next job only after the outcome that ends this one, so a read never takes in two.

Data flow::

    node --[J: keys, names, sealed job]--> read_job -> open -> unpickle -> run --[P|C|F|L: sealed outcome]--> node
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import struct
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gearmap.memory import LARGE_BYTES, keep_what_is_freed, writable

if TYPE_CHECKING:
    from gearmap.transport.events import Address

__all__ = [
    "COMMIT",
    "DEFECT_EXIT",
    "FINAL",
    "FRAME",
    "GROUPED",
    "HANDED_OVER",
    "INITIALIZING",
    "JOB",
    "LAST",
    "LOADING",
    "NUDGE",
    "PACKING",
    "PART",
    "READY",
    "REFUSED",
    "ChildSettings",
    "Job",
    "Line",
    "encode_job",
    "line",
    "main",
    "receive",
    "settings",
]

FRAME = struct.Struct("<cQ")  # kind, length of what follows
JOB, READY, COMMIT, FINAL = b"J", b"R", b"C", b"F"
PART = b"P"  # a part of an outcome that comes later: to be forwarded at once
REFUSED = b"X"  # why the body of the job did not open: nothing of it was run, and nothing is sealed
LAST = b"L"  # like FINAL, and the child must not be given another job

# What the shared index says. Zero and more: the task at this position runs; its time is from then until its result is
# in the pipe. Less: none does, and the child loads what the task at position `~index` needs.
LOADING = ~0
INITIALIZING = -(2**62)  # it is in a tenant's initializer
PACKING = INITIALIZING + 1  # it pickles the results of several tasks at once
GROUPED = INITIALIZING + 2  # it runs one of some tiny tasks; see `childrun`
HANDED_OVER = INITIALIZING + 3  # it has not read its job yet

# Asks a child that runs tiny tasks which one it is at. Who does not handle it does not notice it.
NUDGE: signal.Signals | None = getattr(signal, "SIGURG", None)

_META_BYTES = struct.Struct("<Q")  # length of the keys and names
_HEAD_BYTES = FRAME.size + _META_BYTES.size

# First read of a job. Raised: larger jobs come in one system call; lowered: less memory is asked for and given back.
_FIRST_READ_BYTES = 65536

# So much of a job is read before it is looked at: more than its clear prefix.
_OPENING_BYTES = 1024

# Windows knows it for some sockets only.
_WAITALL = 0 if sys.platform == "win32" else socket.MSG_WAITALL

_PR_SET_PDEATHSIG = 1

DEFECT_EXIT = 70  # what a child ends with when not a task but gearmap itself has failed; EX_SOFTWARE of sysexits.h


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What every child of a node is told at its start."""

    environment: tuple[tuple[str, str], ...] = ()  # NAME, value with "{index}" for the worker's number
    cwd: str | None = None
    servers: tuple[Address, ...] = ()  # where nested runs go
    task_modules: tuple[str, ...] = ()  # what has named tasks, imported before the first job
    is_local: bool = False  # whether the node is that of a local cluster


BlobPlace = tuple[str, int, int, int]
"""Where a blob can be opened: path, device, inode, bytes."""


class Line(NamedTuple):
    """A child's end of its line to the node, and the process that may use it."""

    owner: int
    socket: socket.socket
    lock: threading.Lock


is_child = False
"""Whether this process is one that runs tasks."""

settings = ChildSettings()
"""What this child was told at its start."""

_log = 2  # the descriptor of the node's standard error

blobs: dict[str, BlobPlace] = {}
"""Where the node has the large arrays that the present job's payloads name."""

shared: dict[str, Any] = {}
"""The shared objects that were loaded last; see `gearmap.runtime.sharing`."""

line: Line | None = None
"""Where tasks ask the node for something; see `gearmap.runtime.nodeline`."""


class Job(NamedTuple):
    """One job as the node hands it over."""

    execution_id: bytes
    job_key: bytes
    outcome_key: bytes
    context: bytes
    worker: str
    number: int
    expiry: int
    blobs: dict[str, BlobPlace]  # where the node has what the payloads name without bringing it
    sealed: bytes | bytearray | memoryview  # of a large job only the beginning; the rest is still in the pipe
    sealed_bytes: int

    def __repr__(self) -> str:
        return f"<Job of {self.sealed_bytes} bytes for {self.worker}>"  # its keys are not to be seen


def encode_job(
    execution_id: bytes,
    job_key: bytes,
    outcome_key: bytes,
    context: bytes,
    worker: str,
    number: int,
    expiry: int,
    blobs: dict[str, BlobPlace],
    sealed_bytes: int,
) -> bytes:
    """Return what precedes the sealed job on the pipe.

    `marshal` is right here: both ends are the same interpreter on the same host, and the values are plain.
    """
    meta = marshal.dumps((execution_id, job_key, outcome_key, context, worker, number, expiry, blobs))
    size = len(meta)
    return FRAME.pack(JOB, _META_BYTES.size + size + sealed_bytes) + _META_BYTES.pack(size) + meta


def main(pipe: socket.socket, memory: Any, told: ChildSettings, node_line: socket.socket, outlets: Any) -> None:
    """Run jobs until the pipe ends. Never returns."""
    global is_child, settings, line
    is_child = True
    settings = told
    line = Line(os.getpid(), node_line, threading.Lock())
    code = DEFECT_EXIT
    try:
        _become_independent()
        _serve(pipe, memory, outlets)
        code = 0
    except BaseException as error:
        # What a task raises never comes here. Whoever reads that a worker was lost must find the reason.
        _report_defect(error)
    finally:
        # Not sys.exit: a task's atexit handlers and lingering threads must not keep a finished child.
        os._exit(code)


def _serve(pipe: socket.socket, memory: Any, outlets: Any) -> None:
    global _log
    if settings.cwd is not None:
        os.chdir(settings.cwd)
        sys.path.append(settings.cwd)  # last: modules there are found, and hide none of Python's own
    keep_what_is_freed()
    try:
        pipe.sendall(FRAME.pack(READY, 0))
        from gearmap.runtime.childrun import Runner
        from gearmap.runtime.outlets import ChildOutlets
        from gearmap.runtime.slate import Slate

        ends = ChildOutlets(outlets)
        ends.take_over()
        _log = ends.log
        runner = Runner(pipe, Slate(memory), ends, settings)
        _import_tasks()
        while (job := _read_job(pipe)) is not None:
            runner.run(job)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the node is gone


def _import_tasks() -> None:
    """Import the modules of named tasks, so that no call waits. What fails is tried again by a call, and told."""
    import importlib

    for module in settings.task_modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            _log_line(f"gearmap: module {module!r} cannot be imported: {type(error).__name__}: {error}")


def _log_line(text: str) -> None:
    try:
        os.write(_log, f"{text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody reads it


def _report_defect(error: BaseException) -> None:
    """Write to the node's standard error why this process ends; a task may have replaced `sys.stderr`."""
    import traceback

    described = traceback.TracebackException(type(error), error, error.__traceback__)
    reason, lines = "".join(described.format_exception_only()).strip(), "".join(described.format())
    _log_line(f"gearmap: child process {os.getpid()} ends with exit code {DEFECT_EXIT}: {reason}\n{lines}".rstrip())


def _become_independent() -> None:
    """Lead an own session, so that the node can end everything that a task started; die when the node dies."""
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # The parent is the forkserver, whose only thread lives until the node ends: so the signal comes exactly then.
        # (From a thread of the node it would come when that thread ends.) It also ends a child inside a C call, which
        # does not see the end of its pipe.
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _let_go_of_forkserver()


def _let_go_of_forkserver() -> None:
    """Close the pipe by which a forkserver learns that its owner has gone.

    `multiprocessing` hands the writing end to every child, so that a forkserver outlives its owner while one child is
    busy. Ours must not: then its children would not end either. A task that wants a forkserver gets its own.
    """
    if "multiprocessing.forkserver" not in sys.modules:
        return
    from multiprocessing import forkserver

    owner: Any = getattr(forkserver, "_forkserver", None)
    alive_fd = getattr(owner, "_forkserver_alive_fd", None)
    if alive_fd is not None:
        os.close(alive_fd)
        owner._forkserver_alive_fd = None


def _read_job(pipe: socket.socket) -> Job | None:
    """Return the next job, or None at the end of the pipe.

    A small one is one read and nothing is copied. The rest of a large one is left in the pipe.
    """
    data: bytes | memoryview | None = pipe.recv(_FIRST_READ_BYTES)
    if data and len(data) < _HEAD_BYTES:  # a signal may have cut the read short
        data = _read_more(pipe, data, _HEAD_BYTES)
    if not data:
        return None
    _, length = FRAME.unpack_from(data)
    (meta_bytes,) = _META_BYTES.unpack_from(data, FRAME.size)
    start = _HEAD_BYTES + meta_bytes
    sealed_bytes = FRAME.size + length - start
    least = start + min(sealed_bytes, _OPENING_BYTES)
    if len(data) < least:
        data = _read_more(pipe, data, least)
        if data is None:
            return None
    view = memoryview(data)
    sealed: memoryview | None = view[start:]
    if len(data) - start < sealed_bytes < LARGE_BYTES:
        sealed = _read_more(pipe, view[start:], sealed_bytes)
    return None if sealed is None else Job._make((*marshal.loads(view[_HEAD_BYTES:start]), sealed, sealed_bytes))


def _read_more(pipe: socket.socket, data: bytes | memoryview, size: int) -> memoryview | None:
    """Return `size` bytes that begin with `data`, or None at the end of the pipe."""
    got = len(data)
    whole = writable(size)
    whole[:got] = data
    try:
        receive(pipe, whole[got:])
    except ConnectionResetError:
        return None
    return whole


def receive(pipe: socket.socket, into: memoryview) -> None:
    """Fill `into` from the pipe; ConnectionResetError if that ends first."""
    while into:
        count = pipe.recv_into(into, len(into), _WAITALL)
        if count == 0:
            raise ConnectionResetError("the node has gone")
        into = into[count:]
