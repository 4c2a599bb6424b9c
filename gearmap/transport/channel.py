"""What the client's session and a worker's links have in common: one connection's life on a selector loop.

connecting -> greeting -> ready -> closed. The greeting is the text command `version` and an ECHO packet: any Gearman
server answers both, every other protocol answers the first with something that is not Gearman, and a
server that hangs answers nothing, which the connect deadline turns into a failure. So "ready" means that a
job server really serves this connection.

Law of the file: no method blocks, clocks are arguments, errors become one call of `_went_down`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from gearman.command_handler import GearmanCommandHandler
from gearman.connection_manager import DataEncoder, GearmanConnectionManager
from gearman.errors import GearmanError
from gearman.protocol import GEARMAN_COMMAND_ECHO_REQ

from gearmap.errors import ProtocolError, TlsFailed, TransportError
from gearmap.transport.connection import Connection
from gearmap.transport.events import Address, Payload, show_address
from gearmap.transport.faults import translate
from gearmap.transport.protocol import CALLBACK_NAMES, TEXT_COMMAND

__all__ = ["Channel", "ChannelState", "Greeting", "PassThrough"]

# Bytes read from one socket before the others have their turn. Larger: fewer polls for large bodies; smaller: fairer.
READ_BUDGET_BYTES = 4 * 1024 * 1024
_ECHO = b"gearmap"


class ChannelState(enum.Enum):
    """Where a connection stands."""

    CONNECTING = "connecting"
    READY = "ready"
    CLOSED = "closed"


class PassThrough(DataEncoder):  # type: ignore[misc]  # gearman3 has no types
    """gearman3's data encoder for data that is bytes, or makes bytes, already."""

    @classmethod
    def encode(cls, encodable_object: Any) -> Any:
        return encodable_object

    @classmethod
    def decode(cls, decodable_string: Any) -> Any:
        return decodable_string


class Greeting(GearmanCommandHandler):  # type: ignore[misc]  # gearman3 has no types
    """Part of a command handler: fast dispatch, the greeting, and text answers in the order of their questions."""

    channel: Channel

    def greet(self, *commands: tuple[int, dict[str, Any]]) -> None:
        """Send the greeting; to be called by `initial_state`. `commands` are answered before the session is ready."""
        connection: Connection = self.connection_manager.handler_to_connection_map[self]
        self.channel.handler = self
        self._connection = connection
        self._reader = connection.reader
        self._callbacks = {
            number: getattr(self, name) for number, name in CALLBACK_NAMES.items() if hasattr(self, name)
        }
        # Callbacks for the text answers that are due, first in, first out; each returns True after its last line.
        self._due_texts: list[Any] = []
        self.ask_text("version", self._recv_version)
        for command, arguments in commands:
            self.send_command(command, **arguments)
        self.send_command(GEARMAN_COMMAND_ECHO_REQ, data=_ECHO)

    def send_command(self, cmd_type: int, **cmd_args: Any) -> None:
        """Queue a command, without the way through the manager's maps."""
        self._connection.send_command(cmd_type, cmd_args)

    def send_bare(self, cmd_type: int) -> None:
        """Queue a command without arguments."""
        self._connection.send_bare(cmd_type)

    def encode_data(self, data: Any) -> Any:
        return data

    def decode_data(self, data: Any) -> Any:
        return data

    def fetch_commands(self) -> None:
        """Run the callback of every command that has arrived."""
        commands = self._reader.commands
        callbacks = self._callbacks
        while commands:
            number, arguments = commands.popleft()
            callback = callbacks.get(number)
            if callback is None:
                raise ProtocolError(f"the job server sent Gearman command {number}, which it must not send here")
            callback(*arguments)

    def ask_text(self, line: str, answer: Any) -> None:
        """Send a text command whose answer goes to `answer`, line by line."""
        self._due_texts.append(answer)
        self._reader.is_text_due = True
        self.send_command(TEXT_COMMAND, raw_text=line + "\n")

    def recv_text_command(self, raw_text: bytes) -> None:
        if not self._due_texts:
            raise ProtocolError(
                f"{show_address(self.channel.address)} sent text that nobody asked for: {raw_text[:40]!r}"
            )
        if self._due_texts[0](raw_text.decode("utf-8", "surrogateescape")):
            self._due_texts.pop(0)
            self._reader.is_text_due = bool(self._due_texts)

    def recv_echo_res(self, data: Payload) -> None:
        if data == _ECHO:
            self.channel.greeted()

    def _recv_version(self, line: str) -> bool:
        # gearmand: "OK 1.1.20"; others know no such command and answer ERR, or a bare number.
        if not (line.startswith(("OK", "ERR")) or line[:1].isdigit()):
            raise ProtocolError(
                f"{show_address(self.channel.address)} does not speak the Gearman protocol (it sent {line.encode()!r})"
            )
        self.channel.server_version = line.removeprefix("OK ")
        return True


class Channel:
    """One connection of a gearman3 client or worker, driven by a selector loop.

    Attributes
    ----------
    address
        The job server.
    state
        See ChannelState.
    server_version
        What the server says it is, once ready.
    handler
        The command handler of the present connection.
    """

    handler: Any

    def __init__(self, manager: GearmanConnectionManager, connection: Connection, connect_timeout: float) -> None:
        self.address: Address = connection.address
        self.state = ChannelState.CONNECTING
        self.server_version = ""
        self._manager = manager
        self._connection = connection
        self._connect_timeout = connect_timeout
        self._connect_deadline: float | None = None
        self._had_rest = False
        self._report_change: Callable[[Channel], object] = _nobody_watches

    # -------------------------------------------------------------------------- for the layers below and above

    def watched_by(self, report_change: Callable[[Channel], object]) -> None:
        """Have `report_change` called when the file descriptor or `wants_write` may have changed."""
        self._report_change = report_change

    def _came_up(self) -> None:
        """The server has answered the greeting. Overridden."""

    def _went_down(self, reason: TransportError, was_ready: bool) -> None:
        """The connection is over and closed. Overridden."""

    def greeted(self) -> None:
        """Called by the handler when the greeting is answered."""
        if self.state is ChannelState.CONNECTING:
            self.state = ChannelState.READY
            self._connect_deadline = None
            self._came_up()

    @property
    def epoch(self) -> int:
        return self._connection.epoch

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def wants_write(self) -> bool:
        return self._connection.wants_write

    @property
    def deadline(self) -> float | None:
        """The latest `now` at which `tick` must be called, or None."""
        return self._connect_deadline

    def start(self, now: float) -> None:
        """Begin to connect."""
        self._report_change(self)
        self.state = ChannelState.CONNECTING
        self._connect_deadline = now + self._connect_timeout
        self._connection.close()
        try:
            self._manager.establish_connection(self._connection)
        except (TransportError, GearmanError, OSError) as error:
            self._down(translate(error, self.address))

    def tick(self, now: float) -> None:
        """Let the connect deadline fire."""
        if self._connect_deadline is not None and now >= self._connect_deadline:
            self._down(self._connection.no_answer(self._connect_timeout))

    def on_readable(self) -> None:
        """Receive what has come and handle it."""
        if self._connection.connected:
            try:
                self._receive()
            except (TransportError, GearmanError, OSError) as error:
                self._down(translate(error, self.address))
        else:
            self._go_on()

    def on_writable(self) -> None:
        """Send what is queued, or go on connecting."""
        if self._connection.connected:
            self.flush()
        else:
            self._go_on()

    def flush(self) -> None:
        """Send what is queued as far as the socket takes it now."""
        if not self._connection.connected:
            return
        try:
            has_rest = bool(self._connection.send_data_to_socket())
        except (TransportError, GearmanError, OSError) as error:
            has_rest = False
            told = self._read_the_rest()
            self._down(told or translate(error, self.address))
        if has_rest or self._had_rest:
            self._report_change(self)
        self._had_rest = has_rest

    # --------------------------------------------------------------------------------------------- inside

    def _go_on(self) -> None:
        """Take the next step of connecting."""
        if self.state is not ChannelState.CONNECTING:
            return
        try:
            self._connection.finish_connect()
        except (TransportError, GearmanError, OSError) as error:
            self._down(translate(error, self.address))
        self._report_change(self)
        self.flush()

    def _receive(self) -> None:
        budget = READ_BUDGET_BYTES
        connection = self._connection
        while budget > 0 and connection.connected:
            budget -= connection.read_data_from_socket()
            self.handler.fetch_commands()
            if not connection.may_have_more:
                break
            if budget <= 0 and connection.has_pending:
                budget = 1  # no poll would tell of it

    def _read_the_rest(self) -> TransportError | None:
        """After a failed send, take what the server had said before it went; return it if that says why."""
        connection = self._connection
        connection.connected = True
        connection.outgoing.clear()
        try:
            while connection.read_data_from_socket():
                self.handler.fetch_commands()
        except TlsFailed as error:
            connection.connected = False
            return error
        except (TransportError, GearmanError, OSError):
            connection.connected = False
        return None

    def _down(self, reason: TransportError) -> None:
        if self.state is ChannelState.CLOSED:
            return
        was_ready = self.state is ChannelState.READY
        self._shut()
        self._went_down(reason, was_ready)

    def _shut(self) -> None:
        self.state = ChannelState.CLOSED
        self._connect_deadline = None
        self._manager.handle_error(self._connection)
        self._report_change(self)


def _nobody_watches(channel: Channel) -> None:
    """Until a Poller asks for it."""
