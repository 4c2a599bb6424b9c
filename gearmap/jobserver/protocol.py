"""Gearman packets: constants, building them, and cutting a byte stream into packets and text lines.

What lives here: the wire format as the server sees it. What must not: sockets, clocks, any meaning of a packet.

Rule 1: `PacketReader` raises `ProtocolError` and nothing else, whatever the bytes; any split gives the same packets.
Rule 2: a length that a header announces is never allocated ahead: memory follows the bytes that came.
Rule 3: a large body lies in a bytearray of its own and goes on as memoryviews of it, never as copies.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from gearmap.errors import ProtocolError

Data: TypeAlias = "bytes | memoryview"

CAN_DO: Final = 1
CANT_DO: Final = 2
RESET_ABILITIES: Final = 3
PRE_SLEEP: Final = 4
NOOP: Final = 6
SUBMIT_JOB: Final = 7
JOB_CREATED: Final = 8
GRAB_JOB: Final = 9
NO_JOB: Final = 10
JOB_ASSIGN: Final = 11
WORK_STATUS: Final = 12
WORK_COMPLETE: Final = 13
WORK_FAIL: Final = 14
GET_STATUS: Final = 15
ECHO_REQ: Final = 16
ECHO_RES: Final = 17
SUBMIT_JOB_BG: Final = 18
ERROR: Final = 19
STATUS_RES: Final = 20
SUBMIT_JOB_HIGH: Final = 21
SET_CLIENT_ID: Final = 22
CAN_DO_TIMEOUT: Final = 23
ALL_YOURS: Final = 24
WORK_EXCEPTION: Final = 25
OPTION_REQ: Final = 26
OPTION_RES: Final = 27
WORK_DATA: Final = 28
WORK_WARNING: Final = 29
GRAB_JOB_UNIQ: Final = 30
JOB_ASSIGN_UNIQ: Final = 31
SUBMIT_JOB_HIGH_BG: Final = 32
SUBMIT_JOB_LOW: Final = 33
SUBMIT_JOB_LOW_BG: Final = 34
GRAB_JOB_ALL: Final = 39
JOB_ASSIGN_ALL: Final = 40
GET_STATUS_UNIQUE: Final = 41
STATUS_RES_UNIQUE: Final = 42

HIGHEST_COMMAND: Final = 42

# Stand where a packet has its command number: a line of the admin protocol, and a packet with the magic of responses.
TEXT_LINE: Final = -1
RESPONSE_MAGIC: Final = -2

HEADER_BYTES: Final = 12
REQUEST_MAGIC: Final = b"\0REQ"
REPLY_MAGIC: Final = b"\0RES"

# Raising it lets one packet take more memory; lowering it refuses larger arguments and results. gearmand: 4 GiB.
MAX_BODY_BYTES: Final = 2**31 - 1
# As gearmand: its receive buffer ends a line that is longer.
MAX_LINE_BYTES: Final = 8191
# From here on a body gets a bytearray of its own. Lower: more objects per packet; higher: more copying.
LARGE_BODY_BYTES: Final = 65536
# A large body grows by this much. Larger: fewer reallocations; smaller: less memory ahead of the bytes that came.
GROWTH_BYTES: Final = 1 << 20

_HEADER = Struct(">4sII")
_ZEROS = memoryview(bytes(GROWTH_BYTES))


class Packet(NamedTuple):
    """One packet, or one text line without its line end.

    Attributes
    ----------
    command
        Gearman's command number, `TEXT_LINE` or `RESPONSE_MAGIC`.
    body
        What follows the header. A large one is a bytearray that nobody writes any more.
    """

    command: int
    body: bytes | bytearray


class PacketReader:
    """Cut what one connection sends into packets.

    Small reads go in through `feed`. While a large body is under way `vacancy` is the part of its own buffer that the
    next bytes belong to, and `filled` tells how many came. `next_packet` gives the packets that are complete.

    Raises
    ------
    ProtocolError
        From `next_packet`, if the bytes are neither a request packet nor a line; the stream is then lost.
    """

    __slots__ = ("_body", "_body_command", "_body_filled", "_body_size", "_buffer", "_max_body_bytes", "_pos")

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_body_bytes = max_body_bytes
        self._buffer: bytes | bytearray = b""
        self._pos = 0
        self._body: bytearray | None = None
        self._body_command = 0
        self._body_size = 0
        self._body_filled = 0

    @property
    def is_partial(self) -> bool:
        """Whether a packet has begun and not ended (after `next_packet` returned None)."""
        return self._body is not None or self._pos < len(self._buffer)

    @property
    def is_in_large_body(self) -> bool:
        """Whether the packet under way is one with a buffer of its own."""
        return self._body is not None

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
        if body is None or self._body_filled == self._body_size:
            return None
        if self._body_filled == len(body):
            # Here and not in `filled`: the event loop holds the last view while it tells how much came.
            missing = self._body_size - self._body_filled
            body += _ZEROS[: min(missing, GROWTH_BYTES)]
        return memoryview(body)[self._body_filled :]

    def filled(self, n_bytes: int) -> None:
        """Note that `n_bytes` were written to the front of the last `vacancy`."""
        self._body_filled += n_bytes

    def next_packet(self) -> Packet | None:
        """Return the next complete packet or line, or None if more bytes are needed."""
        if self._body is not None:
            return self._finish_large_body()
        buffer, pos = self._buffer, self._pos
        available = len(buffer) - pos
        if available == 0:
            return None
        if buffer[pos] != 0:
            return self._next_line()
        if available < HEADER_BYTES:
            return None
        magic, command, size = _HEADER.unpack_from(buffer, pos)
        if magic != REQUEST_MAGIC:
            if magic != REPLY_MAGIC:
                raise ProtocolError(f"a packet begins with {magic!r}")
            command = RESPONSE_MAGIC
        elif command > HIGHEST_COMMAND:
            raise ProtocolError(f"unknown command number {command}")
        if size > self._max_body_bytes:
            raise ProtocolError(f"a packet of {size} bytes; at most {self._max_body_bytes} are accepted")
        begin = pos + HEADER_BYTES
        end = begin + size
        if end <= len(buffer):
            self._pos = end
            return Packet(command, bytes(buffer[begin:end]))
        if size >= LARGE_BODY_BYTES:
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
        self._body = bytearray(memoryview(self._buffer)[begin:])
        self._body_command, self._body_size, self._body_filled = command, size, len(self._body)
        self._buffer, self._pos = b"", 0

    def _finish_large_body(self) -> Packet | None:
        body = self._body
        if body is None or self._body_filled < self._body_size:
            return None
        self._body = None
        return Packet(self._body_command, body)


def split_args(body: bytes | bytearray, n_args: int) -> list[bytes] | None:
    """Split a body into `n_args` NUL-terminated arguments and nothing else.

    Returns None if there are fewer. The last argument has no NUL and may contain some; it is `bytes` and therefore a
    copy, so this is for bodies whose last argument is small. For data see `split_data`.
    """
    args = bytes(body).split(b"\0", n_args - 1)
    return args if len(args) == n_args else None


def split_data(body: bytes | bytearray, n_args: int) -> tuple[list[bytes], Data] | None:
    """Split a body into `n_args` arguments and the data behind them; None if an argument lacks its NUL.

    The data of a large body is a view of it, not a copy.
    """
    if isinstance(body, bytes):
        parts = body.split(b"\0", n_args)
        if len(parts) <= n_args:
            return None
        data = parts.pop()
        return parts, data
    args = []
    begin = 0
    for _ in range(n_args):
        end = body.find(b"\0", begin)
        if end < 0:
            return None
        args.append(bytes(body[begin:end]))
        begin = end + 1
    return args, memoryview(body)[begin:]


def reply(command: int, body: bytes = b"") -> bytes:
    """Return a response packet."""
    return _HEADER.pack(REPLY_MAGIC, command, len(body)) + body


def reply_head(command: int, args: bytes, data_bytes: int) -> bytes:
    """Return the beginning of a response packet whose data of `data_bytes` bytes follows."""
    return _HEADER.pack(REPLY_MAGIC, command, len(args) + data_bytes) + args


def error_reply(code: bytes, text: bytes) -> bytes:
    """Return an ERROR packet."""
    return reply(ERROR, code + b"\0" + text)


def leading_int(text: bytes) -> int:
    """Return the number that a text begins with, 0 if none, as C's `atoi`.

    >>> leading_int(b"12 of 20"), leading_int(b"0.5"), leading_int(b"many")
    (12, 0, 0)
    """
    # Longer numbers than this mean nothing to the protocol, and Python would refuse very long ones.
    match = re.match(rb"\s*([-+]?[0-9]{1,19})", text)
    return int(match[1]) if match else 0
