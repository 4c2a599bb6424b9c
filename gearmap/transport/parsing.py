"""Values from the arguments of packets and the lines of listings.

Law of the file: pure; what does not parse is a ProtocolError.
"""

from __future__ import annotations

from gearmap.errors import ProtocolError
from gearmap.transport.events import Payload, StatusRow, UniqueStatus

__all__ = ["number", "status_row", "text", "unique_status"]


def text(raw: Payload) -> str:
    """The text of an argument; bytes that are not UTF-8 survive the way back."""
    return bytes(raw).decode("utf-8", "surrogateescape")


def unique_status(
    unique: Payload,
    known: Payload,
    running: Payload,
    numerator: Payload,
    denominator: Payload,
    clients: Payload,
) -> UniqueStatus:
    """The value of a STATUS_RES_UNIQUE packet."""
    return UniqueStatus(
        text(unique), known == b"1", running == b"1", number(numerator), number(denominator), number(clients)
    )


def status_row(line: str) -> StatusRow:
    """The value of one line of the `status` listing."""
    try:
        function, total, running, workers = line.rsplit("\t", 3)
        return StatusRow(function, int(total), int(running), int(workers))
    except ValueError:
        raise ProtocolError(f"not a line of a status listing: {line!r}") from None


def number(raw: Payload) -> int:
    """The whole number that a packet carries as text."""
    try:
        return int(bytes(raw).rstrip(b"\0") or b"0")
    except ValueError:
        raise ProtocolError(f"not a number: {bytes(raw)[:40]!r}") from None
