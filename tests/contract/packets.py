"""A raw Gearman connection for the contract tests: bytes out, packets in, and a deadline on everything.

What lives here: the least that can speak to a job server. What must not: gearmap's own protocol code, which is under
test, and gearman3.
"""

from __future__ import annotations

import itertools
import socket
import struct
import time
from types import TracebackType
from typing import NamedTuple

CAN_DO, CANT_DO, RESET_ABILITIES, PRE_SLEEP, NOOP = 1, 2, 3, 4, 6
SUBMIT_JOB, JOB_CREATED, GRAB_JOB, NO_JOB, JOB_ASSIGN = 7, 8, 9, 10, 11
WORK_STATUS, WORK_COMPLETE, WORK_FAIL, GET_STATUS, ECHO_REQ, ECHO_RES = 12, 13, 14, 15, 16, 17
SUBMIT_JOB_BG, ERROR, STATUS_RES, SUBMIT_JOB_HIGH, SET_CLIENT_ID, CAN_DO_TIMEOUT = 18, 19, 20, 21, 22, 23
ALL_YOURS, WORK_EXCEPTION, OPTION_REQ, OPTION_RES, WORK_DATA, WORK_WARNING = 24, 25, 26, 27, 28, 29
GRAB_JOB_UNIQ, JOB_ASSIGN_UNIQ, SUBMIT_JOB_HIGH_BG, SUBMIT_JOB_LOW, SUBMIT_JOB_LOW_BG = 30, 31, 32, 33, 34
GRAB_JOB_ALL, GET_STATUS_UNIQUE, STATUS_RES_UNIQUE = 39, 41, 42

TIMEOUT = 10.0


class Packet(NamedTuple):
    """A packet of the server."""

    command: int
    body: bytes

    @property
    def args(self) -> list[bytes]:
        return self.body.split(b"\0")


def request(command: int, *args: bytes, magic: bytes = b"\0REQ") -> bytes:
    """Return a packet with NUL-separated arguments."""
    body = b"\0".join(args)
    return magic + struct.pack(">II", command, len(body)) + body


class RawConnection:
    """One connection; `ConnectionError` when the server closed it, `TimeoutError` after the deadline."""

    _tokens = itertools.count()

    def __init__(self, host: str, port: int, *, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.socket = socket.create_connection((host, port), timeout)
        self._buffer = bytearray()

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close the connection with RST, as a killed host's neighbour would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # -- sending

    def send_bytes(self, data: bytes) -> None:
        self.socket.settimeout(self.timeout)
        self.socket.sendall(data)

    def send(self, command: int, *args: bytes) -> None:
        self.send_bytes(request(command, *args))

    def send_line(self, line: bytes) -> None:
        self.send_bytes(line + b"\r\n")

    # -- receiving

    def read(self) -> Packet:
        """Return the next packet."""
        header = self._take(12)
        magic, command, size = struct.unpack(">4sII", header)
        assert magic == b"\0RES", f"a packet begins with {magic!r}"
        return Packet(command, self._take(size))

    def read_line(self) -> bytes:
        """Return the next text line, its end included."""
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill()
        return self._take(end + 1)

    def read_lines(self) -> list[bytes]:
        """Return the lines before the next line `.`, their ends removed."""
        lines = []
        while (line := self.read_line()) != b".\n":
            lines.append(line.rstrip(b"\n"))
        return lines

    def expect(self, command: int, *args: bytes) -> Packet:
        """Return the next packet, which must be this one; without arguments any body will do."""
        packet = self.read()
        assert packet.command == command, f"expected packet {command}, got {packet}"
        if args:
            assert packet.args == list(args)
        return packet

    def settle(self) -> list[Packet]:
        """Return all that the server has sent up to now: what comes before the answer to an ECHO sent here."""
        token = b"settle-%d" % next(self._tokens)
        self.send(ECHO_REQ, token)
        packets = []
        while (packet := self.read()) != (ECHO_RES, token):
            packets.append(packet)
        return packets

    def expect_closed(self) -> None:
        """Wait for the server to close the connection; nothing may come before."""
        assert not self._buffer
        self.socket.settimeout(self.timeout)
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return
        assert data == b"", f"expected the end of the connection, got {data!r}"

    def ask(self, command: int, *args: bytes) -> Packet:
        """Send a packet and return the next that comes."""
        self.send(command, *args)
        return self.read()

    def ask_line(self, line: bytes) -> bytes:
        """Send an admin line and return the one-line answer."""
        self.send_line(line)
        return self.read_line()

    def ask_lines(self, line: bytes) -> list[bytes]:
        """Send an admin line and return the lines before the dot."""
        self.send_line(line)
        return self.read_lines()

    # -- the usual conversations

    def submit(
        self, function: bytes, data: bytes = b"data", *, unique: bytes = b"", command: int = SUBMIT_JOB
    ) -> bytes:
        """Submit a job and return its handle."""
        return self.submit_read(self.ask(command, function, unique, data))

    @staticmethod
    def submit_read(packet: Packet) -> bytes:
        assert packet.command == JOB_CREATED, packet
        return packet.body

    def can_do(self, *functions: bytes) -> None:
        """Register functions, and wait until the server knows them."""
        for function in functions:
            self.send(CAN_DO, function)
        assert self.settle() == []

    def grab(self) -> list[bytes] | None:
        """Grab a job: handle, function, unique and data, or None."""
        packet = self.ask(GRAB_JOB_UNIQ)
        if packet.command == NO_JOB:
            return None
        assert packet.command == JOB_ASSIGN_UNIQ, packet
        return packet.body.split(b"\0", 3)

    def must_grab(self) -> bytes:
        """Grab a job that must be there; return its handle."""
        job = self.grab()
        assert job is not None, "no job was assigned"
        return job[0]

    def _fill(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._buffer += data

    def _take(self, n_bytes: int) -> bytes:
        deadline = time.monotonic() + self.timeout
        while len(self._buffer) < n_bytes:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._fill()
        data = bytes(self._buffer[:n_bytes])
        del self._buffer[:n_bytes]
        return data
