"""Hosts of their own on one machine: network namespaces that hang on a switch, and cables that can be pulled.

Whoever is `inside` a host starts processes, threads and sockets there. The switch has no address itself, so what a
pulled cable carried is gone without a word, as it is when a real host vanishes: no FIN, no RST, no error.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000

_OURS = "gm"
_NAMESPACES = Path("/var/run/netns")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


class Host:
    """One host on the network."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.address = address
        self.was_cut = False
        self._network = network
        self._name = name
        self._plug = f"p{address.rpartition('.')[2]}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let the calling thread live on this host; what it starts stays there."""
        with open("/proc/thread-self/ns/net") as home, open(_NAMESPACES / self._name) as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def cut(self) -> None:
        """Pull the cable out of the switch."""
        self.was_cut = True
        _run("ip", "-n", self._network.switch, "link", "set", self._plug, "nomaster")

    def restore(self) -> None:
        """Put it back."""
        _run("ip", "-n", self._network.switch, "link", "set", self._plug, "master", "switch")

    def cut_for(self, seconds: float) -> None:
        """Be without network for so long: that is the fault itself, nothing waits for it."""
        self.cut()
        time.sleep(seconds)
        self.restore()


class Network:
    """A switch and the hosts on it; `remove` takes everything away, with the connections that are left."""

    def __init__(self) -> None:
        # Namespaces are known to the whole machine. The number tells that they are ours, the rest tells this network
        # from what a killed process of the same number has left.
        self._prefix = f"{_OURS}{os.getpid()}-{secrets.token_hex(2)}-"
        self._hosts: list[str] = []
        self.switch = self._prefix + "switch"

    def build(self) -> None:
        """Make the switch."""
        self._add_namespace(self.switch)
        _run("ip", "-n", self.switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", self.switch, "link", "set", "switch", "up")

    def host(self, name: str) -> Host:
        """Connect one more host."""
        number = len(self._hosts)
        host = Host(self, self._prefix + name, f"10.99.0.{number}")
        self._add_namespace(host._name)
        _run("ip", "-n", self.switch, "link", "add", host._plug, "type", "veth", "peer", "eth0", "netns", host._name)
        _run("ip", "-n", self.switch, "link", "set", host._plug, "up")
        host.restore()
        for what in (("link", "set", "lo", "up"), ("link", "set", "eth0", "up")):
            _run("ip", "-n", host._name, *what)
        _run("ip", "-n", host._name, "address", "add", f"{host.address}/24", "dev", "eth0")
        return host

    def remove(self) -> None:
        """Take down everything."""
        for name in self._hosts:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def _add_namespace(self, name: str) -> None:
        _run("ip", "netns", "add", name)
        self._hosts.append(name)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _remove_abandoned() -> None:
    """Remove the namespaces of test runs that were killed."""
    for name in os.listdir(_NAMESPACES) if _NAMESPACES.exists() else ():
        found = re.match(rf"{_OURS}(\d+)-", name)
        if found and not Path(f"/proc/{found[1]}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def make_network() -> Network:
    """Build a network, or skip the test where that is not allowed."""
    network = Network()
    _remove_abandoned()
    try:
        network.build()
        with network.host("probe").inside():
            pass
    except OSError as error:
        network.remove()
        pytest.skip(f"no network of our own here: {error}")
    return network
