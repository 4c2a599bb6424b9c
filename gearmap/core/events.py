"""What goes into the run engine and what comes out of it.

Law of the file: frozen values only. An *input* says what happened; an *instruction* says what to do next. The runtime
carries instructions out and reports what happened; it decides nothing.

Numbers used by both sides:

* a *task* has an index in its run, from 0 in the order in which the user asked;
* a *block* is an immutable group of pickled argument sets, for the tasks `first .. first + size`;
* a *chunk* is a tuple of `Span`s (parts of blocks) that travel in one job; a *position* counts its tasks from 0;
* an *attempt* is one submission of a chunk, numbered by the engine; the runtime maps it to a unique.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

__all__ = [
    "AddBlock",
    "AttemptLost",
    "Beat",
    "Block",
    "BreakRun",
    "CancelAttempt",
    "CancelRun",
    "CancelTask",
    "Deliver",
    "DropBlock",
    "FailTask",
    "InputEnded",
    "JobSeen",
    "LoseTask",
    "LossReason",
    "NotRunKind",
    "NotRunReport",
    "OutcomeArrived",
    "RunEnded",
    "ServerDown",
    "ServerUp",
    "Span",
    "Submit",
    "TaskFailed",
    "TaskRange",
    "Tick",
    "TimeOutTask",
    "WorkersSeen",
]


@dataclass(frozen=True, slots=True)
class Block:
    """Argument sets that were pickled together and stay together as bytes.

    One that is `alone` shares its first job with no other.
    """

    id: int
    first: int
    size: int
    function: Hashable
    payload_bytes: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """The part `start .. stop` (offsets in the block) of a block."""

    block: Block
    start: int
    stop: int

    @property
    def first(self) -> int:
        """Index of the span's first task."""
        return self.block.first + self.start

    @property
    def size(self) -> int:
        """Number of tasks."""
        return self.stop - self.start


TaskRange: TypeAlias = tuple[int, int]
"""Half-open: `(start, stop)`; of positions or of task indices, as the field says."""


class LossReason(Enum):
    """Why an attempt ended without an answer of its own."""

    SERVER = "the job server went away"
    REJECTED = "the job server refused the job"
    UNSENT = "it was not sent"
    WORKER = "the worker was lost"
    SILENT = "no beat for too long"
    UNREADABLE = "an outcome could not be opened"


class NotRunKind(Enum):
    """What the engine must know of a node's reason for not running a job."""

    AGAIN = "submit it again, to anyone"
    DIED = "the child died of the charged task"
    TIMED_OUT = "the charged task ran longer than it may"
    AVOIDED = "the header named this worker to be avoided"
    CANNOT_LOAD = "this worker cannot load the function"
    NO_BLOB = "what the job needs beside itself did not come"
    EXPIRED = "the envelope was too old, or came from the future"
    OVER_BUDGET = "the chunk took long; others may have time for the rest"
    INITIALIZER_FAILED = "the initializer raised, if there is a failure, or ended its process"


# ------------------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True, slots=True)
class AddBlock:
    """More tasks. Blocks come in the order of their tasks; one that comes after the end is dropped at once.

    `done` are tasks that an earlier run has results of: ascending, disjoint ranges of task indices in the block.
    """

    block: Block
    done: tuple[TaskRange, ...] = ()


@dataclass(frozen=True, slots=True)
class InputEnded:
    """No block will follow."""


@dataclass(frozen=True, slots=True)
class ServerUp:
    """A job server of this run can take jobs."""

    server: int


@dataclass(frozen=True, slots=True)
class ServerDown:
    """A job server is gone, and its attempts with it; an `AttemptLost` for each may follow."""

    server: int


@dataclass(frozen=True, slots=True)
class WorkersSeen:
    """How many workers serve this run's function name, the largest count over the servers."""

    count: int


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign that an execution goes on; `position` is the task it is at, `progress` how far that is, if known."""

    attempt: int
    execution: bytes
    worker: str
    position: int | None = None
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """Part of an outcome: the task at `position` raised. `failure` is opaque to the engine.

    `retry` is False if the user's `retry_exceptions` do not match it.
    """

    position: int
    failure: object
    retry: bool = True


@dataclass(frozen=True, slots=True)
class NotRunReport:
    """Part of an outcome: the node did not run the rest.

    `charged` is the position that is blamed (a child died of it, or it ran too long); everything else is run again
    uncharged. A time-out that charges nobody is one that came too late: the child had moved on.
    `loading` says that the child had not begun that task: it died of unpickling what the task needs.
    `output` and `seconds` are what the charged task printed and how long it ran, as far as is known; the engine only
    hands them on.
    `failure` is what every task fails with if no other worker can do better (a package that is missing), or what the
    initializer raised. `why` is the node's own word for the reason.
    """

    reason: NotRunKind
    detail: str = ""
    charged: int | None = None
    failure: object = None
    why: str = ""
    loading: bool = False
    output: object = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class OutcomeArrived:
    """An opened outcome of an attempt.

    `done` are position ranges whose results are payloads 0, 1, 2 ... of this outcome, one payload a range.
    `elapsed` seconds of work were measured over `count` tasks. After `final` the job is over.
    """

    attempt: int
    execution: bytes
    worker: str
    done: tuple[TaskRange, ...] = ()
    failed: tuple[TaskFailed, ...] = ()
    not_run: NotRunReport | None = None
    elapsed: float = 0.0
    count: int = 0
    final: bool = False


@dataclass(frozen=True, slots=True)
class AttemptLost:
    """An attempt ended without a final outcome."""

    attempt: int
    reason: LossReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class JobSeen:
    """A job server was asked about an attempt without an execution: it waits there, or is `running` at a worker."""

    attempt: int
    running: bool


@dataclass(frozen=True, slots=True)
class CancelTask:
    """The user cancelled a task that was not sent yet; one that was sent goes on."""

    task: int


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Nothing of this run is wanted any more."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


# ------------------------------------------------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Submit:
    """Send a chunk to a job server, under a fresh unique.

    `attempts` says which attempt this is of each of its tasks, `exact` that the one that runs must be known, and
    `budget` after how many seconds what was not begun is to be given back.
    """

    attempt: int
    server: int
    spans: tuple[Span, ...]
    avoid: tuple[str, ...] = ()
    attempts: int = 1
    exact: bool = False
    budget: float | None = None

    @property
    def function(self) -> Hashable:
        """The function that all tasks of the chunk share."""
        return self.spans[0].block.function


@dataclass(frozen=True, slots=True)
class Deliver:
    """Results `offset .. offset + size` of payload number `payload` belong to the tasks from `first` on.

    All of them are results of the same attempt of their tasks: the first, unless they failed before.
    """

    payload: int
    offset: int
    first: int
    size: int
    attempt: int
    worker: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class FailTask:
    """The task failed for good with its own exception."""

    task: int
    failure: object
    attempts: int
    worker: str


@dataclass(frozen=True, slots=True)
class LoseTask:
    """The task was lost too often.

    `span` is where its arguments are, if they may be unpickled; `alone` says that its last attempt had no other task.
    `output` is what it printed in that.
    """

    task: int
    losses: int
    detail: str
    worker: str | None
    span: Span | None = field(default=None, compare=False, repr=False)
    alone: bool = field(default=True, compare=False)
    output: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TimeOutTask:
    """The task ran too long, in the last of the `allowed` attempts.

    `span` is where its arguments are, `output` what it printed in that attempt, `seconds` how long it ran.
    """

    task: int
    attempts: int
    allowed: int
    worker: str | None
    detail: str = ""
    span: Span | None = field(default=None, compare=False, repr=False)
    output: object = field(default=None, compare=False, repr=False)
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Nobody waits for this attempt any more: drop it from the server's queue, or stop it."""

    attempt: int


@dataclass(frozen=True, slots=True)
class DropBlock:
    """All tasks of the block are settled; its bytes can go."""

    block: int


@dataclass(frozen=True, slots=True)
class BreakRun:
    """The run cannot go on.

    `kind` is the reason that was met once too often, `failure` what the initializer raised.
    """

    kind: NotRunKind
    detail: str
    failure: object = None
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Every task is settled and no block will follow. Comes once."""


Input: TypeAlias = (
    AddBlock
    | InputEnded
    | ServerUp
    | ServerDown
    | WorkersSeen
    | Beat
    | OutcomeArrived
    | AttemptLost
    | JobSeen
    | CancelTask
    | CancelRun
    | Tick
)
Instruction: TypeAlias = (
    Submit | Deliver | FailTask | LoseTask | TimeOutTask | CancelAttempt | DropBlock | BreakRun | RunEnded
)
