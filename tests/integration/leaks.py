"""What a test may leave behind, and must not: processes, threads, file descriptors, temporary files, queued jobs.

Law of the file: only what is ours is looked at; other people use the same machine. The folder for temporary files is
one of this session (`conftest`).
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from integration_support import is_alive, wait_until

from gearmap.jobserver.process import ServerProcess
from gearmap.transport import admin

__all__ = ["Belongings", "expect_no_jobs"]

# How long what is ending may take to be gone (seconds).
_DEADLINE = 10.0

# `multiprocessing` keeps its sockets in such folders; a process that is killed cannot remove its own.
_KILLED = "pymp-"

# The thread that tqdm has once for all progress bars.
_OF_TQDM = "tqdm_monitor"


@dataclass(frozen=True)
class Belongings:
    """What this process has, at one moment."""

    processes: frozenset[int]
    threads: frozenset[int]
    files: Counter[str]
    temporary: frozenset[str]

    @classmethod
    def now(cls) -> Belongings:
        return cls(
            processes=frozenset(process.pid for process in psutil.Process().children() if is_alive(process)),
            threads=frozenset(thread.ident or 0 for thread in threading.enumerate() if thread.name != _OF_TQDM),
            files=_open_files(),
            temporary=frozenset(name for name in os.listdir(tempfile.gettempdir()) if not name.startswith(_KILLED)),
        )

    def expect_nothing_more(self, *, shared: bool) -> None:
        """Fail unless all that came later is gone.

        With `shared`, the test used a client that others use, too: it may keep connections and threads.
        """
        found: list[str] = []

        def is_clean() -> bool:
            found[:] = self._more(shared)
            return not found

        wait_until(is_clean, "nothing is left behind", _DEADLINE, detail=lambda: found)

    def _more(self, shared: bool) -> list[str]:
        gc.collect()  # what only waits to be collected is not left behind
        current = Belongings.now()
        more = [f"process {_described(pid)}" for pid in current.processes - self.processes]
        more += [f"temporary {name}" for name in current.temporary - self.temporary]
        if not shared:
            more += [f"thread {_name_of(ident)}" for ident in current.threads - self.threads]
            more += [f"file {target}" for target in (current.files - self.files).elements()]
        return more


def expect_no_jobs(servers: Iterable[ServerProcess]) -> None:
    """Fail unless nothing is queued or runs on the servers that are still there."""
    for server in servers:
        if server.alive:
            find = partial(_jobs_of, server)
            wait_until(lambda find=find: not find(), "no jobs are left", _DEADLINE, detail=find)


def _jobs_of(server: ServerProcess) -> list[str]:
    """The jobs that somebody waits for; gearmand lists others until a worker asks for the next."""
    return [str(job) for job in admin.show_jobs((server.host, server.port), 5.0) if not job.is_ignored]


def _open_files() -> Counter[str]:
    """What the descriptors of this process stand for; nothing where that cannot be asked."""
    targets: Counter[str] = Counter()
    folder = Path("/proc/self/fd")
    for name in os.listdir(folder) if folder.exists() else ():
        try:
            target = os.readlink(folder / name)
        except FileNotFoundError:
            continue  # it was for the listing itself
        if not target.startswith("/proc/"):
            targets[target] += 1
    return targets


def _described(pid: int) -> str:
    try:
        return f"{pid}: {' '.join(psutil.Process(pid).cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return f"{pid}, which is gone now"


def _name_of(ident: int) -> str:
    return next((thread.name for thread in threading.enumerate() if thread.ident == ident), str(ident))
