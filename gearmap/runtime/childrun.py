"""What a child does with a job: open, unpickle, run task after task, commit outcomes.

What must not live here: the process itself and its pipe's frames (`child`), and anything the node imports.

Rule 1: what a task finished is committed to the pipe before the next task begins, unless tasks are tiny; what is in the
pipe survives this process.
Rule 2: the index of the running task is one aligned store into shared memory, so that a death is charged to the right
task, and only what a task itself takes is held against its time. Nothing else is shared.
Rule 3: a job of one call is by far the most frequent; it must not pay for what longer ones need.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

from gearmap.runtime import task
from gearmap.runtime.child import (
    COMMIT,
    FINAL,
    FRAME,
    INITIALIZING,
    LAST,
    LOADING,
    PACKING,
    ChildSettings,
    Job,
    receive,
)
from gearmap.runtime.coroutines import awaited
from gearmap.wire import envelope
from gearmap.wire.jobheader import BlockHeader, BlockKind, HeaderMemo, JobHeader
from gearmap.wire.outcome import (
    NotRun,
    NotRunReason,
    Outcome,
    describe_call,
    describe_exception,
    encode_outcome,
    encode_results,
)
from gearmap.wire.seal import Sealer
from gearmap.wire.serializer import loads

__all__ = ["Runner"]

# Work that may be lost with the process although it was done. Raised: fewer, larger outcomes; lowered: less is rerun.
COMMIT_SECONDS = 0.001

# While a task takes less than TINY_SECONDS, the clock is read once for so many of them: reading it for each would cost
# as much as the tasks.
TINY_SECONDS = 0.00001
TINY_GROUP = 64

# Functions that a child keeps unpickled, so that what they cache in globals is computed once for a run.
KEPT_FUNCTIONS = 16


class Runner:
    """Runs jobs and keeps what the next one can use again."""

    def __init__(self, pipe: socket.socket, index: memoryview, settings: ChildSettings) -> None:
        self._pipe = pipe
        self._index = index
        self._settings = settings
        self._headers = HeaderMemo()
        self._functions: OrderedDict[tuple[str, str], Callable[..., Any]] = OrderedDict()
        self._place: tuple[Any, ...] = ()
        self._tenant = ""
        self._retried: tuple[str, tuple[type[BaseException], ...]] = ("", ())

    def run(self, job: Job) -> None:
        """Run one job and commit its outcomes, the last marked final."""
        self._index[0] = LOADING
        prefix = envelope.parse_prefix(job.sealed, job.sealed_bytes)
        opened, body = self._open(job, prefix)
        header = self._headers.read(opened)
        payloads = envelope.unframe(body)
        numbers = payloads.pop()[0]
        # With a time limit the index stays at a task: pickling its result is part of its time.
        index = self._index if header.task_timeout is None else None
        committer = _Committer(self._pipe, job, prefix.session_id, index)
        place = (job.number, header.cwd, header.sys_path)
        if place != self._place:
            self._move_to(place, job, header)
        if header.initializer and not self._initialize(header.tenant, payloads.pop(1), committer):
            return
        try:
            fn = self._functions.get((header.run, header.function_digest))
            if fn is None:
                fn = self._load(header, payloads[0])
            if header.retry_exceptions:
                committer.retried = self._load_retried(header.run, payloads.pop(1))
        except BaseException as error:
            committer.cannot_load(error)
            return
        blocks = header.blocks
        is_timed = header.task_timeout is not None
        task.begin_job(job.execution_id, job.worker, header, numbers, self._index)
        is_single = len(blocks) == 1 and blocks[0].size == 1 and blocks[0].kind is BlockKind.CALLS
        if is_single and not is_timed and blocks[0].run:
            _run_single(fn, payloads[1], self._index, committer)
        else:
            position = 0
            rest = iter(payloads[1:])
            for block in blocks:
                taken = list(islice(rest, block.size if block.kind is BlockKind.CALLS else 1))
                position = self._run_block(fn, block, taken, position, committer, is_timed)
        task.end_job()
        committer.finish()

    def _open(self, job: Job, prefix: envelope.Prefix) -> tuple[bytes, memoryview]:
        if len(job.sealed) >= prefix.total_bytes:
            return envelope.open_message(job.sealed, prefix, job.job_key, job.context)
        return envelope.open_arriving(job.sealed, prefix, job.job_key, job.context, partial(receive, self._pipe))

    def _move_to(self, place: tuple[Any, ...], job: Job, header: JobHeader) -> None:
        """Take on the environment of the worker, and the folder and path of the run."""
        self._place = place
        for name, value in self._settings.environment:
            os.environ[name] = value.replace("{index}", str(job.number))
        if header.cwd is not None and os.path.isdir(header.cwd):
            os.chdir(header.cwd)
        if header.sys_path is not None:
            known = set(sys.path)
            sys.path.extend(path for path in header.sys_path if path not in known)

    def _initialize(self, tenant: str, payload: Any, committer: _Committer) -> bool:
        """Run a tenant's initializer, once; return whether tasks may follow."""
        if self._tenant == tenant:
            return True
        self._index[0] = INITIALIZING
        try:
            initializer, initargs = loads(payload)
        except BaseException as error:
            committer.cannot_load(error)
            return False
        try:
            awaited(initializer)(*initargs)
        except BaseException as error:
            committer.initializer_failed(error)
            return False
        self._index[0] = LOADING
        self._tenant = tenant
        return True

    def _load(self, header: JobHeader, payload: Any) -> Callable[..., Any]:
        """Unpickle the job's function, once for a run."""
        fn = self._functions[header.run, header.function_digest] = awaited(loads(payload))
        if len(self._functions) > KEPT_FUNCTIONS:
            self._functions.popitem(last=False)
        return fn

    def _load_retried(self, run: str, payload: Any) -> tuple[type[BaseException], ...]:
        """Unpickle the classes of exceptions that a run retries, once while it is the same run."""
        if self._retried[0] != run:
            self._retried = (run, loads(payload))
        return self._retried[1]

    def _run_block(
        self,
        fn: Callable[..., Any],
        block: BlockHeader,
        payloads: list[Any],
        position: int,
        committer: _Committer,
        is_timed: bool,
    ) -> int:
        """Run the block's tasks; return the position after them."""
        committer.starts()
        self._index[0] = ~position
        stop = position + block.n_tasks
        try:
            calls, call, arguments = _calls(fn, block, payloads, self._index if is_timed else None)
        except BaseException as error:
            for failed in range(position, stop):
                committer.failed(failed, error)
            return stop
        if is_timed:
            calls = task.timed(calls)
        _run_tasks(call, calls, position, stop, self._index, committer, lambda item: _shown(fn, arguments, item))
        return stop


def _calls(
    fn: Callable[..., Any], block: BlockHeader, payloads: list[Any], index: memoryview | None
) -> tuple[Iterator[Any], Callable[[Any], Any], Callable[[Any], tuple[Any, dict[str, Any]]]]:
    """Return the block's selected argument sets, what to call with each, and how to tell the arguments of one.

    `index` is given if loading must not count as a task's time.
    """
    if block.kind is BlockKind.CALLS:

        def call(payload: Any) -> Any:
            args, kwargs = loads(payload)  # here, so that arguments that do not unpickle fail their own task only
            return fn(*args, **kwargs)

        def timed_call(payload: Any) -> Any:
            assert index is not None
            position = index[0]
            index[0] = ~position
            args, kwargs = loads(payload)
            task.start_clock()
            index[0] = position
            return fn(*args, **kwargs)

        return _selected(iter(payloads), block), call if index is None else timed_call, loads
    value = loads(payloads[0])
    if block.kind is BlockKind.COLUMNS and len(value) == 1:
        return _selected(iter(value[0]), block), fn, lambda item: ((item,), {})
    rows = zip(*value, strict=True) if block.kind is BlockKind.COLUMNS else iter(value)
    return _selected(rows, block), lambda row: fn(*row), lambda row: (row, {})


def _shown(fn: Callable[..., Any], arguments: Callable[[Any], tuple[Any, dict[str, Any]]], item: Any) -> str:
    """Describe a call that failed; nothing, if its arguments are what failed."""
    try:
        args, kwargs = arguments(item)
    except BaseException:
        return ""
    return describe_call(fn, args, kwargs)


def _selected(values: Iterator[Any], block: BlockHeader) -> Iterator[Any]:
    if block.run == ((0, block.size),):
        return values
    rows = list(values)
    return (row for low, high in block.run for row in rows[low:high])


def _run_single(fn: Callable[..., Any], payload: Any, index: memoryview, committer: _Committer) -> None:
    """Run the one call of a job."""
    began = perf_counter()
    try:
        args, kwargs = loads(payload)
        index[0] = 0
        result = fn(*args, **kwargs)
    except BaseException as error:
        committer.failed(0, error, _shown(fn, loads, payload))
        return
    committer.hold(0, [result], perf_counter() - began)


def _run_tasks(
    call: Callable[[Any], Any],
    calls: Iterator[Any],
    position: int,
    stop: int,
    index: memoryview,
    committer: _Committer,
    shown: Callable[[Any], str],
) -> None:
    """The hot loop. Everything that is not needed for each task happens once a group."""
    group = 1
    item: Any = None
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
            committer.failed(position, error, shown(item))
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
    committer.hold(first, results, perf_counter() - began)


class _Committer:
    """Seals outcomes and writes them to the pipe, in order.

    Attributes
    ----------
    retried
        The classes of exceptions after which a task may be tried again.
    """

    retried: tuple[type[BaseException], ...] = (Exception,)

    def __init__(self, pipe: socket.socket, job: Job, session_id: bytes, index: memoryview | None) -> None:
        self._pipe = pipe
        self._index = index
        self._job = job
        self._session_id = session_id
        self._sealer = Sealer(job.outcome_key)
        self._sequence = 0
        self._held: list[tuple[int, list[Any]]] = []
        self._held_failures: list[Any] = []
        self._for_good: tuple[int, ...] = ()
        self._elapsed = 0.0

    def starts(self) -> None:
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

    def failed(self, position: int, error: BaseException, call: str = "") -> None:
        """Write that a task raised."""
        self._held_failures.append(describe_exception(error, position, call=call))
        # As an except clause matches, which asks no class for its opinion.
        if not any(cls in self.retried for cls in type(error).__mro__):
            self._for_good = (position,)
        self._send(final=False)

    def cannot_load(self, error: BaseException) -> None:
        """Write that the function does not unpickle here; final."""
        failure = describe_exception(error, 0)
        self._held_failures.append(failure)
        detail = f"{failure.type_name}: {failure.message}"
        self._send(final=True, not_run=NotRun(reason=NotRunReason.CANNOT_LOAD, detail=detail))

    def initializer_failed(self, error: BaseException) -> None:
        """Write that a tenant's initializer raised; final, and the last that this process should be asked for."""
        failure = describe_exception(error, 0)
        self._held_failures.append(failure)
        detail = f"{failure.type_name}: {failure.message}"
        self._send(final=True, not_run=NotRun(reason=NotRunReason.INITIALIZER_FAILED, detail=detail), last=True)

    def finish(self) -> None:
        """Write what is left; final."""
        self._send(final=True)

    def _send(self, *, final: bool, not_run: NotRun | None = None, last: bool = False) -> None:
        job = self._job
        if self._index is not None and self._held and (len(self._held) > 1 or len(self._held[0][1]) > 1):
            self._index[0] = PACKING  # if one of these results is the end of this process, nobody knows which
        header, body = self._encoded(final, not_run)
        message = envelope.seal_now(
            kind=envelope.Kind.OUTCOME,
            key=self._sealer,
            session_id=self._session_id,
            execution_id=job.execution_id,
            sequence=self._sequence,
            expiry=job.expiry,
            context=job.context,
            header=header,
            body=body,
        )
        head = FRAME.pack(LAST if last else FINAL if final else COMMIT, len(message))
        if isinstance(message, bytes):
            self._pipe.sendall(head + message)
        else:
            self._pipe.sendall(head)
            message.write_to(self._pipe.sendall)
        self._sequence += 1
        self._held, self._held_failures, self._for_good, self._elapsed = [], [], (), 0.0

    def _encoded(self, final: bool, not_run: NotRun | None) -> tuple[bytes, list[Any]]:
        held = self._held
        if len(held) == 1 and not self._held_failures and not_run is None:
            first, results = held[0]
            encoded = encode_results(first, results, elapsed=self._elapsed, final=final, worker=self._job.worker)
            if encoded is not None:
                return encoded
        outcome = Outcome(
            failures=tuple(self._held_failures),
            for_good=self._for_good,
            not_run=not_run,
            elapsed=self._elapsed,
            count=sum(len(results) for _, results in held),
            final=final,
            worker=self._job.worker,
        )
        return encode_outcome(outcome, held)
