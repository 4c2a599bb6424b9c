"""Job servers as child processes: start one, wait until it answers, stop it.

What lives here: gearmand and the embedded server as children that never outlive their parent. What must not: asyncio,
the protocol beyond the two admin lines that tell that a server is there.

Rule 1: a child ends when its parent process goes away, however that happens: it holds a pipe whose other end is ours
alone, and ends at its end of file.
Rule 2: only the process that started a server stops it; a forked child that inherited the object does not.
Rule 3: stopping twice, or stopping what never came up, is no error, and leaves no process and no file behind.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from typing import Any, Final

from gearmap.errors import ConfigurationError, ServerUnavailable
from gearmap.jobserver.child import Child, guarded
from gearmap.jobserver.commandline import LaunchOptions, embedded_command, find_gearmand, gearmand_command
from gearmap.jobserver.sockets import SOCKET_NAME, connect
from gearmap.tls import TlsServerFiles, server_context

__all__ = ["LaunchOptions", "PendingServer", "ServerProcess", "find_gearmand", "launch", "start_job_server"]

logger = logging.getLogger(__name__)

# Between two looks at a server that is starting. Longer: later ready; shorter: takes its processor.
POLL_DELAY: Final = 0.005
# A free port may be taken between our look and gearmand's; twice in a row is rare already.
MAX_PORT_ATTEMPTS: Final = 5
# Who accepts a connection and says nothing for so long is not the server that was started.
ANSWER_TIMEOUT: Final = 1.0
STOP_TIMEOUT: Final = 5.0
# Of the systems that have Unix sockets: macOS, without the NUL.
MAX_SOCKET_PATH: Final = 103


class _PortTaken(ServerUnavailable):
    """Somebody else has the port."""


class ServerProcess:
    """A job server that answers.

    Attributes
    ----------
    kind
        `"embedded"`, or `"gearmand"` and its version.
    host, port
        Where it listens; of a private one the path of its Unix socket, and 0.
    pid
        Its process.
    """

    def __init__(self, child: Child, *, kind: str, host: str, port: int, pid: int) -> None:
        self._child = child
        self.kind = kind
        self.host = host
        self.port = port
        self.pid = pid

    def __repr__(self) -> str:
        state = "alive" if self.alive else "stopped"
        where = f"unix:{self.host}" if self.host.startswith("/") else f"{self.host}:{self.port}"
        return f"<ServerProcess {self.kind} at {where}, pid {self.pid}, {state}>"

    @property
    def alive(self) -> bool:
        """Whether the server runs; always False in a forked process, which does not own it."""
        return self._child.is_alive

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Ask the server to end, wait, and kill it if it is not gone after `timeout` seconds. May be repeated."""
        if self._child.is_ours:
            self._child.stop(timeout)

    def kill(self) -> None:
        """Kill the server at once, as a crash would. May be repeated."""
        if self._child.is_ours:
            self._child.kill()
            self._child.release()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class PendingServer:
    """A job server that was started and may not answer yet; from `launch`."""

    def __init__(self, program: str | None, options: LaunchOptions, *, has_fallback: bool = False) -> None:
        self._program = program
        self._options = options
        self._has_fallback = has_fallback
        self._port = options.port
        self._started: ServerProcess | None = None
        self._child = self._start()

    def wait(self, deadline: float = 10.0) -> ServerProcess:
        """Return the server once it answers.

        Parameters
        ----------
        deadline
            Seconds from now.

        Raises
        ------
        ServerUnavailable
            If it ended or did not answer in time; nothing is left running then.
        """
        if self._started is not None:
            return self._started
        until = time.monotonic() + deadline
        attempt = 1
        while True:
            try:
                self._started = self._wait_once(until)
                return self._started
            except ServerUnavailable as error:
                if time.monotonic() >= until or not self._can_start_again(error, attempt):
                    raise
            attempt += 1
            self._child = self._start()

    def stop(self) -> None:
        """End the server, whether it answers or not. May be repeated."""
        if self._started is not None:
            self._started.stop()
        elif self._child.is_ours:
            self._child.stop(STOP_TIMEOUT)

    def _start(self) -> Child:
        host, port = self._options.host, self._options.port
        if self._program is not None and port != 0 and not _is_free(host, port):
            raise _PortTaken(f"cannot listen on {host}:{port}: the port is taken")
        if self._program is None:
            folder = _private_folder() if self._options.private else None
            return Child(embedded_command(self._options, folder=folder), folder)
        directory = tempfile.mkdtemp(prefix="gearmap-server-")
        self._port = self._options.port or _free_port(self._options.host)
        pid_file = os.path.join(directory, "pid")
        command = gearmand_command(self._program, self._options, port=self._port, pid_file=pid_file)
        return Child(guarded(command, directory), directory)

    def _can_start_again(self, error: ServerUnavailable, attempt: int) -> bool:
        if self._program is None:
            return False
        if isinstance(error, _PortTaken):
            return self._options.port == 0 and attempt < MAX_PORT_ATTEMPTS
        if not self._has_fallback:
            return False
        logger.warning("the embedded job server takes the place of gearmand: %s", error)
        self._program = None
        return True

    def _wait_once(self, until: float) -> ServerProcess:
        child = self._child
        try:
            line = child.read_line(until)
            if not line.endswith(b"\n"):
                raise ServerUnavailable(self._failure("did not start"))
            if self._program is None:
                ready: dict[str, Any] = json.loads(line)
                host, port, pid = str(ready["host"]), int(ready["port"]), int(ready["pid"])
            else:
                host, port, pid = self._options.host, self._port, int(line)
            child.server_pid = pid
            # With TLS the line is what there is: nobody here has to have a certificate that the server lets in.
            version = "" if self._options.tls else self._wait_for_answer(host, port, pid, until)
        except BaseException:
            child.kill()
            child.release()
            raise
        kind = "embedded" if self._program is None else f"gearmand {version}"
        return ServerProcess(child, kind=kind, host=host, port=port, pid=pid)

    def _wait_for_answer(self, host: str, port: int, pid: int, until: float) -> str:
        """Return the version; the process must be ours, not another one that has the port."""
        while True:
            timeout = until - time.monotonic()
            if timeout <= 0:
                raise ServerUnavailable(self._failure(f"did not answer on {host}:{port} in time"))
            try:
                version, answering_pid = _ask(host, port, timeout=min(timeout, ANSWER_TIMEOUT))
            except (TimeoutError, ValueError):
                is_stranger = True
            except OSError:
                is_stranger = False
            else:
                if answering_pid == pid:
                    return version
                is_stranger = True
            if self._child.process.poll() is not None:
                raise ServerUnavailable(self._failure(f"ended before it answered on {host}:{port}"))
            if is_stranger and self._program is not None:
                # gearmand does not end when it cannot bind: it waits for the port.
                raise _PortTaken(f"{host}:{port} is taken by another program")
            time.sleep(POLL_DELAY)

    def _failure(self, what: str) -> str:
        name = self._program or "the embedded job server"
        messages = self._child.read_messages()
        return f"{name} {what}" + (f": {messages}" if messages else "")


def launch(
    kind: str = "auto",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    job_retries: int = 5,
    threads: int = 0,
    workers_wake_one: bool = False,
    private: bool = False,
    verbose: int = 0,
    log: str | None = None,
    tls: TlsServerFiles | None = None,
) -> PendingServer:
    """Start a job server and return at once; `PendingServer.wait` gives it when it answers.

    Parameters are those of `start_job_server`.
    """
    options = LaunchOptions(
        host=host,
        port=port,
        job_retries=job_retries,
        threads=threads,
        workers_wake_one=workers_wake_one,
        private=private,
        verbose=verbose,
        log=log,
        tls=tls,
    )
    if tls is None:
        return PendingServer(_program(kind), options, has_fallback=kind == "auto")
    if kind not in ("auto", "embedded"):
        raise ConfigurationError("TLS is for the embedded job server; before gearmand put stunnel, as the README shows")
    server_context(tls)  # what is wrong with the files is said here
    return PendingServer(None, options)


def start_job_server(
    kind: str = "auto",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    job_retries: int = 5,
    threads: int = 0,
    workers_wake_one: bool = False,
    private: bool = False,
    verbose: int = 0,
    log: str | None = None,
    tls: TlsServerFiles | None = None,
    deadline: float = 10.0,
) -> ServerProcess:
    """Start a job server that ends with this process, and wait until it answers.

    Parameters
    ----------
    kind
        `"gearmand"`, `"embedded"`, the path of a gearmand, or `"auto"`: gearmand if it is installed and starts, else
        the embedded server.
    host
        Address to listen on; loopback unless told otherwise, because a Gearman server trusts whoever reaches it.
    port
        Port to listen on; 0 takes a free one.
    job_retries
        How many workers a job may lose before it fails; 0 is no limit.
    threads
        I/O threads of gearmand.
    workers_wake_one
        Whether a job wakes one sleeping worker and not all.
    private
        Whether an embedded server is for this user alone, on a Unix socket where there are any. Then host and port mean
        nothing. gearmand serves every user of this machine.
    verbose
        0, 1 or 2: how much is logged.
    log
        Log file; None logs nothing.
    tls
        What to speak TLS with; the server is then the embedded one.
    deadline
        Seconds from now in which it must answer.

    Raises
    ------
    ConfigurationError
        If there is no such server program, or an option is impossible.
    ServerUnavailable
        If it does not come up; nothing is left running then.
    """
    pending = launch(
        kind,
        host=host,
        port=port,
        job_retries=job_retries,
        threads=threads,
        workers_wake_one=workers_wake_one,
        private=private,
        verbose=verbose,
        log=log,
        tls=tls,
    )
    return pending.wait(deadline)


def _program(kind: str) -> str | None:
    """Return the gearmand to start; None is the embedded server."""
    if kind == "embedded":
        return None
    if kind == "auto":
        return find_gearmand()
    if kind == "gearmand":
        program = find_gearmand()
        if program is None:
            raise ConfigurationError("gearmand is not installed; install it, or use server='embedded'")
        return program
    if os.sep in kind:
        found = shutil.which(kind)
        if found is None:
            raise ConfigurationError(f"server={kind!r} is not a program")
        return found
    raise ConfigurationError(f"a job server is 'auto', 'gearmand', 'embedded' or a path, not {kind!r}")


def _ask(host: str, port: int, *, timeout: float) -> tuple[str, int]:
    """Return version and process id of the server at an address; OSError or ValueError if it does not tell."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    until = time.monotonic() + timeout
    with connect(host, port, timeout) as connection:
        connection.sendall(b"version\r\ngetpid\r\n")
        answer = b""
        while answer.count(b"\n") < 2:
            connection.settimeout(max(0.001, until - time.monotonic()))
            data = connection.recv(4096)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            answer += data
    lines = answer.decode("ascii", "replace").splitlines()
    version = re.match(r"OK ([0-9.]+)", lines[0])
    pid = re.match(r"OK ([0-9]+)", lines[1])
    if version is None or pid is None:
        raise ValueError(f"an answer that is not a job server's: {answer!r}")
    return version[1], int(pid[1])


def _private_folder() -> str | None:
    """Return a new folder of this user alone, in which a Unix socket can be; None where there are none."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    for parent in (None, "/tmp"):
        folder = tempfile.mkdtemp(prefix="gearmap-", dir=parent)
        if len(os.fsencode(os.path.join(folder, SOCKET_NAME))) <= MAX_SOCKET_PATH:
            return folder
        os.rmdir(folder)
    return None


def _bind(host: str, port: int) -> int:
    """Bind and release a port; return it."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def _free_port(host: str) -> int:
    try:
        return _bind(host, 0)
    except OSError as error:
        raise ServerUnavailable(f"cannot listen on {host!r}: {error}")


def _is_free(host: str, port: int) -> bool:
    try:
        _bind(host, port)
    except OSError:
        return False
    return True
