"""Several payloads in one body, and back without copying.

What must not live here: pickling, sealing. This module sees lengths and bytes only.

Rule 1: `unframe` is total. Any bytes give payloads or `EnvelopeError`; no length is believed before it is checked.
Rule 2: nothing is copied. `frame` returns the caller's own buffers between small ones, `unframe` returns slices.

Layout, little endian: number of payloads u32, buffers in each payload u32, the length of every buffer u64, then the
buffers. The first buffer of a payload (a pickle stream) follows at once; the others (numbers that numpy and its like
read in place) start at a multiple of `ALIGNMENT`, counted from the start of the framed region.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import Union

from gearmap.errors import EnvelopeError

__all__ = ["ALIGNMENT", "Buffer", "Payload", "flat_view", "frame", "unframe"]

Buffer = Union[bytes, bytearray, memoryview]  # noqa: UP007 - evaluated at run time, `|` reads the same on 3.10
Payload = Sequence[Buffer]
"""The pickle stream first, its out-of-band buffers after it."""

# A cache line, and the widest vector load. Raising it wastes more padding per buffer; lowering it lets an array cross
# a cache line that it did not cross in the sender.
ALIGNMENT = 64

_U32_BYTES = 4
_U64_BYTES = 8
_PADDING = bytes(ALIGNMENT)
# The tables of one payload that is one buffer only, as nearly every outcome has it, and of three of them, as the job of
# one call has them.
_ONE_STREAM = struct.Struct("<IIQ")
_THREE_STREAMS = struct.Struct("<IIIIQQQ")


def flat_view(buffer: Buffer) -> memoryview:
    """The bytes of a contiguous buffer as a one-dimensional view of unsigned bytes."""
    view = memoryview(buffer)
    if view.format == "B" and view.ndim == 1:
        return view
    if view.nbytes == 0:  # `cast` refuses shapes with a zero in them
        return memoryview(b"")
    return view.cast("B")


def frame(payloads: Sequence[Payload]) -> list[Buffer]:
    """Lay out `payloads` behind a table of their lengths.

    Parameters
    ----------
    payloads
        Each a sequence of contiguous buffers; it may be empty.

    Returns
    -------
    list
        Buffers to be written one after another; the large ones are the caller's own, not copies.

    Examples
    --------
    >>> [[bytes(buffer) for buffer in payload] for payload in unframe(b"".join(frame([[b"ab"], [b"c", b"d"]])))]
    [[b'ab'], [b'c', b'd']]
    """
    if len(payloads) == 1 and len(payloads[0]) == 1:
        stream = payloads[0][0]
        return [_ONE_STREAM.pack(1, 1, _n_bytes(stream)), stream]
    counts = [len(payload) for payload in payloads]
    buffers = list(chain.from_iterable(payloads))
    lengths = [buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in buffers]
    table = struct.pack(f"<I{len(counts)}I{len(lengths)}Q", len(counts), *counts, *lengths)
    if len(buffers) == len(counts) == counts.count(1):
        return [table, *buffers]  # streams only: nothing is aligned
    framed: list[Buffer] = [table]
    position = len(table)
    for payload in payloads:
        for index, buffer in enumerate(payload):
            if index:
                gap = -position % ALIGNMENT
                if gap:
                    framed.append(_PADDING[:gap])
                    position += gap
            framed.append(buffer)
            position += _n_bytes(buffer)
    return framed


def unframe(data: Buffer) -> list[list[memoryview]]:
    """Slice what `frame` laid out; nothing is copied.

    Raises
    ------
    EnvelopeError
        If `data` is not exactly one framed region.
    """
    view = flat_view(data)
    n_bytes, start = len(view), _ONE_STREAM.size
    if n_bytes >= start and _ONE_STREAM.unpack_from(view) == (1, 1, n_bytes - start):
        return [[view[start:]]]
    start = _THREE_STREAMS.size
    if n_bytes >= start:
        n_payloads, one, two, three, first, second, third = _THREE_STREAMS.unpack_from(view)
        middle = start + first
        last = middle + second
        if (n_payloads, one, two, three, last + third) == (3, 1, 1, 1, n_bytes):
            return [[view[start:middle]], [view[middle:last]], [view[last:]]]
    counts, lengths, position = _read_table(view)
    if len(counts) == len(lengths) == counts.count(1) and position + sum(lengths) == len(view):
        ends = accumulate(lengths, initial=position)
        return [[view[low:high]] for low, high in pairwise(ends)]
    payloads: list[list[memoryview]] = []
    following = iter(lengths)
    for count in counts:
        payload: list[memoryview] = []
        for index in range(count):
            if index:
                position += -position % ALIGNMENT
            end = position + next(following)
            if end > len(view):
                raise EnvelopeError(f"a buffer ends at byte {end} of a body of {len(view)} bytes")
            payload.append(view[position:end])
            position = end
        payloads.append(payload)
    if position != len(view):
        raise EnvelopeError(f"{len(view) - position} bytes after the last buffer of a body")
    return payloads


def _read_table(view: memoryview) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Counts, lengths, and where the buffers start; the table is known to lie inside `view`."""
    if len(view) < _U32_BYTES:
        raise EnvelopeError(f"a body of {len(view)} bytes is too short for its table")
    (n_payloads,) = struct.unpack_from("<I", view)
    lengths_start = _U32_BYTES * (1 + n_payloads)
    if lengths_start > len(view):
        raise EnvelopeError(f"a body of {len(view)} bytes cannot hold {n_payloads} payloads")
    counts = struct.unpack_from(f"<{n_payloads}I", view, _U32_BYTES)
    n_buffers = sum(counts)
    table_bytes = lengths_start + _U64_BYTES * n_buffers
    if table_bytes > len(view):
        raise EnvelopeError(f"a body of {len(view)} bytes cannot hold {n_buffers} buffers")
    return counts, struct.unpack_from(f"<{n_buffers}Q", view, lengths_start), table_bytes


def _n_bytes(buffer: Buffer) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
