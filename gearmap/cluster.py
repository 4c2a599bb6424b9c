"""A cluster on this machine: a job server and a node, both as child processes.

Law of the file: processes only. Who uses the cluster, and how, is the client's concern. Both processes end when this
one does, however it ends: each holds a pipe whose other end is ours alone. The key is made for this cluster and goes
to the node through that pipe; it is in no command line, environment or file.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gearmap.config import ServerAddress
from gearmap.errors import ClusterBroken
from gearmap.jobserver.process import PendingServer, ServerProcess, launch
from gearmap.keyfile import SECRET_BYTES
from gearmap.runtime.cpus import usable_cpus
from gearmap.runtime.noderun import encode_node_config

__all__ = ["LocalProcesses", "make_node_id"]


def make_node_id() -> str:
    """Return an id for a node that no other has."""
    return f"{os.getpid():x}-{secrets.token_hex(4)}"


@dataclass(slots=True)
class LocalProcesses:
    """The processes of a local cluster.

    Parameters
    ----------
    workers
        Workers of the node, or None for one for each usable CPU.
    server
        "auto" (gearmand if there is one, else the embedded job server), "gearmand", "embedded", or a path.
    """

    workers: int | None = None
    server: str = "auto"
    secret: bytes = field(default=b"", repr=False)
    _server: ServerProcess | None = None
    _node: subprocess.Popen[bytes] | None = None
    _owner: int = 0

    def start(self) -> ServerAddress:
        """Start both processes; return the job server's address.

        Raises
        ------
        ServerUnavailable
            If the job server does not come up.
        """
        self._owner = os.getpid()
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self.workers = self.workers or usable_cpus()
        # The node imports while the job server starts; it is told the address when there is one.
        pending: PendingServer = launch(self.server, workers_wake_one=True)
        try:
            self._node = self._start_node()
            self._server = pending.wait()
        except BaseException:
            pending.stop()
            self.stop()
            raise
        address = ServerAddress(self._server.host, self._server.port, "the local cluster")
        self._tell_node(address)
        return address

    @property
    def server_kind(self) -> str:
        """Which job server runs, for people."""
        return "no server" if self._server is None else self._server.kind

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of job server and node."""
        pids = [] if self._server is None else [self._server.pid]
        if self._node is not None:
            pids.append(self._node.pid)
        return tuple(pids)

    def problem(self) -> str | None:
        """Return what is wrong with the processes, or None."""
        if self._node is not None and self._node.poll() is not None:
            return f"the local cluster's node has ended (exit status {self._node.returncode})"
        if self._server is not None and not self._server.alive:
            return f"the local cluster's job server ({self._server.kind}) has ended"
        return None

    @property
    def is_foreign(self) -> bool:
        """Whether the processes were started by the one that this one was forked from."""
        return self._owner not in (0, os.getpid())

    def let_go(self) -> None:
        """In a forked process: close its end of the pipe that the node lives by, or the node outlives its owner."""
        if self._node is not None and self._node.stdin is not None:
            self._node.stdin.close()

    def stop(self) -> None:
        """End both processes. A forked child of ours does nothing here."""
        if os.getpid() != self._owner:
            return
        node, self._node = self._node, None
        server, self._server = self._server, None
        if node is not None:
            assert node.stdin is not None
            try:
                node.stdin.close()
            except BrokenPipeError:
                pass
        if server is not None:
            server.stop()
        if node is not None:
            try:
                node.wait(5.0)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()

    def _start_node(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "gearmap.runtime.node_main", "0"],
            stdin=subprocess.PIPE,
            env=_node_environment(os.environ),
            # Python looks for modules in the folder where it is started: a random.py there must not end the node.
            cwd=os.path.abspath(os.sep),
            # A session of its own: Ctrl-C in our terminal is the client's affair, not the node's.
            start_new_session=True,
        )

    def _tell_node(self, address: ServerAddress) -> None:
        node = self._node
        assert node is not None
        assert node.stdin is not None
        config = encode_node_config(
            servers=((address.host, address.port),),
            secret=self.secret,
            workers=self.workers or 1,
            queues=("default",),
            name=socket.gethostname(),
            node_id=make_node_id(),
            lifeline=True,
        )
        try:
            node.stdin.write(config)
            node.stdin.flush()
        except BrokenPipeError:
            self.stop()
            raise ClusterBroken("the local cluster's node ended before it was told what to do") from None

    def describe(self) -> str:
        """Return one line for people."""
        noun = "worker" if self.workers == 1 else "workers"
        server = "" if self._server is None else f", {self.server_kind} server"
        return f"local cluster, {self.workers or usable_cpus()} {noun}{server}"


def _node_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the node's environment: it must find this gearmap, also in a checkout that is not installed."""
    parts = [os.path.abspath(part) for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    home = Path(__file__).resolve().parent.parent
    if home.name not in ("site-packages", "dist-packages"):
        parts.insert(0, str(home))
    environment = dict(environ)
    environment["PYTHONPATH"] = os.pathsep.join(parts)
    return environment
