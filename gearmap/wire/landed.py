"""A payload some of whose buffers come another way: which ones, and under which names.

What must not live here: the other way (`runtime.landing`).

Law of the file: reading is total; bytes give names or `EnvelopeError`. Only what a name in an opened message means is
mapped, and the length is told with it.

Layout: the table comes first, then the buffers that are there, in their order. A pickle stream of protocol 2 and later
begins with 0x80, so a table cannot be mistaken for one.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import Buffer, Payload

__all__ = ["LANDED_MARK", "NAME_BYTES", "Landed", "read_landed", "with_landed"]

NAME_BYTES = 16

LANDED_MARK = b"L"
_ROW = struct.Struct("<IQ16s")  # which buffer of the payload, how long it is, its name


@dataclass(frozen=True, slots=True)
class Landed:
    """A buffer that came another way."""

    name: bytes
    n_bytes: int


def with_landed(payload: Payload, landed: Mapping[int, Landed]) -> list[Buffer]:
    """Return what travels of a payload whose buffers at these places, at least one, do not.

    >>> payload = with_landed([b"stream", b"large", b"small"], {1: Landed(b"0123456789abcdef", 5)})
    >>> payload[1:], read_landed(payload)
    ([b'stream', b'small'], {1: Landed(name=b'0123456789abcdef', n_bytes=5)})
    """
    rows = [_ROW.pack(at, each.n_bytes, each.name) for at, each in sorted(landed.items())]
    return [LANDED_MARK + b"".join(rows), *(buffer for at, buffer in enumerate(payload) if at not in landed)]


def read_landed(payload: Payload) -> dict[int, Landed] | None:
    """Return which buffers come another way, by their places in ascending order; None if all are here.

    Raises
    ------
    EnvelopeError
        If the payload says that some do, and not which.
    """
    if not payload or bytes(payload[0][:1]) != LANDED_MARK:
        return None
    table = memoryview(payload[0])[1:]
    if not len(table) or len(table) % _ROW.size:
        raise EnvelopeError(f"a table of {len(table)} bytes does not name buffers")
    rows = list(_ROW.iter_unpack(table))
    places = [at for at, _, _ in rows]
    n_buffers = len(payload) - 1 + len(rows)
    if places != sorted(set(places)) or places[-1] >= n_buffers or not all(n_bytes for _, n_bytes, _ in rows):
        raise EnvelopeError(f"buffers {places} of a payload of {n_buffers} cannot come another way")
    return {at: Landed(name, n_bytes) for at, n_bytes, name in rows}
