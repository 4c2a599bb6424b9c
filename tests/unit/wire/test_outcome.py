"""Headers and bodies of outcomes."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearmap.errors import EnvelopeError, SerializationError
from gearmap.wire import outcome as outcome_module
from gearmap.wire.framing import frame
from gearmap.wire.outcome import (
    NotRun,
    NotRunReason,
    Outcome,
    TaskFailure,
    decode_outcome,
    describe_exception,
    encode_outcome,
    rebuild_exception,
)
from gearmap.wire.serializer import dumps, loads

LOCK = threading.Lock()


def round_trip(outcome, results=()):
    header, body = encode_outcome(outcome, results)
    return decode_outcome(header, b"".join(body))


def values_of(decoded):
    return [(start, stop, loads(payload)) for start, stop, payload in decoded.results]


positions = st.sets(st.integers(0, 10**6), max_size=8).map(sorted)
ranges = positions.map(lambda edges: tuple(zip(edges[::2], edges[1::2], strict=False)))
outcomes = st.builds(
    Outcome,
    failures=st.lists(
        st.builds(
            TaskFailure,
            position=st.integers(0, 99),
            type_name=st.text(),
            message=st.text(),
            traceback=st.text(),
        ),
        max_size=3,
    ).map(tuple),
    for_good=st.lists(st.integers(0, 99), max_size=3).map(tuple),
    not_run=st.none()
    | st.builds(NotRun, reason=st.sampled_from(NotRunReason), positions=st.none() | ranges, detail=st.text()),
    elapsed=st.floats(0, 1e9),
    count=st.integers(0, 10**9),
    final=st.booleans(),
    worker=st.text(max_size=10),
    node=st.text(max_size=10),
    beat=st.none() | st.integers(0, 10**9),
)


@settings(max_examples=150)
@given(outcomes)
def test_any_outcome_without_results_survives_the_round_trip(outcome):
    header, body = encode_outcome(outcome)
    assert body == []
    assert decode_outcome(header).outcome == outcome
    assert decode_outcome(header, b"").outcome == outcome


def test_results_come_back_in_their_runs_still_pickled():
    decoded = round_trip(Outcome(worker="w", final=True), [(0, [1, 2]), (5, ["a"]), (7, [])])
    assert decoded.outcome.done == ((0, 2), (5, 6))
    assert decoded.outcome.final
    assert values_of(decoded) == [(0, 2, [1, 2]), (5, 6, ["a"])]


def test_failures_come_back_with_their_exceptions():
    failures = (describe_exception(ValueError("a"), 3), describe_exception(KeyError(LOCK), 4))
    decoded = round_trip(Outcome(failures=failures), [(0, [1])])

    first, second = decoded.outcome.failures

    assert (first.position, second.position) == (3, 4)
    assert type(rebuild_exception(first)) is ValueError
    assert second.exception is None
    assert values_of(decoded) == [(0, 1, [1])]


def test_the_header_alone_says_what_is_done_and_what_failed():
    header, _ = encode_outcome(Outcome(failures=(describe_exception(ValueError("a"), 3),)), [(0, [1, 2])])
    decoded = decode_outcome(header)
    assert decoded.outcome.done == ((0, 2),)
    assert decoded.outcome.failures[0].message == "a"
    assert decoded.outcome.failures[0].exception is None
    assert decoded.results == ()


def test_a_result_that_does_not_pickle_is_that_tasks_failure_and_the_others_arrive():
    decoded = round_trip(Outcome(), [(10, [0, 1, {"k": LOCK}, 3, 4])])

    assert [value for _, _, run in values_of(decoded) for value in run] == [0, 1, 3, 4]
    assert [position for start, stop in decoded.outcome.done for position in range(start, stop)] == [
        10,
        11,
        13,
        14,
    ]
    (failure,) = decoded.outcome.failures
    assert failure.position == 12
    assert decoded.outcome.for_good == (12,)  # it would not pickle the next time either
    error = rebuild_exception(failure)
    assert isinstance(error, SerializationError)
    assert "the result: ['k'] is a lock (_thread.lock)" in str(error)


def test_a_chunk_in_which_no_result_pickles_fails_task_by_task(monkeypatch):
    monkeypatch.setattr(outcome_module, "_MAX_EXPLAINED", 2)
    decoded = round_trip(Outcome(), [(0, [LOCK] * 50)])
    assert decoded.results == ()
    assert [failure.position for failure in decoded.outcome.failures] == list(range(50))
    assert all("lock" in failure.message for failure in decoded.outcome.failures)


def test_results_that_are_nested_too_deeply_are_failures():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    try:
        decoded = round_trip(Outcome(), [(0, [1, nested])])
    finally:
        while nested:  # freeing it at once would recurse as deeply
            nested = nested.pop()  # type: ignore[assignment]
    assert decoded.outcome.done == ((0, 1),)
    assert "nested too deeply" in decoded.outcome.failures[0].message


def test_large_arrays_among_results_are_not_copied_when_they_are_decoded():
    numpy = pytest.importorskip("numpy")
    header, body = encode_outcome(Outcome(), [(0, [numpy.arange(10_000.0)])])
    data = bytearray(b"".join(body))

    ((_, _, payload),) = decode_outcome(header, data).results
    (array,) = loads(payload)

    assert array[-1] == 9999
    assert array.flags.writeable
    assert payload[1].obj is data


def test_a_beat_is_a_few_bytes():
    header, body = encode_outcome(Outcome(beat=12, worker="node-1.3"))
    assert len(header) < 50
    assert body == []


@pytest.mark.parametrize(
    "values",
    [
        {"done": 1},
        {"done": [[0]]},
        {"done": [[1, 0]]},
        {"done": [[0, 2], [1, 3]]},
        {"done": [["0", 1]]},
        {"failures": {}},
        {"failures": [1]},
        {"failures": [[1, "T", "m", "t"]]},
        {"failures": [[-1, "T", "m", "t", False]]},
        {"failures": [[1, 2, "m", "t", False]]},
        {"failures": [[1, "T", "m", "t", 0]]},
        {"for_good": 1},
        {"for_good": [-1]},
        {"for_good": [[0, 1]]},
        {"not_run": None},
        {"not_run": []},
        {"not_run": {}},
        {"not_run": {"reason": "bored"}},
        {"not_run": {"reason": ["draining"]}},
        {"not_run": {"reason": "draining", "positions": None}},
        {"not_run": {"reason": "draining", "detail": 1}},
        {"elapsed": -1},
        {"elapsed": "1"},
        {"elapsed": 10**400},
        {"count": 1.5},
        {"final": 1},
        {"worker": None},
        {"node": 1},
        {"beat": None},
        {"beat": True},
    ],
)
def test_fields_of_the_wrong_type_are_refused(values):
    with pytest.raises(EnvelopeError):
        decode_outcome(json.dumps(values).encode())


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b'{"elapsed":1e999}', b'{"elapsed":NaN}', b"[" * 100_000])
def test_what_is_no_header_is_refused(header):
    with pytest.raises(EnvelopeError):
        decode_outcome(header)


@pytest.mark.parametrize(
    "body", [b"", b"x", b"".join(frame([])), b"".join(frame([[b"a"], [b"b"]])), b"".join(frame([[]]))]
)
def test_a_body_that_does_not_fit_its_header_is_refused(body):
    header, _ = encode_outcome(Outcome(), [(0, [1])])
    with pytest.raises(EnvelopeError):
        decode_outcome(header, body)


def test_a_body_behind_a_header_that_has_none_is_refused():
    header, _ = encode_outcome(Outcome())
    with pytest.raises(EnvelopeError):
        decode_outcome(header, b"".join(frame([dumps(1)])))


@settings(max_examples=200)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_garbage_gives_an_envelope_error_and_nothing_else(header, body):
    with contextlib.suppress(EnvelopeError):
        decode_outcome(header, body)
    good, _ = encode_outcome(Outcome(), [(0, [1])])
    with contextlib.suppress(EnvelopeError):
        decode_outcome(good, body)
