"""Questions to a job server's text interface, for programs that may wait: the command line, status, tests.

Inside is a GearmanAdminClient. What is mended here: bytes taken for str, line ends, commands that gearman3 does not
know, columns named wrongly, a timeout that waits for ever, a shutdown that pretends.

Law of the file: every call ends within its timeout; every failure names the server. Not for the loops of client and
node, which must not wait.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from gearman.admin_client import GearmanAdminClient
from gearman.admin_client_handler import GearmanAdminClientCommandHandler
from gearman.protocol import (
    GEARMAN_COMMAND_ECHO_REQ,
    GEARMAN_COMMAND_ECHO_RES,
    GEARMAN_COMMAND_TEXT_COMMAND,
)

from gearmap.errors import ConfigurationError, ProtocolError, TransportError
from gearmap.transport.connection import Connection, TakesAddresses
from gearmap.transport.events import Address, Payload, StatusRow, show_address
from gearmap.transport.faults import translated
from gearmap.transport.parsing import status_row
from gearmap.transport.poller import Poller

__all__ = [
    "AdminSession",
    "JobRow",
    "WorkerRow",
    "cancel_job",
    "drop_function",
    "server_status",
    "server_version",
    "server_workers",
    "show_jobs",
    "show_unique_jobs",
]

DEFAULT_TIMEOUT = 5.0
_PING = b"gearmap ping"
# Commands whose answer is a list that ends with a line ".".
_LISTINGS = frozenset({"status", "workers", "show jobs", "show unique jobs", "prioritystatus"})


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One connection of the `workers` listing; clients have no functions."""

    fd: int
    ip: str
    client_id: str
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job of `show jobs`."""

    handle: str
    retries: int
    is_ignored: bool
    is_queued: bool


class AdminSession:
    """A blocking conversation with one job server.

    Parameters
    ----------
    address
        Host and port.
    timeout
        Seconds that connecting, and each question, may take.
    Raises
    ------
    ServerUnavailable
        From every method: if the server does not answer in time.
    ConnectionLost
        From every method: if the connection breaks.
    ProtocolError
        From every method: if the answer makes no sense, or the server does not know the command.
    """

    def __init__(self, address: Address, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.address = address
        self._client = _AdminClient([address], poll_timeout=timeout)

    def __enter__(self) -> AdminSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.shutdown()

    def status(self) -> list[StatusRow]:
        """Queue lengths and workers of each function that the server has ever heard of."""
        return [status_row(line) for line in self._ask("status")]

    def workers(self) -> list[WorkerRow]:
        """Every connection of the server, clients included."""
        return [_worker_row(line) for line in self._ask("workers")]

    def show_jobs(self) -> list[JobRow]:
        """Every job that the server knows."""
        return [_job_row(line) for line in self._ask("show jobs")]

    def show_unique_jobs(self) -> list[str]:
        """The unique of every job that the server knows."""
        return self._ask("show unique jobs")

    def version(self) -> str:
        """The server's version, such as "1.1.20"."""
        return self._ask("version")[0].removeprefix("OK ")

    def getpid(self) -> int:
        """The server's process id."""
        answer = self._ask("getpid")[0]
        digits = answer.removeprefix("OK ")
        if not digits.isdigit():
            raise ProtocolError(f"the job server at {show_address(self.address)} answered {answer!r} to getpid")
        return int(digits)

    def ping(self) -> float:
        """Seconds of one round trip."""
        started = time.monotonic()
        with translated(self.address):
            answer = self._client.ping_server()
        if answer != _PING:
            raise ProtocolError(f"the job server at {show_address(self.address)} echoed {bytes(answer)[:40]!r}")
        return time.monotonic() - started

    def cancel_job(self, handle: str) -> bool:
        """Drop a queued job; False if the server does not know it. A worker that runs it is not told."""
        return self._ask(f"cancel job {_word(handle)}")[0].startswith("OK")

    def create_function(self, name: str) -> None:
        """Make a function known before any worker serves it."""
        # With a bare newline gearmand takes the last letter of the name for half of its line end.
        self._expect_ok(f"create function {_word(name)}\r")

    def drop_function(self, name: str) -> bool:
        """Make the server forget a function; False if it does not know it or still needs it."""
        return self._ask(f"drop function {_word(name)}")[0].startswith("OK")

    def maxqueue(self, name: str, limit: int) -> None:
        """Let the server refuse jobs of a function beyond `limit`; 0 lifts the limit."""
        self._expect_ok(f"maxqueue {_word(name)} {limit}")

    def shutdown(self) -> None:
        """Not possible: gearmand has no such command.

        Raises
        ------
        ProtocolError
            Always.
        """
        raise ProtocolError(
            f"the job server at {show_address(self.address)} cannot be shut down by command; "
            "send its process SIGTERM, or SIGUSR1 to let running jobs finish"
        )

    def _ask(self, line: str) -> list[str]:
        with translated(self.address):
            return self._client.ask(line)

    def _expect_ok(self, line: str) -> None:
        answer = self._ask(line)[0]
        if not answer.startswith("OK"):
            raise ProtocolError(
                f"the job server at {show_address(self.address)} answered {answer!r} to {line.rstrip()!r}"
            )


class _AdminHandler(GearmanAdminClientCommandHandler):  # type: ignore[misc]  # gearman3 has no types
    """Collects answers as lists of lines; what they mean is the session's business."""

    def __init__(self, connection_manager: Any = None) -> None:
        super().__init__(connection_manager=connection_manager)
        self._lines: list[str] = []

    def send_text_command(self, command_line: str) -> None:
        """Send any command; gearman3's table of commands is too short."""
        self._set_text_due(True)
        self._sent_commands.append(command_line)
        self.send_command(GEARMAN_COMMAND_TEXT_COMMAND, raw_text=command_line + "\n")

    def send_echo_request(self, echo_string: str) -> None:
        self._sent_commands.append(GEARMAN_COMMAND_ECHO_REQ)
        self.send_command(GEARMAN_COMMAND_ECHO_REQ, data=_PING)

    def fetch_commands(self) -> None:
        while True:
            command = self.connection_manager.read_command(self)
            if command is None:
                return
            number, arguments = command
            if number == GEARMAN_COMMAND_TEXT_COMMAND:
                self.recv_text_command(arguments[0])
            elif number == GEARMAN_COMMAND_ECHO_RES:
                self.recv_echo_res(arguments[0])
            else:
                raise ProtocolError(f"the job server sent Gearman command {number} in place of an answer")

    def recv_text_command(self, raw_text: Payload) -> None:
        line = bytes(raw_text).decode("utf-8", "surrogateescape")
        if self._sent_commands[0] in _LISTINGS and line != ".":
            if line.startswith("ERR ") and not self._lines:
                raise ProtocolError(f"the job server answered {line!r} to {self._sent_commands[0]!r}")
            self._lines.append(line)
            return
        if line != ".":
            self._lines.append(line)
        self._set_text_due(False)
        self._recv_responses.append(self._lines)
        self._lines = []

    def _set_text_due(self, is_due: bool) -> None:
        self.connection_manager.current_connection.reader.is_text_due = is_due


class _AdminClient(TakesAddresses, GearmanAdminClient):  # type: ignore[misc]  # gearman3 has no types
    """gearman3's admin client with a waiting loop that keeps its deadline."""

    command_handler_class = _AdminHandler
    current_connection: Connection

    def ask(self, line: str) -> list[str]:
        self.establish_admin_connection()
        self.current_handler.send_text_command(line)
        lines: list[str] = self.wait_until_server_responds(line)
        return lines

    def ping_server(self) -> Payload:
        self.establish_admin_connection()
        self.current_handler.send_echo_request("")
        answer: Payload = self.wait_until_server_responds(GEARMAN_COMMAND_ECHO_REQ)
        return answer

    def establish_admin_connection(self) -> None:
        connection = self.current_connection
        if connection.connected:
            return
        self._forget_connection()
        self.establish_connection(connection)
        self.current_handler = self.connection_to_handler_map[connection]
        self._wait(lambda: connection.connected)

    def wait_until_server_responds(self, expected_type: Any) -> Any:
        handler = self.current_handler
        self._wait(lambda: handler.response_ready)
        return handler.pop_response()[1]

    def _wait(self, is_done: Any) -> None:
        deadline = time.monotonic() + self.poll_timeout
        poller = Poller()
        poller.add(_AdminPollable(self))
        try:
            while not is_done():
                if time.monotonic() >= deadline:
                    raise self.current_connection.no_answer(self.poll_timeout)
                poller.dispatch(max(0.0, deadline - time.monotonic()))
        except (TransportError, OSError):
            # Half an answer may be on its way: the next question needs a new connection.
            self._forget_connection()
            raise
        finally:
            poller.close()

    def _forget_connection(self) -> None:
        if self.current_connection in self.connection_to_handler_map:
            self.handle_error(self.current_connection)


class _AdminPollable:
    """The connection as a Poller sees it; errors pass through to the one who waits."""

    def __init__(self, client: _AdminClient) -> None:
        self._client = client
        self._connection: Connection = client.current_connection

    @property
    def epoch(self) -> int:
        return self._connection.epoch

    @property
    def wants_write(self) -> bool:
        return self._connection.wants_write

    def fileno(self) -> int:
        return self._connection.fileno()

    def on_readable(self) -> None:
        if self._connection.connected:
            self._client.handle_read(self._connection)
            while self._connection.connected and self._connection.has_pending:
                self._client.handle_read(self._connection)
        else:
            self._connection.finish_connect()

    def on_writable(self) -> None:
        if self._connection.connected:
            self._client.handle_write(self._connection)
        else:
            self._connection.finish_connect()


def _word(name: str) -> str:
    if not name or any(character.isspace() or character == "\0" for character in name):
        raise ConfigurationError(f"a name in a command to the job server must be one word, got {name!r}")
    return name


def _worker_row(line: str) -> WorkerRow:
    head, separator, functions = line.partition(" : ")
    if not separator:
        head = line.removesuffix(" :")
    fields = head.split(" ", 2)
    if len(fields) != 3 or not fields[0].lstrip("-").isdigit():
        raise ProtocolError(f"not a line of a workers listing: {line!r}")
    return WorkerRow(int(fields[0]), fields[1], fields[2], tuple(functions.split()))


def _job_row(line: str) -> JobRow:
    try:
        handle, retries, ignored, queued = line.split("\t")
        return JobRow(handle, int(retries), bool(int(ignored)), bool(int(queued)))
    except ValueError:
        raise ProtocolError(f"not a line of a job listing: {line!r}") from None


def server_status(address: Address, timeout: float = DEFAULT_TIMEOUT) -> list[StatusRow]:
    """`AdminSession.status` in one call."""
    with AdminSession(address, timeout=timeout) as session:
        return session.status()


def server_workers(address: Address, timeout: float = DEFAULT_TIMEOUT) -> list[WorkerRow]:
    """`AdminSession.workers` in one call."""
    with AdminSession(address, timeout=timeout) as session:
        return session.workers()


def server_version(address: Address, timeout: float = DEFAULT_TIMEOUT) -> str:
    """`AdminSession.version` in one call."""
    with AdminSession(address, timeout=timeout) as session:
        return session.version()


def show_jobs(address: Address, timeout: float = DEFAULT_TIMEOUT) -> list[JobRow]:
    """`AdminSession.show_jobs` in one call."""
    with AdminSession(address, timeout=timeout) as session:
        return session.show_jobs()


def show_unique_jobs(address: Address, timeout: float = DEFAULT_TIMEOUT) -> list[str]:
    """`AdminSession.show_unique_jobs` in one call."""
    with AdminSession(address, timeout=timeout) as session:
        return session.show_unique_jobs()


def cancel_job(address: Address, handle: str, timeout: float = DEFAULT_TIMEOUT) -> bool:
    """`AdminSession.cancel_job` in one call."""
    with AdminSession(address, timeout=timeout) as session:
        return session.cancel_job(handle)


def drop_function(address: Address, name: str, timeout: float = DEFAULT_TIMEOUT) -> bool:
    """`AdminSession.drop_function` in one call."""
    with AdminSession(address, timeout=timeout) as session:
        return session.drop_function(name)
