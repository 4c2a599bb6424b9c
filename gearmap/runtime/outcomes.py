"""Reading what comes back for one attempt: opened and checked, never unpickled.

Law of the file: each execution's messages are numbered from 0 by each of its two writers, the child and the node.
Whatever is missing, doubled, out of order or does not open is a WireError; nothing of it is used.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from gearmap.core import events as ev
from gearmap.errors import EnvelopeError
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.landing import Landing
from gearmap.wire import envelope, seal
from gearmap.wire.ahead import Ahead, is_part
from gearmap.wire.framing import Payload
from gearmap.wire.landed import LANDED_MARK
from gearmap.wire.outcome import DecodedOutcome, NotRunReason, decode_outcome, decode_results
from gearmap.wire.pieces import Pieces, are_pieces, decode_pieces
from gearmap.wire.printed import LIVE, LIVE_HEARD, NO_OUTPUT, Output, Printed, by_position, is_live

__all__ = ["OutcomeReader"]

_KINDS = {
    NotRunReason.AVOIDED: ev.NotRunKind.AVOIDED,
    NotRunReason.CANNOT_LOAD: ev.NotRunKind.CANNOT_LOAD,
    NotRunReason.BLOB_UNAVAILABLE: ev.NotRunKind.NO_BLOB,
    NotRunReason.EXPIRED: ev.NotRunKind.EXPIRED,
    NotRunReason.OVER_BUDGET: ev.NotRunKind.OVER_BUDGET,
    NotRunReason.CHILD_DIED: ev.NotRunKind.DIED,
    NotRunReason.DIED_LOADING: ev.NotRunKind.DIED,
    NotRunReason.TIMED_OUT: ev.NotRunKind.TIMED_OUT,
    NotRunReason.INITIALIZER_FAILED: ev.NotRunKind.INITIALIZER_FAILED,
}

# The failure in such an outcome is that of no task.
_OF_NO_TASK = (NotRunReason.CANNOT_LOAD, NotRunReason.BLOB_UNAVAILABLE, NotRunReason.INITIALIZER_FAILED)

_CHARGED = (ev.NotRunKind.DIED, ev.NotRunKind.TIMED_OUT)

Opened = list[tuple["ev.OutcomeArrived | ev.Beat", list[ResultBatch]]]


class _Writer:
    __slots__ = ("ahead", "next_sequence", "sealer")

    def __init__(self, sealer: seal.Sealer) -> None:
        self.sealer = sealer
        self.next_sequence = 0
        self.ahead: Ahead | None = None  # the body of the outcome that comes next


class OutcomeReader:
    """Opens the outcomes of one attempt.

    Attributes
    ----------
    server
        The number of the job server that has the attempt.
    function
        The function that its tasks call.
    nodes
        Which node has each execution that has told of itself, if any has.
    """

    __slots__ = (
        "_context",
        "_heard",
        "_landing",
        "_live",
        "_session_id",
        "_session_key",
        "_shown",
        "_unique",
        "_writers",
        "function",
        "nodes",
        "server",
    )

    def __init__(
        self,
        server: int,
        function: Hashable,
        session_id: bytes,
        session_key: seal.Deriver,
        unique: bytes,
        context: bytes,
        landing: Landing | None = None,
    ) -> None:
        self.server = server
        self.function = function
        self._session_id = session_id
        self._session_key = session_key
        self._unique = unique
        self._context = context
        self._landing = landing
        self._writers: dict[tuple[envelope.Kind, bytes], _Writer] = {}
        self.nodes: dict[bytes, str] | None = None
        # What nodes have read of the descriptors of tasks whose outcomes have not come, by execution.
        self._heard: dict[bytes, list[Printed]] | None = None
        self._live: list[tuple[bytes, Printed]] | None = None
        self._shown: dict[tuple[bytes, int, str], int] | None = None  # how many bytes of which live stream

    @property
    def unique(self) -> str:
        """The name that the attempt's job goes by at its job server."""
        return self._unique.decode()

    def read(self, attempt: int, data: Any) -> Opened:
        """Return the events in one packet's data, each with the batches of its results.

        A chunk of tiny tasks comes as a row of outcomes, one for each millisecond of work. They are one event then:
        what an event costs the engine and the run would be more than what opening them costs.

        Raises
        ------
        WireError
            If anything in it is not as its writer sealed it.
        """
        rest = memoryview(data)
        opened = []
        while True:
            prefix = envelope.parse_prefix(rest)
            told = self._read_message(attempt, prefix, rest)
            if told is not None:
                opened.append(told)
            if prefix.total_bytes == len(rest):
                return opened if len(opened) == 1 else _joined(opened)
            rest = rest[prefix.total_bytes :]

    def find_nodes(self, data: Any) -> None:
        """Note which nodes tell of themselves in one packet's data, when nothing else in it matters any more.

        Unlike `read` this may be given what was read before, and with gaps.

        Raises
        ------
        WireError
            If a node's message is not as it was sealed.
        """
        rest = memoryview(data)
        while rest:
            prefix = envelope.parse_prefix(rest)
            if prefix.kind is envelope.Kind.NODE and prefix.session_id == self._session_id:
                header, body = envelope.open_message(rest, prefix, self._writer(prefix).sealer, self._context)
                node = "" if are_pieces(header) else decode_outcome(header, body).outcome.node
                if node:
                    self.nodes = (self.nodes or {}) | {prefix.execution_id: node}
            rest = rest[prefix.total_bytes :]

    def _read_message(
        self, attempt: int, prefix: envelope.Prefix, message: memoryview
    ) -> tuple[ev.OutcomeArrived | ev.Beat, list[ResultBatch]] | None:
        """Read the message that `message` starts with; a part of an outcome that comes later tells nothing yet."""
        if prefix.session_id != self._session_id:
            raise EnvelopeError("an outcome of another session")
        writer = self._writer(prefix)
        if prefix.sequence != writer.next_sequence:
            raise EnvelopeError(f"outcome {prefix.sequence} of an execution came, {writer.next_sequence} was next")
        if prefix.kind is envelope.Kind.OUTCOME and (writer.ahead or prefix.body_bytes == envelope.SEALED_PIECE_BYTES):
            header = envelope.open_header(message, prefix, writer.sealer, self._context)
            if is_part(header):
                self._read_part(writer, header, prefix, message)
                return None
        header, body = envelope.open_message(message, prefix, writer.sealer, self._context)
        writer.next_sequence += 1
        if writer.ahead is not None and prefix.kind is envelope.Kind.OUTCOME:
            ahead, writer.ahead = writer.ahead, None
            header, body = ahead.close(header)
        results = decode_results(header, body) if prefix.kind is envelope.Kind.OUTCOME else None
        if results is not None:
            first, stop, elapsed, count, final, worker, payload = results
            if payload[0][:1] == LANDED_MARK:
                payload = self._whole(payload)
            event = ev.OutcomeArrived(
                attempt, prefix.execution_id, worker, ((first, stop),), (), None, elapsed, count, final
            )
            batch = ResultBatch(payload, elapsed / count)
            if self._heard:
                heard = self._take_heard(event)
                shown = self._take_shown(prefix.execution_id, heard, ())
                batch.outputs = _by_offset(by_position(heard, shown), first, stop)
            return event, [batch]
        if prefix.kind is envelope.Kind.NODE and are_pieces(header):
            return self._read_pieces(attempt, prefix.execution_id, decode_pieces(header, body))
        decoded = decode_outcome(header, body)
        outcome = decoded.outcome
        if prefix.kind is envelope.Kind.NODE and outcome.not_run is None:
            if outcome.node:
                self.nodes = (self.nodes or {}) | {prefix.execution_id: outcome.node}
            if outcome.printed:
                self._take_in(prefix.execution_id, outcome.printed)
            return ev.Beat(attempt, prefix.execution_id, outcome.worker, outcome.beat, outcome.progress), []
        if any(payload[0][:1] == LANDED_MARK for _, _, payload in decoded.results):
            whole = tuple((start, stop, self._whole(payload)) for start, stop, payload in decoded.results)
            decoded = replace(decoded, results=whole)
        opened = _event(attempt, prefix.execution_id, decoded)
        if not self._heard and not self._shown:
            return opened
        heard = self._take_heard(opened[0])
        shown = self._take_shown(prefix.execution_id, heard, outcome.printed)
        outcome = replace(outcome, printed=(*heard, *outcome.printed))
        return _event(attempt, prefix.execution_id, replace(decoded, outcome=outcome), shown)

    def _read_part(self, writer: _Writer, header: bytes, prefix: envelope.Prefix, message: memoryview) -> None:
        """Open a part of the body of an outcome where it belongs."""
        ahead = writer.ahead
        if ahead is None:
            ahead = writer.ahead = Ahead(header)

        def place(n_bytes: int) -> memoryview:
            return ahead.place(header, n_bytes)

        envelope.open_body_into(message, prefix, writer.sealer, self._context, place)
        writer.next_sequence += 1

    def _whole(self, payload: Payload) -> Payload:
        """Return a payload with the buffers that children have handed over."""
        if self._landing is None:
            raise EnvelopeError("memory was handed over to a client that takes none")
        return self._landing.take(self._session_id, payload)

    def _read_pieces(
        self, attempt: int, execution: bytes, pieces: Pieces
    ) -> tuple[ev.OutcomeArrived, list[ResultBatch]]:
        """Each piece is a batch of its own: a result that does not unpickle here is the loss of nobody else."""
        done = tuple((piece.first, piece.first + piece.n_tasks) for piece in pieces.pieces)
        seconds = sum(piece.seconds for piece in pieces.pieces)
        count = done[-1][1] - done[0][0]
        event = ev.OutcomeArrived(attempt, execution, pieces.worker, done, (), None, seconds, count, False)
        batches = [ResultBatch((piece.stream,), piece.seconds / piece.n_tasks) for piece in pieces.pieces]
        if self._heard:
            heard = self._take_heard(event)
            outputs = by_position(heard, self._take_shown(execution, heard, ()))
            for batch, (start, stop) in zip(batches, done, strict=True):
                batch.outputs = _by_offset(outputs, start, stop)
        return event, batches

    def take_live(self) -> list[tuple[bytes, Printed]]:
        """Return what has come of tasks that run, each piece with its execution."""
        live, self._live = self._live or [], None
        return live

    def shown_until(self, execution: bytes, piece: Printed) -> int:
        """Return how many bytes of the stream of a live piece were shown."""
        return (self._shown or {}).get((execution, piece.position, piece.stream), 0)

    def has_shown(self, execution: bytes, piece: Printed) -> None:
        """A live piece was shown: that need not be done again with the task's outcome."""
        self._shown = self._shown or {}
        self._shown[execution, piece.position, piece.stream] = piece.at + len(piece.data)

    def _take_in(self, execution: bytes, printed: Sequence[Printed]) -> None:
        for each in printed:
            if is_live(each):
                self._live = self._live or []
                self._live.append((execution, each))
            else:
                self._heard = self._heard or {}
                self._heard.setdefault(execution, []).append(each)

    def _take_shown(
        self, execution: bytes, heard: Sequence[Printed], printed: Sequence[Printed]
    ) -> dict[Printed, int] | None:
        """Take out how much of each row was shown. Rows of one stream that a node has sent follow each other."""
        if not self._shown:
            return None
        left: dict[tuple[bytes, int, str], int] = {}
        shown: dict[Printed, int] = {}
        for name, each in [(LIVE_HEARD, each) for each in heard] + [(LIVE, each) for each in printed]:
            where = (execution, each.position, name + each.stream)
            n_bytes = left.setdefault(where, self._shown.pop(where, 0))
            n_bytes = min(n_bytes, len(each.data) + each.dropped)
            left[where] -= n_bytes
            if n_bytes:
                shown[each] = n_bytes
        return shown

    def _take_heard(self, event: ev.OutcomeArrived) -> list[Printed]:
        """Take out what was heard of the tasks that an outcome tells of."""
        if not self._heard:
            return []
        heard: list[Printed] = []
        rest: list[Printed] = []
        for each in self._heard.get(event.execution, ()):
            (heard if _tells_of(event, each.position) else rest).append(each)
        self._heard[event.execution] = rest
        return heard

    def _writer(self, prefix: envelope.Prefix) -> _Writer:
        name = (prefix.kind, prefix.execution_id)
        writer = self._writers.get(name)
        if writer is None:
            if prefix.kind is envelope.Kind.JOB:
                raise EnvelopeError("a job came back in place of an outcome")
            derive = seal.outcome_key if prefix.kind is envelope.Kind.OUTCOME else seal.node_key
            key = derive(self._session_key, self._unique, prefix.execution_id)
            writer = self._writers[name] = _Writer(seal.Sealer(key))
        return writer


def _joined(opened: Opened) -> Opened:
    """Make one event of neighbouring outcomes that the same worker wrote of the same execution."""
    joined: Opened = []
    row: list[ev.OutcomeArrived] = []
    row_batches: list[ResultBatch] = []
    for event, batches in opened:
        if row and not (isinstance(event, ev.OutcomeArrived) and _goes_on(row[-1], event)):
            joined.append((_one_event(row), row_batches))
            row, row_batches = [], []
        if isinstance(event, ev.OutcomeArrived):
            row.append(event)
            row_batches += batches
        else:
            joined.append((event, batches))
    if row:
        joined.append((_one_event(row), row_batches))
    return joined


def _goes_on(last: ev.OutcomeArrived, event: ev.OutcomeArrived) -> bool:
    """Whether `event` may be told together with `last`, which came before it."""
    is_same = last.execution == event.execution and last.worker == event.worker
    return is_same and not last.final and last.not_run is None


def _one_event(row: list[ev.OutcomeArrived]) -> ev.OutcomeArrived:
    last = row[-1]
    if len(row) == 1:
        return last
    return ev.OutcomeArrived(
        attempt=last.attempt,
        execution=last.execution,
        worker=last.worker,
        done=tuple(part for event in row for part in event.done),
        failed=tuple(failure for event in row for failure in event.failed),
        not_run=last.not_run,
        elapsed=sum(event.elapsed for event in row),
        count=sum(event.count for event in row),
        final=last.final,
    )


def _event(
    attempt: int, execution: bytes, decoded: DecodedOutcome, shown: Mapping[Printed, int] | None = None
) -> tuple[ev.OutcomeArrived, list[ResultBatch]]:
    outcome = decoded.outcome
    not_run = outcome.not_run
    report = None
    failures = outcome.failures
    for_good = frozenset(outcome.for_good)
    outputs = by_position(outcome.printed, shown)
    if outputs or outcome.seconds:
        failures = tuple(
            replace(each, output=outputs.get(each.position, NO_OUTPUT), seconds=seconds)
            for each, seconds in zip_longest(failures, outcome.seconds[: len(failures)])
        )
    if not_run is not None:
        failure = None
        if not_run.reason in _OF_NO_TASK and failures:
            failure, failures = failures[0], ()
        kind = _KINDS.get(not_run.reason, ev.NotRunKind.AGAIN)
        charged = outcome.beat if kind in _CHARGED else None
        is_loading = not_run.reason is NotRunReason.DIED_LOADING
        report = ev.NotRunReport(
            kind,
            not_run.detail,
            charged,
            failure,
            not_run.reason.value,
            is_loading,
            output=None if charged is None else outputs.get(charged),
            seconds=outcome.elapsed if kind is ev.NotRunKind.TIMED_OUT and outcome.elapsed else None,
        )
    event = ev.OutcomeArrived(
        attempt=attempt,
        execution=execution,
        worker=outcome.worker,
        done=tuple((start, stop) for start, stop, _ in decoded.results),
        failed=tuple(
            ev.TaskFailed(failure.position, failure, failure.position not in for_good) for failure in failures
        ),
        not_run=report,
        elapsed=outcome.elapsed,
        count=outcome.count,
        final=outcome.final,
    )
    seconds = outcome.elapsed / outcome.count if outcome.count else None
    batches = []
    for start, stop, payload in decoded.results:
        batch = ResultBatch(payload, seconds)
        if outputs:
            batch.outputs = _by_offset(outputs, start, stop)
        batches.append(batch)
    return event, batches


def _tells_of(event: ev.OutcomeArrived, position: int) -> bool:
    """Whether an outcome says how the task at a position has ended."""
    if event.not_run is not None and event.not_run.charged == position:
        return True
    return any(start <= position < stop for start, stop in event.done) or any(
        failed.position == position for failed in event.failed
    )


def _by_offset(outputs: Mapping[int, Output], start: int, stop: int) -> dict[int, Output]:
    return {at - start: output for at, output in outputs.items() if start <= at < stop}
