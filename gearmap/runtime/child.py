"""The process that runs user code: one job at a time, task after task.

Rule 1: heavy imports stand inside functions, for the process that starts children imports this module first.
Rule 2: what a task finished is committed to the pipe before the next task begins, unless tasks are tiny; what is in the
pipe survives this process.
Rule 3: the index of the running task is one aligned store into shared memory, so that a death is charged to the right
task. Nothing else is shared.
Rule 4: the secret never comes here: a job brings the two keys of its execution.

Data flow::

    node --[J: keys, names, sealed job]--> read_job -> open -> unpickle -> run --[C|F: sealed outcome]--> node
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gearmap.wire.jobheader import BlockHeader, JobHeader

__all__ = ["COMMIT", "FINAL", "FRAME", "JOB", "READY", "ChildSettings", "encode_job", "main"]

FRAME = struct.Struct("<cQ")  # kind, length of what follows
JOB, READY, COMMIT, FINAL = b"J", b"R", b"C", b"F"

# Work that may be lost with the process although it was done. Raised: fewer, larger outcomes; lowered: less is rerun.
COMMIT_SECONDS = 0.001

# While a task takes less than TINY_SECONDS, the clock is read once for so many of them: reading it for each would cost
# as much as the tasks.
TINY_SECONDS = 0.00001
TINY_GROUP = 16

# Functions that a child keeps unpickled, so that what they cache in globals is computed once for a run.
KEPT_FUNCTIONS = 16

_PR_SET_PDEATHSIG = 1

is_child = False
"""Whether this process is one that runs tasks."""


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What every child of a node is told at its start."""

    environment: tuple[tuple[str, str], ...] = ()  # NAME, value with "{index}" for the worker's number
    cwd: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the node hands it over."""

    execution_id: bytes
    job_key: bytes
    outcome_key: bytes
    context: bytes
    worker: str
    index: int
    expiry: int
    sealed: bytearray


def encode_job(
    *,
    execution_id: bytes,
    job_key: bytes,
    outcome_key: bytes,
    context: bytes,
    worker: str,
    index: int,
    expiry: int,
    sealed_bytes: int,
) -> bytes:
    """Return what precedes the sealed job on the pipe.

    `marshal` is right here: both ends are the same interpreter on the same host, and the values are plain.
    """
    meta = marshal.dumps((execution_id, job_key, outcome_key, context, worker, index, expiry))
    return FRAME.pack(JOB, 8 + len(meta) + sealed_bytes) + len(meta).to_bytes(8, "little") + meta


def main(pipe: socket.socket, index: Any, settings: ChildSettings) -> None:
    """Run jobs until the pipe ends. Never returns."""
    global is_child
    is_child = True
    _become_independent()
    view = memoryview(index).cast("B").cast("q")
    if settings.cwd is not None:
        os.chdir(settings.cwd)
    runner = _Runner(pipe, view, settings)
    try:
        pipe.sendall(FRAME.pack(READY, 0))
        while (job := _read_job(pipe)) is not None:
            runner.run(job)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the node is gone
    finally:
        # Not sys.exit: a task's atexit handlers and lingering threads must not keep a finished child.
        os._exit(0)


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
    head = _read_exactly(pipe, FRAME.size)
    if head is None:
        return None
    _, length = FRAME.unpack(head)
    size = _read_exactly(pipe, 8)
    meta = None if size is None else _read_exactly(pipe, int.from_bytes(size, "little"))
    sealed = None if meta is None else _read_exactly(pipe, length - 8 - len(meta))
    if meta is None or sealed is None:
        return None
    execution_id, job_key, outcome_key, context, worker, index, expiry = marshal.loads(meta)
    return Job(execution_id, job_key, outcome_key, context, worker, index, expiry, sealed)


def _read_exactly(pipe: socket.socket, size: int) -> bytearray | None:
    """Return `size` bytes, or None at the end of the pipe."""
    data = bytearray(size)
    view = memoryview(data)
    got = 0
    while got < size:
        count = pipe.recv_into(view[got:])
        if count == 0:
            return None
        got += count
    return data


class _Runner:
    """Runs jobs and keeps what the next one can use again."""

    def __init__(self, pipe: socket.socket, index: memoryview, settings: ChildSettings) -> None:
        self._pipe = pipe
        self._index = index
        self._settings = settings
        self._functions: OrderedDict[tuple[str, str], Callable[..., Any]] = OrderedDict()
        self._place: tuple[Any, ...] = ()

    def run(self, job: Job) -> None:
        """Run one job and commit its outcomes, the last marked final."""
        from gearmap.wire import envelope
        from gearmap.wire.jobheader import JobHeader

        self._index[0] = 0
        prefix = envelope.parse_prefix(job.sealed)
        header = JobHeader.decode(envelope.open_header(job.sealed, prefix, job.job_key, job.context))
        payloads = envelope.unframe(envelope.open_body(job.sealed, prefix, job.job_key, job.context))
        committer = _Committer(self._pipe, job, prefix.session_id)
        self._move_to(job, header)
        try:
            fn = self._function(header, payloads[0])
        except BaseException as error:
            committer.cannot_load(error)
            return
        position = 0
        rest = iter(payloads[1:])
        for block in header.blocks:
            taken = list(islice(rest, block.size if block.kind == "calls" else 1))
            position = self._run_block(fn, block, taken, position, committer)
        committer.finish()

    def _move_to(self, job: Job, header: JobHeader) -> None:
        """Take on the environment of the worker, and the folder and path of the run."""
        place = (job.index, header.cwd, header.sys_path)
        if place == self._place:
            return
        self._place = place
        for name, value in self._settings.environment:
            os.environ[name] = value.replace("{index}", str(job.index))
        if header.cwd is not None and os.path.isdir(header.cwd):
            os.chdir(header.cwd)
        if header.sys_path is not None:
            known = set(sys.path)
            sys.path.extend(path for path in header.sys_path if path not in known)

    def _function(self, header: JobHeader, payload: Any) -> Callable[..., Any]:
        """Return the job's function, unpickled once for a run."""
        name = (header.run, header.function_digest)
        fn = self._functions.get(name)
        if fn is None:
            from gearmap.wire import serializer

            fn = _awaited(serializer.loads(payload))
            self._functions[name] = fn
            if len(self._functions) > KEPT_FUNCTIONS:
                self._functions.popitem(last=False)
        return fn

    def _run_block(
        self, fn: Callable[..., Any], block: BlockHeader, payloads: list[Any], position: int, committer: _Committer
    ) -> int:
        """Run the block's tasks; return the position after them."""
        stop = position + sum(high - low for low, high in block.run)
        try:
            calls, call = _calls(fn, block, payloads)
        except BaseException as error:
            for failed in range(position, stop):
                committer.failed(failed, error)
            return stop
        committer.starts(position)
        _run_tasks(call, calls, position, stop, self._index, committer)
        return stop


def _calls(
    fn: Callable[..., Any], block: BlockHeader, payloads: list[Any]
) -> tuple[Iterator[Any], Callable[[Any], Any]]:
    """Return the block's selected argument sets, and what to call with each."""
    from gearmap.wire.serializer import loads

    if block.kind == "calls":

        def call(payload: Any) -> Any:
            args, kwargs = loads(payload)  # here, so that arguments that do not unpickle fail their own task only
            return fn(*args, **kwargs)

        return _selected(iter(payloads), block), call
    value = loads(payloads[0])
    if block.kind == "columns" and len(value) == 1:
        return _selected(iter(value[0]), block), fn
    rows = zip(*value, strict=True) if block.kind == "columns" else iter(value)
    return _selected(rows, block), lambda row: fn(*row)


def _selected(values: Iterator[Any], block: BlockHeader) -> Iterator[Any]:
    if block.run == ((0, block.size),):
        return values
    rows = list(values)
    return (row for low, high in block.run for row in rows[low:high])


def _awaited(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn`, or for a coroutine function one that runs it to its end."""
    import inspect

    if not inspect.iscoroutinefunction(fn):
        return fn

    def run(*args: Any, **kwargs: Any) -> Any:
        import asyncio

        return asyncio.run(fn(*args, **kwargs))

    return run


def _run_tasks(
    call: Callable[[Any], Any],
    calls: Iterator[Any],
    position: int,
    stop: int,
    index: memoryview,
    committer: _Committer,
) -> None:
    """The hot loop. Everything that is not needed for each task happens once a group."""
    group = 1
    results: list[Any] = []
    first = position
    began = perf_counter()
    while position < stop:
        at = position
        try:
            for item in islice(calls, group):
                index[0] = position
                results.append(call(item))
                position += 1
        except BaseException as error:
            committer.commit(first, results, perf_counter() - began)
            committer.failed(position, error)
            position += 1
            results, first, began = [], position, perf_counter()
            continue
        if position == at:
            raise RuntimeError(f"the job announced {stop} tasks, its arguments hold {position}")
        elapsed = perf_counter() - began
        if elapsed >= COMMIT_SECONDS and position < stop:
            committer.commit(first, results, elapsed)
            group = TINY_GROUP if elapsed < TINY_SECONDS * (position - first) else 1
            results, first, began = [], position, perf_counter()
        elif elapsed < TINY_SECONDS * (position - first):
            group = TINY_GROUP
    index[0] = stop  # beyond the last: what dies from here on is not a task's fault
    committer.hold(first, results, perf_counter() - began)


class _Committer:
    """Seals outcomes and writes them to the pipe, in order."""

    def __init__(self, pipe: socket.socket, job: Job, session_id: bytes) -> None:
        self._pipe = pipe
        self._job = job
        self._session_id = session_id
        self._sequence = 0
        self._held: list[tuple[int, list[Any]]] = []
        self._held_failures: list[Any] = []
        self._elapsed = 0.0

    def starts(self, position: int) -> None:
        """A block begins: what is held of the one before goes out if it took long."""
        if self._elapsed >= COMMIT_SECONDS:
            self._send(final=False)

    def commit(self, first: int, results: list[Any], elapsed: float) -> None:
        """Write finished results to the pipe."""
        self.hold(first, results, elapsed)
        if self._held:
            self._send(final=False)

    def hold(self, first: int, results: list[Any], elapsed: float) -> None:
        """Keep results for the next outcome."""
        if results:
            if self._held and self._held[-1][0] + len(self._held[-1][1]) == first:
                self._held[-1][1].extend(results)
            else:
                self._held.append((first, results))
            self._elapsed += elapsed

    def failed(self, position: int, error: BaseException) -> None:
        """Write that a task raised."""
        from gearmap.wire.outcome import describe_exception

        self._held_failures.append(describe_exception(error, position))
        self._send(final=False)

    def cannot_load(self, error: BaseException) -> None:
        """Write that the function does not unpickle here; final."""
        from gearmap.wire.outcome import NotRun, NotRunReason, describe_exception

        failure = describe_exception(error, 0)
        self._held_failures.append(failure)
        detail = f"{failure.type_name}: {failure.message}"
        self._send(final=True, not_run=NotRun(reason=NotRunReason.CANNOT_LOAD, detail=detail))

    def finish(self) -> None:
        """Write what is left; final."""
        self._send(final=True)

    def _send(self, *, final: bool, not_run: Any = None) -> None:
        from gearmap.wire import envelope
        from gearmap.wire.outcome import Outcome, encode_outcome

        job = self._job
        count = sum(len(results) for _, results in self._held)
        outcome = Outcome(
            failures=tuple(self._held_failures),
            not_run=not_run,
            elapsed=self._elapsed,
            count=count,
            final=final,
            worker=job.worker,
        )
        header, body = encode_outcome(outcome, self._held)
        message = envelope.seal_message(
            kind=envelope.Kind.OUTCOME,
            key=job.outcome_key,
            session_id=self._session_id,
            execution_id=job.execution_id,
            sequence=self._sequence,
            expiry=job.expiry,
            context=job.context,
            header=header,
            body=body,
        )
        self._pipe.sendall(FRAME.pack(FINAL if final else COMMIT, len(message)))
        for piece in message:
            self._pipe.sendall(piece)
        self._sequence += 1
        self._held, self._held_failures, self._elapsed = [], [], 0.0
