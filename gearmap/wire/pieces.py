"""Results of short tasks: pickled one by one by the child, sealed together by the node that tells of them.

What must not live here: where they lie meanwhile (`runtime.slate`), and pickling.

Law of the file: what a child has left may be anything, so encoding never fails; what comes from a node is believed only
as far as it fits together.

The header is a mark, which no other outcome starts with, the first position and the end; the worker's name follows. The
body is `frame([rows, pickle stream, pickle stream, ...])`. Each row tells of one stream how many tasks it holds the
results of, and how many seconds they took.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import Buffer, frame, unframe

__all__ = ["MOST_POSITION", "Piece", "Pieces", "are_pieces", "decode_pieces", "encode_pieces", "joined_pieces"]

MOST_POSITION = 2**32 - 1
"""No piece begins behind this, nor holds the results of more tasks."""

_MARK = b"\2"
_HEADER = struct.Struct("<cQQ")
_ROW = struct.Struct("<Id")


class Piece(NamedTuple):
    """Results of neighbouring tasks that were pickled together: nearly always of one."""

    first: int
    n_tasks: int
    seconds: float
    stream: bytes | memoryview


class Pieces(NamedTuple):
    """Those of one worker that follow each other."""

    worker: str
    pieces: list[Piece]


def joined_pieces(taken: Iterable[bytes | Piece]) -> list[bytes | list[Piece]]:
    """Make one list of pieces that follow each other, each at the task at which the one before it ends.

    >>> joined_pieces([Piece(0, 2, 0.1, b""), Piece(2, 1, 0.1, b""), b"sealed"]) == [
    ...     [Piece(0, 2, 0.1, b""), Piece(2, 1, 0.1, b"")], b"sealed"]
    True
    """
    joined: list[bytes | list[Piece]] = []
    stop = -1
    for each in taken:
        last = joined[-1] if joined else b""
        if not isinstance(each, Piece):
            joined.append(each)
            continue
        if isinstance(last, list) and each.first == stop:
            last.append(each)
        else:
            joined.append([each])
        stop = each.first + each.n_tasks
    return joined


def encode_pieces(pieces: Sequence[Piece], *, worker: str) -> tuple[bytes, list[Buffer]]:
    """Header and body that tell of pieces, at least one, that follow each other."""
    last = pieces[-1]
    header = _HEADER.pack(_MARK, pieces[0].first, last.first + last.n_tasks) + worker.encode("utf-8")
    rows = b"".join([_ROW.pack(piece.n_tasks, piece.seconds) for piece in pieces])
    return header, frame([(rows,), *((piece.stream,) for piece in pieces)])


def are_pieces(header: Buffer) -> bool:
    """Whether a header is one of pieces."""
    return header[:1] == _MARK


def decode_pieces(header: Buffer, body: Buffer) -> Pieces:
    """Read what `encode_pieces` made.

    Raises
    ------
    EnvelopeError
        If it claims to be that and is not.
    """
    if len(header) < _HEADER.size:
        raise EnvelopeError(f"a header of {len(header)} bytes is too short for pieces")
    _, first, stop = _HEADER.unpack_from(header)
    payloads = unframe(body)
    if len(payloads) < 2 or any(len(payload) != 1 for payload in payloads):
        raise EnvelopeError(f"{len(payloads)} payloads for the results of several tasks")
    (rows,), *streams = payloads
    if len(rows) != _ROW.size * len(streams):
        raise EnvelopeError(f"{len(rows)} bytes say how many tasks {len(streams)} pieces are of")
    pieces: list[Piece] = []
    position = first
    for (n_tasks, seconds), (stream,) in zip(_ROW.iter_unpack(rows), streams, strict=True):
        if not n_tasks or not 0 <= seconds < math.inf:
            raise EnvelopeError(f"impossible results: {n_tasks} tasks in {seconds} s")
        pieces.append(Piece(position, n_tasks, seconds, stream))
        position += n_tasks
    if position != stop or first > MOST_POSITION:
        raise EnvelopeError(f"results from {first} to {stop} that hold those of {position - first} tasks")
    try:
        return Pieces(str(header[_HEADER.size :], "utf-8"), pieces)
    except UnicodeDecodeError as error:
        raise EnvelopeError(f"a worker's name is not UTF-8: {error}") from None
