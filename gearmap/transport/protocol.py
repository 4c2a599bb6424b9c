"""The Gearman packet format: the table of commands, packing, and a reader that never reads a byte twice.

Law of the file: pure. Bytes come in through `PacketReader.fill`, which is handed a function that writes into a
buffer; nothing here knows a socket or a clock. gearman3's own table is copied and extended, never edited.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gearman.protocol as theirs

from gearmap.errors import ConfigurationError, ProtocolError
from gearmap.memory import writable
from gearmap.transport.events import Payload

__all__ = [
    "BARE_PACKETS",
    "CALLBACK_NAMES",
    "GET_STATUS_UNIQUE",
    "MAX_PACKET_BYTES",
    "PARAMS",
    "TEXT_COMMAND",
    "PacketReader",
    "encoded",
    "frame_head",
    "pack_head",
]

Command = tuple[int, tuple[Payload, ...]]

TEXT_COMMAND: int = theirs.GEARMAN_COMMAND_TEXT_COMMAND
GRAB_JOB_ALL = 39
JOB_ASSIGN_ALL = 40
GET_STATUS_UNIQUE = 41
STATUS_RES_UNIQUE = 42

# Commands that gearman3 does not know.
_NEWER_PARAMS: Mapping[int, tuple[str, ...]] = {
    35: ("task", "unique", "minute", "hour", "mday", "month", "wday", "data"),
    36: ("task", "unique", "epoch", "data"),
    37: ("task", "unique", "reducer", "unused", "data"),
    38: ("task", "unique", "reducer", "unused", "data"),
    GRAB_JOB_ALL: (),
    JOB_ASSIGN_ALL: ("job_handle", "task", "unique", "reducer", "data"),
    GET_STATUS_UNIQUE: ("unique",),
    STATUS_RES_UNIQUE: ("unique", "known", "running", "numerator", "denominator", "clients"),
}
PARAMS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {number: tuple(params) for number, params in theirs.GEARMAN_PARAMS_FOR_COMMAND.items()} | dict(_NEWER_PARAMS)
)
# Command number -> name of the handler's method, in gearman3's spelling (`recv_work_complete`).
CALLBACK_NAMES: Mapping[int, str] = MappingProxyType(
    {
        number: name.lower().replace("gearman_command_", "recv_")
        for number, name in theirs.GEARMAN_COMMAND_TO_NAME.items()
    }
    | {JOB_ASSIGN_ALL: "recv_job_assign_all", STATUS_RES_UNIQUE: "recv_status_res_unique"}
)
_ARGUMENT_COUNTS = {number: len(params) for number, params in PARAMS.items() if number != TEXT_COMMAND}

_HEADER = struct.Struct("!4sII")
_HEADER_BYTES = _HEADER.size
_MAGIC_REQ = b"\0REQ"
_MAGIC_RES = b"\0RES"
# Requests without arguments, packed.
BARE_PACKETS = {number: _HEADER.pack(_MAGIC_REQ, number, 0) for number, params in PARAMS.items() if not params}
_WITH_DATA = frozenset(number for number, params in PARAMS.items() if params and params[-1] == "data")
_SHORT_PARAMS = {number: params[:-1] if number in _WITH_DATA else params for number, params in PARAMS.items()}

MAX_PACKET_BYTES = 2**32 - 1
# One reusable buffer per connection. Larger: more replies per system call under load, more memory per connection.
READ_BUFFER_BYTES = 256 * 1024
# From here on a packet's data is received into a buffer of its own. Larger: more copying; smaller: more buffers.
LARGE_BYTES = 64 * 1024
# Handles, names and uniques are short; more than this before the data is not Gearman.
_MAX_ARGUMENTS_BYTES = 32 * 1024
_MAX_LINE_BYTES = 64 * 1024
_SAMPLE_BYTES = 40
_NOTHING = memoryview(bytearray())


def encoded(value: Any) -> Any:
    """An argument as bytes; text that came as bytes that are not UTF-8 goes back as those."""
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def frame_head(command: int, arguments: Mapping[str, Any], data_bytes: int) -> bytes:
    """Header and arguments of a request, up to the data, which follows with `data_bytes` bytes.

    Raises
    ------
    ConfigurationError
        If the packet would be larger than the 4 GiB of the format, or an argument contains NUL.
    """
    shorts = [encoded(arguments[name]) for name in _SHORT_PARAMS[command]]
    if command in _WITH_DATA:
        shorts.append(b"")
    return pack_head(command, shorts, data_bytes)


def pack_head(command: int, shorts: Sequence[bytes], data_bytes: int) -> bytes:
    """`frame_head` of arguments that are bytes already; data that follows stands among them as an empty last one."""
    body = b"\0".join(shorts)
    if body.count(b"\0") >= len(shorts):
        raise ConfigurationError(f"a Gearman argument must not contain NUL: {shorts!r}")
    size = len(body) + data_bytes
    if size > MAX_PACKET_BYTES - _HEADER_BYTES:
        raise ConfigurationError(f"a packet of {size} bytes is larger than Gearman's limit of 4 GiB")
    return _HEADER.pack(_MAGIC_REQ, command, size) + body


class PacketReader:
    """Turns received bytes into commands.

    Parameters
    ----------
    peer
        The other side's address as error messages show it, with its quotes.
    max_packet_bytes
        Larger packets raise ProtocolError before any of their data is kept.

    Attributes
    ----------
    commands
        Parsed commands in order of arrival: (number, arguments). Data of more than 64 KiB is writable memory.
    is_text_due
        Whether a text answer may come now. Text that nobody asked for is another protocol.
    """

    def __init__(self, peer: str, *, max_packet_bytes: int = MAX_PACKET_BYTES) -> None:
        self.commands: deque[Command] = deque()
        self.is_text_due = False
        self._peer = peer
        self._max_packet_bytes = max_packet_bytes
        self._buffer = bytearray(READ_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        # The large packet that is being received, if any: its command, short arguments and data.
        self._large: tuple[int, tuple[Payload, ...]] | None = None
        self._data = _NOTHING
        self._data_bytes = 0
        self._filled = 0

    @property
    def is_mid_packet(self) -> bool:
        """Whether an incomplete packet or line has been received."""
        return self._large is not None or self._end > self._start

    def begins_with(self, prefix: bytes) -> bool:
        """Whether these are the first bytes of what does not parse."""
        return bytes(self._view[self._start : self._end]).startswith(prefix)

    def fill(self, receive: Callable[[memoryview], int]) -> tuple[int, bool]:
        """Let `receive` write into the buffer and parse what came.

        Returns
        -------
        The number of bytes received (0 means end of stream), and whether the space given was filled, so that
        more may be waiting.

        Raises
        ------
        ProtocolError
            If the bytes are not Gearman.
        """
        if self._large is not None:
            return self._fill_large(receive)
        if self._end:
            with self._view[self._end :] as space:
                count = receive(space)
        else:
            count = receive(self._view)
        room = READ_BUFFER_BYTES - self._end
        self._end += count
        if count:
            self._parse()
        return count, count == room

    def feed(self, data: bytes) -> None:
        """Parse bytes that are already in memory."""
        rest = memoryview(data)
        while rest:

            def copy(space: memoryview, rest: memoryview = rest) -> int:
                count = min(len(space), len(rest))
                space[:count] = rest[:count]
                return count

            count, _ = self.fill(copy)
            rest = rest[count:]

    def _fill_large(self, receive: Callable[[memoryview], int]) -> tuple[int, bool]:
        with self._data[self._filled :] as space:
            room = len(space)
            count = receive(space)
        self._filled += count
        if self._filled == self._data_bytes:
            self._finish_large()
        return count, count == room

    def _finish_large(self) -> None:
        assert self._large is not None
        command, arguments = self._large
        self.commands.append((command, (*arguments, self._data)))
        self._large = None
        self._data = _NOTHING

    def _parse(self) -> None:
        buffer, view, end = self._buffer, self._view, self._end
        start = self._start
        while start < end:
            if buffer[start]:
                stop = self._parse_line(start, end)
            elif end - start < _HEADER_BYTES:
                self._check_magic(start, end)
                break
            else:
                magic, command, size = _HEADER.unpack_from(buffer, start)
                if magic != _MAGIC_RES:
                    self._check_magic(start, end)
                count = _ARGUMENT_COUNTS.get(command)
                if count is None or size + _HEADER_BYTES > self._max_packet_bytes:
                    raise self._refusal(command, size)
                stop = start + _HEADER_BYTES + size
                if size > LARGE_BYTES:
                    stop = self._begin_large(start, end, command, count, size)
                elif stop > end:
                    break
                else:
                    payload = bytes(view[start + _HEADER_BYTES : stop])
                    arguments = (payload,) if count == 1 else self._split(command, count, payload)
                    self.commands.append((command, arguments))
            if stop < 0:
                break
            start = stop
        if start == end:
            self._start = self._end = 0
        else:
            self._start = start
            self._compact()

    def _split(self, command: int, count: int, payload: bytes) -> tuple[Payload, ...]:
        if count == 0:
            if payload:
                raise ProtocolError(f"{self._peer} sent data with Gearman command {command}, which has none")
            return ()
        arguments = tuple(payload.split(b"\0", count - 1))
        if len(arguments) != count:
            raise ProtocolError(
                f"{self._peer} sent {len(arguments)} arguments with Gearman command {command}, which has {count}"
            )
        return arguments

    def _begin_large(self, start: int, end: int, command: int, count: int, size: int) -> int:
        """Begin a large packet as soon as its short arguments are here; returns the new start or -1."""
        first = position = start + _HEADER_BYTES
        last = min(end, first + size)
        for _ in range(count - 1):
            found = self._buffer.find(b"\0", position, last)
            if found < 0:
                if last - first > _MAX_ARGUMENTS_BYTES:
                    raise self._refusal(command, size)
                return -1
            position = found + 1
        if count == 0:
            raise self._refusal(command, size)
        shorts = tuple(bytes(self._view[first:position]).split(b"\0")[: count - 1])
        self._large = (command, shorts)
        self._data_bytes = size - (position - first)
        self._filled = last - position
        # Address space, not memory: a header that lies costs nothing.
        self._data = writable(self._data_bytes)
        self._data[: self._filled] = self._view[position:last]
        if self._filled == self._data_bytes:
            self._finish_large()
        return last

    def _parse_line(self, start: int, end: int) -> int:
        """Take one text line; returns the new start or -1 if it is not complete."""
        first = self._buffer[start]
        newline = self._buffer.find(b"\n", start, end)
        is_too_long = newline < 0 and end - start > _MAX_LINE_BYTES
        if not self.is_text_due or not (32 <= first < 127 or first in b"\r\n") or is_too_long:
            raise self._foreign(start, end)
        if newline < 0:
            return -1
        line = bytes(self._view[start:newline])
        if b"\0" in line:
            raise self._foreign(start, end)
        self.commands.append((TEXT_COMMAND, (line.rstrip(b"\r"),)))
        return newline + 1

    def _check_magic(self, start: int, end: int) -> None:
        received = bytes(self._view[start : min(end, start + len(_MAGIC_RES))])
        if not _MAGIC_RES.startswith(received):
            raise self._foreign(start, end)

    def _foreign(self, start: int, end: int) -> ProtocolError:
        sample = bytes(self._view[start : min(end, start + _SAMPLE_BYTES)])
        return ProtocolError(f"{self._peer} does not speak the Gearman protocol (it sent {sample!r})")

    def _refusal(self, command: int, size: int) -> ProtocolError:
        return ProtocolError(f"{self._peer} sent Gearman command {command} with {size} bytes, which is not accepted")

    def _compact(self) -> None:
        """Make room for a whole small packet behind what is not parsed yet."""
        if READ_BUFFER_BYTES - self._end < LARGE_BYTES + _HEADER_BYTES and self._start:
            rest = self._end - self._start
            self._view[:rest] = self._view[self._start : self._end]
            self._start, self._end = 0, rest
