"""The sealed message: clear prefix, sealed header, sealed body pieces.

What must not live here: key derivation and nonces (`seal`), what header and body mean (`jobheader`, `outcome`).

Rule 1: everything in the clear is authenticated. Prefix and context (function name and unique) are associated data of
every piece, so nothing moves between messages, jobs, functions, sessions or executions.
Rule 2: a message knows its length before it is sealed, and seals while it is sent.
Rule 3: a large body is sealed and opened piece by piece; neither side holds it twice.

Piece 0 is the header, pieces 1.. are the body in pieces of `PIECE_BYTES`. The last piece is marked in its nonce; if
the body is empty that is the header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from gearmap.errors import EnvelopeError, SealError
from gearmap.memory import writable
from gearmap.wire.framing import Buffer, Payload, flat_view, frame, unframe
from gearmap.wire.seal import ID_BYTES, MAX_SEQUENCE, TAG_BYTES, Sealer

__all__ = [
    "PIECE_BYTES",
    "PREFIX_BYTES",
    "WIRE_VERSION",
    "ZERO_ID",
    "Buffer",
    "Kind",
    "Payload",
    "Prefix",
    "SealedMessage",
    "frame",
    "make_context",
    "open_arriving",
    "open_body",
    "open_header",
    "open_message",
    "parse_prefix",
    "seal_message",
    "seal_now",
    "split_messages",
    "unframe",
]

MAGIC = b"GM"
WIRE_VERSION = 1
ZERO_ID = bytes(ID_BYTES)

# Raising it makes sealing hold the interpreter lock longer at a time (1 MiB is about 0.2 ms) and opening need more
# scratch memory; lowering it costs a call and a tag per piece.
PIECE_BYTES = 2**20

# Messages up to this size are one bytes object: one write instead of several. Raising it copies more.
_SMALL_BYTES = 2**16

_PREFIX = struct.Struct(">2sBB16s16sQQIQ")
PREFIX_BYTES = _PREFIX.size
_SEALED_PIECE_BYTES = PIECE_BYTES + TAG_BYTES

# Bodies are compacted to a multiple of this many bytes in memory. It cannot be larger than a tag: the first piece
# may only move into the room that its own tag leaves.
_BODY_ALIGNMENT = TAG_BYTES


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
        return _PREFIX.pack(MAGIC, WIRE_VERSION, *self)


class SealedMessage:
    """A message that is sealed while it is iterated over, once.

    `len()` is its exact size in bytes, known beforehand. Iterating gives the bytes to send, in order.
    """

    __slots__ = ("_associated", "_body", "_header", "_prefix", "_sealer")

    def __init__(self, sealer: Sealer, prefix: Prefix, context: bytes, header: bytes, body: Sequence[Buffer]) -> None:
        self._prefix = prefix
        self._associated = prefix.pack() + context
        self._sealer: Sealer | None = sealer
        self._header = header
        self._body = body

    def __len__(self) -> int:
        return self._prefix.total_bytes

    def __iter__(self) -> Iterator[bytes]:
        sealer, self._sealer = self._sealer, None
        if sealer is None:
            # A second round would seal other bytes under the same nonces if a buffer has changed meanwhile.
            raise RuntimeError("a sealed message can be iterated over once only")
        return self._seal(sealer)

    def to_bytes(self) -> bytes:
        """The whole message; counts as its one iteration."""
        return b"".join(self)

    def write_to(self, send: Callable[[Buffer], object]) -> None:
        """Hand the message to `send`, part by part; counts as its one iteration.

        `send` must be done with a part when it returns: the next one is made in the same memory, which is then still
        in the processor's cache, and which the system need not clear once more.
        """
        sealer, self._sealer = self._sealer, None
        if sealer is None:
            raise RuntimeError("a sealed message can be written once only")
        prefix, associated = self._prefix, self._associated
        body, self._body = self._body, ()
        send(self._start(sealer))
        n_pieces = -(-prefix.body_bytes // _SEALED_PIECE_BYTES)
        scratch = memoryview(bytearray(min(prefix.body_bytes, _SEALED_PIECE_BYTES)))
        for index, piece in enumerate(_pieces(body), 1):
            sealed = scratch[: len(piece) + TAG_BYTES]
            sealer.seal_into(
                piece, sealed, sequence=prefix.sequence, index=index, last=index == n_pieces, associated=associated
            )
            send(sealed)

    def _start(self, sealer: Sealer) -> bytes:
        """Prefix and sealed header."""
        prefix, associated = self._prefix, self._associated
        return associated[:PREFIX_BYTES] + sealer.seal(
            self._header, sequence=prefix.sequence, index=0, last=not prefix.body_bytes, associated=associated
        )

    def _seal(self, sealer: Sealer) -> Iterator[bytes]:
        prefix, associated = self._prefix, self._associated
        body, self._body = self._body, ()
        start = self._start(sealer)
        if not prefix.body_bytes:
            yield start
            return
        n_pieces = -(-prefix.body_bytes // _SEALED_PIECE_BYTES)
        for index, piece in enumerate(_pieces(body), 1):
            sealed = sealer.seal(
                piece, sequence=prefix.sequence, index=index, last=index == n_pieces, associated=associated
            )
            if index == 1:
                if n_pieces == 1 and prefix.total_bytes <= _SMALL_BYTES:
                    yield start + sealed
                    return
                yield start
            yield sealed


def make_context(function_name: bytes, unique: bytes) -> bytes:
    """What binds a message to its job: the Gearman function name and the attempt's unique."""
    return function_name + b"\0" + unique


def seal_message(
    *,
    kind: Kind,
    key: bytes | Sealer,
    session_id: bytes,
    execution_id: bytes = ZERO_ID,
    sequence: int = 0,
    expiry: int,
    context: bytes,
    header: bytes,
    body: Sequence[Buffer] = (),
) -> SealedMessage:
    """Prepare a message; it is sealed when it is iterated over.

    Parameters
    ----------
    kind
        Who writes it; the key must be that writer's.
    key
        32 bytes from `seal.job_key`, `seal.outcome_key` or `seal.node_key`, or the `Sealer` of them.
    session_id, execution_id
        16 bytes each.
    sequence
        Number of this message under `key`. The caller never uses one twice.
    expiry
        Unix time in seconds.
    context
        See `make_context`.
    header
        Plain header.
    body
        Contiguous buffers; they must not change until the message has been iterated over.

    Raises
    ------
    ValueError
        If an id, the sequence or the key is out of range.
    """
    _check(session_id, execution_id, sequence)
    plain_bytes = 0
    for buffer in body:
        plain_bytes += buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
    n_pieces = -(-plain_bytes // PIECE_BYTES)
    prefix = Prefix(
        kind=kind,
        session_id=session_id,
        execution_id=execution_id,
        sequence=sequence,
        expiry=expiry,
        header_bytes=len(header) + TAG_BYTES,
        body_bytes=plain_bytes + TAG_BYTES * n_pieces,
    )
    return SealedMessage(_sealer(key), prefix, context, header, body)


def seal_now(
    *,
    kind: Kind,
    key: bytes | Sealer,
    session_id: bytes,
    execution_id: bytes = ZERO_ID,
    sequence: int = 0,
    expiry: int,
    context: bytes,
    header: bytes,
    body: Sequence[Buffer] = (),
) -> bytes | SealedMessage:
    """Seal a small message at once, prepare a large one to be sealed while it is sent; see `seal_message`.

    Nearly every message is small. So this is `seal_message` again without the objects that a large one needs.
    """
    plain_bytes = 0
    for buffer in body:
        plain_bytes += buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
    sealer = _sealer(key)
    if plain_bytes > PIECE_BYTES or PREFIX_BYTES + len(header) + plain_bytes + 2 * TAG_BYTES > _SMALL_BYTES:
        return seal_message(
            kind=kind,
            key=sealer,
            session_id=session_id,
            execution_id=execution_id,
            sequence=sequence,
            expiry=expiry,
            context=context,
            header=header,
            body=body,
        )
    _check(session_id, execution_id, sequence)
    header_bytes, body_bytes = len(header) + TAG_BYTES, plain_bytes + TAG_BYTES if plain_bytes else 0
    prefix = _PREFIX.pack(
        MAGIC, WIRE_VERSION, kind, session_id, execution_id, sequence, expiry, header_bytes, body_bytes
    )
    associated = prefix + context
    start = prefix + sealer.seal(header, sequence=sequence, index=0, last=not plain_bytes, associated=associated)
    if not plain_bytes:
        return start
    return start + sealer.seal(b"".join(body), sequence=sequence, index=1, last=True, associated=associated)


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
    fields = _PREFIX.unpack_from(data)
    magic, version, kind, session_id, execution_id, sequence, expiry, header_bytes, body_bytes = fields
    if magic != MAGIC:
        raise EnvelopeError(f"not an envelope: it starts with {magic!r}")
    if version != WIRE_VERSION:
        raise EnvelopeError(f"an envelope of wire version {version}; this side reads version {WIRE_VERSION}")
    if kind not in _KINDS:
        raise EnvelopeError(f"an envelope of unknown kind {kind}")
    last_bytes = body_bytes % _SEALED_PIECE_BYTES
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


def open_message(data: Buffer, prefix: Prefix, key: bytes | Sealer, context: bytes) -> tuple[bytes, memoryview]:
    """Header and body of the message that `data` starts with; see `open_header` and `open_body`."""
    sealer = _sealer(key)
    sequence, body_bytes = prefix.sequence, prefix.body_bytes
    if not 0 < body_bytes <= _SEALED_PIECE_BYTES:
        header = open_header(data, prefix, sealer, context)
        return header, open_body(data, prefix, sealer, context) if body_bytes else memoryview(bytearray())
    # One piece, as nearly always: both with what is worked out once.
    associated = bytes(data[:PREFIX_BYTES]) + context
    start = PREFIX_BYTES + prefix.header_bytes
    view = flat_view(data)
    header = sealer.open(view[PREFIX_BYTES:start], sequence=sequence, index=0, last=False, associated=associated)
    sealed = view[start : start + body_bytes]
    if len(sealed) != body_bytes:
        raise SealError(f"an envelope does not open: {prefix.total_bytes} bytes expected, got {len(view)}")
    body = memoryview(bytearray(body_bytes - TAG_BYTES))
    sealer.open_into(sealed, body, sequence=sequence, index=1, last=True, associated=associated)
    return header, body


def open_arriving(
    start: Buffer, prefix: Prefix, key: bytes | Sealer, context: bytes, receive: Callable[[memoryview], object]
) -> tuple[bytes, memoryview]:
    """Header and body of a message that is still arriving; each piece is opened when it is here.

    Parameters
    ----------
    start
        What has come, and nothing beyond the message.
    receive
        Fills the buffer that it is given with the next bytes. It raises if they do not come.

    Raises
    ------
    SealError
        If any part of the message is not what was sealed with `key`; no part of the body is given out.
    """
    rest = _Arriving(start, receive)
    sealer, associated = _sealer(key), prefix.pack() + context
    rest.take(memoryview(bytearray(PREFIX_BYTES)))
    header_seal = memoryview(bytearray(prefix.header_bytes))
    rest.take(header_seal)
    n_pieces = -(-prefix.body_bytes // _SEALED_PIECE_BYTES)
    header = sealer.open(header_seal, sequence=prefix.sequence, index=0, last=not n_pieces, associated=associated)
    plain = writable(prefix.body_bytes - TAG_BYTES * n_pieces)
    scratch = memoryview(bytearray(min(prefix.body_bytes, _SEALED_PIECE_BYTES)))
    for index in range(n_pieces):
        into = plain[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
        sealed = scratch[: len(into) + TAG_BYTES]
        rest.take(sealed)
        last = index + 1 == n_pieces
        sealer.open_into(sealed, into, sequence=prefix.sequence, index=index + 1, last=last, associated=associated)
    return header, plain


class _Arriving:
    """Bytes of which the first are here."""

    def __init__(self, start: Buffer, receive: Callable[[memoryview], object]) -> None:
        self._here = flat_view(start)
        self._receive = receive

    def take(self, into: memoryview) -> None:
        """Fill `into` with the next bytes."""
        count = min(len(into), len(self._here))
        into[:count] = self._here[:count]
        self._here = self._here[count:]
        if count < len(into):
            self._receive(into[count:])


def open_header(data: Buffer, prefix: Prefix, key: bytes | Sealer, context: bytes) -> bytes:
    """The plain header of the message that `data` starts with; `data` is left as it is.

    Raises
    ------
    SealError
        If the header, the prefix or the context is not what was sealed with `key`.
    """
    return _sealer(key).open(
        flat_view(data)[PREFIX_BYTES : PREFIX_BYTES + prefix.header_bytes],
        sequence=prefix.sequence,
        index=0,
        last=not prefix.body_bytes,
        associated=bytes(data[:PREFIX_BYTES]) + context,
    )


def open_body(data: Buffer, prefix: Prefix, key: bytes | Sealer, context: bytes) -> memoryview:
    """The plain body of the message that `data` starts with, as a writable view.

    The header need not have been opened. A body of several pieces is opened inside `data` if that is writable, and
    the view then is a part of `data`; whether this succeeds or not, the sealed body is gone afterwards.

    Raises
    ------
    SealError
        If any part of the message is not what was sealed with `key`; no part of the body is given out.
    """
    if not prefix.body_bytes:
        open_header(data, prefix, key, context)  # there is nothing else that proves that the body is empty
        return memoryview(bytearray())
    view = flat_view(data)[: prefix.total_bytes]
    sealed = view[PREFIX_BYTES + prefix.header_bytes :]
    if len(sealed) != prefix.body_bytes:
        raise SealError(f"an envelope does not open: {prefix.total_bytes} bytes expected, got {len(view)}")
    associated = prefix.pack() + context
    sealer = _sealer(key)
    n_pieces = -(-prefix.body_bytes // _SEALED_PIECE_BYTES)
    plain_bytes = prefix.body_bytes - TAG_BYTES * n_pieces
    if n_pieces == 1:
        plain = memoryview(bytearray(plain_bytes))
        sealer.open_into(sealed, plain, sequence=prefix.sequence, index=1, last=True, associated=associated)
        return plain
    in_place = not view.readonly
    plain = _aligned(sealed)[:plain_bytes] if in_place else memoryview(bytearray(plain_bytes))
    scratch = memoryview(bytearray(PIECE_BYTES)) if in_place else None
    _open_pieces(sealed, plain, scratch, prefix, sealer, associated)
    return plain


def _open_pieces(
    sealed: memoryview,
    plain: memoryview,
    scratch: memoryview | None,
    prefix: Prefix,
    sealer: Sealer,
    associated: bytes,
) -> None:
    """Open all pieces of `sealed` into `plain`, by way of `scratch` if the two overlap."""
    n_pieces = -(-len(sealed) // _SEALED_PIECE_BYTES)
    for index in range(n_pieces):
        start = index * PIECE_BYTES
        into = plain[start : start + PIECE_BYTES]
        target = into if scratch is None else scratch[: len(into)]
        sealer.open_into(
            sealed[index * _SEALED_PIECE_BYTES : (index + 1) * _SEALED_PIECE_BYTES],
            target,
            sequence=prefix.sequence,
            index=index + 1,
            last=index + 1 == n_pieces,
            associated=associated,
        )
        if scratch is not None:
            into[:] = target


def _check(session_id: bytes, execution_id: bytes, sequence: int) -> None:
    if len(session_id) != ID_BYTES or len(execution_id) != ID_BYTES:
        raise ValueError(f"session_id and execution_id have {ID_BYTES} bytes each")
    if not 0 <= sequence <= MAX_SEQUENCE:
        raise ValueError(f"sequence must be between 0 and {MAX_SEQUENCE}, got {sequence}")


def _sealer(key: bytes | Sealer) -> Sealer:
    return key if isinstance(key, Sealer) else Sealer(key)


def _aligned(view: memoryview) -> memoryview:
    """`view` from its first byte on whose address is a multiple of `_BODY_ALIGNMENT`."""
    import ctypes  # only large bodies need it

    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    return view[-address % _BODY_ALIGNMENT :]


def _pieces(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """The concatenation of `buffers` in pieces of `PIECE_BYTES`; only pieces that span buffers are copied."""
    parts: list[Buffer] = []
    room = PIECE_BYTES
    for buffer in buffers:
        view = flat_view(buffer)
        while len(view) >= room:
            parts.append(view[:room])
            yield _joined(parts)
            view, parts, room = view[room:], [], PIECE_BYTES
        if view:
            parts.append(view)
            room -= len(view)
    if parts:
        yield _joined(parts)


def _joined(parts: list[Buffer]) -> Buffer:
    return parts[0] if len(parts) == 1 else b"".join(parts)
