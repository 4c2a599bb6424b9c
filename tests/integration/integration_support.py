"""What integration tests ask of processes, servers and time."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from programs import ends_with_us

from gearmap.core.names import Lane
from gearmap.jobserver.process import ServerProcess
from gearmap.keyfile import load_key
from gearmap.transport import admin
from gearmap.wire import seal

# How long anything may take before the test gives up (seconds); generous, for a busy machine.
DEADLINE = 30.0


def wait_until(
    condition: Callable[[], bool], what: str, deadline: float = DEADLINE, *, detail: Callable[[], object] | None = None
) -> None:
    """Wait until something outside of our control is so; `detail` is asked what there is instead."""
    until = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > until:
            instead = "" if detail is None else f"; {detail()}"
            pytest.fail(f"{what}: not within {deadline} s{instead}")
        time.sleep(0.01)


def in_background(call: Callable[[], Any]) -> Callable[..., Any]:
    """Run `call` in a thread; return a function that waits for its result."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(call())
        except BaseException as error:
            box.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result(timeout: float = 60.0) -> Any:
        thread.join(timeout)
        assert not thread.is_alive(), "still waiting"
        if isinstance(box[0], BaseException):
            raise box[0]
        return box[0]

    return result


def run_script(source: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a Python program."""
    return subprocess.Popen(ends_with_us([sys.executable, "-c", textwrap.dedent(source), *arguments]), **options)


def seconds_until_end(pids: Iterable[int], deadline: float = DEADLINE) -> float:
    """Wait until processes that are not children of this one have ended; return how long that took."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, fd)
            selector.register(fd, selectors.EVENT_READ, pid)
        while selector.get_map():
            left = deadline - (time.monotonic() - began)
            ended = selector.select(max(0.0, left))
            if not ended and left <= 0:
                pytest.fail(f"not within {deadline} s: {[key.data for key in selector.get_map().values()]} end")
            for key, _ in ended:
                selector.unregister(key.fileobj)
    return time.monotonic() - began


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def lane_of(key_file: Path, queue: str = "default", python: tuple[int, int] | None = None) -> str:
    """The function name that nodes of this key and Python (by default of ours) serve."""
    secret = load_key(key_file, "a test")
    return Lane(queue, python or (sys.version_info[0], sys.version_info[1]), seal.key_id(secret)).name


def workers_of(server: ServerProcess, function: str) -> int:
    """How many workers a job server lists for a function."""
    rows = admin.server_status((server.host, server.port), 5.0)
    return {row.function: row.workers for row in rows}.get(function, 0)
