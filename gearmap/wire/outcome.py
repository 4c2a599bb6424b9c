"""What one outcome says: results, failures, refusals, beats.

What must not live here: sealing, and what is done about an outcome (`core`).

Rule 1: the header is JSON, never pickle; whoever reads headers (the node, the driver) runs no user code. A header that
says no more than "these results" (nearly all do) has a fixed layout instead, a tenth of the work; its first byte tells.
Rule 2: encoding results never fails because of a result: one that does not pickle becomes that task's failure.
Rule 3: decoding is total. Bytes give values or `EnvelopeError`; results and exceptions stay pickled.

The body is `frame([run of results, ..., exception, ..., text, ...])`: a payload for each range in `Outcome.done`, then
one for each failure whose exception pickled, then one for each text in `Outcome.printed`. It is absent if there are
none of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice, zip_longest
from typing import Any

from gearmap.errors import EnvelopeError, SerializationError
from gearmap.wire.failure import TaskFailure, describe_call, describe_exception, rebuild_exception
from gearmap.wire.framing import Buffer, Payload, frame, unframe
from gearmap.wire.jsonvalues import (
    Ranges,
    as_int,
    decode_object,
    encode_object,
    read_bool,
    read_int,
    read_list,
    read_number,
    read_ranges,
    read_str,
)
from gearmap.wire.printed import Printed, payload_of, read_rows, rows_of, with_data
from gearmap.wire.serializer import explain_unpicklable, try_dumps
from gearmap.wire.sourcelines import FramePlace

__all__ = [
    "DecodedOutcome",
    "NotRun",
    "NotRunReason",
    "Outcome",
    "Printed",
    "TaskFailure",
    "decode_outcome",
    "decode_results",
    "describe_call",
    "describe_exception",
    "encode_outcome",
    "encode_results",
    "rebuild_exception",
]

# Looking for the culprit pickles a value several times. Raising it explains more results of one chunk and makes a
# chunk of results that all fail slower; the rest is named by type only.
_MAX_EXPLAINED = 16


class NotRunReason(Enum):
    """Why a node gives tasks back."""

    DRAINING = "draining"  # the node is shutting down
    AVOIDED = "avoided"  # the header asks for another worker
    EXPIRED = "expired"  # the envelope is too old by this node's clock
    BLOB_UNAVAILABLE = "blob_unavailable"  # a blob could not be fetched
    CANNOT_LOAD = "cannot_load"  # the function or its arguments do not load here
    STOPPED = "stopped"  # somebody asked to stop the execution
    CHILD_DIED = "child_died"  # the process that ran the tasks is gone
    DIED_LOADING = "died_loading"  # it is gone, and was unpickling what a task needs: nobody else should try it
    # The initializer raised: what it raised is the outcome's only failure. Without one, its process died of it.
    INITIALIZER_FAILED = "initializer_failed"
    TIMED_OUT = "timed_out"  # a task ran too long, and the process that ran it was ended
    OVER_BUDGET = "over_budget"  # the tasks of the chunk took long, and others may have time for those not begun
    UNFIT = "unfit"  # a task left the process in a state that cannot be mended


# A header of fixed layout: mark, final, first and last position, seconds, tasks; the worker's name follows. JSON starts
# with a brace, so the mark cannot be mistaken.
_RESULTS = struct.Struct("<BBQQdQ")
_RESULTS_MARK = 1
_MAX_INT = 2**63

_REASONS = {reason.value: reason for reason in NotRunReason}


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """Tasks that were not run, and why.

    Attributes
    ----------
    reason
        Why.
    positions
        Half-open ranges of tasks, or None for all that no outcome of this execution has settled.
    detail
        For people: the missing package, the node's clock, the signal.
    """

    reason: NotRunReason
    positions: Ranges | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one message of an execution says.

    Attributes
    ----------
    done
        Half-open ranges of tasks whose results are in the body.
    failures
        Tasks that raised.
    seconds
        How long each of the failed tasks took, in the same order; empty if that is not known.
    for_good
        Those of them that need not be tried again.
    printed
        What tasks wrote to their standard streams; the texts are in the body.
    not_run
        Tasks that were given back, or None.
    elapsed
        Seconds of work that this message reports. With TIMED_OUT how long the task ran.
    count
        Tasks that took these seconds.
    final
        Whether the execution says nothing after this.
    worker
        Name of the worker.
    node
        Id of the node, whose control function can stop the execution; with beats only.
    beat
        The task that is being run, or None if this is no beat. With CHILD_DIED and TIMED_OUT the task that is to blame.
    progress
        How far that task says that it is, from 0.0 to 1.0, or None.
    """

    done: Ranges = ()
    failures: tuple[TaskFailure, ...] = ()
    seconds: tuple[float, ...] = ()
    for_good: tuple[int, ...] = ()
    printed: tuple[Printed, ...] = ()
    not_run: NotRun | None = None
    elapsed: float = 0.0
    count: int = 0
    final: bool = False
    worker: str = ""
    node: str = ""
    beat: int | None = None
    progress: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedOutcome:
    """An outcome and the results in its body, still pickled.

    Attributes
    ----------
    outcome
        With the exceptions of its failures where the body has them, and the texts that were printed.
    results
        First position, end position and payload (a pickled list) for each range in `outcome.done`.
    """

    outcome: Outcome
    results: tuple[tuple[int, int, Payload], ...] = ()


def encode_outcome(
    outcome: Outcome,
    results: Sequence[tuple[int, Sequence[Any]]] = (),
    *,
    ship: Callable[[Payload], Payload] | None = None,
) -> tuple[bytes, list[Buffer]]:
    """Header and body of an outcome.

    Parameters
    ----------
    outcome
        What to say; its `done` is replaced by what `results` and their pickling give.
    results
        Runs of results: the first task's position, and the results from there on. Ascending and disjoint.
    ship
        Returns what is to be in the body of a run of results; by default all of it.

    Returns
    -------
    tuple
        Plain header and the buffers of the plain body.
    """
    runs: list[tuple[int, int, Payload]] = []
    bad: list[TaskFailure] = []
    for start, values in results:
        for item in _dump_run(start, values):
            if isinstance(item, tuple):
                runs.append(item)
            else:
                bad.append(describe_exception(_unpicklable(item, explained=len(bad) < _MAX_EXPLAINED), item.position))
    if ship is not None:
        runs = [(start, stop, ship(payload)) for start, stop, payload in runs]
    done = tuple((start, stop) for start, stop, _ in runs)
    # A result that does not pickle will not do so the next time.
    for_good = (*outcome.for_good, *(failure.position for failure in bad))
    outcome = replace(outcome, done=done, failures=(*outcome.failures, *bad), for_good=for_good)
    exceptions = [failure.exception for failure in outcome.failures if failure.exception is not None]
    payloads = [*(payload for _, _, payload in runs), *exceptions, *map(payload_of, outcome.printed)]
    return encode_object(_to_json(outcome)), frame(payloads) if payloads else []


def encode_results(
    first: int, count: int, payload: Payload, *, elapsed: float, final: bool, worker: str
) -> tuple[bytes, list[Buffer]] | None:
    """Header and body of an outcome that is one run of results and nothing else, the most frequent one.

    Parameters
    ----------
    first
        The first task's position.
    count
        How many results there are from there on, at least one.
    payload
        The list of them, pickled.
    elapsed
        Seconds of work, for all of them together.

    Returns
    -------
    tuple or None
        Like `encode_outcome`; None if only that can say it, as a field is odd.
    """
    if not 0 <= elapsed < math.inf:
        return None
    try:
        name = worker.encode("utf-8")
    except UnicodeEncodeError:
        return None
    header = _RESULTS.pack(_RESULTS_MARK, final, first, first + count, elapsed, count)
    return header + name, frame((payload,))


def decode_results(header: bytes, body: Buffer) -> tuple[int, int, float, int, bool, str, Payload] | None:
    """Read what `encode_results` made: first, end, elapsed, count, final, worker, payload; None if it is another.

    Raises
    ------
    EnvelopeError
        If it claims to be one and is not.
    """
    if header[:1] != b"\1":
        return None
    first, stop, elapsed, count, final, worker = _read_results(header)
    payloads = unframe(body)
    if len(payloads) != 1 or not payloads[0]:
        raise EnvelopeError(f"{len(payloads)} payloads for one run of results")
    return first, stop, elapsed, count, final, worker, payloads[0]


def _read_results(header: Buffer) -> tuple[int, int, float, int, bool, str]:
    if len(header) < _RESULTS.size:
        raise EnvelopeError(f"a header of {len(header)} bytes is too short for results")
    _, final, first, stop, elapsed, count = _RESULTS.unpack_from(header)
    if not (final <= 1 and first < stop < _MAX_INT and count < _MAX_INT and 0 <= elapsed < math.inf):
        raise EnvelopeError(f"impossible results: {first} to {stop}, {count} tasks in {elapsed} s, final {final}")
    try:
        return first, stop, elapsed, count, bool(final), str(header[_RESULTS.size :], "utf-8")
    except UnicodeDecodeError as error:
        raise EnvelopeError(f"a worker's name is not UTF-8: {error}") from None


def decode_outcome(header: Buffer, body: Buffer | None = None) -> DecodedOutcome:
    """Read an outcome.

    Parameters
    ----------
    header
        The plain header.
    body
        The plain body, or None to read the header only: there are no results then, and no exceptions in failures.

    Raises
    ------
    EnvelopeError
        If header or body is not that of an outcome, or they do not fit together.
    """
    pickled: list[bool] = []
    if header[:1] == b"\1":
        first, stop, elapsed, count, final, worker = _read_results(header)
        outcome = Outcome(done=((first, stop),), elapsed=elapsed, count=count, final=final, worker=worker)
    else:
        outcome, pickled = _from_json(decode_object(header))
    if body is None:
        return DecodedOutcome(outcome=outcome)
    payloads = unframe(body) if len(body) else []
    if len(payloads) != len(outcome.done) + sum(pickled) + len(outcome.printed):
        raise EnvelopeError(
            f"{len(payloads)} payloads for {len(outcome.done)} results, {sum(pickled)} exceptions and "
            f"{len(outcome.printed)} texts"
        )
    if not all(payloads):
        raise EnvelopeError("a payload without buffers")
    rest: Iterator[Payload] = iter(payloads)
    results = tuple((start, stop, next(rest)) for start, stop in outcome.done)
    failures = tuple(
        replace(failure, exception=next(rest)) if has_exception else failure
        for failure, has_exception in zip(outcome.failures, pickled, strict=True)
    )
    printed = with_data(outcome.printed, rest)
    return DecodedOutcome(outcome=replace(outcome, failures=failures, printed=printed), results=results)


@dataclass(frozen=True, slots=True)
class _Unpicklable:
    position: int
    value: Any
    error: BaseException


def _dump_run(start: int, values: Sequence[Any]) -> Iterator[tuple[int, int, Payload] | _Unpicklable]:
    """Pickle a run as a whole; if that fails, its halves, so that few bad results cost few tries."""
    if not values:
        return
    try:
        payload = try_dumps(list(values))
    except BaseException as error:  # it may even want to end the process, which has other tasks to run
        if len(values) == 1:
            yield _Unpicklable(start, values[0], error)
            return
        half = len(values) // 2
        yield from _dump_run(start, values[:half])
        yield from _dump_run(start + half, values[half:])
    else:
        yield start, start + len(values), payload


def _unpicklable(item: _Unpicklable, *, explained: bool) -> SerializationError:
    # What wants to end the process would want it again while it is explained.
    if explained and isinstance(item.error, Exception):
        return SerializationError(explain_unpicklable(item.value, "the result"))
    return SerializationError(f"cannot pickle the result, a {type(item.value).__qualname__}: {item.error!r:.200}")


def _to_json(outcome: Outcome) -> dict[str, Any]:
    values: dict[str, Any] = {"worker": outcome.worker}
    if outcome.done:
        values["done"] = outcome.done
    if outcome.failures:
        values["failures"] = [
            [
                failure.position,
                failure.type_name,
                failure.message,
                failure.traceback,
                failure.call,
                failure.exception is not None,
            ]
            for failure in outcome.failures
        ]
        if any(failure.places for failure in outcome.failures):
            values["places"] = [failure.places for failure in outcome.failures]
    if outcome.seconds:
        values["seconds"] = [seconds if math.isfinite(seconds) else 0.0 for seconds in outcome.seconds]
    if outcome.for_good:
        values["for_good"] = outcome.for_good
    if outcome.printed:
        values["printed"] = rows_of(outcome.printed)
    if outcome.not_run is not None:
        not_run = outcome.not_run
        values["not_run"] = {"reason": not_run.reason.value, "detail": not_run.detail}
        if not_run.positions is not None:
            values["not_run"]["positions"] = not_run.positions
    if outcome.count or outcome.elapsed:
        values["elapsed"] = outcome.elapsed if math.isfinite(outcome.elapsed) else 0.0
        values["count"] = outcome.count
    if outcome.final:
        values["final"] = True
    if outcome.node:
        values["node"] = outcome.node
    if outcome.beat is not None:
        values["beat"] = outcome.beat
    if outcome.progress is not None:
        values["progress"] = outcome.progress
    return values


def _from_json(values: dict[str, Any]) -> tuple[Outcome, list[bool]]:
    """The outcome, and which of its failures have their exception in the body."""
    failures, pickled = _read_failures(read_list(values, "failures"), read_list(values, "places"))
    outcome = Outcome(
        done=read_ranges(read_list(values, "done"), "done"),
        failures=failures,
        seconds=tuple(read_number({"seconds": each}, "seconds") for each in read_list(values, "seconds")),
        for_good=tuple(as_int(position, "for_good") for position in read_list(values, "for_good")),
        printed=read_rows(read_list(values, "printed")),
        not_run=_read_not_run(values["not_run"]) if "not_run" in values else None,
        elapsed=read_number(values, "elapsed"),
        count=read_int(values, "count"),
        final=read_bool(values, "final"),
        worker=read_str(values, "worker"),
        node=read_str(values, "node"),
        beat=read_int(values, "beat") if "beat" in values else None,
        progress=min(1.0, read_number(values, "progress")) if "progress" in values else None,
    )
    return outcome, pickled


def _read_failures(rows: Sequence[Any], places: Sequence[Any]) -> tuple[tuple[TaskFailure, ...], list[bool]]:
    failures: list[TaskFailure] = []
    pickled: list[bool] = []
    for row, of_row in zip_longest(rows, islice(places, len(rows)), fillvalue=()):
        if type(row) is not list or len(row) != 6:
            raise EnvelopeError(f"a failure in a header must be a list of six, got {row!r:.80}")
        named = dict(zip(("position", "type", "message", "traceback", "call", "pickled"), row, strict=True))
        failures.append(
            TaskFailure(
                position=read_int(named, "position"),
                type_name=read_str(named, "type"),
                message=read_str(named, "message"),
                traceback=read_str(named, "traceback"),
                places=_read_places(of_row),
                call=read_str(named, "call"),
            )
        )
        pickled.append(read_bool(named, "pickled"))
    return tuple(failures), pickled


def _read_places(rows: Any) -> tuple[FramePlace, ...]:
    n_fields = len(FramePlace._fields)
    if type(rows) not in (list, tuple) or not all(type(row) is list and len(row) == n_fields for row in rows):
        raise EnvelopeError(f"the places of a failure must be lists of {n_fields}, got {rows!r:.80}")
    places = []
    for file, line, name, *marks in rows:
        if type(file) is not str or type(name) is not str:
            raise EnvelopeError(f"a place in a traceback must have file and name, got {file!r:.80}, {name!r:.80}")
        places.append(FramePlace(file, as_int(line, "line"), name, *(as_int(mark, "mark") for mark in marks)))
    return tuple(places)


def _read_not_run(value: Any) -> NotRun:
    if type(value) is not dict:
        raise EnvelopeError(f"'not_run' in a header must be an object, got {value!r:.80}")
    name = read_str(value, "reason")
    reason = _REASONS.get(name)
    if reason is None:
        raise EnvelopeError(f"tasks not run for the unknown reason {name!r:.80}")
    positions = read_ranges(value["positions"], "positions") if "positions" in value else None
    return NotRun(reason=reason, positions=positions, detail=read_str(value, "detail"))
