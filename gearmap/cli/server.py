"""`gearmap server`: run a job server in the foreground and say what to paste elsewhere.

Law of the file: the server ends with this process, and this process with the server; nothing is left running.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gearmap.cli.common import FoundKey, find_key, key_option, tls_files_option
from gearmap.config import DEFAULT_PORT, ServerAddress
from gearmap.errors import ConfigurationError, ServerUnavailable, TransportError
from gearmap.tls import TlsFiles, TlsServerFiles

if TYPE_CHECKING:
    from gearmap.jobserver.process import ServerProcess

__all__ = ["advice", "server_command"]

# How often the server's process is looked at (seconds). Longer: its end is noticed later; shorter: more wake-ups.
LOOK_DELAY = 0.5
# A server for other machines gets one thread for its sockets beside the one for the queues; one machine needs none.
CLUSTER_THREADS = 1


@click.command("server")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="H",
    help="Address to listen on; 0.0.0.0 for every network of this machine.",
)
@click.option(
    "--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(1, 65535), metavar="P", help="Port."
)
@click.option("--embedded", is_flag=True, help="The embedded job server, even where gearmand is installed.")
@tls_files_option("cert", "Speak TLS, with this certificate; the server is then the embedded one.")
@tls_files_option("key", "The certificate's key, if it is not in the same file.")
@tls_files_option("ca", "Let in only clients with a certificate that this authority has signed.")
@key_option
@click.option("-v", "--verbose", count=True, help="Show the server's log; twice for all of it.")
def server_command(
    host: str,
    port: int,
    embedded: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    key_file: Path | None,
    verbose: int,
) -> int:
    """Run a job server: gearmand where it is installed, else the embedded one.

    Ctrl-C or SIGTERM ends it.
    """
    from gearmap.jobserver.process import start_job_server

    tls = _tls(tls_cert, tls_key, tls_ca)
    address = ServerAddress(host, port, "--host and --port", None if tls is None else TlsFiles())
    _check_port(address)
    # Whoever starts the server is who may make the key: from here it is copied to every other host.
    key = find_key(key_file, may_make=True)
    with _told_to_stop() as stop, _log(bool(verbose)) as log:
        running = start_job_server(
            "embedded" if embedded else "auto",
            host=host,
            port=port,
            threads=0 if address.is_loopback else CLUSTER_THREADS,
            verbose=min(verbose, 2),
            log=None if log is None else log.path,
            tls=tls,
        )
        with running:
            said = advice(
                running.kind, address, key, explicit=key_file is not None, wants_certificates=tls_ca is not None
            )
            click.echo("\n".join(said))
            sys.stdout.flush()
            return _watch(running, stop, log)


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> TlsServerFiles | None:
    """Return the files of TLS, if it is to be spoken."""
    if cert is None:
        if key is not None or ca is not None:
            raise ConfigurationError("a server that speaks TLS needs a certificate: --tls-cert FILE")
        return None
    return TlsServerFiles.of_options(cert, key, ca)


def advice(
    kind: str, address: ServerAddress, key: FoundKey, *, explicit: bool, wants_certificates: bool = False
) -> list[str]:
    """Return the lines that say what runs, and what to paste into other terminals."""
    place = shlex.quote(str(_address_for_others(address)))
    quoted = shlex.quote(str(key.path))
    option, variable = (f" --key {quoted}", f"GEARMAP_KEY_FILE={quoted} ") if explicit else ("", "")
    lines = [
        f"{kind} job server on {address}",
        f"key {key.id} in {key.path}",
        "",
        "start workers:    " + f"gearmap worker -s {place}{option}",
        "use the cluster:  " + f"{variable}GEARMAP_SERVERS={place} jupyter lab",
    ]
    if address.tls is not None:
        lines += [
            "",
            "All of them need --tls-ca FILE, or GEARMAP_TLS_CA, for a certificate that the system does not know.",
        ]
    if wants_certificates:
        lines += ["They must show a certificate of their own: --tls-cert and --tls-key, or GEARMAP_TLS_CERT and _KEY."]
    if not address.is_loopback:
        lines += ["", f"Copy the key file to every other host first: {quoted}, mode 600."]
        who = "has such a certificate" if wants_certificates else "reaches this port"
        lines += [f"Whoever {who} can see and drop jobs, but not read or forge them: keep it inside."]
    return [*lines, "", "Ctrl-C ends the server."]


def _address_for_others(address: ServerAddress) -> ServerAddress:
    if address.host in ("0.0.0.0", "::", ""):
        return replace(address, host=socket.gethostname())
    return address


def _check_port(address: ServerAddress) -> None:
    """Refuse an address that cannot be listened on, and say who is there."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        import errno

        if error.errno == errno.EADDRINUSE:
            raise ServerUnavailable(f"port {address.port} of {address.host} is taken by {_who_is_there(address)}")
        reason = error.strerror or str(error)
        raise ServerUnavailable(f"cannot listen on {str(address)!r}: {reason}; see --host and --port")


def _who_is_there(address: ServerAddress) -> str:
    from gearmap.transport.admin import AdminSession

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    other = f"gearmap server --port {address.port + 1 if address.port < 65535 else address.port - 1}"
    try:
        with AdminSession((host, address.port), timeout=1.0) as session:
            version, pid = session.version(), session.getpid()
    except TransportError:
        return f"another program; `ss -ltnp 'sport = :{address.port}'` names it, or take another port: {other}"
    there = ServerAddress(host, address.port, "")
    return (
        f"a job server, version {version}, pid {pid}; use that one (gearmap status -s {there}), "
        f"or start a second one: {other}"
    )


class _Stop:
    """A pipe that a signal writes to; readable once this process should end."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def fileno(self) -> int:
        return self._reading

    def on_signal(self, number: int, frame: Any) -> None:
        try:
            os.write(self._writing, b"x")
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


@contextmanager
def _told_to_stop() -> Iterator[_Stop]:
    stop = _Stop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop.on_signal) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        stop.close()


class _Log:
    """The server's log as it is written: a named pipe that only the server and this process know."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "log")
        os.mkfifo(self.path, 0o600)
        # Open for reading before the server opens it for writing, and for both: no end of file between two writers.
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)

    def fileno(self) -> int:
        return self._fd

    def show(self) -> None:
        """Pass on what has been written."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def _log(wanted: bool) -> Iterator[_Log | None]:
    if not wanted:
        yield None
        return
    directory = tempfile.mkdtemp(prefix="gearmap-log-")
    log = _Log(directory)
    try:
        yield log
    finally:
        log.close()
        shutil.rmtree(directory, ignore_errors=True)


def _watch(running: ServerProcess, stop: _Stop, log: _Log | None) -> int:
    """Wait until told to stop, or until the server ends; return the exit status."""
    with selectors.DefaultSelector() as selector:
        selector.register(stop, selectors.EVENT_READ)
        if log is not None:
            selector.register(log, selectors.EVENT_READ)
        while running.alive:
            ready = [key.fileobj for key, _ in selector.select(LOOK_DELAY)]
            if log is not None and log in ready:
                log.show()
            if stop in ready:
                click.echo("stopping")
                return 0
    raise ServerUnavailable(f"the {running.kind} job server has ended by itself; see its log with -v")
