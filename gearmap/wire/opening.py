"""Opening sealed messages: the header alone, what is all here, and what is still arriving.

What must not live here: what header and body mean (`jobheader`, `outcome`), and sealing (`envelope`).

Rule 1: what does not open raises `SealError`, and no part of it is given out.
Rule 2: a large body is opened piece by piece; it is not held twice.
"""

from __future__ import annotations

from collections.abc import Callable

from gearmap.errors import SealError
from gearmap.memory import writable
from gearmap.wire.framing import Buffer, flat_view
from gearmap.wire.layout import PIECE_BYTES, PREFIX_BYTES, SEALED_PIECE_BYTES, Prefix
from gearmap.wire.seal import TAG_BYTES, Sealer

__all__ = ["open_arriving", "open_body", "open_body_into", "open_header", "open_message"]

# Bodies are compacted to a multiple of this many bytes in memory. It cannot be larger than a tag: the first piece
# may only move into the room that its own tag leaves.
_BODY_ALIGNMENT = TAG_BYTES


def open_message(data: Buffer, prefix: Prefix, key: bytes | Sealer, context: bytes) -> tuple[bytes, memoryview]:
    """Header and body of the message that `data` starts with; see `open_header` and `open_body`."""
    sealer = _sealer(key)
    sequence, body_bytes = prefix.sequence, prefix.body_bytes
    if not 0 < body_bytes <= SEALED_PIECE_BYTES:
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
    n_pieces = -(-prefix.body_bytes // SEALED_PIECE_BYTES)
    header = sealer.open(header_seal, sequence=prefix.sequence, index=0, last=not n_pieces, associated=associated)
    plain = writable(prefix.body_bytes - TAG_BYTES * n_pieces)
    scratch = memoryview(bytearray(min(prefix.body_bytes, SEALED_PIECE_BYTES)))
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
    n_pieces = -(-prefix.body_bytes // SEALED_PIECE_BYTES)
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


def open_body_into(
    data: Buffer, prefix: Prefix, key: bytes | Sealer, context: bytes, place: Callable[[int], memoryview]
) -> None:
    """Open the body of the message that `data` starts with where it is to be.

    Parameters
    ----------
    place
        Is told how many bytes the body has, and returns memory of that size which does not overlap `data`.

    Raises
    ------
    SealError
        If any part of it is not what was sealed with `key`; what `place` has returned has any content then.
    """
    view = flat_view(data)[: prefix.total_bytes]
    sealed = view[PREFIX_BYTES + prefix.header_bytes :]
    if len(sealed) != prefix.body_bytes:
        raise SealError(f"an envelope does not open: {prefix.total_bytes} bytes expected, got {len(view)}")
    n_pieces = -(-prefix.body_bytes // SEALED_PIECE_BYTES)
    into = place(prefix.body_bytes - TAG_BYTES * n_pieces)
    _open_pieces(sealed, into, None, prefix, _sealer(key), bytes(data[:PREFIX_BYTES]) + context)


def _open_pieces(
    sealed: memoryview,
    plain: memoryview,
    scratch: memoryview | None,
    prefix: Prefix,
    sealer: Sealer,
    associated: bytes,
) -> None:
    """Open all pieces of `sealed` into `plain`, by way of `scratch` if the two overlap."""
    n_pieces = -(-len(sealed) // SEALED_PIECE_BYTES)
    for index in range(n_pieces):
        start = index * PIECE_BYTES
        into = plain[start : start + PIECE_BYTES]
        target = into if scratch is None else scratch[: len(into)]
        sealer.open_into(
            sealed[index * SEALED_PIECE_BYTES : (index + 1) * SEALED_PIECE_BYTES],
            target,
            sequence=prefix.sequence,
            index=index + 1,
            last=index + 1 == n_pieces,
            associated=associated,
        )
        if scratch is not None:
            into[:] = target


def _sealer(key: bytes | Sealer) -> Sealer:
    return key if isinstance(key, Sealer) else Sealer(key)


def _aligned(view: memoryview) -> memoryview:
    """`view` from its first byte on whose address is a multiple of `_BODY_ALIGNMENT`."""
    import ctypes  # only large bodies need it

    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    return view[-address % _BODY_ALIGNMENT :]
