"""What tasks printed, in an outcome."""

from __future__ import annotations

from typing import Any

import pytest

from gearmap.errors import EnvelopeError
from gearmap.wire.outcome import Outcome, Printed, decode_outcome, describe_exception, encode_outcome
from gearmap.wire.printed import Output, by_position, read_rows, with_data

PRINTED = (
    Printed(2, "stdout", "é日本\r\n\0".encode() + b"\xff"),
    Printed(7, "stderr", b"x" * 100_000, 50_000, 17),
    Printed(7, "log", b"later"),
)


def test_texts_travel_beside_results_and_failures() -> None:
    failure = describe_exception(ValueError("no"), 7)
    header, body = encode_outcome(Outcome(failures=(failure,), printed=PRINTED, worker="w"), [(2, ["result"])])
    decoded = decode_outcome(header, b"".join(body))
    assert decoded.outcome.printed == PRINTED
    assert [(start, stop) for start, stop, _ in decoded.results] == [(2, 3)]
    assert [each.exception is not None for each in decoded.outcome.failures] == [True]


def test_a_header_alone_says_who_printed() -> None:
    header, _ = encode_outcome(Outcome(printed=PRINTED))
    assert list(decode_outcome(header).outcome.printed) == [each._replace(data=b"") for each in PRINTED]


def test_nothing_printed_takes_no_room() -> None:
    assert b"printed" not in encode_outcome(Outcome())[0]


def test_streams_of_a_task_are_put_together_and_unknown_ones_left_out() -> None:
    printed = (*PRINTED, Printed(7, "stdout", b"y"))
    assert by_position(printed) == {2: Output(PRINTED[0].text), 7: Output("y", PRINTED[1].text)}


@pytest.mark.parametrize(
    "row", [1, [], [0], [0, 1], [-1, "stdout"], [0.5, "stdout"], [True, "stdout"], [0, "a", "b"], [0, "a", 1, -1]]
)
def test_odd_rows_are_refused(row: Any) -> None:
    with pytest.raises(EnvelopeError):
        read_rows([row])


def test_what_was_left_out_is_said_in_its_place_and_no_half_characters_are_shown() -> None:
    data = "aé日".encode()[:-1] + "é!".encode()[1:]
    assert Printed(0, "stdout", data, 5, 9).text == "aé\n... 9 bytes left out ...\n!"


def test_a_text_that_is_missing_is_refused() -> None:
    with pytest.raises(EnvelopeError):
        with_data([Printed(0, "stdout")], [])
    header, body = encode_outcome(Outcome(printed=PRINTED))
    _, shorter = encode_outcome(Outcome(printed=PRINTED[:2]))
    with pytest.raises(EnvelopeError):
        decode_outcome(header, b"".join(shorter))
    with pytest.raises(EnvelopeError):
        decode_outcome(header, b"")
    assert decode_outcome(header, b"".join(body)).outcome.printed == PRINTED


@pytest.mark.parametrize("n_bytes", range(21))
def test_what_follows_after_a_number_of_bytes_is_what_was_not_seen(n_bytes: int) -> None:
    whole = bytes(range(65, 85))
    kept = Printed(0, "stdout", whole[:6] + whole[-4:], 6, 10)
    rest = kept.after(n_bytes)
    assert len(rest.data) + rest.dropped == 20 - n_bytes
    assert whole[n_bytes:].startswith(rest.data[: rest.at])
    assert whole.endswith(rest.data[rest.at :])
    assert Printed(0, "stdout", whole).after(n_bytes).data == whole[n_bytes:]
