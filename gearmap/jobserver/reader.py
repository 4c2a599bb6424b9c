"""Cutting what one connection sends into packets and text lines.

What lives here: where a packet ends. What must not: sockets, clocks, any meaning of a packet.

Rule 1: `PacketReader` raises `ProtocolError` and nothing else, whatever the bytes; any split gives the same packets.
Rule 2: a length that a header announces is never allocated ahead: memory follows the bytes that came.
Rule 3: a large body is received where it stays, in blocks of its own.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gearmap.errors import ProtocolError
from gearmap.jobserver.blocks import BLOCK_BYTES, BlockPool, LargeData
from gearmap.jobserver.protocol import (
    HEADER,
    HEADER_BYTES,
    HIGHEST_COMMAND,
    MAX_ARGS_BYTES,
    REPLY_MAGIC,
    REQUEST_MAGIC,
    RESPONSE_MAGIC,
    TEXT_LINE,
    WITH_DATA,
    Data,
)

__all__ = ["LARGE_BODY_BYTES", "MAX_BODY_BYTES", "MAX_LINE_BYTES", "Packet", "PacketReader"]

# Raising it lets one packet take more memory; lowering it refuses larger arguments and results. gearmand: 4 GiB.
MAX_BODY_BYTES: Final = 2**31 - 1
# As gearmand: its receive buffer ends a line that is longer.
MAX_LINE_BYTES: Final = 8191
# From here on a body gets memory of its own: exactly its size below a block, else blocks of a pool. Lower: more objects
# per packet; higher: more copying.
LARGE_BODY_BYTES: Final = 65536
# A large body gets its memory, or its first block, when one byte in so many has come. Larger: who announces and does
# not send takes more memory; smaller: more copying. An honest sender's first read is a sixteenth of a block.
MEMORY_AHEAD: Final = 32


class Packet(NamedTuple):
    """One packet, or one text line without its line end.

    Attributes
    ----------
    command
        Gearman's command number, `TEXT_LINE` or `RESPONSE_MAGIC`.
    body
        What follows the header.
    """

    command: int
    body: Data


class _LargeBody:
    """A large body that is on its way."""

    __slots__ = ("_blocks", "_filled", "_pool", "command", "n_missing", "size")

    def __init__(self, command: int, size: int, pool: BlockPool) -> None:
        self.command = command
        self.size = size
        self.n_missing = size
        self._pool = pool
        self._blocks: list[memoryview] = []
        # Of the last block.
        self._filled = 0

    def vacancy(self) -> memoryview:
        """Return where the next bytes go; something is missing."""
        if self.size <= BLOCK_BYTES:
            if not self._blocks:
                self._blocks = [memoryview(bytearray(self.size))]
        elif not self._blocks or self._filled == BLOCK_BYTES:
            self._blocks.append(self._pool.take())
            self._filled = 0
        return self._blocks[-1][self._filled : self._filled + self.n_missing]

    def filled(self, n_bytes: int) -> None:
        """Note that `n_bytes` were written to the front of the last vacancy."""
        self._filled += n_bytes
        self.n_missing -= n_bytes

    def finish(self) -> LargeData:
        """Return the body, of which nothing is missing."""
        if self.size <= BLOCK_BYTES:
            return LargeData(self._blocks)
        return LargeData.in_blocks(self._pool, self._blocks, self.size)

    @property
    def held_bytes(self) -> int:
        """The memory that it has."""
        return self.size if self.size <= BLOCK_BYTES else len(self._blocks) * BLOCK_BYTES

    def drop(self) -> None:
        """Give the memory back; the rest will not come."""
        if self.size > BLOCK_BYTES:
            self._pool.give_back(self._blocks)
        self._blocks = []


class PacketReader:
    """Cut what one connection sends into packets.

    Small reads go in through `feed`. While a large body is under way `vacancy` is the part of its memory that the next
    bytes belong to, and `filled` tells how many came. `next_packet` gives the packets that are complete.

    Raises
    ------
    ProtocolError
        From `next_packet`, if the bytes are neither a request packet nor a line; the stream is then lost.
    """

    __slots__ = ("_body", "_buffer", "_max_body_bytes", "_pool", "_pos")

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES, pool: BlockPool | None = None) -> None:
        self._max_body_bytes = max_body_bytes
        self._pool = pool or BlockPool()
        self._buffer: bytes | bytearray = b""
        self._pos = 0
        self._body: _LargeBody | None = None

    @property
    def is_partial(self) -> bool:
        """Whether a packet has begun and not ended (after `next_packet` returned None)."""
        return self._pos < len(self._buffer) or self._body is not None

    @property
    def is_in_large_body(self) -> bool:
        """Whether the packet under way is one with memory of its own."""
        return self._body is not None

    @property
    def held_bytes(self) -> int:
        """The memory of what has come and was not given out."""
        return len(self._buffer) - self._pos + (self._body.held_bytes if self._body is not None else 0)

    @property
    def came_bytes(self) -> int:
        """How much has come of the packet under way."""
        return len(self._buffer) - self._pos + (self._body.size - self._body.n_missing if self._body is not None else 0)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream; not while `vacancy` is there."""
        if self._pos == len(self._buffer):
            self._buffer = data
        elif isinstance(self._buffer, bytearray):
            del self._buffer[: self._pos]
            self._buffer += data
        else:
            # A bytearray, because a packet that comes byte by byte must not be copied once per byte.
            self._buffer = bytearray(self._buffer[self._pos :])
            self._buffer += data
        self._pos = 0

    def vacancy(self) -> memoryview | None:
        """Return where the next bytes of a large body go, or None if none is under way."""
        body = self._body
        return body.vacancy() if body is not None and body.n_missing else None

    def filled(self, n_bytes: int) -> None:
        """Note that `n_bytes` were written to the front of the last `vacancy`."""
        assert self._body is not None
        self._body.filled(n_bytes)

    def drop(self) -> None:
        """Forget what came of the packet under way."""
        if self._body is not None:
            self._body.drop()
            self._body = None
        self._buffer, self._pos = b"", 0

    def next_packet(self) -> Packet | None:
        """Return the next complete packet or line, or None if more bytes are needed."""
        if self._body is not None:
            return self._finish_large_body(self._body)
        buffer, pos = self._buffer, self._pos
        available = len(buffer) - pos
        if available == 0:
            # Not kept: a connection that waits for its next packet needs no buffer.
            self._buffer, self._pos = b"", 0
            return None
        if buffer[pos] != 0:
            return self._next_line()
        if available < HEADER_BYTES:
            return None
        magic, command, size = HEADER.unpack_from(buffer, pos)
        if magic != REQUEST_MAGIC:
            if magic != REPLY_MAGIC:
                raise ProtocolError(f"a packet begins with {magic!r}")
            command = RESPONSE_MAGIC
        elif command > HIGHEST_COMMAND:
            raise ProtocolError(f"unknown command number {command}")
        most = self._max_body_bytes if command in WITH_DATA else MAX_ARGS_BYTES
        if size > most:
            raise ProtocolError(f"command {command} of {size} bytes; at most {most} are accepted")
        begin = pos + HEADER_BYTES
        end = begin + size
        if end <= len(buffer):
            self._pos = end
            return Packet(command, bytes(buffer[begin:end]))
        if size >= LARGE_BODY_BYTES and (available - HEADER_BYTES) * MEMORY_AHEAD >= min(size, BLOCK_BYTES):
            self._begin_large_body(command, size, begin)
        return None

    def _next_line(self) -> Packet | None:
        end = self._buffer.find(b"\n", self._pos, self._pos + MAX_LINE_BYTES)
        if end < 0:
            if len(self._buffer) - self._pos >= MAX_LINE_BYTES:
                raise ProtocolError(f"a text line of more than {MAX_LINE_BYTES} bytes")
            return None
        line = bytes(self._buffer[self._pos : end])
        self._pos = end + 1
        return Packet(TEXT_LINE, line[:-1] if line.endswith(b"\r") else line)

    def _begin_large_body(self, command: int, size: int, begin: int) -> None:
        body = self._body = _LargeBody(command, size, self._pool)
        came = memoryview(self._buffer)[begin:]
        while came:
            vacancy = body.vacancy()
            n_bytes = min(len(vacancy), len(came))
            vacancy[:n_bytes] = came[:n_bytes]
            body.filled(n_bytes)
            came = came[n_bytes:]
        self._buffer, self._pos = b"", 0

    def _finish_large_body(self, body: _LargeBody) -> Packet | None:
        if body.n_missing:
            return None
        self._body = None
        return Packet(body.command, body.finish())
