"""What tasks printed, on its way in an outcome.

Rule 1: reading is total; anything odd gives `EnvelopeError`.
Rule 2: the name of the stream travels, and a stream that the reader does not know is no error: there will be more.

In the header stands a row `[position, stream]` for each text, in the body a payload with its bytes for each row. Where
something was left out, the row is `[position, stream, at, dropped]`. What comes while a task runs has streams of other
names, and `at` is where in the stream it begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import Payload
from gearmap.wire.jsonvalues import as_int
from gearmap.wire.shown import Bundle, read_bundles

__all__ = [
    "LIVE",
    "LIVE_HEARD",
    "NO_OUTPUT",
    "Output",
    "Printed",
    "by_position",
    "is_live",
    "left_out",
    "live_stream",
    "payload_of",
    "read_rows",
    "rows_of",
    "with_data",
]

LIVE = "live:"
"""Begins the name of a stream of which a piece comes while its task runs."""

LIVE_HEARD = "live:heard:"
"""The same of what the node has read, which is counted apart from what the child has."""

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
        return f"{head}\n{left_out(self.dropped)}{tail}"

    def after(self, n_bytes: int) -> Printed:
        """Return what follows after the first `n_bytes` of what was written."""
        if n_bytes < self.at:
            return self._replace(data=self.data[n_bytes:], at=self.at - n_bytes)
        gap = min(n_bytes - self.at, self.dropped)
        return self._replace(data=self.data[n_bytes - gap :], at=0, dropped=self.dropped - gap)


class Output(NamedTuple):
    """What one task printed; `notes` are lines of `wire.notes`, `shown` of `wire.shown`."""

    stdout: str = ""
    stderr: str = ""
    notes: str = ""
    shown: str = ""

    @property
    def outputs(self) -> list[Bundle]:
        """What it displayed, and the figures that it left open."""
        return read_bundles(self.shown)

    @property
    def unseen(self) -> Output:
        """What of it was not shown while the task ran."""
        unseen: Output = getattr(self, "_unseen", self)
        return unseen


class PartlyShown(Output):
    """An output of which something was shown while the task ran."""

    _unseen: Output


NO_OUTPUT = Output()


def by_position(printed: Iterable[Printed], shown: Mapping[Printed, int] | None = None) -> dict[int, Output]:
    """Put together what each task printed.

    Parameters
    ----------
    shown
        How many bytes of a row were shown already.
    """
    outputs: dict[int, Output] = {}
    unseen: dict[int, Output] = {}
    for each in printed:
        if each.stream in Output._fields:
            _join(outputs, each)
            _join(unseen, each.after(shown[each]) if shown and each in shown else each)
    if shown:
        for position in {each.position for each in shown}:
            seen = outputs[position] = PartlyShown(*outputs[position])
            seen._unseen = unseen[position]
    return outputs


def _join(outputs: dict[int, Output], each: Printed) -> None:
    known = outputs.get(each.position, NO_OUTPUT)
    outputs[each.position] = known._replace(**{each.stream: getattr(known, each.stream) + each.text})


def is_live(each: Printed) -> bool:
    """Whether it is a piece of what a task has written so far."""
    return each.stream.startswith(LIVE)


def live_stream(stream: str) -> str | None:
    """Return which stream a live one is part of; None if this reader does not know it."""
    name = stream.removeprefix(LIVE_HEARD).removeprefix(LIVE)
    return name if name in Output._fields else None


def left_out(n_bytes: int) -> str:
    """Say that something is missing, on a line of its own."""
    return f"... {n_bytes} bytes left out ...\n"


def rows_of(printed: Sequence[Printed]) -> list[list[Any]]:
    """Return what the header says of them."""
    return [
        [each.position, each.stream, each.at, each.dropped] if each.at or each.dropped else [each.position, each.stream]
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
