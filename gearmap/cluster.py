"""A cluster on this machine: a job server and a node, more nodes once it has grown, all as child processes.

Law of the file: processes only. Who uses the cluster, and how, is the client's concern. All processes end when this
one does, however it ends: each holds a pipe whose other end is ours alone. The key is made for this cluster and goes
to the nodes through that pipe; it is in no command line, environment or file.

A cluster grows by a node and shrinks by letting nodes go, each of a fixed size: what a node does to leave without
losing anything is built and proven, and a node that changed its size would do all of it for single workers.
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
from gearmap.keyfile import new_secret
from gearmap.runtime.cpus import usable_cpus
from gearmap.runtime.noderun import encode_node_config
from gearmap.secret import Secret

__all__ = ["LocalProcesses", "make_node_id"]

# How long a node may take to end once its pipe is closed. Raised: a busy machine loses no last words; lowered: one that
# hangs is killed sooner.
END_SECONDS = 5.0

# A node that is let go ends what runs, however long that takes; the end of the cluster ends it at once.
LOCAL_GRACE = 7 * 24 * 3600.0


def make_node_id() -> str:
    """Return an id for a node that no other has."""
    return f"{os.getpid():x}-{secrets.token_hex(4)}"


@dataclass(slots=True)
class _NodeProcess:
    """A node of ours."""

    process: subprocess.Popen[bytes]
    workers: int

    def tell(self, config: Secret) -> None:
        """Hand the node its configuration; BrokenPipeError if it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(config.reveal())
        self.process.stdin.flush()

    def let_go(self) -> None:
        """Close the pipe that it lives by."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    def end(self) -> None:
        """Wait until it has ended, and see to it that it does."""
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class LocalProcesses:
    """The processes of a local cluster.

    Parameters
    ----------
    workers
        Workers of the node, or None for one for each usable CPU.
    server
        "auto" (gearmand if there is one, else the embedded job server), "gearmand", "embedded", or a path.
    memory_limit
        Bytes that a worker may use, or None.
    """

    workers: int | None = None
    server: str = "auto"
    memory_limit: int | None = None
    secret: Secret | None = None
    _server: ServerProcess | None = None
    _nodes: list[_NodeProcess] = field(default_factory=list)
    _leaving: list[_NodeProcess] = field(default_factory=list)  # they end what runs, and take nothing new
    _started: int = 0  # nodes so far
    _owner: int = 0

    def start(self) -> ServerAddress:
        """Start both processes; return the job server's address.

        Raises
        ------
        ServerUnavailable
            If the job server does not come up.
        """
        self._owner = os.getpid()
        self.secret = new_secret()
        self.workers = self.workers or usable_cpus()
        # The node gets ready while the job server starts; it is told the address when there is one.
        pending: PendingServer = launch(self.server, workers_wake_one=True, private=True)
        try:
            node = self._start_node(self.workers)
            self._server = pending.wait()
            self._tell(node)
        except BaseException:
            pending.stop()
            self.stop()
            raise
        return ServerAddress(self._server.host, self._server.port, "the local cluster")

    def scale(self, workers: int) -> None:
        """Have so many workers from now on: at once for those that come, after their running job for those that go."""
        self.workers = workers
        if self._server is None:
            return
        self._forget_gone()
        have = sum(node.workers for node in self._nodes)
        while have > workers:
            node = self._nodes.pop()
            self._leaving.append(node)
            have -= node.workers
            node.process.terminate()
        if have < workers:
            self._tell(self._start_node(workers - have))

    def _forget_gone(self) -> None:
        """Forget the nodes that were to go, and have ended."""
        for node in [node for node in self._leaving if node.process.poll() is not None]:
            self._leaving.remove(node)
            node.let_go()

    @property
    def server_kind(self) -> str:
        """Which job server runs, for people."""
        return "no server" if self._server is None else self._server.kind

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of job server and nodes."""
        server = () if self._server is None else (self._server.pid,)
        return (*server, *(node.process.pid for node in self._nodes))

    def problem(self) -> str | None:
        """Return what is wrong with the processes, or None."""
        for node in self._nodes:
            if node.process.poll() is not None:
                return f"the local cluster's node has ended (exit status {node.process.returncode})"
        if self._server is not None and not self._server.alive:
            return f"the local cluster's job server ({self._server.kind}) has ended"
        return None

    @property
    def is_foreign(self) -> bool:
        """Whether the processes were started by the one that this one was forked from."""
        return self._owner not in (0, os.getpid())

    def let_go(self) -> None:
        """In a forked process: close its ends of the pipes that nodes live by, or they outlive their owner."""
        for node in (*self._nodes, *self._leaving):
            node.let_go()

    def stop(self) -> None:
        """End all processes. A forked child of ours does nothing here."""
        if os.getpid() != self._owner:
            return
        nodes = [*self._nodes, *self._leaving]
        server, self._server = self._server, None
        self._nodes, self._leaving = [], []
        for node in nodes:
            node.let_go()
        if server is not None:
            server.stop()
        for node in nodes:
            node.end()

    def _start_node(self, workers: int) -> _NodeProcess:
        process = subprocess.Popen(
            [sys.executable, "-m", "gearmap.runtime.node_main", "0", str(self.workers)],
            stdin=subprocess.PIPE,
            env=_node_environment(os.environ),
            # Python looks for modules in the folder where it is started: a random.py there must not end the node.
            cwd=os.path.abspath(os.sep),
            # A session of its own: Ctrl-C in our terminal is the client's affair, not the node's.
            start_new_session=True,
        )
        self._nodes.append(_NodeProcess(process, workers))
        return self._nodes[-1]

    def _tell(self, node: _NodeProcess) -> None:
        """Tell a node what it is to do, now that the job server's address is known."""
        assert self._server is not None
        assert self.secret is not None
        self._started += 1
        host = socket.gethostname()
        config = encode_node_config(
            servers=((self._server.host, self._server.port),),
            keys=(self.secret,),
            workers=node.workers,
            workers_here=self.workers,
            queues=("default",),
            name=host if self._started == 1 else f"{host}.{self._started}",
            node_id=make_node_id(),
            memory_limit=self.memory_limit,
            grace=LOCAL_GRACE,
            lifeline=True,
        )
        try:
            node.tell(config)
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
