"""What a child does with a job: open, unpickle, run task after task.

What must not live here: the process itself and its pipe's frames (`child`), how outcomes are written (`committer`),
what is done about what tasks leave behind (`upkeep`), and anything the node imports.

Rule 1: what a task finished is committed before the next task begins, unless tasks are tiny; what was committed, to
shared memory or the pipe, survives this process.
Rule 2: the index of the running task is one aligned store into shared memory, so that a death is charged to the right
task, and only what a task itself takes is held against its time. Nothing else is shared. Among tiny tasks, for which
the store would take as long as the task, the index says only that: if the process dies then, nobody is charged, and
the chunk comes again with `exact`. A node that sees it for long asks by a signal, and a long task among them is noted.
Rule 3: a job of one call is by far the most frequent; it must not pay for what longer ones need.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from math import inf
from time import perf_counter
from types import FrameType
from typing import Any, NamedTuple

from gearmap.errors import WireError
from gearmap.runtime import child, task
from gearmap.runtime.child import (
    FRAME,
    GROUPED,
    INITIALIZING,
    LOADING,
    NUDGE,
    PACKING,
    REFUSED,
    ChildSettings,
    Job,
    receive,
)
from gearmap.runtime.committer import COMMIT_SECONDS, Committer
from gearmap.runtime.coroutines import awaited
from gearmap.runtime.handover import Handover
from gearmap.runtime.outlets import ChildOutlets
from gearmap.runtime.shipped import ShippedModules, World
from gearmap.runtime.slate import Slate
from gearmap.runtime.upkeep import NUDGED, Upkeep
from gearmap.wire import envelope
from gearmap.wire.jobheader import BlockHeader, BlockKind, HeaderMemo, JobHeader
from gearmap.wire.outcome import describe_call
from gearmap.wire.serializer import loads

__all__ = ["Runner"]

# While a task takes less than TINY_SECONDS, the clock is read once for a group of them: reading it for each would cost
# as much as the tasks. A group is what makes GROUP_SECONDS of work. Raised: less is spent between groups; lowered:
# fewer long tasks among tiny ones wait for the outcome of others.
TINY_SECONDS = 0.00001
GROUP_SECONDS = 0.0002
MAX_GROUP = 1024

# Functions that a child keeps unpickled, so that what they cache in globals is computed once for a run.
KEPT_FUNCTIONS = 16


class _Terms(NamedTuple):
    """How the tasks of a job are run: with a time limit, one noted after the other, and begun until when."""

    is_timed: bool
    is_exact: bool
    until: float


class _Unread:
    """What of a job is still in the pipe."""

    def __init__(self, pipe: socket.socket, job: Job) -> None:
        self._pipe = pipe
        self._n_bytes = job.sealed_bytes - len(job.sealed)

    def receive(self, into: memoryview) -> None:
        """Fill `into` with the next bytes."""
        receive(self._pipe, into)
        self._n_bytes -= len(into)

    def drop(self) -> None:
        """Take the rest out of the pipe, where the next job follows it."""
        scratch = memoryview(bytearray(min(self._n_bytes, envelope.SEALED_PIECE_BYTES)))
        while self._n_bytes:
            self.receive(scratch[: self._n_bytes])


def _open(job: Job, prefix: envelope.Prefix, unread: _Unread) -> tuple[bytes, memoryview]:
    if len(job.sealed) >= prefix.total_bytes:
        return envelope.open_message(job.sealed, prefix, job.job_key, job.context)
    return envelope.open_arriving(job.sealed, prefix, job.job_key, job.context, unread.receive)


class Runner:
    """Runs jobs and keeps what the next one can use again."""

    def __init__(self, pipe: socket.socket, slate: Slate, outlets: ChildOutlets, settings: ChildSettings) -> None:
        self._pipe = pipe
        self._index = slate.index
        self._shelf = slate.shelf
        self._progress = slate.progress
        self._settings = settings
        self._headers = HeaderMemo()
        self._functions: OrderedDict[tuple[str, str], tuple[Callable[..., Any], World]] = OrderedDict()
        self._modules = ShippedModules()
        sys.meta_path.insert(0, self._modules)
        self._place: tuple[Any, ...] = ()
        self._tenant = ""
        self._retried: tuple[str, tuple[type[BaseException], ...]] = ("", ())
        if NUDGE is not None:
            signal.signal(NUDGE, self._nudged)
            signal.siginterrupt(NUDGE, False)
        self._upkeep = Upkeep(pipe, slate, outlets)
        self._home = os.getcwd()

    def run(self, job: Job) -> None:
        """Run one job and commit its outcomes, the last marked final."""
        self._index[0] = LOADING
        prefix = envelope.parse_prefix(job.sealed, job.sealed_bytes)
        unread = _Unread(self._pipe, job)
        try:
            opened, body = _open(job, prefix, unread)
            header = self._headers.read(opened)
            payloads = envelope.unframe(body)
        except WireError as error:
            # The header did open: somebody has changed the body of a job that they cannot read.
            unread.drop()
            text = str(error).encode()
            self._pipe.sendall(FRAME.pack(REFUSED, len(text)) + text)
            return
        numbers = payloads.pop()[0]
        handover = Handover(header.landing, prefix.session_id)
        is_timed = header.task_timeout is not None
        committer = Committer(self._pipe, self._shelf, job, prefix.session_id, self._index, handover, is_timed=is_timed)
        upkeep = self._upkeep
        if not upkeep.is_fit:
            committer.give_back()
            return
        upkeep.hear(header.log_level)
        child.blobs = job.blobs
        place = (job.number, header.cwd, header.sys_path)
        if place != self._place:
            self._move_to(place, job, header)
        if header.initializer and not self._initialize(header.tenant, payloads.pop(1), committer):
            return
        try:
            function = (header.run, header.function_digest)
            kept = self._functions.get(function)
            if kept is None:
                kept = self._load(function, payloads[0])
            elif kept[1] is not self._modules.world:
                self._modules.enter(kept[1])
            fn = kept[0]
            if header.retry_exceptions:
                committer.retried = self._load_retried(header.run, payloads.pop(1))
        except BaseException as error:
            committer.cannot_load(error)
            return
        upkeep.begin(function)
        blocks = header.blocks
        is_timed = header.task_timeout is not None
        until = inf if header.budget is None else perf_counter() + header.budget
        terms = _Terms(is_timed, header.exact or is_timed, until)
        position = stop = 0
        task.begin_job(job.execution_id, job.worker, header, numbers, self._index, self._progress)
        is_single = len(blocks) == 1 and blocks[0].size == 1 and blocks[0].kind is BlockKind.CALLS
        if is_single and not is_timed and blocks[0].run:
            _run_single(fn, payloads[1], self._index, committer, upkeep)
        else:
            stop = header.n_tasks
            rest = iter(payloads[1:])
            for block in blocks:
                taken = list(islice(rest, block.size if block.kind is BlockKind.CALLS else 1))
                position = self._run_block(fn, block, taken, position, committer, terms)
                if not upkeep.is_fit or (position and perf_counter() >= until):
                    break
        task.end_job()
        if not upkeep.is_fit:
            committer.give_back()
            return
        if position < stop:
            committer.give_rest_back()
        else:
            committer.finish()
        upkeep.end()

    def _nudged(self, number: int, frame: FrameType | None) -> None:
        """A group of tiny tasks has lasted long, so one of them is not tiny: say which, and end the group with it."""
        position = task.grouped_position()
        if position is not None:
            self._index[0] = position
            self._upkeep.marks.append(NUDGED)

    def _move_to(self, place: tuple[Any, ...], job: Job, header: JobHeader) -> None:
        """Take on the environment of the worker, and the folder and path of the run."""
        self._place = place
        for name, value in self._settings.environment:
            os.environ[name] = value.replace("{index}", str(job.number))
        os.chdir(header.cwd if header.cwd is not None and os.path.isdir(header.cwd) else self._home)
        if header.sys_path is not None:
            known = set(sys.path)
            sys.path.extend(path for path in header.sys_path if path not in known)
        self._upkeep.accept()

    def _initialize(self, tenant: str, payload: Any, committer: Committer) -> bool:
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
        self._upkeep.accept()
        return True

    def _load(self, function: tuple[str, str], payload: Any) -> tuple[Callable[..., Any], World]:
        """Unpickle the job's function, once for a run; return it with the modules that came with it."""
        fn = awaited(loads(payload))
        kept = self._functions[function] = fn, self._modules.world
        if len(self._functions) > KEPT_FUNCTIONS:
            self._upkeep.forget(self._functions.popitem(last=False)[0])
        self._upkeep.loaded(function)
        return kept

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
        committer: Committer,
        terms: _Terms,
    ) -> int:
        """Run the block's tasks, or as many as may be begun; return the position after them."""
        committer.starts()
        self._index[0] = ~position
        stop = position + block.n_tasks
        try:
            calls, call, arguments = _calls(fn, block, payloads, self._index if terms.is_timed else None)
        except BaseException as error:
            for failed in range(position, stop):
                committer.failed(failed, error)
            return stop
        if terms.is_timed:
            calls = task.timed(calls)
        index, upkeep = self._index, self._upkeep
        shown = partial(_shown, fn, arguments)
        return _run_tasks(call, calls, position, stop, index, committer, upkeep, shown, terms)


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


def _run_single(fn: Callable[..., Any], payload: Any, index: memoryview, committer: Committer, upkeep: Upkeep) -> None:
    """Run the one call of a job."""
    began = perf_counter()
    try:
        args, kwargs = loads(payload)
        index[0] = 0
        result = fn(*args, **kwargs)
    except BaseException as error:
        seconds = perf_counter() - began
        upkeep.collect(0, committer, error)
        committer.failed(0, error, _shown(fn, loads, payload), seconds)
        return
    elapsed = perf_counter() - began
    if upkeep.marks or upkeep.has_output():
        upkeep.collect(0, committer)
    committer.hold(0, [result], elapsed)


def _run_tasks(
    call: Callable[[Any], Any],
    calls: Iterator[Any],
    position: int,
    stop: int,
    index: memoryview,
    committer: Committer,
    upkeep: Upkeep,
    shown: Callable[[Any], str],
    terms: _Terms,
) -> int:
    """The hot loop. Everything that is not needed for each task happens once a group.

    It ends early if the process is not fit for further tasks, or it is too late to begin another. Returns the position
    after the last one.
    """
    group = 1
    item: Any = None
    results: list[Any] = []
    first = position
    task.begin_row(first, results)
    marks = upkeep.marks
    began = read = perf_counter()
    is_exact, until = terms.is_exact, terms.until
    while position < stop:
        if read >= until and position:
            break
        at = position
        try:
            if group == 1 or is_exact:
                for index[0], item in zip(range(position, position + group), calls, strict=False):
                    results.append(call(item))
                    if marks:
                        break
            else:
                index[0] = GROUPED
                for item in islice(calls, group):
                    results.append(call(item))
                    if marks:
                        break
                index[0] = PACKING
            position = first + len(results)
        except BaseException as error:
            now = perf_counter()
            index[0] = position = first + len(results)
            seconds = (now - read) / (position - at + 1)
            committer.commit(first, results, now - began)
            upkeep.collect(position, committer, error)
            committer.failed(position, error, shown(item), seconds)
            position += 1
            results, first, began = [], position, perf_counter()
            task.begin_row(first, results)
            read = began
            if upkeep.restore():
                continue
            return position
        if position == at:
            raise RuntimeError(f"the job announced {stop} tasks, its arguments hold {position}")
        if group > 1:
            upkeep.glance()
        if marks and not upkeep.between(position - 1, committer):
            break
        read = perf_counter()
        elapsed = read - began
        if elapsed >= COMMIT_SECONDS and upkeep.has_output():
            upkeep.collect(position - 1, committer)
        if position < stop and (elapsed >= COMMIT_SECONDS or committer.holds_much):
            committer.commit(first, results, elapsed)
            group = _group(elapsed, position - first)
            results, first, began = [], position, perf_counter()
            task.begin_row(first, results)
            read = began
            if not upkeep.worked(elapsed, is_tiny=group > 1):
                return position
        elif group == 1:
            group = _group(elapsed, position - first)
    if upkeep.has_output():
        upkeep.collect(position - 1, committer)
    committer.hold(first, results, perf_counter() - began)
    return position


def _group(elapsed: float, n_tasks: int) -> int:
    """Return for how many tasks the clock is read once, after some took so long."""
    if elapsed >= TINY_SECONDS * n_tasks:
        return 1
    return min(MAX_GROUP, int(GROUP_SECONDS * n_tasks / max(elapsed, 1e-9)))
