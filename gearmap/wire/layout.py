"""How a sealed message lies in memory: its clear prefix, and the sizes of what follows.

What must not live here: keys, sealing (`envelope`), opening (`opening`).

Rule 1: nothing that is read here may be trusted before a piece has been opened; it is only checked to be possible.

Piece 0 is the header, pieces 1.. are the body in pieces of `PIECE_BYTES`. The last piece is marked in its nonce; if
the body is empty that is the header.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import Buffer, flat_view
from gearmap.wire.seal import ID_BYTES, MAX_SEQUENCE, TAG_BYTES

__all__ = [
    "MAGIC",
    "PIECE_BYTES",
    "PREFIX",
    "PREFIX_BYTES",
    "SEALED_PIECE_BYTES",
    "WIRE_VERSION",
    "ZERO_ID",
    "Kind",
    "Prefix",
    "parse_prefix",
    "split_messages",
]

MAGIC = b"GM"
WIRE_VERSION = 1
ZERO_ID = bytes(ID_BYTES)

# Raising it makes sealing hold the interpreter lock longer at a time (1 MiB is about 0.2 ms) and opening need more
# scratch memory; lowering it costs a call and a tag per piece.
PIECE_BYTES = 2**20

PREFIX = struct.Struct(">2sBB16s16sQQIQ")
PREFIX_BYTES = PREFIX.size
SEALED_PIECE_BYTES = PIECE_BYTES + TAG_BYTES


class Kind(IntEnum):
    """Who wrote a message, and under which key."""

    JOB = 1  # the client, job key
    OUTCOME = 2  # the child, outcome key
    NODE = 3  # the node, node key


_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


class Prefix(NamedTuple):
    """What a message says in the clear. Nothing of it may be trusted before a piece has been opened.

    Attributes
    ----------
    kind
        Who wrote it.
    session_id, execution_id
        16 bytes each; the execution id of a job is `ZERO_ID`.
    sequence
        Number of the message under its key, from 0.
    expiry
        Unix time in seconds after which nobody may act on the message.
    header_bytes, body_bytes
        Sealed sizes.
    """

    kind: Kind
    session_id: bytes
    execution_id: bytes
    sequence: int
    expiry: int
    header_bytes: int
    body_bytes: int

    @property
    def total_bytes(self) -> int:
        """Size of the whole message."""
        return PREFIX_BYTES + self.header_bytes + self.body_bytes

    def pack(self) -> bytes:
        """The `PREFIX_BYTES` bytes that stand in front of the message."""
        return PREFIX.pack(MAGIC, WIRE_VERSION, *self)


def parse_prefix(data: Buffer, n_bytes: int | None = None) -> Prefix:
    """Read the clear prefix of the message that `data` starts with.

    Parameters
    ----------
    data
        The message, or its beginning.
    n_bytes
        How long `data` will be when all of it has come; by default it has.

    Raises
    ------
    EnvelopeError
        If `data` does not start with a whole message of this version.
    """
    if len(data) < PREFIX_BYTES:
        raise EnvelopeError(f"{len(data)} bytes are too few for an envelope")
    fields = PREFIX.unpack_from(data)
    magic, version, kind, session_id, execution_id, sequence, expiry, header_bytes, body_bytes = fields
    if magic != MAGIC:
        raise EnvelopeError(f"not an envelope: it starts with {magic!r}")
    if version != WIRE_VERSION:
        raise EnvelopeError(f"an envelope of wire version {version}; this side reads version {WIRE_VERSION}")
    if kind not in _KINDS:
        raise EnvelopeError(f"an envelope of unknown kind {kind}")
    last_bytes = body_bytes % SEALED_PIECE_BYTES
    if sequence > MAX_SEQUENCE or header_bytes < TAG_BYTES or 0 < last_bytes <= TAG_BYTES:
        raise EnvelopeError(f"impossible envelope: sequence {sequence}, lengths {header_bytes} and {body_bytes}")
    total_bytes = PREFIX_BYTES + header_bytes + body_bytes
    if total_bytes > (len(data) if n_bytes is None else n_bytes):
        raise EnvelopeError(f"an envelope of {total_bytes} bytes was cut off after {n_bytes or len(data)}")
    return Prefix(_KINDS[kind], session_id, execution_id, sequence, expiry, header_bytes, body_bytes)


def split_messages(data: Buffer) -> list[memoryview]:
    """Cut `data` into the messages that it consists of, at least one; nothing is opened or copied.

    Raises
    ------
    EnvelopeError
        If `data` is not a row of whole messages.
    """
    rest = flat_view(data)
    messages = []
    while True:
        total_bytes = parse_prefix(rest).total_bytes
        messages.append(rest[:total_bytes])
        rest = rest[total_bytes:]
        if not rest:
            return messages
