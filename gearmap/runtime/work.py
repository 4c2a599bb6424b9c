"""One job that a worker of a node holds: opened, handed to a child, answered.

What must not live here: when any of this happens (`node`), and which key seals what (`wire.seal`).

Rule 1: the header is opened, the body never; nothing is unpickled.
Rule 2: the session key stays here. A child gets the two keys of its execution, and the node signs with a third.
"""

from __future__ import annotations

from typing import Any

from gearmap.core.node_events import JobNeeds
from gearmap.errors import EnvelopeError
from gearmap.runtime.child import BlobPlace, encode_job
from gearmap.runtime.finished import MOST_ANSWER_BYTES
from gearmap.runtime.keyring import Keyring, key_id_of
from gearmap.runtime.parts import Parts
from gearmap.runtime.slate import Kept, Strip
from gearmap.transport.events import AssignedJob
from gearmap.wire import envelope, seal
from gearmap.wire.framing import Buffer
from gearmap.wire.jobheader import HeaderMemo, JobHeader
from gearmap.wire.outcome import Outcome, Printed, encode_outcome
from gearmap.wire.pieces import encode_pieces

__all__ = ["JobOpener", "Work"]


class Work:
    """One job, with what is needed to answer it.

    Attributes
    ----------
    job
        As the transport assigned it.
    prefix, header
        Opened, so they are what the client wrote.
    context
        What it is bound to: function and unique.
    execution_id
        16 random bytes.
    began
        When it was assigned (monotonic seconds).
    blobs
        Where the blobs that it needs are, by digest; complete when a child gets it.
    last_words
        What the task had printed that its child was at when it ended.
    is_refused
        Whether its body did not open.
    """

    __slots__ = (
        "_committed",
        "_heard",
        "_heard_before",
        "_job_key",
        "_progress",
        "_said",
        "_said_bytes",
        "_sequence",
        "_session_key",
        "_told",
        "_told_of",
        "_unique",
        "_worker",
        "began",
        "blobs",
        "context",
        "execution_id",
        "header",
        "is_refused",
        "job",
        "last_words",
        "prefix",
    )

    def __init__(
        self,
        job: AssignedJob,
        unique: bytes,
        prefix: envelope.Prefix,
        context: bytes,
        session_key: seal.Deriver,
        job_key: bytes,
        header: JobHeader,
        execution_id: bytes,
        began: float,
    ) -> None:
        self.job = job
        self.prefix = prefix
        self.header = header
        self.execution_id = execution_id
        self.began = began
        self.blobs: dict[str, BlobPlace] = {}
        self.last_words: list[tuple[str, Kept]] = []
        self.is_refused = False
        self._heard: dict[tuple[int, str], Strip] = {}
        self._heard_before: dict[tuple[int, str], int] = {}  # bytes that were sent already
        self._told: dict[str, int] = {}
        self._told_of: int | None = None
        self._progress: tuple[int, float | None] | None = None
        self._unique = unique
        self.context = context
        self._session_key = session_key
        self._job_key = job_key
        self._worker = ""
        self._committed: list[Any] = []
        self._sequence = 0
        # All that was sent, to be sent again if the job comes again; None once it is too much.
        self._said: list[Buffer] | None = []
        self._said_bytes = 0

    @property
    def needs(self) -> JobNeeds | None:
        """What the job asks for beyond being run; nothing, nearly always."""
        header = self.header
        if header.task_timeout is None and not header.tenant and header.max_tasks_per_child is None:
            return JobNeeds(blobs=True) if header.blobs else None
        return JobNeeds(
            task_timeout=header.task_timeout,
            tenant=header.tenant,
            initializer=header.initializer,
            max_tasks=header.max_tasks_per_child,
            blobs=bool(header.blobs),
        )

    def head_for_child(self, worker: str, number: int) -> bytes:
        """Return what precedes the job's data on a child's pipe. The worker's name is that in what the node tells."""
        self._worker = worker
        return encode_job(
            self.execution_id,
            self._job_key,
            seal.outcome_key(self._session_key, self._unique, self.execution_id),
            self.context,
            worker,
            number,
            self.prefix.expiry,
            self.blobs,
            len(self.job.data),
        )

    def commit(self, committed: Any) -> None:
        """Keep what the child has committed until it is sent; what was heard of its tasks comes before it.

        Pieces are a list, and sealed when they are sent; everything else the child has sealed.
        """
        if self._heard:
            self.commit_own(Outcome(printed=self.take_heard()))
        self._committed.append(committed)

    def hear(self, position: int, stream: str, data: bytes) -> None:
        """Keep what the task at a position has written to a descriptor."""
        strip = self._heard.get((position, stream))
        if strip is None:
            strip = self._heard[position, stream] = Strip.private()
        strip.append(data)

    def heard_of(self, position: int) -> list[tuple[str, Strip, int]]:
        """Return what was heard of a task: stream, what is kept of it, and how many bytes were sent before."""
        return [
            (stream, strip, self._heard_before.get((position, stream), 0))
            for (at, stream), strip in self._heard.items()
            if at == position
        ]

    def told_of(self, position: int) -> dict[str, int]:
        """Return how much was told of each stream of the task that runs; for whoever tells to write down."""
        if self._told_of != position:
            self._told_of, self._told = position, {}
        return self._told

    def take_progress(self, position: int, fraction: float | None) -> float | None:
        """Return how far a task is, if that has not been told of it yet."""
        known, self._progress = self._progress, (position, fraction)
        return None if known == self._progress else fraction

    def take_heard(self) -> tuple[Printed, ...]:
        """Return what was heard since the last call."""
        heard, self._heard = self._heard, {}
        # The task that runs is among them, and may go on writing.
        before = self._heard_before
        self._heard_before = {where: before.get(where, 0) + strip.written for where, strip in heard.items()}
        return tuple(Printed(position, stream, *strip.read()) for (position, stream), strip in heard.items())

    def commit_own(self, outcome: Outcome) -> None:
        """Keep an outcome of the node itself; it is sealed when it is sent, as its messages are numbered so."""
        self._committed.append(outcome)

    def take_committed(self) -> Any:
        """Return what was committed since the last call, as one body, or None if nothing was."""
        committed, self._committed = self._committed, []
        for at, each in enumerate(committed):
            if type(each) is Outcome:
                committed[at] = self.sealed(each)
            elif type(each) is list:
                committed[at] = self._sealed(*encode_pieces(each, worker=self._worker))
        self._note_said(committed)
        if len(committed) == 1:
            return committed[0]  # nearly always so, and then a body without joints is sent in one piece
        return Parts(committed) if committed else None

    def sealed(self, outcome: Outcome) -> bytes:
        """Seal what the node itself says about the execution."""
        return self._sealed(*encode_outcome(outcome, ()))

    def sign(self, outcome: Outcome) -> bytes:
        """Seal what the node says at once, while the execution goes on."""
        sealed = self.sealed(outcome)
        self._note_said([sealed])
        return sealed

    def take_said(self) -> list[Buffer] | None:
        """Return all that was sent of the execution, in order; None if it is too much to be kept."""
        said, self._said = self._said, None
        return said

    def _note_said(self, bodies: list[Any]) -> None:
        if self._said is None:
            return
        for body in bodies:
            self._said_bytes += body.nbytes if isinstance(body, memoryview) else len(body)
        if self._said_bytes > MOST_ANSWER_BYTES:
            self._said = None
        else:
            self._said += bodies

    def _sealed(self, header: bytes, body: list[Any]) -> bytes:
        message = envelope.seal_now(
            kind=envelope.Kind.NODE,
            key=seal.node_key(self._session_key, self._unique, self.execution_id),
            session_id=self.prefix.session_id,
            execution_id=self.execution_id,
            sequence=self._sequence,
            expiry=self.prefix.expiry,
            context=self.context,
            header=header,
            body=body,
        )
        self._sequence += 1
        return message if isinstance(message, bytes) else message.to_bytes()


class JobOpener:
    """Opens jobs that were sealed with one of a node's keys."""

    def __init__(self, keys: Keyring) -> None:
        self._keys = keys
        self._headers = HeaderMemo()

    def open(self, job: AssignedJob, *, execution_id: bytes, now: float) -> Work:
        """Open a job's header.

        Raises
        ------
        WireError
            If it does not open, or is no job.
        """
        unique = job.unique.encode("utf-8", "surrogateescape")  # whoever submitted it chose its bytes
        context = envelope.make_context(job.function.encode(), unique)
        prefix = envelope.parse_prefix(job.data)
        if prefix.total_bytes != len(job.data):
            raise EnvelopeError(f"{len(job.data) - prefix.total_bytes} bytes after the end of a job")
        session_key = self._keys.session(key_id_of(job.function), prefix.session_id)
        job_key = seal.job_key(session_key, unique)
        header = self._headers.read(envelope.open_header(job.data, prefix, job_key, context))
        return Work(job, unique, prefix, context, session_key, job_key, header, execution_id, now)
