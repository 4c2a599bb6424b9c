"""What one connection, and all of them together, may take of the server.

What lives here: numbers, with why they are what they are, and how much memory there is to share out. What must not:
who keeps them.

Rule 1: a limit is far above what an honest client or worker needs, and far below what would hurt the others.
Rule 2: where all connections together take too much, those lose first that hold much and do nothing with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from gearmap.jobserver.reader import MAX_BODY_BYTES

__all__ = ["Limits", "Stock", "usable_memory"]

_CGROUP_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_MIB: Final = 1 << 20
_MOST_CONNECTIONS: Final = 20_000

# Shares of the memory there is. Jobs have most of it; all three together leave an eighth for everybody else.
JOB_SHARE: Final = 1 / 2
OUTBOX_SHARE: Final = 1 / 4
HALF_SHARE: Final = 1 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much connections may take.

    Attributes
    ----------
    max_connections
        Above it those that have said nothing for longest and have nothing to do here are closed, or else the new one.
    least_silence
        Seconds: who has said something since then may be about to go on, and is not closed for another one.
    max_body_bytes
        Larger packets are refused by closing the connection.
    high_water_bytes, low_water_bytes
        Size of an outbox at which those who feed it are no longer read, and at which they are read again.
    own_water_bytes
        Answers to its own requests after which a connection is not read until it has fetched them.
    all_outboxes_bytes, all_halves_bytes
        What waits in all outboxes, and what came of all packets that are not whole yet. Above it the connection loses
        its place that has kept most for longest.
    header_timeout
        Seconds that a small packet may take from its first byte to its last.
    body_timeout, body_rate
        Seconds without a byte, and bytes a second, below which a large body closes its connection.
    hold_timeout, fetch_rate
        Seconds, and bytes a second beyond them, in which an outbox must be fetched that keeps others from being read.
    turn_seconds, least_turn_seconds
        How long the packets of one connection are handled before the others have their turn: the first if nobody else
        has packets left over, shared out among those who have, but at least the second.
    sweep_delay
        Seconds between two looks for connections that take too long.
    """

    max_connections: int = _MOST_CONNECTIONS
    least_silence: float = 1.0
    max_body_bytes: int = MAX_BODY_BYTES
    high_water_bytes: int = 32 * _MIB
    low_water_bytes: int = 8 * _MIB
    own_water_bytes: int = 64 * _MIB
    all_outboxes_bytes: int = 1024 * _MIB
    all_halves_bytes: int = 512 * _MIB
    header_timeout: float = 30.0
    body_timeout: float = 300.0
    body_rate: float = 4096.0
    hold_timeout: float = 20.0
    fetch_rate: float = 128.0 * 1024
    turn_seconds: float = 0.001
    least_turn_seconds: float = 0.000_05
    sweep_delay: float = 5.0

    @classmethod
    def of_machine(cls, *, memory_bytes: int, max_files: int) -> Limits:
        """Return the limits of a server that shares so much memory with others, and may open so many files."""
        # Some files are for what is no connection: the log, the lifeline, what Python opens.
        return cls(
            max_connections=max(16, min(_MOST_CONNECTIONS, max_files - 32)),
            all_outboxes_bytes=int(memory_bytes * OUTBOX_SHARE),
            all_halves_bytes=int(memory_bytes * HALF_SHARE),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """How much the server keeps for those who use it.

    Attributes
    ----------
    max_jobs
        Queued and running ones. More: longer listings, which hold everybody up (half a second for a million).
    max_jobs_bytes
        Their payloads, and a kilobyte for each.
    max_names_bytes
        Names of functions, and half a kilobyte for each. Above it functions without jobs and workers are forgotten.
    max_abilities
        How many functions one connection may serve. More: each of its grabs costs more.
    max_abilities_bytes
        Names of the functions that all connections serve, each time that one does: the length of the listing `workers`.
    max_held
        Jobs that one worker may have at a time.
    max_awaited
        Different jobs that one connection may wait for. More: the others wait longer when it goes (0.3 s for so many).
    max_waits
        How often one job may be waited for: each result is sent so many times.
    max_namesakes
        Jobs of different functions with the same unique.
    """

    max_jobs: int = 1_000_000
    max_jobs_bytes: int = 1024 * _MIB
    max_names_bytes: int = 16 * _MIB
    max_abilities: int = 4096
    max_abilities_bytes: int = 64 * _MIB
    max_held: int = 10_000
    max_awaited: int = 200_000
    max_waits: int = 1024
    max_namesakes: int = 64

    @classmethod
    def of_machine(cls, *, memory_bytes: int) -> Stock:
        """Return the limits of a server that shares so much memory with others."""
        return cls(max_jobs_bytes=int(memory_bytes * JOB_SHARE))


def usable_memory() -> int:
    """Return how much memory this process could have: the machine's, or less in a control group."""
    n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _CGROUP_LIMITS:
        try:
            with open(path, encoding="ascii") as file:
                n_bytes = min(n_bytes, int(file.read()))
        except (OSError, ValueError):
            pass  # there is none, or it says "max"
    return int(n_bytes)
