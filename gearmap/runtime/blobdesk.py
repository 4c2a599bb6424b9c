"""The node's blobs: fetched from clients through the job servers, kept in memory that its children map.

What must not live here: when a blob is fetched, given up or let go (`core.blobplan`), and what a payload does with one
(`heldblobs`).

Rule 1: each question is a job of its own, sealed with a key of the node's session; the answer opens for nobody else.
Rule 2: a job's blobs are asked for on the job server that the job came from: where that is away, the job is gone, too.
Rule 3: where the system allows that, the memory has no name in any folder: it goes with the node, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gearmap.core import blobplan as plan
from gearmap.core import node_events as ne
from gearmap.errors import ConnectionLost, SealError, WireError
from gearmap.runtime.child import BlobPlace
from gearmap.runtime.controlrequest import seal_request
from gearmap.runtime.keyring import Keyring, key_id_of
from gearmap.runtime.sealedmemory import can_share, close_memory, open_memory, write_all
from gearmap.runtime.sealedmemory import seal as seal_memory
from gearmap.runtime.work import Work
from gearmap.transport.client import ServerSession, SessionState
from gearmap.transport.events import (
    Accepted,
    Address,
    ConnectFailed,
    JobRequest,
    Lost,
    Rejected,
    StatusListing,
    WorkComplete,
    WorkException,
    WorkFailed,
)
from gearmap.wire import envelope, seal

__all__ = ["BlobDesk"]

logger = logging.getLogger(__name__)


# How often job servers are asked whether the clients are there of which something is kept. Raised: less to do; lowered:
# memory is free sooner after a client has gone.
LOOK_SECONDS = 20.0


@dataclass(slots=True, eq=False)
class _Question:
    """A piece that was asked for; `is_open` until the answer was taken, or nobody wants it any more."""

    blob: plan.BlobName
    offset: int
    n_bytes: int
    server: Address
    unique: str
    handle: str | None = None
    is_open: bool = True


class BlobDesk:
    """Fetches and keeps the blobs of one node.

    Parameters
    ----------
    keys
        Those that clients seal with.
    limit_bytes
        How much is kept that no job needs.
    patience
        How long a transfer may bring nothing (seconds).
    watch, unwatch
        Begin and cease to look after a connection.
    tell
        Tells the engine of a job's execution: called with what makes the event, of the worker's number.
    """

    def __init__(
        self,
        keys: Keyring,
        limit_bytes: int,
        *,
        patience: float,
        watch: Callable[[ServerSession], object],
        unwatch: Callable[[ServerSession], object],
        tell: Callable[[Callable[[int], ne.Input], bytes], object],
    ) -> None:
        self.deadline = float("inf")
        self.links = _Sessions(keys, watch, unwatch)
        self._plan = plan.BlobPlan(limit_bytes, _limit_blobs(), patience=patience)
        self.links.due = self._due
        self._next_look = 0.0
        self._tell = tell
        self._works: dict[bytes, Work] = {}
        self._origins: dict[plan.BlobName, tuple[Address, int]] = {}  # where it is asked for, and its size
        self._stores: dict[plan.BlobName, _Store] = {}

    def want(self, work: Work, now: float) -> None:
        """Fetch what a job lacks."""
        header = work.header
        self._works[work.execution_id] = work
        names = [((header.blob_source, digest), n_bytes) for digest, n_bytes in header.blobs]
        if not self._origins:
            self._next_look = now + LOOK_SECONDS
        for name, n_bytes in names:
            self._origins.setdefault(name, (work.job.server, n_bytes))
        self._obey(self._plan.want(work.execution_id, names, now))

    def release(self, execution: bytes) -> None:
        """A job needs its blobs no more; one that needed none is no error."""
        if self._works.pop(execution, None) is not None:
            self._obey(self._plan.release(execution))

    def work(self) -> None:
        """Take in what job servers have said, and what the time says."""
        now = time.monotonic()
        for question, answer in self.links.take_answers():
            self._take(question, answer, now)
        for address, functions in self.links.take_listings():
            for source in {name[0] for name, (server, _) in self._origins.items() if server == address}:
                if source not in functions:
                    self._obey(self._plan.source_gone(source))
        due = self._plan.deadline
        if due is not None and now >= due:
            self._obey(self._plan.tick(now))
        if self._origins and now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self.links.look({server for server, _ in self._origins.values()})

    def close(self) -> None:
        """Leave the job servers and let everything go."""
        self.links.close()
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def _due(self) -> float | None:
        """When `work` must be called (monotonic seconds), or None."""
        due = self._plan.deadline
        if self._origins:
            due = self._next_look if due is None else min(due, self._next_look)
        return due

    def _take(self, question: _Question, answer: memoryview | str, now: float) -> None:
        name = question.blob
        if not self.links.is_wanted(question):
            return
        if not isinstance(answer, str) and len(answer) != question.n_bytes:
            answer = "the client sent another number of bytes than it was asked for"
        if not isinstance(answer, str):
            try:
                if name not in self._stores:
                    self._stores[name] = _Store(self._origins[name][1])
                self._stores[name].write(answer, question.offset)
            except OSError as error:
                answer = f"no memory: {error}"
        if isinstance(answer, str):
            self._obey(self._plan.failed(name, answer))
        else:
            self._obey(self._plan.arrived(name, question.offset, now))

    def _obey(self, instructions: list[plan.Instruction]) -> None:
        for each in instructions:
            match each:
                case plan.AskPiece(name, offset, n_bytes):
                    self.links.ask(_Question(name, offset, n_bytes, self._origins[name][0], secrets.token_hex(16)))
                case plan.Ready(execution):
                    self._hand_over(execution)
                case plan.Unavailable(execution, detail):
                    self._give_up(execution, detail)
                case plan.Forget(name):
                    self._forget(name)

    def _hand_over(self, execution: bytes) -> None:
        work = self._works.get(execution)
        if work is None:
            return
        source = work.header.blob_source
        work.blobs = {digest: self._stores[source, digest].place() for digest, _ in work.header.blobs}
        self._tell(lambda worker: ne.BlobsHere(worker, execution), execution)

    def _give_up(self, execution: bytes, detail: str) -> None:
        self._works.pop(execution, None)
        problem = f"a large array could not be fetched from the client: {detail}"
        self._tell(lambda worker: ne.BlobsMissing(worker, execution, problem), execution)

    def _forget(self, name: plan.BlobName) -> None:
        self._origins.pop(name, None)
        store = self._stores.pop(name, None)
        if store is not None:
            store.close()
        self.links.forget(name)


def _limit_blobs() -> int:
    """Return how many blobs are kept: each is an open file, and most of those a process may have are for others."""
    try:
        import resource  # not on Windows
    except ImportError:
        return plan.MAX_BLOBS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return plan.MAX_BLOBS if soft == resource.RLIM_INFINITY else min(plan.MAX_BLOBS, soft // 4)


class _Sessions:
    """The connections by which the node asks: one for each job server that it has asked."""

    def __init__(
        self, keys: Keyring, watch: Callable[[ServerSession], object], unwatch: Callable[[ServerSession], object]
    ) -> None:
        self.due: Callable[[], float | None] = lambda: None
        self._watch, self._unwatch = watch, unwatch
        self._id = secrets.token_bytes(16)
        self._keys = keys
        self._sessions: dict[Address, ServerSession] = {}
        self._open: dict[plan.BlobName, list[_Question]] = {}
        self._answers: list[tuple[_Question, memoryview | str]] = []
        self._listings: list[tuple[Address, set[str]]] = []

    @property
    def deadline(self) -> float | None:
        """When `tick` must be called (monotonic seconds), or None."""
        if self._answers:
            return 0.0
        times = [self.due(), *(session.deadline for session in self._sessions.values())]
        return min((each for each in times if each is not None), default=None)

    def tick(self, now: float) -> None:
        """Let the deadlines of connections fire."""
        for session in list(self._sessions.values()):
            if session.deadline is not None and now >= session.deadline:
                session.tick(now)

    def ask(self, question: _Question) -> None:
        """Ask for a piece."""
        self._open.setdefault(question.blob, []).append(question)
        source, digest = question.blob
        request = {"op": "piece", "blob": digest, "offset": question.offset, "size": question.n_bytes}
        try:
            body = seal_request(
                request,
                session_key=self._keys.session_key(key_id_of(source), self._id),
                session_id=self._id,
                function=source,
                unique=question.unique,
                now=time.time(),
            )
            self._session(question.server).submit([JobRequest(question, source, question.unique, body)])
        except (ConnectionLost, SealError) as error:
            self._end(question, str(error))

    def forget(self, blob: plan.BlobName) -> None:
        """Take back what was asked of a blob, and has no answer."""
        for question in self._open.pop(blob, ()):
            question.is_open = False
            self._cancel(question)

    def look(self, servers: set[Address]) -> None:
        """Ask job servers what is served there; one that is away will be asked the next time."""
        for address in servers:
            session = self._session(address)
            if session.state is SessionState.READY:
                session.request_status()

    def take_listings(self) -> list[tuple[Address, set[str]]]:
        """Return what job servers have said is served, after `take_answers`."""
        listings, self._listings = self._listings, []
        return listings

    def take_answers(self) -> list[tuple[_Question, memoryview | str]]:
        """Return what has come since the last call: bytes, or why there are none."""
        for address, session in list(self._sessions.items()):
            for event in session.take_events():
                self._hear(address, session, event)
        answers, self._answers = self._answers, []
        return answers

    def is_wanted(self, question: _Question) -> bool:
        """Whether somebody still waits for an answer that has come; it is asked once for each."""
        if not question.is_open:
            return False
        question.is_open = False
        questions = self._open[question.blob]
        questions.remove(question)
        if not questions:
            del self._open[question.blob]
        return True

    def close(self) -> None:
        """Leave the job servers."""
        for session in self._sessions.values():
            self._unwatch(session)
            session.close()
        self._sessions.clear()

    def _session(self, address: Address) -> ServerSession:
        session = self._sessions.get(address)
        if session is None:
            session = self._sessions[address] = ServerSession(address)
            session.start(time.monotonic())
            self._watch(session)
        return session

    def _hear(self, address: Address, session: ServerSession, event: Any) -> None:
        match event:
            case Accepted(_Question() as question, handle):
                question.handle = handle
                if not question.is_open:
                    self._cancel(question)
            case WorkComplete(_Question() as question, data):
                self._end(question, self._opened(question, data))
            case WorkFailed(_Question() as question) | WorkException(_Question() as question, _):
                self._end(question, "the client refused")
            case Rejected(_Question() as question, code, text):
                self._end(question, f"the job server refused: {code} {text}")
            case StatusListing(rows):
                self._listings.append((address, {row.function for row in rows if row.workers}))
            case ConnectFailed(reason) | Lost(reason):
                self._drop(address, session, str(reason))

    def _drop(self, address: Address, session: ServerSession, reason: str) -> None:
        self._unwatch(session)
        self._sessions.pop(address, None)
        for questions in list(self._open.values()):
            for question in [each for each in questions if each.server == address]:
                self._end(question, reason)

    def _end(self, question: _Question, answer: memoryview | str) -> None:
        question.handle = None
        if question.is_open:
            self._answers.append((question, answer))

    def _opened(self, question: _Question, data: Any) -> memoryview | str:
        unique, function = question.unique.encode(), question.blob[0].encode()
        context = envelope.make_context(function, unique)
        try:
            prefix = envelope.parse_prefix(data)
            session_key = self._keys.session(key_id_of(question.blob[0]), self._id)
            key = seal.node_key(session_key, unique, prefix.execution_id)
            header, body = envelope.open_message(data, prefix, key, context)
            answer = json.loads(header)
        except (WireError, ValueError) as error:
            logger.warning("an answer was refused: %s", error, extra={"action": "refuse_answer"})
            return "the client's answer does not open"
        return body if answer.get("ok") else "the client has let go of it"

    def _cancel(self, question: _Question) -> None:
        session = self._sessions.get(question.server)
        if session is None or question.handle is None:
            return
        try:
            session.cancel(question.handle)
        except ConnectionLost:
            pass  # and with it what was queued


class _Store:
    """The memory of one blob."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._has_name = not can_share()
        if not self._has_name:
            self._fd = open_memory()
            self._path = f"/proc/{os.getpid()}/fd/{self._fd}"
        else:
            self._fd, self._path = tempfile.mkstemp(prefix="gearmap-blob-")
        self._is_sealed = False
        try:
            os.ftruncate(self._fd, n_bytes)
        except OSError:
            self.close()
            raise

    def write(self, data: memoryview, offset: int) -> None:
        os.lseek(self._fd, offset, os.SEEK_SET)
        write_all(self._fd, data)

    def place(self) -> BlobPlace:
        """Where children open it; it does not change any more."""
        if not self._is_sealed and not self._has_name:
            seal_memory(self._fd)
        self._is_sealed = True
        status = os.fstat(self._fd)
        return self._path, status.st_dev, status.st_ino, self._n_bytes

    def close(self) -> None:
        close_memory(self._fd, self._n_bytes)
        if self._has_name:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
