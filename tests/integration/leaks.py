"""What a test may leave behind, and must not: processes, threads, file descriptors, temporary files, queued jobs.

Law of the file: only what is ours is looked at; other people, and other test runs, use the same machine. Temporary
files are made in a folder of this session (`conftest`). Processes are known by a variable that they inherit, as those
that have lost their parent are the ones that matter.
"""

from __future__ import annotations

import gc
import os
import secrets
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from integration_support import is_alive, wait_until

import gearmap
from gearmap.transport import admin

__all__ = ["MARK", "MARKED_AS", "Belongings", "NodesBelongings", "expect_no_jobs"]

# A variable in the environment of all processes that come from this one.
MARK = "MARK_OF_TESTS"
MARKED_AS = secrets.token_hex(8)

# How long what is ending may take to be gone (seconds).
_DEADLINE = 20.0

# `multiprocessing` keeps its sockets in such folders; a process that is killed cannot remove its own.
_KILLED = "pymp-"

# Memory that this process has shared with children of its own: `multiprocessing` keeps it for the next.
_OF_HEAP = f"/dev/shm/pym-{os.getpid()}-"

# The thread that tqdm has once for all progress bars.
_OF_TQDM = "tqdm_monitor"

# The one that a client has once for all callbacks.
_OF_CALLBACKS = "gearmap-callbacks"


# Levels of tasks in tasks that a node may have children for.
_LEVELS = 4


@dataclass(frozen=True)
class Belongings:
    """What this process has, at one moment.

    A client that other tests use, too, keeps a connection to each of its servers for each set of options that calls
    were submitted with, and a thread for callbacks. All else that a test does with it ends with the test.
    """

    processes: frozenset[int]
    threads: frozenset[int]
    files: Counter[str]
    temporary: frozenset[str]
    connections: int
    clients: tuple[gearmap.Client, ...] = field(repr=False)

    @classmethod
    def now(cls, clients: Iterable[gearmap.Client]) -> Belongings:
        clients = tuple(clients)
        return cls(
            processes=frozenset(_our_processes()),
            threads=frozenset(thread.ident or 0 for thread in threading.enumerate() if thread.name != _OF_TQDM),
            files=_open_files(),
            temporary=frozenset(name for name in os.listdir(tempfile.gettempdir()) if not name.startswith(_KILLED)),
            connections=sum(map(_connections_of, clients)),
            clients=clients,
        )

    def expect_nothing_more(self) -> None:
        """Fail unless all that came later is gone, or goes soon."""
        found: list[str] = []

        def is_clean() -> bool:
            gc.collect()  # what only waits to be collected is not left behind
            found[:] = self._more()
            return not found

        wait_until(is_clean, "nothing is left behind", _DEADLINE, detail=lambda: found)

    def _more(self) -> list[str]:
        current = Belongings.now(self.clients)
        more = [f"process {_described(pid)}" for pid in current.processes - self.processes if not self._has_owner(pid)]
        more += [f"temporary {name}" for name in current.temporary - self.temporary]
        threads = [_name_of(ident) for ident in current.threads - self.threads]
        of_callbacks = threads.count(_OF_CALLBACKS) <= len(self.clients)
        more += [f"thread {name}" for name in threads if not (of_callbacks and name == _OF_CALLBACKS)]
        files = [name for name in (current.files - self.files).elements() if not name.startswith(_OF_HEAP)]
        sockets = [target for target in files if target.startswith("socket:")]
        kept = len(sockets) <= current.connections - self.connections
        return more + [f"file {target}" for target in files if not (kept and target in sockets)]

    def _has_owner(self, pid: int) -> bool:
        """Whether a process belongs to one that was there before: the node of a cluster replaces its children."""
        try:
            return any(parent.pid in self.processes for parent in psutil.Process(pid).parents())
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True)
class NodesBelongings:
    """What a node at rest has: descriptors, memory that it shares with children, processes."""

    pid: int
    files: int
    memory: int
    processes: int

    @classmethod
    def now(cls, pid: int) -> NodesBelongings:
        targets = _targets(f"/proc/{pid}/fd")
        memory = [target for target in targets if target.startswith("/dev/shm/")]
        processes = len(psutil.Process(pid).children(recursive=True))
        return cls(pid=pid, files=len(targets) - len(memory), memory=len(set(memory)), processes=processes)

    def expect_nothing_more(self) -> None:
        """Fail unless the node has no more than it had, or soon has no more."""

        def is_clean() -> bool:
            current = NodesBelongings.now(self.pid)
            # `multiprocessing` keeps memory for later: as much as all children at once have had, in all levels.
            memory = _LEVELS * self.memory
            return current.files <= self.files and current.processes <= self.processes and current.memory <= memory

        wait_until(
            is_clean,
            f"the node has what it had, {self}",
            _DEADLINE,
            detail=lambda: (NodesBelongings.now(self.pid), _targets(f"/proc/{self.pid}/fd")),
        )


def expect_no_jobs(addresses: Iterable[tuple[str, int]]) -> None:
    """Fail unless nothing is queued or runs on the servers, or soon is."""
    for address in addresses:
        find = partial(_jobs_at, address)
        wait_until(lambda find=find: not find(), f"no jobs are left at {address}", _DEADLINE, detail=find)


def _jobs_at(address: tuple[str, int]) -> list[str]:
    """The jobs that somebody waits for; gearmand lists others until a worker asks for the next."""
    return [str(job) for job in admin.show_jobs(address, 5.0) if not job.is_ignored]


def _connections_of(client: gearmap.Client) -> int:
    return len(client._call_runs) * len(client._backend.addresses)


def _our_processes() -> set[int]:
    """Those that have the mark, and those that were forked without it."""
    found = {process.pid for process in psutil.Process().children(recursive=True) if is_alive(process)}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == MARKED_AS and is_alive(process):
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue  # it has ended meanwhile, or is somebody else's
    return found


def _open_files() -> Counter[str]:
    """What the descriptors of this process stand for, but those that stand for the processes' own list."""
    return Counter(target for target in _targets("/proc/self/fd") if not target.startswith("/proc/"))


def _targets(folder: str) -> list[str]:
    """What descriptors stand for; nothing where that cannot be asked."""
    targets = []
    for name in os.listdir(folder) if Path(folder).exists() else ():
        try:
            targets.append(os.readlink(Path(folder) / name))
        except FileNotFoundError:
            continue  # it was for the listing itself
    return targets


def _described(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{pid} of {process.ppid()}, {process.status()}: {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return f"{pid}, which is gone now"


def _name_of(ident: int) -> str:
    return next((thread.name for thread in threading.enumerate() if thread.ident == ident), str(ident))
