"""The line on which a child's tasks ask their node for something, and are answered: both ends of it.

Rule 1: it is not the pipe on which jobs and outcomes go. A thread of a task may ask at any time, also one that has
outlived its task, and must not come between the frames there.
Rule 2: the node's end never blocks. A child that does not take its answer loses the line.
Rule 3: a question names the execution that asks; the node answers only who runs it now.
Rule 4: JSON. What a task does to its end of the line costs it the line, and nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from gearmap.errors import ClusterBroken, ConfigurationError
from gearmap.runtime import child, task

__all__ = ["NodeLine", "ask_node", "check_asker"]

_LENGTH = struct.Struct("<I")

# How long the node may take to answer: it never waits for anybody itself. Raised: a busy machine is forgiven longer;
# lowered: a node that hangs is noticed sooner.
ANSWER_SECONDS = 30.0

# Questions are short.
_READ_BYTES = 4096
_MAX_QUESTION_BYTES = 4096


def ask_node(question: str, *arguments: Any) -> Any:
    """Ask this child's node; return the answer.

    Raises
    ------
    ConfigurationError
        If no task runs here, or the node refuses.
    ClusterBroken
        If the node does not answer.
    """
    execution, line = check_asker()
    with line.lock:
        is_good, answer = _exchange(line.socket, json.dumps([question, execution.hex(), *arguments]).encode())
    if not is_good:
        raise ConfigurationError(answer)
    return answer


def check_asker() -> tuple[bytes, child.Line]:
    """Return the execution that may ask now, and the line.

    Raises
    ------
    ConfigurationError
        If no task runs here.
    """
    line = child.line
    if line is None or line.owner != os.getpid():
        raise ConfigurationError("a process that a task has started cannot use the cluster that runs the task")
    execution = task.running_execution()
    if execution is None:
        raise ConfigurationError("the task that this belongs to has ended, and what it runs on the cluster with it")
    return execution, line


def _exchange(line: socket.socket, question: bytes) -> Any:
    try:
        line.settimeout(ANSWER_SECONDS)
        line.sendall(_LENGTH.pack(len(question)) + question)
        (length,) = _LENGTH.unpack(_receive(line, _LENGTH.size))
        return json.loads(_receive(line, length))
    except OSError as error:
        line.close()  # an answer that comes late must not be taken for that of the next question
        raise ClusterBroken(f"this worker's node does not answer: {error}") from None


def _receive(line: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = line.recv(size - len(data))
        if not more:
            raise ConnectionResetError("it has gone")
        data += more
    return data


class NodeLine:
    """The node's end of one child's line: a pollable."""

    wants_write = False

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._report_change: Callable[[NodeLine], object] = lambda line: None

    def connected(self, line: socket.socket) -> None:
        """Take the end over."""
        line.setblocking(False)
        self._socket = line

    def watched_by(self, report_change: Callable[[NodeLine], object]) -> None:
        """Have `report_change` called when the file descriptor has changed."""
        self._report_change = report_change

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def on_readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._received += data
        else:
            self.close()

    def on_writable(self) -> None:
        """Never wanted."""

    def take_requests(self) -> list[list[Any]]:
        """Return what was asked since the last call: the question, the execution that asks, arguments."""
        requests: list[list[Any]] = []
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            end = _LENGTH.size + length
            if length > _MAX_QUESTION_BYTES:
                self.close()
                break
            if len(self._received) < end:
                break
            try:
                requests.append(_question(self._received[_LENGTH.size : end]))
            except ValueError:
                self.close()
                break
            del self._received[:end]
        return requests

    def answer(self, is_good: bool, answer: Any) -> None:
        """Answer the oldest question; a refusal is a text."""
        data = json.dumps([is_good, answer]).encode()
        if self._socket is None:
            return
        try:
            sent = self._socket.send(_LENGTH.pack(len(data)) + data)
        except OSError:
            sent = 0
        if sent < _LENGTH.size + len(data):
            self.close()

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._report_change(self)
            self._received.clear()


def _question(data: bytes | bytearray) -> list[Any]:
    """Return the parts of a question; ValueError if it is none."""
    question = json.loads(data)
    if not isinstance(question, list) or not question or not all(isinstance(part, str) for part in question):
        raise ValueError("a question must be a list of texts")
    return question
