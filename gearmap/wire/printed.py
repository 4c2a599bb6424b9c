"""What tasks printed, on its way in an outcome.

Rule 1: reading is total; anything odd gives `EnvelopeError`.
Rule 2: the name of the stream travels, and a stream that the reader does not know is no error: there will be more.

In the header stands a row `[position, stream]` for each text, in the body a payload with its bytes for each row. Where
something was left out, the row is `[position, stream, at, dropped]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import Payload
from gearmap.wire.jsonvalues import as_int

__all__ = ["NO_OUTPUT", "Output", "Printed", "by_position", "payload_of", "read_rows", "rows_of", "with_data"]

_CONTINUATION = bytes(range(0x80, 0xC0))  # of a character in UTF-8 that begins before


class Printed(NamedTuple):
    """What the task at a position of its job wrote to a stream; `dropped` bytes are left out at offset `at`."""

    position: int
    stream: str
    data: bytes = b""
    at: int = 0
    dropped: int = 0

    @property
    def text(self) -> str:
        """For people: whatever the bytes are, and with a word for what was left out."""
        if not self.dropped:
            return self.data.decode("utf-8", "replace")
        # Half characters at the gap are left out.
        head = _without_half(self.data[: self.at]).decode("utf-8", "replace")
        tail = self.data[self.at :].lstrip(_CONTINUATION).decode("utf-8", "replace")
        return f"{head}\n... {self.dropped} bytes left out ...\n{tail}"


class Output(NamedTuple):
    """What one task printed."""

    stdout: str = ""
    stderr: str = ""


NO_OUTPUT = Output()


def by_position(printed: Iterable[Printed]) -> dict[int, Output]:
    """Put together what each task printed."""
    outputs: dict[int, Output] = {}
    for each in printed:
        if each.stream in Output._fields:
            known = outputs.get(each.position, NO_OUTPUT)
            outputs[each.position] = known._replace(**{each.stream: getattr(known, each.stream) + each.text})
    return outputs


def rows_of(printed: Sequence[Printed]) -> list[list[Any]]:
    """Return what the header says of them."""
    return [
        [each.position, each.stream, each.at, each.dropped] if each.dropped else [each.position, each.stream]
        for each in printed
    ]


def payload_of(each: Printed) -> Payload:
    """Return the bytes as a payload."""
    return [each.data]


def read_rows(rows: Iterable[Any]) -> tuple[Printed, ...]:
    """Read what `rows_of` made.

    Raises
    ------
    EnvelopeError
        If it is something else.
    """
    printed = []
    for row in rows:
        if type(row) is not list or len(row) not in (2, 4) or type(row[1]) is not str:
            raise EnvelopeError(f"what was printed must be a position and a stream in a header, got {row!r:.80}")
        at, dropped = (as_int(number, "printed") for number in (row[2:] or (0, 0)))
        printed.append(Printed(as_int(row[0], "printed"), row[1], b"", at, dropped))
    return tuple(printed)


def with_data(printed: Sequence[Printed], payloads: Iterable[Payload]) -> tuple[Printed, ...]:
    """Join what `read_rows` read with the bytes.

    Raises
    ------
    EnvelopeError
        If there are not as many.
    """
    try:
        return tuple(each._replace(data=b"".join(payload)) for each, payload in zip(printed, payloads, strict=True))
    except ValueError as error:
        raise EnvelopeError(f"what was printed is incomplete: {error}") from None


def _without_half(data: bytes) -> bytes:
    """Return text without the beginning of a character at its end."""
    rest = data.rstrip(_CONTINUATION)
    lead = rest[-1] if rest else 0
    size = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
    return data if len(data) - len(rest) + 1 >= size else rest[:-1]
