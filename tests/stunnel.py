"""Debian's stunnel in front of a job server of a test's own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from certificates import Pair
from programs import ends_with_us, missing

__all__ = ["Stunnel"]

DEADLINE = 10.0


class Stunnel:
    """A running stunnel that ends TLS and passes the plain text on to `target`.

    Parameters
    ----------
    clients
        The certificate of the authority that clients must show a certificate of, if they must.
    port
        Where it listens; by default on a free port.
    """

    def __init__(
        self, folder: Path, target: tuple[str, int], pair: Pair, *, clients: str | None = None, port: int | None = None
    ) -> None:
        self.address = ("127.0.0.1", port or _free_port())
        self._config = folder / f"stunnel-{self.address[1]}.conf"
        self._target = target
        self._clients = clients
        self._process: subprocess.Popen[bytes] | None = None
        self.start(pair)

    def start(self, pair: Pair) -> None:
        """Begin to serve with this certificate, at the same address as ever."""
        program = shutil.which("stunnel4") or shutil.which("stunnel")
        if program is None:
            missing("stunnel4")
            raise AssertionError
        lines = ["foreground = yes", "pid =", "syslog = no", "debug = err", "socket = l:SO_REUSEADDR=1"]
        lines += ["[gearman]", f"accept = {_shown(self.address)}", f"connect = {_shown(self._target)}"]
        lines += [f"cert = {pair.certificate}", f"key = {pair.key}"]
        if self._clients is not None:
            lines += ["verifyChain = yes", f"CAfile = {self._clients}"]
        self._config.write_text("\n".join(lines) + "\n")
        self._process = subprocess.Popen(ends_with_us([program, str(self._config)]), stderr=subprocess.DEVNULL)
        end = time.monotonic() + DEADLINE
        while not self._listens():
            assert self._process.poll() is None, "stunnel did not start"
            assert time.monotonic() < end, "stunnel does not listen"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it, and with it every connection. May be repeated."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(DEADLINE)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(self.address) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _shown(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
