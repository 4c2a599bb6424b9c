"""The records of the job server: jobs, functions, peers.

What lives here: what is known about each of them. What must not: any move of a job, which is `state`'s.

Rule 1: only `state.JobTable` changes a job or a function; the fields of a peer that are its own wishes (client id,
options) are set by `machine`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from gearmap.jobserver.limits import Stock
from gearmap.jobserver.protocol import Data

__all__ = ["HIGH", "LOW", "NORMAL", "Function", "Job", "JobState", "Peer", "ServerOptions"]

HIGH: Final = 0
NORMAL: Final = 1
LOW: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What can be chosen about a server.

    Attributes
    ----------
    host_name
        Middle part of the job handles, `H:<host_name>:<number>`.
    job_retries
        How many workers a job may lose before it fails; 0 is no limit.
    wake_one
        Whether a job wakes one sleeping worker and not all of its function. It is for servers whose workers have no
        other and live and die with them: then a GRAB may wait, too.
    stock
        How much is kept.
    """

    host_name: bytes = b"embedded"
    job_retries: int = 5
    wake_one: bool = False
    stock: Stock = field(default_factory=Stock)


class JobState(Enum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    GONE = "gone"


class Job:
    """One job. Its fields are changed by `JobTable` alone."""

    __slots__ = (
        "background",
        "clients",
        "data",
        "data_key",
        "denominator",
        "function",
        "handle",
        "is_cancelled",
        "numerator",
        "priority",
        "retries",
        "state",
        "unique",
        "worker",
    )

    def __init__(
        self, handle: bytes, function: Function, unique: bytes, data: Data, priority: int, background: bool
    ) -> None:
        self.handle = handle
        self.function = function
        self.unique = unique
        self.data = data
        self.data_key: tuple[bytes, bool, bytes] | None = None
        self.priority = priority
        self.background = background
        self.state = JobState.GONE
        # One entry per submission: a client that submitted twice is answered twice.
        self.clients: list[Peer] = []
        self.worker: Peer | None = None
        self.retries = 0
        self.is_cancelled = False
        self.numerator = 0
        self.denominator = 0

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still needs this job to run."""
        return not self.is_cancelled and (self.background or bool(self.clients))


class Function:
    """One function name: its queue and its workers."""

    __slots__ = ("limits", "n_dead", "n_queued", "n_running", "name", "queues", "sleepers", "workers")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.queues: tuple[deque[Job], deque[Job], deque[Job]] = (deque(), deque(), deque())
        self.n_queued = [0, 0, 0]
        self.n_dead = [0, 0, 0]
        self.n_running = 0
        # Per priority; compared with all jobs of the function, running ones too. 0 is no limit.
        self.limits = (0, 0, 0)
        # How often each peer said CAN_DO: saying it twice counts twice in the listings.
        self.workers: dict[Peer, int] = {}
        # Workers to wake for the next job: asleep, and no NOOP on its way. In the order they fell asleep.
        self.sleepers: dict[Peer, None] = {}

    @property
    def n_waiting(self) -> int:
        """How many jobs are queued."""
        return sum(self.n_queued)

    @property
    def n_total(self) -> int:
        """How many jobs are queued or running."""
        return sum(self.n_queued) + self.n_running


class Peer:
    """One connection: a client, a worker, an administrator, or all of them at once."""

    __slots__ = (
        "abilities",
        "address",
        "client_id",
        "grabs_wait",
        "is_gone",
        "is_sleeping",
        "is_touched",
        "is_waiting",
        "number",
        "out",
        "running",
        "waiting",
        "wants_exceptions",
    )

    def __init__(self, number: int = 0, address: bytes = b"127.0.0.1") -> None:
        self.number = number
        self.address = address
        self.client_id = b"-"
        self.wants_exceptions = False
        # Whether its GRAB_JOB_UNIQ is answered when there is a job, instead of NO_JOB now and NOOP then.
        self.grabs_wait = False
        self.is_sleeping = False
        # Whether it sleeps with such a GRAB.
        self.is_waiting = False
        self.is_gone = False
        self.is_touched = False
        # The next function to serve comes first; the last one registered begins.
        self.abilities: deque[Function] = deque()
        self.running: dict[Job, None] = {}
        self.waiting: dict[Job, None] = {}
        self.out: list[Data] = []
