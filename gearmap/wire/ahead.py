"""The body of a large outcome, sent ahead of it in parts.

What must not live here: sealing, and when an outcome counts as large (`runtime.committer`).

A sealed message is whole or nothing: whoever hands it on needs all of it first, and everything else waits behind it. So
each part is a message of its own, under the next number of the same key, and the outcome comes last, without a body;
that no part is missing, doubled, moved or another execution's follows from the rule that outcomes are numbered. The
parts of one outcome follow each other, and nothing comes between them.

The header of a part is a mark, how long the body is in all, and where in it the part begins. The header of the outcome
is another mark, the length again, and what the header would have been. No other outcome begins with these marks.
"""

from __future__ import annotations

import struct

from gearmap.errors import EnvelopeError
from gearmap.memory import writable
from gearmap.wire.framing import Buffer

__all__ = ["Ahead", "closing_header", "is_part", "part_header"]

_PART_MARK = b"\3"
_CLOSING_MARK = b"\4"
_PART = struct.Struct("<cQQ")
_CLOSING = struct.Struct("<cQ")


def part_header(total_bytes: int, offset: int) -> bytes:
    """The header of the part of a body that begins at `offset`."""
    return _PART.pack(_PART_MARK, total_bytes, offset)


def closing_header(total_bytes: int, header: bytes) -> bytes:
    """The header of the outcome whose body went ahead."""
    return _CLOSING.pack(_CLOSING_MARK, total_bytes) + header


def is_part(header: Buffer) -> bool:
    """Whether a header is that of a part."""
    return header[:1] == _PART_MARK


class Ahead:
    """A body of which parts have come; each is opened into its final place.

    Parameters
    ----------
    header
        That of the first part.

    Raises
    ------
    EnvelopeError
        If it is not one, or announces more than can be.
    """

    __slots__ = ("_body", "_filled")

    def __init__(self, header: bytes) -> None:
        total_bytes, _ = _read_part(header)
        try:
            # Address space only, until parts come.
            self._body = writable(total_bytes)
        except (OSError, OverflowError, MemoryError, ValueError):
            raise EnvelopeError(f"the parts of an outcome announce {total_bytes} bytes, more than fit") from None
        self._filled = 0

    def place(self, header: bytes, n_bytes: int) -> memoryview:
        """Where the next part belongs, whose header this is; it must be filled then.

        Raises
        ------
        EnvelopeError
            If it does not follow the part before.
        """
        total_bytes, offset = _read_part(header)
        stop = offset + n_bytes
        if total_bytes != len(self._body) or offset != self._filled or stop > total_bytes or not n_bytes:
            raise EnvelopeError(
                f"a part of an outcome, {offset} to {stop} of {total_bytes}, after {self._filled} bytes"
            )
        self._filled = stop
        return self._body[offset:stop]

    def close(self, header: bytes) -> tuple[bytes, memoryview]:
        """Header and body of the outcome whose body this is.

        Raises
        ------
        EnvelopeError
            If the header is not one of an outcome whose body went ahead, or parts are missing.
        """
        if header[:1] != _CLOSING_MARK or len(header) < _CLOSING.size:
            raise EnvelopeError("something else came in the middle of an outcome's parts")
        _, total_bytes = _CLOSING.unpack_from(header)
        if not total_bytes == len(self._body) == self._filled:
            raise EnvelopeError(f"an outcome of {total_bytes} bytes after {self._filled} of {len(self._body)}")
        return header[_CLOSING.size :], self._body


def _read_part(header: bytes) -> tuple[int, int]:
    if len(header) != _PART.size or not is_part(header):
        raise EnvelopeError(f"a header of {len(header)} bytes is not that of a part")
    _, total_bytes, offset = _PART.unpack(header)
    return total_bytes, offset
