"""What tasks printed, on its way in an outcome.

Rule 1: reading is total; anything odd gives `EnvelopeError`.
Rule 2: the name of the stream travels, and a stream that the reader does not know is no error: there will be more.

In the header stands a row `[position, stream]` for each text, in the body a payload with the text for each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import Payload
from gearmap.wire.jsonvalues import as_int

__all__ = ["NO_OUTPUT", "Output", "Printed", "by_position", "payload_of", "read_rows", "rows_of", "with_texts"]


class Printed(NamedTuple):
    """What the task at a position of its job wrote to a stream."""

    position: int
    stream: str
    text: str = ""


class Output(NamedTuple):
    """What one task printed."""

    stdout: str = ""
    stderr: str = ""


NO_OUTPUT = Output()


def by_position(printed: Iterable[Printed]) -> dict[int, Output]:
    """Put together what each task printed."""
    outputs: dict[int, Output] = {}
    for position, stream, text in printed:
        if stream in Output._fields:
            outputs[position] = outputs.get(position, NO_OUTPUT)._replace(**{stream: text})
    return outputs


def rows_of(printed: Sequence[Printed]) -> list[list[Any]]:
    """Return what the header says of them."""
    return [[each.position, each.stream] for each in printed]


def payload_of(each: Printed) -> Payload:
    """Return the text as a payload; it may hold anything that a `str` may."""
    return [each.text.encode("utf-8", "surrogatepass")]


def read_rows(rows: Iterable[Any]) -> tuple[Printed, ...]:
    """Read what `rows_of` made.

    Raises
    ------
    EnvelopeError
        If it is something else.
    """
    printed = []
    for row in rows:
        if type(row) is not list or len(row) != 2 or type(row[1]) is not str:
            raise EnvelopeError(f"what was printed must be a position and a stream in a header, got {row!r:.80}")
        printed.append(Printed(as_int(row[0], "printed"), row[1]))
    return tuple(printed)


def with_texts(printed: Sequence[Printed], payloads: Iterable[Payload]) -> tuple[Printed, ...]:
    """Join what `read_rows` read with the texts.

    Raises
    ------
    EnvelopeError
        If a text is none.
    """
    try:
        return tuple(
            each._replace(text=b"".join(payload).decode("utf-8", "surrogatepass"))
            for each, payload in zip(printed, payloads, strict=True)
        )
    except (ValueError, TypeError) as error:
        raise EnvelopeError(f"what was printed is not text: {error}") from None
