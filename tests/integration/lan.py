"""Job servers, a client and nodes, each on a host of its own, whose cables can be pulled.

The times after which silence counts are shorter here than they are for users; what follows them is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leaks import expect_no_jobs
from networks import Host, Network

import gearmap
from gearmap.config import Patience
from gearmap.jobserver.process import ServerProcess

__all__ = ["SOON", "Lan"]

# A tenth of what users have.
SHORT = {"beat_interval": 0.5, "beat_timeout": 3.0, "send_timeout": 2.0}

# What all of it may take, with what a busy machine may add.
SOON = 40.0


class Lan:
    """What a test cuts; `runs` is where its tasks say that they have begun."""

    def __init__(
        self,
        kinds: Sequence[str],
        network: Network,
        start_server: Callable[..., ServerProcess],
        start_node: Callable[..., Any],
        connect: Callable[..., gearmap.Client],
        runs: Path,
    ) -> None:
        self.network, self.runs, self.nodes = network, runs, []
        self._kinds, self._start_server, self._start_node = kinds, start_server, start_node
        self.server_hosts = [network.host(f"server{number}") for number in range(len(kinds))]
        self.client_host = network.host("client")
        self.servers = [self._start(number) for number in range(len(kinds))]
        with self.client_host.inside():
            self.client = connect(*self.servers)
            self.client._backend.patience = Patience(**SHORT)
            self.client._backend.ready_driver()  # its thread lives where it is started

    def _start(self, number: int, port: int = 0) -> ServerProcess:
        host = self.server_hosts[number]
        with host.inside():
            return self._start_server(self._kinds[number], host=host.address, port=port)

    def restart_server(self, number: int) -> None:
        """Start a server anew at its address, after the test has killed it."""
        self.servers[number] = self._start(number, self.servers[number].port)

    def node(self, name: str, workers: int = 1) -> Host:
        """Start a node; return its host."""
        host = self.network.host(name)
        with host.inside():
            node = self._start_node(*self.servers, name=name, workers=workers, patience=SHORT)
        self.nodes.append(node)
        return host

    def workers(self) -> dict[int, list[str]]:
        """The names of those who have begun each task, as they say themselves."""
        found: dict[int, list[str]] = {}
        if self.runs.exists():
            for line in self.runs.read_text().splitlines():
                task, worker = line.split()
                found.setdefault(int(task), []).append(worker)
        return found

    def worker(self, seconds: float) -> Callable[[int], int]:
        """A task that says who runs it and takes its time."""
        runs = self.runs

        def work(x: int) -> int:
            import gearmap

            with runs.open("a") as file:
                file.write(f"{x} {gearmap.current_task().worker}\n")
            time.sleep(seconds)
            return x

        return work

    def end(self) -> None:
        """Close the client, look for jobs that are left, and kill the nodes."""
        self.client.close()  # a job that a host took along is one that nobody waits for then
        for host, server in zip(self.server_hosts, self.servers, strict=True):
            # One that was cut off may not know yet that a client has gone: its FIN went nowhere.
            if server.alive and not host.was_cut:
                with host.inside():
                    expect_no_jobs([(server.host, server.port)])
        for node in self.nodes:
            node.kill()  # one that is cut off would try for seconds to take its leave
