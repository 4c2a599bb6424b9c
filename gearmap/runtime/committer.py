"""What a child says of a job: outcomes, sealed and handed over in order.

What must not live here: when something is said (`childrun`), and how an outcome is encoded (`wire.outcome`).

Law of the file: what was written survives this process. Each outcome is whole: results, failures and what their tasks
printed are in the same one.

Outcomes before the last lie on the slate's shelf while there is room, where the node fetches them when it has a reason
to look: to wake it for each would cost it, and the core that the tasks run on, more than to write them. Once one went
through the pipe, as it was too large or tells of memory that was handed over, all that follow do, so the order is that
of shelf, then pipe. Small results lie there pickled and not sealed: sealing takes three times as long as all the rest,
and what the node seals at once for a whole job, the client opens at once.

The body of a large outcome goes ahead in parts, which the node forwards as they come. While the job server takes no
more of them the pipe is full, and this process waits.
"""

from __future__ import annotations

import socket
from math import inf
from typing import Any

from gearmap.runtime.advice import advice
from gearmap.runtime.child import COMMIT, FINAL, FRAME, LAST, PACKING, PART, Job
from gearmap.runtime.handover import Handover
from gearmap.runtime.slate import Shelf
from gearmap.wire import envelope
from gearmap.wire.ahead import closing_header, part_header
from gearmap.wire.framing import Payload
from gearmap.wire.outcome import (
    NotRun,
    NotRunReason,
    Outcome,
    Printed,
    TaskFailure,
    describe_exception,
    encode_outcome,
    encode_results,
)
from gearmap.wire.pieces import MOST_POSITION, Piece
from gearmap.wire.seal import Sealer
from gearmap.wire.serializer import try_dumps

__all__ = ["COMMIT_SECONDS", "Committer"]

# Work that may be lost with the process although it was done. Raised: fewer, larger outcomes; lowered: less is rerun.
COMMIT_SECONDS = 0.001

# Results up to this size are left to the node to seal, together with others. Raised: fewer messages; lowered: the node,
# which has one thread for all workers, seals less.
_PIECE_BYTES = 1024

# Outcomes with a larger body send it ahead in parts. Raised: fewer messages, but the node and whoever waits behind them
# hold more at a time; lowered: middling results cost more messages.
_AHEAD_BYTES = 4 * envelope.PIECE_BYTES

# What tasks printed, held back for an outcome. Raised: fewer outcomes of tasks that print much; lowered: less memory.
_HELD_BYTES = 262144


class Committer:
    """Seals outcomes and puts them on the shelf or into the pipe, in order.

    Attributes
    ----------
    retried
        The classes of exceptions after which a task may be tried again.
    """

    retried: tuple[type[BaseException], ...] = (Exception,)

    def __init__(
        self,
        pipe: socket.socket,
        shelf: Shelf,
        job: Job,
        session_id: bytes,
        index: memoryview,
        handover: Handover,
        *,
        is_timed: bool,
    ) -> None:
        self._pipe = pipe
        self._shelf: Shelf | None = shelf
        self._index = index
        self._is_timed = is_timed
        self._job = job
        self._session_id = session_id
        self._handover = handover
        self._sealer = Sealer(job.outcome_key)
        self._sequence = 0
        self._held: list[tuple[int, list[Any]]] = []
        self._held_failures: list[Any] = []
        self._seconds: tuple[float, ...] = ()
        self._for_good: tuple[int, ...] = ()
        self._printed: list[Printed] = []
        self._elapsed = 0.0

    def starts(self) -> None:
        """A block begins: what is held of the one before goes out if it took long."""
        if self._elapsed >= COMMIT_SECONDS:
            self._send(final=False)

    def commit(self, first: int, results: list[Any], elapsed: float) -> None:
        """Put finished results where they survive this process."""
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

    def printed(self, texts: list[Printed]) -> None:
        """Keep what a task printed for the outcome that its result or failure is in."""
        self._printed += texts

    @property
    def holds_much(self) -> bool:
        """Whether so much was printed that it should not be held any longer."""
        return bool(self._printed) and sum(len(each.data) for each in self._printed) >= _HELD_BYTES

    def failed(self, position: int, error: BaseException, call: str = "", seconds: float | None = None) -> None:
        """Write that a task raised, after so many seconds if it had begun."""
        self._seconds = () if seconds is None else (seconds,)
        self._held_failures.append(self._described(error, position, call))
        # As an except clause matches, which asks no class for its opinion.
        if not any(cls in self.retried for cls in type(error).__mro__):
            self._for_good = (position,)
        self._send(final=False)

    def cannot_load(self, error: BaseException) -> None:
        """Write that the function does not unpickle here; final."""
        failure = self._described(error, 0)
        self._held_failures.append(failure)
        detail = f"{failure.type_name}: {failure.message}"
        self._send(final=True, not_run=NotRun(reason=NotRunReason.CANNOT_LOAD, detail=detail))

    def initializer_failed(self, error: BaseException) -> None:
        """Write that a tenant's initializer raised; final, and the last that this process should be asked for."""
        failure = self._described(error, 0)
        self._held_failures.append(failure)
        detail = f"{failure.type_name}: {failure.message}"
        self._send(final=True, not_run=NotRun(reason=NotRunReason.INITIALIZER_FAILED, detail=detail), last=True)

    def _described(self, error: BaseException, position: int, call: str = "") -> TaskFailure:
        note = advice(error, self._job.worker)
        return describe_exception(error, position, call=call, note=note)

    def give_back(self) -> None:
        """Write what is left, and that this process runs no more tasks; final, and the last it should be asked for."""
        detail = "a task before left its process in a state that cannot be mended"
        self._send(final=True, not_run=NotRun(reason=NotRunReason.UNFIT, detail=detail), last=True)

    def give_rest_back(self) -> None:
        """Write what is left, and that the others were not begun, which some other worker may have time for; final."""
        self._send(final=True, not_run=NotRun(reason=NotRunReason.OVER_BUDGET))

    def finish(self) -> None:
        """Write what is left; final."""
        self._send(final=True)

    def _send(self, *, final: bool, not_run: NotRun | None = None, last: bool = False) -> None:
        # With a time limit the index stays at a task: pickling its result is part of its time.
        if not self._is_timed and self._held and (len(self._held) > 1 or len(self._held[0][1]) > 1):
            self._index[0] = PACKING  # if one of these results is the end of this process, nobody knows which
        payload = self._pickled_row() if not_run is None else None
        if final or payload is None or not self._shelve(payload):
            self._seal(payload, final, not_run, last)
        self._held, self._held_failures, self._for_good, self._elapsed = [], [], (), 0.0
        self._seconds = ()
        if self._printed:
            self._printed = []

    def _pickled_row(self) -> Payload | None:
        """Return the results that are held if they are one row and all there is to say, pickled; else None."""
        if len(self._held) != 1 or self._held_failures or self._printed:
            return None
        try:
            return try_dumps(self._held[0][1])
        except BaseException:  # what pickling raises is anything; encode_outcome tells it apart
            return None

    def _shelve(self, payload: Payload) -> bool:
        """Leave small results to the node as they are; return whether that was possible."""
        stream = payload[0]
        first, results = self._held[0]
        if (
            self._shelf is None
            or len(payload) > 1
            or len(stream) > _PIECE_BYTES
            or first > MOST_POSITION
            or not 0 <= self._elapsed < inf
        ):
            return False
        return self._shelf.put_piece(Piece(first, len(results), self._elapsed, bytes(stream)))

    def _seal(self, payload: Payload | None, final: bool, not_run: NotRun | None, last: bool) -> None:
        n_shipped = self._handover.count
        header, body = self._encoded(payload, final, not_run)
        if self._handover.count > n_shipped:
            self._shelf = None
        body_bytes = sum(buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in body)
        if body_bytes > _AHEAD_BYTES:
            self._send_ahead(body, body_bytes)
            header, body = closing_header(body_bytes, header), []
        self._hand_over(self._sealed(header, body), LAST if last else FINAL if final else COMMIT)

    def _sealed(self, header: bytes, body: list[Any]) -> bytes | envelope.SealedMessage:
        job = self._job
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
        self._sequence += 1
        return message

    def _send_ahead(self, body: list[Any], body_bytes: int) -> None:
        """Write a body in parts. How long that takes is the network's doing, so no task's time runs meanwhile."""
        self._index[0] = PACKING
        self._shelf = None
        scratch = memoryview(bytearray(min(body_bytes, envelope.SEALED_PIECE_BYTES)))
        offset = 0
        for part in envelope.pieces_of(body):
            message = self._sealed(part_header(body_bytes, offset), [part])
            self._hand_over(message, PART, scratch)
            offset += len(part)

    def _hand_over(
        self, message: bytes | envelope.SealedMessage, kind: bytes, scratch: memoryview | None = None
    ) -> None:
        if kind == COMMIT and self._shelf is not None:
            if isinstance(message, bytes) and self._shelf.put(message):
                return
            self._shelf = None
        head = FRAME.pack(kind, len(message))
        if isinstance(message, bytes):
            self._pipe.sendall(head + message)
        else:
            self._pipe.sendall(head)
            message.write_to(self._pipe.sendall, scratch)

    def _encoded(self, payload: Payload | None, final: bool, not_run: NotRun | None) -> tuple[bytes, list[Any]]:
        held = self._held
        if payload is not None:
            first, results = held[0]
            shipped = self._handover.ship(payload)
            encoded = encode_results(
                first, len(results), shipped, elapsed=self._elapsed, final=final, worker=self._job.worker
            )
            if encoded is not None:
                return encoded
        outcome = Outcome(
            failures=tuple(self._held_failures),
            seconds=self._seconds,
            for_good=self._for_good,
            printed=tuple(self._printed),
            not_run=not_run,
            elapsed=self._elapsed,
            count=sum(len(results) for _, results in held),
            final=final,
            worker=self._job.worker,
        )
        return encode_outcome(outcome, held, ship=self._handover.ship)
