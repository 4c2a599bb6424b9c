"""Commands as real processes, read line by line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from programs import ends_with_us

# Everything that a test waits for comes within this time, on a machine that is busy with other things too (seconds).
DEADLINE = 40.0

REPOSITORY = Path(__file__).resolve().parents[2]


class Command:
    """A running `gearmap` command. Standard output and error are kept apart and both read as they come."""

    def __init__(self, *words: str, environment: Mapping[str, str] = {}, cwd: Path | None = None) -> None:
        self.words = words
        self._process = subprocess.Popen(
            ends_with_us([sys.executable, "-m", "gearmap", *words]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160", "PYTHONUNBUFFERED": "1", **environment},
            cwd=cwd,
            text=True,
            start_new_session=True,  # a signal of the test's terminal is not meant for it
        )
        self.pid = self._process.pid
        self.out: list[str] = []
        self.err: list[str] = []
        self._heard = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self._process.stdout, self.out), (self._process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: object, lines: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            with self._heard:
                lines.append(line.rstrip("\n"))
                self._heard.notify_all()

    def wait_for(self, pattern: str, *, times: int = 1) -> str:
        """Return the line of standard output that matches for the `times`-th time, once it is there."""

        def matching() -> list[str]:
            return [line for line in self.out if re.search(pattern, line)]

        with self._heard:
            found = self._heard.wait_for(lambda: len(matching()) >= times, DEADLINE)
            assert found, f"no {pattern!r} from {self!r}"
            return matching()[times - 1]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Return the exit status, once all output has been read."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"has not ended in {timeout} s: {self!r}") from None
        for reader in self._readers:
            reader.join(DEADLINE)
        return status

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                self._process.terminate()  # a worker drains after the first, and stops after the second
            try:
                self._process.wait(10.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for reader, stream in zip(self._readers, (self._process.stdout, self._process.stderr), strict=True):
            reader.join(DEADLINE)
            assert stream is not None
            stream.close()

    def __repr__(self) -> str:
        state = self._process.poll()
        return f"<gearmap {' '.join(self.words)}, status {state}, out {self.out}, err {self.err}>"


def run(*words: str, environment: Mapping[str, str] = {}, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a `gearmap` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gearmap", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160", **environment},
        cwd=cwd,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition that nothing can notify of holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE} s: {what}"
        time.sleep(0.02)
