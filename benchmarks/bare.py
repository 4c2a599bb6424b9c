"""A Gearman client and a Gearman worker with nothing in between: raw packets over blocking sockets.

Law of the file: nothing of gearmap and nothing of gearman3. It is what both are measured against.
"""

from __future__ import annotations

import socket
import struct
import sys

__all__ = ["BareClient", "work"]

_FUNCTION = b"bare_echo"
_HEAD = struct.Struct(">4sII")
_CAN_DO, _PRE_SLEEP, _NOOP, _SUBMIT_JOB, _JOB_CREATED = 1, 4, 6, 7, 8
_GRAB_JOB, _NO_JOB, _JOB_ASSIGN, _WORK_COMPLETE = 9, 10, 11, 13

# Handle, function and unique stand in front of the data.
_ROOM = 1024


class _Wire:
    """A connection with one receive buffer for its life."""

    def __init__(self, port: int, n_bytes: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(n_bytes + _ROOM))

    def send(self, command: int, args: bytes = b"", data: bytes | bytearray | memoryview = b"") -> None:
        self._socket.sendall(_HEAD.pack(b"\0REQ", command, len(args) + len(data)) + args)
        if data:
            self._socket.sendall(data)

    def receive(self) -> tuple[int, memoryview]:
        head = bytearray(_HEAD.size)
        self._fill(memoryview(head))
        _, command, length = _HEAD.unpack(head)
        body = self._buffer[:length]
        self._fill(body)
        return command, body

    def close(self) -> None:
        self._socket.close()

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionError("the job server closed the connection")
            view = view[count:]


class BareClient:
    """Sends one job at a time and waits for its result."""

    def __init__(self, port: int, n_bytes: int) -> None:
        self._wire = _Wire(port, n_bytes)

    def __enter__(self) -> BareClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._wire.close()

    def trip(self, data: bytes | bytearray) -> memoryview:
        """Return what the worker made of the data; valid until the next trip."""
        self._wire.send(_SUBMIT_JOB, _FUNCTION + b"\0\0", data)
        while True:
            command, body = self._wire.receive()
            if command == _WORK_COMPLETE:
                return _after_nul(body, 1)
            if command != _JOB_CREATED:
                raise RuntimeError(f"unexpected packet {command}")


def work(port: int, n_bytes: int) -> None:
    """Echo jobs until the job server ends."""
    wire = _Wire(port, n_bytes)
    wire.send(_CAN_DO, _FUNCTION)
    wire.send(_GRAB_JOB)
    while True:
        try:
            command, body = wire.receive()
        except ConnectionError:
            return
        if command == _JOB_ASSIGN:
            handle = bytes(body[:_ROOM]).partition(b"\0")[0]
            wire.send(_WORK_COMPLETE, handle + b"\0", _after_nul(body, 2))
        if command in (_JOB_ASSIGN, _NOOP):
            wire.send(_GRAB_JOB)
        elif command == _NO_JOB:
            wire.send(_PRE_SLEEP)


def _after_nul(body: memoryview, count: int) -> memoryview:
    """Return what follows the first `count` NUL bytes."""
    start = 0
    names = bytes(body[:_ROOM])
    for _ in range(count):
        start = names.index(b"\0", start) + 1
    return body[start:]


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]))
