"""What comes back in one packet, opened and joined."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from gearmap.core import events as ev
from gearmap.errors import WireError
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.wire import envelope, seal
from gearmap.wire.ahead import closing_header, part_header
from gearmap.wire.outcome import NotRun, NotRunReason, Outcome, Printed, describe_exception, encode_outcome
from gearmap.wire.pieces import Piece, encode_pieces
from gearmap.wire.printed import Output

SESSION_ID = b"s" * 16
SESSION_KEY = b"k" * 32
UNIQUE = b"u" * 32
CONTEXT = envelope.make_context(b"gearmap1.default.py311.00", UNIQUE)
ATTEMPT = 7


class Writer:
    """A child, or the node, that writes outcomes of one execution."""

    def __init__(self, execution: bytes = b"e" * 16, *, worker: str = "w1", is_node: bool = False) -> None:
        derive = seal.node_key if is_node else seal.outcome_key
        self._kind = envelope.Kind.NODE if is_node else envelope.Kind.OUTCOME
        self._key = derive(SESSION_KEY, UNIQUE, execution)
        self._execution = execution
        self._worker = worker
        self._sequence = 0

    def says(self, first: int = 0, values: tuple[Any, ...] = (), **fields: Any) -> bytes:
        outcome = Outcome(worker=self._worker, elapsed=0.25 * len(values), count=len(values), **fields)
        return self._sealed(*encode_outcome(outcome, [(first, values)] if values else []))

    def hands_on(self, *pieces: Piece) -> bytes:
        return self._sealed(*encode_pieces(pieces, worker=self._worker))

    def sends_ahead(self, values: tuple[Any, ...], n_parts: int = 3) -> list[bytes]:
        """Parts of the body of an outcome with these results, then the outcome; the first of them is of full size."""
        outcome = Outcome(worker=self._worker, count=len(values), final=True)
        header, buffers = encode_outcome(outcome, [(0, values)])
        body = b"".join(buffers)
        starts = [0, *range(envelope.PIECE_BYTES, len(body), -(-(len(body) - envelope.PIECE_BYTES) // (n_parts - 1)))]
        stops = [*starts[1:], len(body)]
        parts = [
            self._sealed(part_header(len(body), start), [body[start:stop]])
            for start, stop in zip(starts, stops, strict=True)
        ]
        return [*parts, self._sealed(closing_header(len(body), header), [])]

    def _sealed(self, header: bytes, body: list[Any]) -> bytes:
        message = envelope.seal_message(
            kind=self._kind,
            key=self._key,
            session_id=SESSION_ID,
            execution_id=self._execution,
            sequence=self._sequence,
            expiry=0,
            context=CONTEXT,
            header=header,
            body=body,
        )
        self._sequence += 1
        return message.to_bytes()


def read(data: bytes) -> list[tuple[Any, list[Any]]]:
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    return [(event, [batch.values() for batch in batches]) for event, batches in reader.read(ATTEMPT, data)]


def test_a_row_of_outcomes_is_one_event_with_a_batch_for_each() -> None:
    child = Writer()
    ((event, batches),) = read(child.says(0, (1, 2)) + child.says(2, (3,)) + child.says(3, (4,), final=True))
    assert batches == [[1, 2], [3], [4]]
    assert event.done == ((0, 2), (2, 3), (3, 4))
    assert (event.attempt, event.worker, event.count, event.elapsed) == (ATTEMPT, "w1", 4, 1.0)
    assert event.final
    assert event.not_run is None


def test_failures_between_results_are_told_with_them() -> None:
    child = Writer()
    failure = describe_exception(ValueError("no"), 1)
    ((event, batches),) = read(child.says(0, (1,)) + child.says(failures=(failure,)) + child.says(2, (3,)))
    assert batches == [[1], [3]]
    assert event.done == ((0, 1), (2, 3))
    assert [failed.position for failed in event.failed] == [1]
    assert not event.final


def test_a_failure_that_is_for_good_is_told_from_one_that_may_be_tried_again() -> None:
    failures = tuple(describe_exception(ValueError("no"), at) for at in range(3))
    ((event, _),) = read(Writer().says(failures=failures, for_good=(1,)))
    assert [(failed.position, failed.retry) for failed in event.failed] == [(0, True), (1, False), (2, True)]


@pytest.mark.parametrize("blamed", [None, 3])
def test_a_task_that_ran_too_long_is_named_unless_the_child_had_moved_on(blamed: int | None) -> None:
    slow = NotRun(reason=NotRunReason.TIMED_OUT, detail="31 s")
    ((event, _),) = read(Writer(is_node=True).says(not_run=slow, final=True, beat=blamed))
    assert event.not_run == ev.NotRunReport(ev.NotRunKind.TIMED_OUT, "31 s", blamed, None, why="timed_out")


PIECES = (Piece(0, 2, 0.5, pickle.dumps([1, 2])), Piece(2, 1, 3.0, pickle.dumps([3])))


def test_results_that_the_node_hands_on_are_a_batch_for_each_piece() -> None:
    child, node = Writer(), Writer(is_node=True)
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    ((event, batches),) = reader.read(ATTEMPT, node.hands_on(*PIECES) + child.says(3, (4,), final=True))
    assert isinstance(event, ev.OutcomeArrived)
    assert [batch.values() for batch in batches] == [[1, 2], [3], [4]]
    assert [batch.seconds for batch in batches] == [0.25, 3.0, 0.25]
    assert event.done == ((0, 2), (2, 3), (3, 4))
    assert (event.worker, event.count, event.elapsed, event.final) == ("w1", 4, 3.75, True)


def test_what_the_node_has_read_of_a_task_comes_with_the_result_that_it_hands_on() -> None:
    node = Writer(is_node=True)
    heard = node.says(printed=(Printed(2, "stdout", b"from C"),))
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    _, (_, batches) = reader.read(ATTEMPT, heard + node.hands_on(*PIECES))
    assert [dict(batch.outputs) for batch in batches] == [{}, {0: Output(stdout="from C")}]


def test_only_a_node_hands_on_pieces() -> None:
    with pytest.raises(WireError):
        read(Writer().hands_on(*PIECES))


def test_nodes_are_found_among_pieces() -> None:
    node = Writer(is_node=True)
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    reader.find_nodes(node.hands_on(*PIECES) + node.says(node="n1"))
    assert reader.nodes == {b"e" * 16: "n1"}


def test_what_the_node_says_last_of_an_execution_ends_the_row() -> None:
    child, node = Writer(), Writer(is_node=True)
    died = NotRun(reason=NotRunReason.CHILD_DIED, detail="SIGSEGV")
    ((event, batches),) = read(child.says(0, (1,)) + child.says(1, (2,)) + node.says(not_run=died, final=True, beat=2))
    assert batches == [[1], [2]]
    assert event.final
    assert event.not_run == ev.NotRunReport(ev.NotRunKind.DIED, "SIGSEGV", 2, None, why="child_died")


def test_a_beat_parts_a_row() -> None:
    child, node = Writer(), Writer(is_node=True)
    events = [event for event, _ in read(child.says(0, (1,)) + node.says(beat=1) + child.says(1, (2,)))]
    assert [type(event) for event in events] == [ev.OutcomeArrived, ev.Beat, ev.OutcomeArrived]


def test_outcomes_of_different_executions_stay_apart() -> None:
    first, second = Writer(b"1" * 16), Writer(b"2" * 16)
    events = [event for event, _ in read(first.says(0, (1,)) + second.says(0, (1,)) + second.says(1, (2,)))]
    assert [(event.execution, event.done) for event in events] == [
        (b"1" * 16, ((0, 1),)),
        (b"2" * 16, ((0, 1), (1, 2))),
    ]


def test_nothing_is_joined_to_an_outcome_that_ends_its_execution() -> None:
    child = Writer()
    events = [event for event, _ in read(child.says(0, (1,), final=True) + child.says(1, (2,)))]
    assert [event.final for event in events] == [True, False]


def test_a_row_with_a_gap_is_refused_whole() -> None:
    child = Writer()
    first, _, third = child.says(0, (1,)), child.says(1, (2,)), child.says(2, (3,))
    with pytest.raises(WireError, match="1 was next"):
        read(first + third)


def test_what_tasks_printed_stands_with_their_results_and_failures() -> None:
    printed = (Printed(4, "stdout", b"four"), Printed(4, "stderr", b"4"), Printed(5, "stdout", b"five"))
    failure = describe_exception(ValueError("no"), 5)
    data = Writer().says(3, (3, 4), failures=(failure,), printed=printed)
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    ((event, (batch,)),) = reader.read(ATTEMPT, data)
    assert isinstance(event, ev.OutcomeArrived)
    assert batch.outputs == {1: Output("four", "4")}
    assert [failed.failure.output for failed in event.failed] == [Output("five")]  # type: ignore[attr-defined]


def test_what_a_node_heard_of_a_task_stands_with_its_outcome_before_what_the_child_says() -> None:
    child, node, other = Writer(), Writer(is_node=True), Writer(b"o" * 16, is_node=True)
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    failure = describe_exception(ValueError("no"), 5)
    data = (
        other.says(printed=(Printed(3, "stdout", b"of another execution"),))
        + node.says(printed=(Printed(3, "stdout", b"three "), Printed(5, "stderr", b"five")))
        + node.says(printed=(Printed(4, "stdout", b"four "), Printed(6, "stdout", b"six ")))
        + child.says(3, (3,))
        + child.says(4, (4,), printed=(Printed(4, "stdout", b"and more"),), failures=(failure,))
        + node.says(not_run=NotRun(reason=NotRunReason.CHILD_DIED), beat=6, printed=(Printed(6, "stdout", b"the end"),))
    )
    opened = [(event, batches) for event, batches in reader.read(ATTEMPT, data) if isinstance(event, ev.OutcomeArrived)]
    batches = [batch for _, some in opened for batch in some]
    assert [batch.outputs for batch in batches] == [{0: Output("three ")}, {0: Output("four and more")}]
    failed = [failed for event, _ in opened for failed in event.failed]
    assert [each.failure.output for each in failed] == [Output("", "five")]  # type: ignore[attr-defined]
    report = opened[-1][0].not_run
    assert report is not None
    assert report.output == Output("six the end")


LARGE = (bytes(range(256)) * (envelope.PIECE_BYTES // 64), "and another")


def test_a_body_that_goes_ahead_is_told_of_with_its_outcome() -> None:
    child, node = Writer(), Writer(is_node=True)
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    parts = child.sends_ahead(LARGE)
    assert len(parts) == 4
    packets = [parts[0], node.says(beat=0), parts[1] + parts[2], node.says(beat=0) + parts[3]]
    told = [reader.read(ATTEMPT, packet) for packet in packets]
    assert [[type(event) for event, _ in each] for each in told] == [[], [ev.Beat], [], [ev.Beat, ev.OutcomeArrived]]
    event, (batch,) = told[3][1]
    assert isinstance(event, ev.OutcomeArrived)
    assert (event.done, event.final, tuple(batch.values())) == (((0, 2),), True, LARGE)


def test_two_executions_may_send_ahead_at_a_time() -> None:
    first, second = Writer(b"1" * 16).sends_ahead(LARGE), Writer(b"2" * 16).sends_ahead(LARGE[::-1])
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    told = [reader.read(ATTEMPT, packet) for pair in zip(first, second, strict=True) for packet in pair]
    values = [batch.values() for opened in told for _, batches in opened for batch in batches]
    assert values == [list(LARGE), list(LARGE[::-1])]


@pytest.mark.parametrize("order", [(0, 2), (0, 0), (1,), (0, 1, 3), (3,), (0, 1, 2, 2)])
def test_parts_that_are_missing_doubled_or_moved_are_refused(order: tuple[int, ...]) -> None:
    parts = Writer().sends_ahead(LARGE)
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    for at in order[:-1]:
        reader.read(ATTEMPT, parts[at])
    with pytest.raises(WireError):
        reader.read(ATTEMPT, parts[order[-1]])


@pytest.mark.parametrize("at", [70, 100, -1], ids=["header", "body", "tag"])
def test_a_part_that_was_changed_is_refused(at: int) -> None:
    parts = Writer().sends_ahead(LARGE)
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    changed = bytearray(parts[0])
    changed[at] ^= 1
    with pytest.raises(WireError):
        reader.read(ATTEMPT, changed)


def test_another_outcome_in_the_middle_of_parts_is_refused() -> None:
    child = Writer()
    first = child.sends_ahead(LARGE)[0]
    child._sequence = 1
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    reader.read(ATTEMPT, first)
    with pytest.raises(WireError, match="in the middle"):
        reader.read(ATTEMPT, child.says(0, (1,)))


def test_only_a_child_sends_ahead() -> None:
    reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
    with pytest.raises(WireError):
        reader.read(ATTEMPT, Writer(is_node=True).sends_ahead(LARGE)[0])
