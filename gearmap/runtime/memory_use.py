"""How much memory children use, and how much there is.

What must not live here: limits, and what follows from them (`core.node_engine`).

Rule 1: nothing here waits, and nothing here raises: a process that has gone uses nothing.
Rule 2: memory of a process is what is in RAM. What processes of one group share (libraries, mapped files) counts once;
pages that a fork has not copied yet count for both sides.
Rule 3: address space is never limited: numerical libraries and thread stacks reserve far more than they use.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from gearmap.core.sizes import parse_bytes, shown_bytes
from gearmap.errors import ConfigurationError

__all__ = ["MemoryMeter", "can_measure", "default_cache_bytes", "high_water_bytes", "memory_limit_bytes", "total_bytes"]

# A child that has done nothing yet uses about half of it. Raised: limits that would end every task are refused;
# lowered: small machines may be divided more finely.
LEAST_MEMORY_LIMIT = 64 * 1024 * 1024

# How often it is looked up which processes a task has started. Raised: less work on hosts with many processes;
# lowered: what such a process uses is counted sooner.
GROUP_INTERVAL = 1.0

_IS_LINUX = sys.platform == "linux"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def can_measure() -> bool:
    """Whether memory of other processes can be measured here: on Linux, elsewhere with psutil."""
    return _IS_LINUX or _psutil() is not None


def memory_limit_bytes(value: object, name: str) -> int:
    """Return a memory limit in bytes: of a number of them, or a text like "4G". `name` is what people call it.

    Raises
    ------
    ConfigurationError
        If it is none, too small for Python itself, or memory cannot be measured on this system.

    Examples
    --------
    >>> memory_limit_bytes("4G", "memory_limit")
    4294967296
    """
    limit = parse_bytes(value) if isinstance(value, str) else value
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise ConfigurationError(f"{name} must be bytes, or a text like '4G', got {value!r}")
    if limit < LEAST_MEMORY_LIMIT:
        least = shown_bytes(LEAST_MEMORY_LIMIT)
        raise ConfigurationError(f"{name} must be at least {least}, which Python itself needs; got {value!r}")
    if not can_measure():
        raise ConfigurationError(f"{name} needs the package psutil on this system")
    return limit


def total_bytes() -> int | None:
    """Return how much memory there is for this process: the machine's, or less by its control group."""
    if not _IS_LINUX:
        psutil = _psutil()
        return None if psutil is None else int(psutil.virtual_memory().total)
    limits = [_kilobytes("/proc/meminfo", "MemTotal:")]
    for path in _CGROUP_LIMITS:
        text = _read(path).strip()
        limits.append(int(text) if text.isdigit() else None)
    return min((limit for limit in limits if limit), default=None)


def default_cache_bytes() -> int:
    """Return how much of the large arrays of clients a node keeps if nobody says: a quarter of the memory there is.

    What is kept is not needed at the moment, and was given by clients that mean to use it again.
    """
    total = total_bytes()
    return 2 * 1024**3 if total is None else total // 4


def high_water_bytes(pid: int) -> int:
    """Return the most memory that one process ever used, 0 if nobody can say."""
    if _IS_LINUX:
        return _kilobytes(f"/proc/{pid}/status", "VmHWM:") or 0
    return _rss_by_psutil(pid)


class MemoryMeter:
    """Measures children, each with the processes that its tasks have started.

    Every child leads a session of its own, so that is how they are found; a process that has made itself another
    session is not counted.
    """

    def __init__(self) -> None:
        self._members: dict[int, list[int]] = {}
        self._look_up_at = 0.0

    def measure(self, leaders: Iterable[int], now: float) -> dict[int, int]:
        """Return the bytes that each session uses. `leaders` are process ids, `now` is monotonic."""
        wanted = list(leaders)
        if not _IS_LINUX:
            return {leader: _rss_by_psutil(leader) for leader in wanted}
        if now >= self._look_up_at:
            self._look_up_at = now + GROUP_INTERVAL
            self._members = _sessions()
        return {leader: _together(self._members.get(leader) or [leader]) for leader in wanted}


def _together(pids: list[int]) -> int:
    """Return what processes use together."""
    private = shared = 0
    for pid in pids:
        words = _read(f"/proc/{pid}/statm").split()
        if len(words) >= 3:
            resident, of_it_shared = int(words[1]), int(words[2])
            private += resident - of_it_shared
            shared = max(shared, of_it_shared)
    return (private + shared) * _PAGE_BYTES


def _sessions() -> dict[int, list[int]]:
    """Return the processes of each session on this machine."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            # What follows the name, which may hold anything: state, parent, group, session.
            words = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
            if len(words) > 3:
                found.setdefault(int(words[3]), []).append(int(name))
    return found


def _kilobytes(path: str, label: str) -> int | None:
    """Return the value of a line `label   1234 kB` in bytes."""
    for line in _read(path).splitlines():
        if line.startswith(label):
            return int(line.split()[1]) * 1024
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _psutil() -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        return None


def _rss_by_psutil(pid: int) -> int:
    psutil = _psutil()
    if psutil is None:
        return 0
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(int(each.memory_info().rss) for each in family)
    except psutil.Error:
        return 0
