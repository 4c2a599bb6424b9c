"""What tasks printed, in an outcome."""

from __future__ import annotations

from typing import Any

import pytest

from gearmap.errors import EnvelopeError
from gearmap.wire.outcome import Outcome, Printed, decode_outcome, describe_exception, encode_outcome
from gearmap.wire.printed import Output, by_position, read_rows, with_texts

PRINTED = (Printed(2, "stdout", "é\ud800 日本\r\n\0"), Printed(7, "stderr", "x" * 100_000), Printed(7, "log", "later"))


def test_texts_travel_beside_results_and_failures() -> None:
    failure = describe_exception(ValueError("no"), 7)
    header, body = encode_outcome(Outcome(failures=(failure,), printed=PRINTED, worker="w"), [(2, ["result"])])
    decoded = decode_outcome(header, b"".join(body))
    assert decoded.outcome.printed == PRINTED
    assert [(start, stop) for start, stop, _ in decoded.results] == [(2, 3)]
    assert [each.exception is not None for each in decoded.outcome.failures] == [True]


def test_a_header_alone_says_who_printed() -> None:
    header, _ = encode_outcome(Outcome(printed=PRINTED))
    assert [(each.position, each.stream, each.text) for each in decode_outcome(header).outcome.printed] == [
        (2, "stdout", ""),
        (7, "stderr", ""),
        (7, "log", ""),
    ]


def test_nothing_printed_takes_no_room() -> None:
    assert b"printed" not in encode_outcome(Outcome())[0]


def test_streams_of_a_task_are_put_together_and_unknown_ones_left_out() -> None:
    printed = (*PRINTED, Printed(7, "stdout", "y"))
    assert by_position(printed) == {2: Output(PRINTED[0].text), 7: Output("y", PRINTED[1].text)}


@pytest.mark.parametrize("row", [1, [], [0], [0, 1], [-1, "stdout"], [0.5, "stdout"], [True, "stdout"], [0, "a", "b"]])
def test_odd_rows_are_refused(row: Any) -> None:
    with pytest.raises(EnvelopeError):
        read_rows([row])


def test_a_text_that_is_missing_or_none_is_refused() -> None:
    with pytest.raises(EnvelopeError):
        with_texts([Printed(0, "stdout")], [])
    with pytest.raises(EnvelopeError):
        with_texts([Printed(0, "stdout")], [[b"\xff"]])
    header, body = encode_outcome(Outcome(printed=PRINTED))
    _, shorter = encode_outcome(Outcome(printed=PRINTED[:2]))
    with pytest.raises(EnvelopeError):
        decode_outcome(header, b"".join(shorter))
    with pytest.raises(EnvelopeError):
        decode_outcome(header, b"")
    assert decode_outcome(header, b"".join(body)).outcome.printed == PRINTED
