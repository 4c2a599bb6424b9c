"""What goes into the node engine and what comes out of it.

Law of the file: frozen values only. An *input* says what happened; an *instruction* says what to do next. The node
carries instructions out and reports what happened; it decides nothing.

Workers and children are numbered from 0. A *position* counts the tasks of a job from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

__all__ = [
    "AnswerNotRun",
    "AskClients",
    "BlobsHere",
    "BlobsMissing",
    "ChildGone",
    "ChildReady",
    "ClientsCounted",
    "CloseWorkers",
    "Drain",
    "Exit",
    "Finish",
    "Forward",
    "Input",
    "Instruction",
    "JobGone",
    "JobNeeds",
    "JobTaken",
    "KillChild",
    "LookAtMemory",
    "LookAtOutput",
    "LookAtTask",
    "MemorySeen",
    "NodeReason",
    "OpenWorkers",
    "OutcomeCommitted",
    "OutcomeFinal",
    "OutputSeen",
    "Pause",
    "RunJob",
    "SendBeat",
    "Start",
    "StartChild",
    "StopExecution",
    "TaskSeen",
    "Tick",
]


class NodeReason(Enum):
    """Why the node answers a job itself."""

    AVOIDED = "avoided"
    EXPIRED = "expired"
    DRAINING = "draining"
    STOPPED = "stopped"
    CHILD_DIED = "child died"
    DIED_LOADING = "child died loading"
    TIMED_OUT = "timed out"
    INITIALIZER_FAILED = "initializer failed"
    BLOB_UNAVAILABLE = "blob unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobNeeds:
    """What a job asks for beyond being run.

    Attributes
    ----------
    task_timeout
        Seconds that each of its tasks may take, or None.
    tenant
        Whose children may run it.
    initializer
        Whether it brings an initializer: a child that had it serves this tenant only from then on.
    max_tasks
        How many tasks a child may run in all, this job's among them, or None.
    blobs
        Whether no child gets it before `BlobsHere`.
    """

    task_timeout: float | None = None
    tenant: str = ""
    initializer: bool = False
    max_tasks: int | None = None
    blobs: bool = False


# ------------------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True, slots=True)
class Start:
    """The node begins."""


@dataclass(frozen=True, slots=True)
class OpenWorkers:
    """The workers `first .. first + count`, new ones or closed ones, take jobs of a nested level from now on."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class CloseWorkers:
    """The workers `first .. first + count` take no jobs any more, and have none."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class ChildReady:
    """A child answers."""

    child: int


@dataclass(frozen=True, slots=True)
class ChildGone:
    """A child was reaped and its pipe is empty. `position` is the task that it was at, if it was at one.

    `initializing` says that it was in a tenant's initializer, `loading` that it loaded what that task needs, `begun`
    that it had read its job.
    """

    child: int
    position: int | None
    detail: str
    initializing: bool = False
    loading: bool = False
    begun: bool = True


@dataclass(frozen=True, slots=True)
class JobTaken:
    """A worker was given a job whose header opened."""

    worker: int
    execution: bytes
    foreground: bool = True
    avoided: bool = False
    expired: bool = False
    n_tasks: int = 1
    needs: JobNeeds | None = None


@dataclass(frozen=True, slots=True)
class JobGone:
    """The connection that assigned the worker's job is lost: the job is somebody else's now."""

    worker: int


@dataclass(frozen=True, slots=True)
class BlobsHere:
    """What a worker's job has to wait for is here."""

    worker: int
    execution: bytes


@dataclass(frozen=True, slots=True)
class BlobsMissing:
    """What a worker's job has to wait for will not come."""

    worker: int
    execution: bytes
    detail: str


@dataclass(frozen=True, slots=True)
class OutcomeCommitted:
    """A child committed outcomes, not the last."""

    child: int


@dataclass(frozen=True, slots=True)
class OutcomeFinal:
    """A child committed its last outcome of the execution; `last` if it must not be given another job."""

    child: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class TaskSeen:
    """Somebody looked which task a child runs; None if it runs none."""

    child: int
    position: int | None


@dataclass(frozen=True, slots=True)
class OutputSeen:
    """Somebody took what a child's task has written to its descriptors: so many bytes."""

    child: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class MemorySeen:
    """Somebody looked how much memory a child and what it started use."""

    child: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class ClientsCounted:
    """The job server said how many clients wait for the worker's execution."""

    worker: int
    execution: bytes
    clients: int


@dataclass(frozen=True, slots=True)
class StopExecution:
    """Somebody with the key wants an execution stopped."""

    execution: bytes


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new; give back after `grace` seconds what still runs then."""

    grace: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


# ------------------------------------------------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class StartChild:
    """Start a child process under this number."""

    child: int


@dataclass(frozen=True, slots=True)
class KillChild:
    """Kill a child and its process group."""

    child: int


@dataclass(frozen=True, slots=True)
class RunJob:
    """Hand the worker's job to a child."""

    worker: int
    child: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Send on what the worker's child has committed."""

    worker: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Send what the worker's child has committed as the job's completion."""

    worker: int


@dataclass(frozen=True, slots=True)
class AnswerNotRun:
    """Complete the worker's job with what was committed and a NOT_RUN for the rest.

    `seconds` is how long the charged task ran, 0.0 if that is not known.
    """

    worker: int
    reason: NodeReason
    charged: int | None = None
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SendBeat:
    """Say that the worker's execution goes on."""

    worker: int


@dataclass(frozen=True, slots=True)
class AskClients:
    """Ask the job server that assigned the worker's job how many clients wait for it."""

    worker: int


@dataclass(frozen=True, slots=True)
class LookAtTask:
    """Find out which task a child runs: `TaskSeen`."""

    child: int


@dataclass(frozen=True, slots=True)
class LookAtOutput:
    """Take what the worker's child has written to its descriptors, and tell of it: `OutputSeen`."""

    worker: int
    child: int


@dataclass(frozen=True, slots=True)
class LookAtMemory:
    """Find out how much memory children use: `MemorySeen` for each."""

    children: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """No worker takes a job any more, but those of nested levels: running tasks may wait for theirs."""


@dataclass(frozen=True, slots=True)
class Exit:
    """The node is done; `problem` is empty if all is well."""

    problem: str = ""


Input: TypeAlias = (
    Start
    | OpenWorkers
    | CloseWorkers
    | ChildReady
    | ChildGone
    | JobTaken
    | JobGone
    | BlobsHere
    | BlobsMissing
    | OutcomeCommitted
    | OutcomeFinal
    | TaskSeen
    | OutputSeen
    | MemorySeen
    | ClientsCounted
    | StopExecution
    | Drain
    | Tick
)
Instruction: TypeAlias = (
    StartChild
    | KillChild
    | RunJob
    | Forward
    | Finish
    | AnswerNotRun
    | SendBeat
    | AskClients
    | LookAtTask
    | LookAtOutput
    | LookAtMemory
    | Pause
    | Exit
)
