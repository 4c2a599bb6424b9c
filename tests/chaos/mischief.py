"""The processes of a cluster that lose their lives, and who takes them.

What must not live here: tasks and what they give (`chaos`).

Rule 1: everything random comes from one seed. What it meets does not: processes take their own time.
Rule 2: what was killed is started again at once, job servers on the same port.
Rule 3: every process that was started here has ended after `Cluster.stop`, however that is reached.
"""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from gearmap.jobserver.process import ServerProcess, start_job_server
from gearmap.keyfile import load_key, make_key
from gearmap.runtime.noderun import encode_node_config
from gearmap.transport import admin

__all__ = ["KILL_INTERVAL", "Cluster", "Killer"]

NODES = 4
WORKERS = 2

# Seconds between two kills.
KILL_INTERVAL = 0.3

# Of what is killed, how much of each kind. A starter is the process that a node's children are forked from.
WEIGHTS = {"child": 11, "node": 4, "job server": 4, "starter": 1}


class Cluster:
    """Two job servers and four nodes of two workers, each node connected to both.

    Parameters
    ----------
    kinds
        Of the job servers.
    folder
        For the key and for what the nodes write.
    """

    def __init__(self, kinds: Sequence[str], folder: Path) -> None:
        self.kinds = kinds
        self.key_file = folder / "key"
        self._folder = folder
        self._servers: list[ServerProcess] = []
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._log = (folder / "nodes.log").open("wb")

    @property
    def addresses(self) -> list[str]:
        return [f"{server.host}:{server.port}" for server in self._servers]

    def start(self) -> None:
        make_key(self.key_file)
        for kind in self.kinds:
            self._servers.append(start_job_server(kind))
        for number in range(NODES):
            self._nodes.append(self._start_node(number))

    def stop(self) -> None:
        """End everything. May be called twice."""
        nodes, self._nodes = self._nodes, []
        servers, self._servers = self._servers, []
        for node in nodes:
            assert node.stdin is not None
            node.stdin.close()
        for node in nodes:
            try:
                node.wait(10.0)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
        for server in servers:
            server.stop()
        self._log.close()

    def children(self) -> list[psutil.Process]:
        """The processes that run tasks, and those that wait for one."""
        return [child for starter in self.starters() for child in _children_of(starter)]

    def starters(self) -> list[psutil.Process]:
        """The processes that children are forked from."""
        found = []
        for node in self._nodes:
            try:
                found += [each for each in _children_of(psutil.Process(node.pid)) if _children_of(each)]
            except psutil.NoSuchProcess:
                continue
        return found

    def kill_node(self, number: int) -> None:
        """Kill a node and start it again."""
        node = self._nodes[number]
        node.kill()
        node.wait()
        assert node.stdin is not None
        node.stdin.close()
        self._nodes[number] = self._start_node(number)

    def kill_server(self, number: int) -> None:
        """Kill a job server and start it again where it was."""
        port = self._servers[number].port
        self._servers[number].kill()
        self._servers[number] = start_job_server(self.kinds[number], port=port, deadline=30.0)

    def fallen(self) -> list[int]:
        """The nodes that have ended by themselves; nobody asked them to."""
        return [number for number, node in enumerate(self._nodes) if node.poll() is not None]

    def describe(self) -> str:
        """What there is, for whoever must find out why nothing goes on."""
        lines = []
        for server in self._servers:
            lines.append(f"{server!r}")
            try:
                rows = admin.server_status((server.host, server.port), 2.0)
                lines += [
                    f"    {row.function}: {row.total} jobs, {row.running} run, {row.workers} serve" for row in rows
                ]
            except OSError as error:
                lines.append(f"    does not answer: {error}")
        for number, node in enumerate(self._nodes):
            state = "runs" if node.poll() is None else f"has ended with {node.returncode}"
            lines.append(f"node {number}, pid {node.pid}, {state}")
        lines += [f"    {child.pid}: {child.status()}" for child in self.children() if child.is_running()]
        self._log.flush()
        text = (self._folder / "nodes.log").read_text(errors="replace")
        return "\n".join([*lines, "what the nodes wrote last:", *text.splitlines()[-40:]])

    def _start_node(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gearmap.runtime.node_main", "0"]
        node = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._log, start_new_session=True)
        assert node.stdin is not None
        node.stdin.write(
            encode_node_config(
                servers=tuple((server.host, server.port) for server in self._servers),
                keys=(load_key(self.key_file, "a test"),),
                workers=WORKERS,
                queues=("default",),
                name=f"node{number}",
                node_id=secrets.token_hex(4),
                lifeline=True,
            ).reveal()
        )
        node.stdin.flush()
        return node


class Killer:
    """A thread that kills something every `KILL_INTERVAL` seconds, until it is told to stop.

    Attributes
    ----------
    kills
        How many of each kind.
    error
        What went wrong with starting something again, or None.
    """

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._cluster = cluster
        self._random = random.Random(seed)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            due = time.monotonic() + KILL_INTERVAL
            while not self._stopped.wait(max(0.0, due - time.monotonic())):
                due += KILL_INTERVAL  # starting something again may take longer; the next one is soon, then
                (kind,) = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))
                self.kills[kind] += self._kill(kind)
        except BaseException as error:
            self.error = error

    def _kill(self, kind: str) -> bool:
        if kind == "node":
            self._cluster.kill_node(self._random.randrange(NODES))
        elif kind == "job server":
            self._cluster.kill_server(self._random.randrange(len(self._cluster.kinds)))
        else:
            processes = self._cluster.children() if kind == "child" else self._cluster.starters()
            if not processes:
                return False  # all of them are being started
            try:
                self._random.choice(processes).send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                return False
        return True


def _children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []
