"""The sealed message: clear prefix, sealed header, sealed body pieces.

What must not live here: key derivation and nonces (`seal`), where what stands (`layout`), opening (`opening`; its names
are here too), what header and body mean (`jobheader`, `outcome`).

Rule 1: everything in the clear is authenticated. Prefix and context (function name and unique) are associated data of
every piece, so nothing moves between messages, jobs, functions, sessions or executions.
Rule 2: a message knows its length before it is sealed, and seals while it is sent.
Rule 3: a large body is sealed and opened piece by piece; neither side holds it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gearmap.wire.framing import Buffer, Payload, flat_view, frame, unframe
from gearmap.wire.layout import (
    MAGIC,
    PIECE_BYTES,
    PREFIX,
    PREFIX_BYTES,
    SEALED_PIECE_BYTES,
    WIRE_VERSION,
    ZERO_ID,
    Kind,
    Prefix,
    parse_prefix,
    split_messages,
)
from gearmap.wire.opening import open_arriving, open_body, open_body_into, open_header, open_message
from gearmap.wire.seal import ID_BYTES, MAX_SEQUENCE, TAG_BYTES, Sealer

__all__ = [
    "PIECE_BYTES",
    "PREFIX_BYTES",
    "SEALED_PIECE_BYTES",
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
    "open_body_into",
    "open_header",
    "open_message",
    "parse_prefix",
    "pieces_of",
    "seal_message",
    "seal_now",
    "split_messages",
    "unframe",
]

# Messages up to this size are one bytes object: one write instead of several. Raising it copies more.
_SMALL_BYTES = 2**16


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

    def write_to(self, send: Callable[[Buffer], object], scratch: memoryview | None = None) -> None:
        """Hand the message to `send`, part by part; counts as its one iteration.

        `send` must be done with a part when it returns: the next one is made in the same memory, which is then still
        in the processor's cache, and which the system need not clear once more.

        Parameters
        ----------
        scratch
            That memory, `SEALED_PIECE_BYTES` of it, for whoever writes many messages; by default it is made.
        """
        sealer, self._sealer = self._sealer, None
        if sealer is None:
            raise RuntimeError("a sealed message can be written once only")
        prefix, associated = self._prefix, self._associated
        body, self._body = self._body, ()
        send(self._start(sealer))
        n_pieces = -(-prefix.body_bytes // SEALED_PIECE_BYTES)
        if scratch is None:
            scratch = memoryview(bytearray(min(prefix.body_bytes, SEALED_PIECE_BYTES)))
        for index, piece in enumerate(pieces_of(body), 1):
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
        n_pieces = -(-prefix.body_bytes // SEALED_PIECE_BYTES)
        for index, piece in enumerate(pieces_of(body), 1):
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
    prefix = PREFIX.pack(
        MAGIC, WIRE_VERSION, kind, session_id, execution_id, sequence, expiry, header_bytes, body_bytes
    )
    associated = prefix + context
    start = prefix + sealer.seal(header, sequence=sequence, index=0, last=not plain_bytes, associated=associated)
    if not plain_bytes:
        return start
    return start + sealer.seal(b"".join(body), sequence=sequence, index=1, last=True, associated=associated)


def _check(session_id: bytes, execution_id: bytes, sequence: int) -> None:
    if len(session_id) != ID_BYTES or len(execution_id) != ID_BYTES:
        raise ValueError(f"session_id and execution_id have {ID_BYTES} bytes each")
    if not 0 <= sequence <= MAX_SEQUENCE:
        raise ValueError(f"sequence must be between 0 and {MAX_SEQUENCE}, got {sequence}")


def _sealer(key: bytes | Sealer) -> Sealer:
    return key if isinstance(key, Sealer) else Sealer(key)


def pieces_of(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
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
