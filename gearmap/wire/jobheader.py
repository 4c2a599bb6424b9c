"""The header of a job: all that a node reads before it gives the job to a child.

What must not live here: the body, which the node never opens.

Rule 1: JSON, never pickle.
Rule 2: reading is total. Bytes give a `JobHeader` or `EnvelopeError`; unknown keys are ignored.

The body is `frame([function, block, block, ...])`, one payload for each block in `JobHeader.blocks`; where the header
says `initializer`, a payload `(initializer, initargs)` stands between function and blocks, and where it says
`retry_exceptions`, a tuple of classes just before the blocks. The last payload is no pickle: it tells which tasks of
the run these are (`encode_numbers`). The tasks that the blocks' `run` ranges select, in order over all blocks, have the
positions 0, 1, 2, ... of the job.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import starmap
from typing import Any

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import Buffer
from gearmap.wire.jsonvalues import (
    Ranges,
    as_int,
    as_strings,
    decode_object,
    encode_object,
    read_bool,
    read_int,
    read_list,
    read_number,
    read_ranges,
    read_str,
)

__all__ = ["WARNING", "BlockHeader", "BlockKind", "HeaderMemo", "JobHeader", "encode_numbers", "task_number"]

# Headers that a reader keeps. Raised: fewer are parsed again where many runs alternate; lowered: less memory.
_KEPT_HEADERS = 64
_KEPT_HEADER_BYTES = 8192

WARNING = 30
"""The level of `logging` that is meant if none is named."""

_NUMBERS = struct.Struct("<QQ")  # tasks of the run: from, to


class BlockKind(str, Enum):
    """How a block holds its tasks' arguments."""

    COLUMNS = "columns"  # one list of values for each parameter
    ROWS = "rows"  # one tuple of arguments for each task
    CALLS = "calls"  # one (args, kwargs) for each task, pickled apart: as many payloads as the block has tasks


_KINDS = {kind.value: kind for kind in BlockKind}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHeader:
    """One block of tasks.

    Attributes
    ----------
    kind
        How the arguments are held.
    size
        Tasks in the block, 1 or more.
    run
        Which of them to run: half-open ranges, ascending, disjoint, inside the block.
    """

    kind: BlockKind
    size: int
    run: Ranges

    @property
    def n_tasks(self) -> int:
        """How many tasks of the block are to be run."""
        return sum(stop - start for start, stop in self.run)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHeader:
    """What a node needs to know of a job.

    Attributes
    ----------
    run
        Id of the run.
    function_digest
        Stands for the pickled function, in hex: a child keeps the functions that it has loaded.
    foreground
        Whether a client waits, so that the job is pointless without one.
    task_timeout
        Seconds that one task may take, or None.
    retry_exceptions
        Whether the body brings the classes of the exceptions that are retried; without them, `Exception` is.
    avoid
        Names of workers that should not take the job.
    attempt
        Which attempt this is of each of the tasks, from 1.
    exact
        Whether it must be known at each moment which task runs, however short they are.
    budget
        After how many seconds tasks that were not begun are given back, or None. One at least is run.
    level
        Nesting level, 0 outside of tasks.
    cwd, sys_path
        Where tasks run and what they import from, or None for the node's own.
    tenant
        Whose children run the job: one that has run a tenant's initializer serves that tenant only.
    initializer
        Whether the body brings an initializer, which a child runs once, before its first task for the tenant.
    max_tasks_per_child
        How many tasks a child may run in all, or None.
    log_level
        From which level on log records of the tasks are wanted; None for none.
    blobs
        What the payloads name without bringing it: digest in hex, and bytes.
    blob_source
        The Gearman function that gives it.
    landing
        Where the client takes the memory of large results if it is on this machine; nothing if nowhere.
    blocks
        The tasks.
    """

    run: str
    function_digest: str
    foreground: bool = True
    task_timeout: float | None = None
    retry_exceptions: bool = False
    avoid: tuple[str, ...] = ()
    attempt: int = 1
    exact: bool = False
    budget: float | None = None
    level: int = 0
    cwd: str | None = None
    sys_path: tuple[str, ...] | None = None
    tenant: str = ""
    initializer: bool = False
    max_tasks_per_child: int | None = None
    log_level: int | None = WARNING
    blobs: tuple[tuple[str, int], ...] = ()
    blob_source: str = ""
    landing: str = ""
    blocks: tuple[BlockHeader, ...] = ()

    @property
    def n_tasks(self) -> int:
        """How many tasks the job has."""
        return sum(block.n_tasks for block in self.blocks)

    def encode(self) -> bytes:
        """The header as JSON; what has its default is left out."""
        values: dict[str, Any] = {
            "run": self.run,
            "function": self.function_digest,
            "blocks": [_encode_block(block) for block in self.blocks],
        }
        if self.foreground:
            values["foreground"] = True
        if self.task_timeout is not None:
            values["task_timeout"] = self.task_timeout
        if self.retry_exceptions:
            values["retry_exceptions"] = True
        if self.avoid:
            values["avoid"] = self.avoid
        if self.attempt != 1:
            values["attempt"] = self.attempt
        if self.exact:
            values["exact"] = True
        if self.budget is not None:
            values["budget"] = self.budget
        if self.level:
            values["level"] = self.level
        if self.cwd is not None:
            values["cwd"] = self.cwd
        if self.sys_path is not None:
            values["sys_path"] = self.sys_path
        if self.tenant:
            values["tenant"] = self.tenant
        if self.initializer:
            values["initializer"] = True
        if self.max_tasks_per_child is not None:
            values["max_tasks_per_child"] = self.max_tasks_per_child
        if self.log_level != WARNING:
            values["log_level"] = self.log_level
        if self.blobs:
            values["blobs"], values["blob_source"] = self.blobs, self.blob_source
        if self.landing:
            values["landing"] = self.landing
        return encode_object(values)

    @classmethod
    def decode(cls, data: Buffer) -> JobHeader:
        """Read a header.

        Raises
        ------
        EnvelopeError
            If `data` is not one.
        """
        values = decode_object(data)
        if "initializer" in values and not values.get("tenant"):
            raise EnvelopeError("an initializer without a tenant: nobody could tell which children ran it")
        if "blobs" in values and not values.get("blob_source"):
            raise EnvelopeError("blobs without anybody who gives them")
        return cls(
            run=read_str(values, "run"),
            function_digest=_read_digest(values),
            foreground=read_bool(values, "foreground"),
            task_timeout=read_number(values, "task_timeout") if "task_timeout" in values else None,
            retry_exceptions=read_bool(values, "retry_exceptions"),
            avoid=as_strings(read_list(values, "avoid"), "avoid"),
            attempt=read_int(values, "attempt") if "attempt" in values else 1,
            exact=read_bool(values, "exact"),
            budget=read_number(values, "budget") if "budget" in values else None,
            level=read_int(values, "level"),
            cwd=read_str(values, "cwd") if "cwd" in values else None,
            sys_path=as_strings(read_list(values, "sys_path"), "sys_path") if "sys_path" in values else None,
            tenant=read_str(values, "tenant"),
            initializer=read_bool(values, "initializer"),
            max_tasks_per_child=_read_max_tasks(values) if "max_tasks_per_child" in values else None,
            log_level=_read_log_level(values) if "log_level" in values else WARNING,
            blobs=tuple(map(_decode_blob, read_list(values, "blobs"))),
            blob_source=read_str(values, "blob_source") if values.get("blobs") else "",  # nobody gives nothing
            landing=read_str(values, "landing"),
            blocks=tuple(map(_decode_block, read_list(values, "blocks"))),
        )


class HeaderMemo:
    """Reads headers and keeps those that it read last: the jobs of many single calls all have the same one."""

    def __init__(self) -> None:
        self._known: dict[bytes, JobHeader] = {}

    def read(self, data: bytes) -> JobHeader:
        """`JobHeader.decode`, once for equal bytes."""
        header = self._known.get(data)
        if header is None:
            header = JobHeader.decode(data)
            if len(data) <= _KEPT_HEADER_BYTES:
                if len(self._known) >= _KEPT_HEADERS:
                    self._known.clear()
                self._known[data] = header
        return header


def encode_numbers(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Return the numbers of a job's tasks, in the order of their positions.

    >>> task_number(encode_numbers([(7, 9), (20, 30)]), 3)
    21
    """
    if len(ranges) == 1:
        return _NUMBERS.pack(*ranges[0])
    return b"".join(starmap(_NUMBERS.pack, ranges))


def task_number(numbers: Buffer, position: int) -> int | None:
    """Return which task of its run stands at a position of the job, or None if none does.

    >>> task_number(encode_numbers([(7, 9)]), 2)
    """
    for start, stop in _NUMBERS.iter_unpack(numbers):
        if position < stop - start:
            return int(start + position)
        position -= stop - start
    return None


def _encode_block(block: BlockHeader) -> list[Any]:
    kind = BlockKind(block.kind).value
    if block.run == ((0, block.size),):  # the whole block, which is nearly always so
        return [kind, block.size]
    return [kind, block.size, block.run]


def _decode_block(value: Any) -> BlockHeader:
    if type(value) is not list or len(value) not in (2, 3) or type(value[0]) is not str:
        raise EnvelopeError(f"a block in a header must be a kind, a size and ranges, got {value!r:.80}")
    kind, size = _KINDS.get(value[0]), as_int(value[1], "blocks")
    if kind is None:
        raise EnvelopeError(f"a block of unknown kind {value[0]!r:.80}")
    if size < 1:
        raise EnvelopeError("a block without tasks")
    run = read_ranges(value[2], "blocks") if len(value) == 3 else ((0, size),)
    if run and run[-1][1] > size:
        raise EnvelopeError(f"a block of {size} tasks cannot run task {run[-1][1] - 1}")
    return BlockHeader(kind=kind, size=size, run=run)


def _decode_blob(value: Any) -> tuple[str, int]:
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str:
        raise EnvelopeError(f"a blob in a header must be a digest and a size, got {value!r:.80}")
    n_bytes = as_int(value[1], "blobs")
    if n_bytes < 1:
        raise EnvelopeError("a blob without bytes")
    return value[0], n_bytes


def _read_max_tasks(values: dict[str, Any]) -> int:
    number = read_int(values, "max_tasks_per_child")
    if number < 1:
        raise EnvelopeError("a child that may run no task at all")
    return number


def _read_log_level(values: dict[str, Any]) -> int | None:
    return None if values["log_level"] is None else read_int(values, "log_level")


def _read_digest(values: dict[str, Any]) -> str:
    digest = read_str(values, "function")
    try:
        bytes.fromhex(digest)
    except ValueError:
        raise EnvelopeError(f"a function digest must be hex, got {digest!r:.80}") from None
    return digest
