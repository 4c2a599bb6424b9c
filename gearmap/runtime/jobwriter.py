"""From a planned chunk to a sealed job.

What must not live here: when a chunk is sent, and to which server (`run`).

Law of the file: what stays the same from job to job is made once. The jobs of many single calls differ in their unique
and their arguments only; their header is the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from gearmap.core import events as ev
from gearmap.core.names import Lane, TaskLane
from gearmap.runtime.landing import Landing
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.runtime.placed import GivenBlob, blobs_of
from gearmap.runtime.sentcall import SentCall
from gearmap.runtime.tenancy import Tenancy
from gearmap.wire import envelope, seal
from gearmap.wire.framing import Payload
from gearmap.wire.jobheader import WARNING, BlockHeader, BlockKind, JobHeader, encode_numbers

__all__ = ["JobWriter", "Place"]

# Encoded headers that are kept. Raised: fewer are made again where functions alternate; lowered: less memory.
_KEPT_HEADERS = 64

_Blocks = tuple[tuple[BlockKind, int, tuple[ev.TaskRange, ...]], ...]
"""For each block of a job: kind, size, and the parts of it that are to be run."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where tasks run on the same machine: the caller's folder and import path; None elsewhere."""

    cwd: str | None = None
    sys_path: tuple[str, ...] | None = None


class JobWriter:
    """Keeps a run's functions and blocks, and seals its jobs."""

    def __init__(
        self,
        *,
        run_id: str,
        lane: Lane | TaskLane,
        depth: int = 0,
        session_id: bytes,
        session_key: bytes,
        task_timeout: float | None = None,
        retry_exceptions: Payload | None = None,
        tenancy: Tenancy | None = None,
        max_tasks_per_child: int | None = None,
        log_level: int | None = WARNING,
        landing: Landing | None = None,
    ) -> None:
        self.function_name = lane.name
        self._context_start = lane.name.encode()
        self._run_id = run_id
        self._level = depth
        self._task_timeout = task_timeout
        self._retry_exceptions = retry_exceptions
        self._tenancy = tenancy
        self._max_tasks_per_child = max_tasks_per_child
        self._log_level = log_level
        self._landing = landing
        self._session_id = session_id
        self._keys = seal.Deriver(session_key)
        self._functions: dict[Hashable, Any] = {}
        # Kept until their tasks are settled. The payload of a block of calls is a list, one for each call: of a call
        # without out-of-band buffers only the stream, because a tuple around each would be one more object to keep.
        self._blocks: dict[int, tuple[BlockKind, Any, Place, Hashable]] = {}
        self._n_blocks: dict[Hashable, int] = {}  # by function
        self._headers: dict[Any, bytes] = {}
        self._prepared: tuple[str, bytes, bytes, seal.Sealer] | None = None

    def prepare(self) -> None:
        """Draw the next job's unique and derive its key, when there is time: with an answer on its way, not a job."""
        if self._prepared is None:
            self._prepared = self._make_sealer()

    def _make_sealer(self) -> tuple[str, bytes, bytes, seal.Sealer]:
        """Return a fresh unique as text and as bytes, the context that goes with it, and what seals its job."""
        unique = os.urandom(16).hex()
        name = unique.encode()
        sealer = seal.Sealer(seal.job_key(self._keys, name))
        return unique, name, envelope.make_context(self._context_start, name), sealer

    def add_function(self, digest: Hashable, payload: Any) -> None:
        """Keep a pickled function until the last block of it that is added is dropped."""
        self._functions.setdefault(digest, payload)

    def add_block(self, block: int, kind: BlockKind, payload: Any, place: Place, function: Hashable) -> None:
        """Keep the arguments of a block of tasks of a function."""
        self._blocks[block] = (kind, payload, place, function)
        self._n_blocks[function] = self._n_blocks.get(function, 0) + 1

    def drop_block(self, block: int) -> None:
        """Forget a block, and its function if no other needs it; one that is not known is no error."""
        dropped = self._blocks.pop(block, None)
        if dropped is None:
            return
        function = dropped[3]
        self._n_blocks[function] -= 1
        if not self._n_blocks[function]:
            del self._n_blocks[function]
            self._functions.pop(function, None)  # a run of single calls has no end, and the function may be large

    def call_of(self, span: ev.Span) -> SentCall | None:
        """Return the call that the first task of a span is, or None if it is not known any more."""
        block = self._blocks.get(span.block.id)
        function = self._functions.get(span.block.function)
        if block is None or function is None:
            return None
        kind, payload, *_ = block
        if kind is BlockKind.CALLS:
            call = payload[span.start]
            return SentCall(function, kind, (call,) if type(call) is bytes else call, 0)
        return SentCall(function, kind, payload, span.start)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self._n_blocks.clear()
        self._functions.clear()
        self._headers.clear()

    def seal(
        self, chunk: ev.Submit, tasks: Sequence[ev.TaskRange], *, expiry: int
    ) -> tuple[str, bytes | envelope.SealedMessage, OutcomeReader]:
        """Return a fresh unique, the job of the chunk sealed for it, and what reads its outcomes.

        Parameters
        ----------
        tasks
            Which tasks these are, in the chunk's order.
        expiry
            Unix time in seconds.
        """
        prepared, self._prepared = self._prepared, None
        unique, name, context, sealer = prepared or self._make_sealer()
        header, body = self._content(chunk)
        body.append((encode_numbers(tasks),))
        sealed = envelope.seal_now(
            kind=envelope.Kind.JOB,
            key=sealer,
            session_id=self._session_id,
            expiry=expiry,
            context=context,
            header=header,
            body=envelope.frame(body),
        )
        reader = OutcomeReader(chunk.server, chunk.function, self._session_id, self._keys, name, context, self._landing)
        return unique, sealed, reader

    def _content(self, chunk: ev.Submit) -> tuple[bytes, list[Any]]:
        """Return the encoded header and the payloads of the body."""
        digest = chunk.function
        assert isinstance(digest, bytes)
        body: list[Any] = [self._functions[digest]]
        if self._tenancy is not None:
            body.append(self._tenancy.payload)
        if self._retry_exceptions is not None:
            body.append(self._retry_exceptions)
        blocks: list[tuple[BlockKind, int, list[ev.TaskRange]]] = []
        n_calls = 0
        place = Place()
        newest: ev.Block | None = None
        blobs = list(blobs_of(body[0]))
        for span in chunk.spans:
            kind, payload, place, _ = self._blocks[span.block.id]
            if kind is BlockKind.CALLS:
                chosen = payload[span.start : span.stop]
                n_calls += len(chosen)  # single calls of one chunk are one block to the child
                body += [(call,) if type(call) is bytes else call for call in chosen]
                blobs += [blob for call in chosen if type(call) is not bytes for blob in blobs_of(call)]
            elif span.block is newest:  # another part of it: the arguments are in the body already
                blocks[-1][2].append((span.start, span.stop))
            else:
                newest = span.block
                blocks.append((kind, newest.size, [(span.start, span.stop)]))
                body.append(payload)
                blobs += blobs_of(payload)
        if n_calls:
            blocks.append((BlockKind.CALLS, n_calls, [(0, n_calls)]))
        content = tuple((kind, size, tuple(run)) for kind, size, run in blocks)
        return self._header(digest, chunk, place, content, blobs), body

    def _header(self, digest: bytes, chunk: ev.Submit, place: Place, blocks: _Blocks, blobs: list[GivenBlob]) -> bytes:
        named = tuple(dict.fromkeys(blob.name for blob in blobs)) if blobs else ()
        landing = "" if self._landing is None else self._landing.name
        terms = (chunk.avoid, chunk.attempts, chunk.exact, chunk.budget)
        content = (digest, terms, place, blocks, named, landing)
        encoded = self._headers.get(content)
        if encoded is None:
            header = JobHeader(
                run=self._run_id,
                function_digest=digest.hex(),
                foreground=True,
                task_timeout=self._task_timeout,
                retry_exceptions=self._retry_exceptions is not None,
                tenant="" if self._tenancy is None else self._tenancy.tenant,
                initializer=self._tenancy is not None,
                max_tasks_per_child=self._max_tasks_per_child,
                log_level=self._log_level,
                landing=landing,
                avoid=chunk.avoid,
                attempt=chunk.attempts,
                exact=chunk.exact,
                budget=chunk.budget,
                level=self._level,
                cwd=place.cwd,
                sys_path=place.sys_path,
                blobs=named,
                blob_source=blobs[0].source if blobs else "",  # a client has only one
                blocks=tuple(BlockHeader(kind=kind, size=size, run=run) for kind, size, run in blocks),
            )
            encoded = header.encode()
            if len(self._headers) >= _KEPT_HEADERS:
                self._headers.clear()
            self._headers[content] = encoded
        return encoded
