"""One socket to one job server: gearman3's GearmanConnection that never blocks.

Law of the file: bytes and commands only; what a command means is the handlers' business. Every method returns at
once. Errors leave as those of `gearmap.errors` and name the address.

What is mended here: reading at all (`array.fromstring` is gone), EAGAIN taken for a dead peer, AF_INET only,
`ssl.wrap_socket`, connecting without a deadline and with a cool-down, 4 KiB reads, quadratic buffers, one send
per command.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
import weakref
from collections.abc import Mapping
from typing import Any

from gearman.connection import GearmanConnection
from gearman.connection_manager import GearmanConnectionManager

from gearmap.config import Patience
from gearmap.errors import ConfigurationError, ConnectionLost, ServerUnavailable, TlsFailed, TransportError
from gearmap.tls import TlsAddress, TlsFile, TlsFiles, client_context
from gearmap.transport import tlsfaults
from gearmap.transport.events import Address, show_address
from gearmap.transport.outgoing import SendQueue
from gearmap.transport.protocol import BARE_PACKETS, TEXT_COMMAND, PacketReader, frame_head, pack_head
from gearmap.transport.resolve import Endpoint, Resolution, resolve_at_once

__all__ = ["Connection", "TakesAddresses"]

# A peer that is silent for 60 s is asked 4 times, 15 s apart: a vanished host is noticed after two minutes.
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
_INTERNET = (socket.AF_INET, socket.AF_INET6)
# The most that TLS packs together, and so the most that one read brings.
_RECORD_BYTES = 16 * 1024
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection(GearmanConnection):  # type: ignore[misc]  # gearman3 has no types
    """A non-blocking connection with whole-packet reading and gathered writing.

    Parameters
    ----------
    host, port
        The job server. A host that begins with `/` is the path of a Unix socket.
    keyfile, certfile, ca_certs
        If all three are given: TLS with a client certificate; gearman3's way to say so.
    tls
        To speak TLS, with these files.

    Attributes
    ----------
    address
        The job server. Whether TLS is spoken is part of it: a failed handshake is an error, never plain text.
    reader
        The parsed commands and the rest of the stream.
    epoch
        Counts the sockets that this connection has had.
    may_have_more
        Whether the last read filled its space, so that more may wait.
    send_timeout
        Seconds that what was sent may stay unacknowledged, where the system can tell (TCP_USER_TIMEOUT).
    """

    def __init__(
        self,
        host: str | None = None,
        port: int = 4730,
        keyfile: str | None = None,
        certfile: str | None = None,
        ca_certs: str | None = None,
        *,
        tls: TlsFiles | None = None,
    ) -> None:
        if keyfile and certfile and ca_certs:
            ca, cert, key = (TlsFile(path, "the argument") for path in (ca_certs, certfile, keyfile))
            tls = TlsFiles(ca=ca, cert=cert, key=key)
        place = (host or "", int(port))
        self.address: Address = place if tls is None else TlsAddress(*place, tls)
        self.gearman_socket: socket.socket | None = None
        self.epoch = 0
        self.may_have_more = False
        self.send_timeout = Patience().send_timeout
        self.endpoints: list[Endpoint] = []
        self._resolution: Resolution | None = None
        self._is_shaking_hands = False
        self._handshake_wants_write = False
        self._last_failure: OSError | None = None
        # Why TLS was not agreed on with an endpoint; that tells more than that another one cannot be reached.
        self._refusal: str | None = None
        self._tls: ssl.SSLContext | None = None
        self._has_heard = False
        super().__init__(host=host, port=port, keyfile=keyfile, certfile=certfile, ca_certs=ca_certs)

    def _reset_connection(self) -> None:
        super()._reset_connection()
        self.reader = PacketReader(show_address(self.address))
        self.outgoing = SendQueue()

    # ------------------------------------------------------------------------------------------- connecting

    def connect(self) -> None:
        """Begin to connect; `finish_connect` goes on when the socket is writable.

        Raises
        ------
        ServerUnavailable
            If it fails at once.
        """
        self.close()
        self._is_client_side, self._is_server_side = True, False
        if isinstance(self.address, TlsAddress):
            try:
                self._tls = client_context(self.address.tls)
            except ConfigurationError as error:  # a file was changed since it was looked at
                raise TlsFailed(f"no TLS with the job server at {show_address(self.address)}: {error}")
        endpoints = resolve_at_once(self.address)
        if endpoints is None:
            self._resolution = Resolution(self.address)
            self.epoch += 1
            self._resolution.start()
            return
        self.endpoints = endpoints
        self._create_client_socket()

    def finish_connect(self) -> None:
        """Take the next step; to be called when the file descriptor is ready. `connected` tells whether it is done.

        Raises
        ------
        ServerUnavailable
            If every address of the server failed.
        """
        if self._resolution is not None:
            self._take_resolution(self._resolution)
            return
        if self.gearman_socket is None:
            return
        code = self.gearman_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._last_failure = OSError(code, os.strerror(code))
            self._create_client_socket()
            return
        try:
            self.gearman_socket.getpeername()
            if self._tls is not None:
                self._shake_hands(self._tls, self.gearman_socket)
        except _WOULD_BLOCK as error:
            self._handshake_wants_write = isinstance(error, ssl.SSLWantWriteError)
            return
        except OSError as error:
            # Python's ssl closes a socket that was reset just before, and nothing would come from it any more.
            if error.errno == errno.ENOTCONN and self.gearman_socket.fileno() >= 0:
                return
            self._last_failure = error
            if self._is_shaking_hands:
                self._refusal = self._refusal or tlsfaults.refusal(self.address, error)
            self._create_client_socket()
            return
        self._is_shaking_hands = False
        self.connected = True

    def _shake_hands(self, tls: ssl.SSLContext, current: socket.socket) -> None:
        if not isinstance(current, ssl.SSLSocket):
            # Only an established connection can be wrapped. The file descriptor stays the same.
            current = tls.wrap_socket(current, server_hostname=self.address[0], do_handshake_on_connect=False)
            self.gearman_socket = current
            self._is_shaking_hands = True
        current.do_handshake()

    def _take_resolution(self, resolution: Resolution) -> None:
        self._resolution = None
        try:
            self.endpoints = resolution.result()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ServerUnavailable(f"no job server at {show_address(self.address)}: {reason}") from error
        finally:
            resolution.close()
        self._create_client_socket()

    def _create_client_socket(self) -> None:
        """Begin to connect to the next endpoint; raises ServerUnavailable after the last."""
        self._drop_socket()
        self._is_shaking_hands = False
        while self.endpoints:
            family, socket_address = self.endpoints.pop(0)
            current: socket.socket | None = None
            try:
                current = socket.socket(family, socket.SOCK_STREAM)
                self.set_socket(current)
                code = current.connect_ex(socket_address)
                # A Unix socket connects at once or not at all; EWOULDBLOCK is then a server that accepts nobody.
                if code and family not in _INTERNET:
                    raise OSError(code, os.strerror(code))
                if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", 0)):
                    raise OSError(code, os.strerror(code))
                return
            except OSError as error:
                self._last_failure = error
                self._drop_socket()
                if current is not None:
                    current.close()
        if self._refusal is not None:
            raise TlsFailed(self._refusal) from self._last_failure
        reason = (self._last_failure and self._last_failure.strerror) or self._last_failure
        raise ServerUnavailable(f"no job server answered at {show_address(self.address)}: {reason}")

    def no_answer(self, timeout: float) -> ServerUnavailable:
        """Make the error that says that nobody has answered for so many seconds, at the present step."""
        if self._refusal is not None:
            return TlsFailed(self._refusal)
        if self._is_shaking_hands:
            return TlsFailed(tlsfaults.silence(self.address, timeout))
        return ServerUnavailable(f"no job server answered at {show_address(self.address)} within {timeout} s")

    def set_socket(self, current_socket: socket.socket) -> None:
        """Take a socket over and set what every Gearman socket needs."""
        current_socket.setblocking(False)
        if current_socket.family in _INTERNET:
            self._set_tcp_options(current_socket)
        self.gearman_socket = current_socket
        self.epoch += 1
        _close_in_forked_children(self)

    def _set_tcp_options(self, current_socket: socket.socket) -> None:
        current_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        current_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                current_socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Keepalive does not run while sent data is unacknowledged; this does.
            milliseconds = int(self.send_timeout * 1000)
            current_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    # --------------------------------------------------------------------------------------------- pollable

    def fileno(self) -> int:
        """The file descriptor to watch at present, or -1."""
        if self._resolution is not None:
            return self._resolution.fileno()
        return self.gearman_socket.fileno() if self.gearman_socket is not None else -1

    @property
    def wants_write(self) -> bool:
        if self.connected:
            return bool(self.outgoing)
        if self._is_shaking_hands:
            # The socket is writable all the time, so asking for that while the peer has the word would spin.
            return self._handshake_wants_write
        return self._resolution is None and self.gearman_socket is not None

    def writable(self) -> bool:
        return self.connected and bool(self.outgoing)

    # ---------------------------------------------------------------------------------------------- reading

    def read_data_from_socket(self, bytes_to_read: int = 0) -> int:
        """Receive once and parse; returns how many bytes came, 0 when none wait.

        Raises
        ------
        ConnectionLost
            If the peer has closed or the connection broke.
        ProtocolError
            If what came is not Gearman.
        """
        current = self.gearman_socket
        self.may_have_more = False
        if current is None or not self.connected:
            raise self.failure("is not open")
        try:
            count, self.may_have_more = self.reader.fill(current.recv_into)
        except _WOULD_BLOCK:
            return 0
        except TransportError:  # is an OSError too: what came does not parse
            self.connected = False
            if not self._has_heard and self._tls is None and self.reader.begins_with(tlsfaults.ANSWERED_TLS):
                raise TlsFailed(tlsfaults.mistaken_reply(self.address))
            raise
        except OSError as error:
            raise self._broken(error) from error
        if count == 0:
            is_torn = self.reader.is_mid_packet
            raise (
                self.failure("was closed in the middle of a packet")
                if is_torn
                else self._ended("was closed by the server")
            )
        self._has_heard = True
        if self._tls is not None:
            self.may_have_more = count >= _RECORD_BYTES or self.has_pending
        return count

    @property
    def has_pending(self) -> bool:
        """Whether something was received that no poll will tell of: the rest of what TLS had packed together."""
        return isinstance(self.gearman_socket, ssl.SSLSocket) and self.gearman_socket.pending() > 0

    def read_commands_from_buffer(self) -> int:
        """Parsing is done while receiving; returns how many commands wait."""
        return len(self.reader.commands)

    def read_command(self) -> tuple[int, Any] | None:
        return self.reader.commands.popleft() if self.reader.commands else None

    # ---------------------------------------------------------------------------------------------- writing

    def send_command(self, cmd_type: int, cmd_args: Mapping[str, Any]) -> None:
        """Queue one command; `send_data_to_socket` sends what is queued."""
        bare = BARE_PACKETS.get(cmd_type)
        if bare is not None:
            self.outgoing.put(bare)
            return
        if cmd_type == TEXT_COMMAND:
            line = cmd_args["raw_text"]
            self.outgoing.put(line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line)
            return
        data = cmd_args.get("data", b"")
        if isinstance(data, str):
            data = data.encode()
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        self.outgoing.put(frame_head(cmd_type, cmd_args, size), data)

    def send_with_data(self, command: int, names: tuple[bytes, ...], data: Any) -> None:
        """Queue a command whose arguments are bytes already and end in data: every job and its outcome."""
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        self.outgoing.put(pack_head(command, (*names, b""), size), data)

    def send_bare(self, command: int) -> None:
        """Queue a command without arguments."""
        self.outgoing.put(BARE_PACKETS[command])

    def send_commands_to_buffer(self) -> None:
        """Commands are packed when they are queued."""

    def send_data_to_socket(self) -> int:
        """Send as much as the socket takes; returns 1 if something is left, else 0.

        Raises
        ------
        ConnectionLost
            If the connection broke.
        """
        if not self.connected or self.gearman_socket is None:
            return 1
        outgoing = self.outgoing
        small = outgoing.take_small()
        if small is not None:
            try:
                sent = self.gearman_socket.send(small)
            except _WOULD_BLOCK:
                sent = 0
            except OSError as error:
                raise self._broken(error) from error
            if sent == len(small):
                return 0
            outgoing.put_back(small[sent:])
            return 1
        while True:
            buffers = outgoing.gather()
            if not buffers:
                return 0
            try:
                if len(buffers) == 1 or self._tls is not None:
                    sent = self.gearman_socket.send(buffers[0])
                else:
                    sent = self.gearman_socket.sendmsg(buffers)
            except _WOULD_BLOCK:
                return 1
            except OSError as error:
                raise self._broken(error) from error
            if outgoing.advance(sent):
                return 0

    # ---------------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        """Close and forget everything that was queued or received; may be called twice."""
        if self._resolution is not None:
            self._resolution.close()
            self._resolution = None
        self._drop_socket()
        self._is_shaking_hands = False
        self._has_heard = False
        self._last_failure = None
        self._refusal = None
        self._tls = None
        self.endpoints = []
        self._reset_connection()

    def _drop_socket(self) -> None:
        if self.gearman_socket is not None:
            self.gearman_socket.close()
            self.gearman_socket = None

    def failure(self, what: str) -> ConnectionLost:
        """Mark the connection as gone and make the error that says so."""
        self.connected = False
        return ConnectionLost(f"the connection to the job server at {show_address(self.address)} {what}")

    def _broken(self, error: OSError) -> TransportError:
        """Mark the connection as gone and make the error for what the system says."""
        if isinstance(error, ssl.SSLError) and not self._has_heard:
            self.connected = False
            return TlsFailed(tlsfaults.refusal(self.address, error))
        return self._ended(f"broke: {error.strerror or error}")

    def _ended(self, how: str) -> TransportError:
        """The same where the other side has ended it; if it never said anything, TLS may be why."""
        if self._has_heard:
            return self.failure(how)
        if not isinstance(self.address, TlsAddress):
            return self.failure(f"{how} {tlsfaults.hint_in_plain_text(self.address)}")
        self.connected = False
        hint = tlsfaults.hint_after_handshake(self.address)
        return TlsFailed(f"the connection to the job server at {show_address(self.address)} {how} {hint}")

    def throw_exception(self, message: str | None = None, exception: Exception | None = None) -> None:
        """gearman3's way to give a connection up."""
        raise self.failure(message or f"broke: {exception}") from exception


class TakesAddresses(GearmanConnectionManager):  # type: ignore[misc]  # gearman3 has no types
    """Part of a gearman3 client or worker: its connections are ours, and know all of their address."""

    connection_class = Connection

    def add_connection(self, hostport_tuple: Address) -> Connection:
        tls = hostport_tuple.tls if isinstance(hostport_tuple, TlsAddress) else None
        connection = Connection(hostport_tuple[0], hostport_tuple[1], tls=tls)
        self.connection_list.append(connection)
        return connection


# Sockets must not live on in forked children (a process pool, a data loader): the job server would go on believing in
# a client that has gone. The set is process-wide because fork is.
_open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _close_in_forked_children(connection: Connection) -> None:
    _open_connections.add(connection)


def _close_all() -> None:
    for connection in list(_open_connections):
        connection._drop_socket()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_all)
