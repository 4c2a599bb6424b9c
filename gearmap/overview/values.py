"""What a cluster looks like at one moment, as values; and from the answers of servers and nodes to these values.

Law of the file: pure. Whoever asked hands the answers in. They come from peers: what is odd in one is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gearmap.overview.listing import NodeRow, ServerAnswer, lane_rows, node_rows, server_kind

__all__ = [
    "ClusterStatus",
    "NodeStatus",
    "QueueStatus",
    "ServerStatus",
    "WorkerStatus",
    "cluster_status",
    "node_statuses",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One job server.

    Attributes
    ----------
    address
        `host:port`.
    origin
        Who named it: an argument, the environment, the config file.
    kind
        "gearmand" with its version, or "embedded"; empty if it does not answer.
    problem
        Why it does not answer, or an empty text.
    """

    address: str
    origin: str
    kind: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """A queue, for one nesting level, Python version and key.

    Attributes
    ----------
    is_mine
        Whether this client's own calls go there: its key, its Python version.
    workers, queued, running
        Workers that serve it, jobs that wait, jobs that run; over all job servers.
    """

    queue: str
    level: int
    python: str
    key_id: str
    is_mine: bool
    workers: int
    queued: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker of a node.

    Attributes
    ----------
    name
        As `current_task().worker` and errors call it.
    state
        "idle", "busy", or "unknown" where the node has not answered.
    run_id, position
        The run whose chunk it has, and at which task of the chunk it is; None if it is idle.
    n_tasks
        Tasks in that chunk.
    jobs_done
        Jobs that it has answered since it started.
    cpu_seconds, memory_bytes
        What its process has used, and uses now with all that it has started; None where nobody can say.
    """

    name: str
    state: str
    level: int = 0
    run_id: str | None = None
    position: int | None = None
    n_tasks: int | None = None
    jobs_done: int = 0
    cpu_seconds: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One node.

    Attributes
    ----------
    node_id
        Unique.
    name
        How people call it: its host's name; the id, if it has not answered.
    addresses
        From where it is connected, as the job servers see it.
    servers
        The job servers that it is connected to.
    seen
        When it answered, in seconds of `time.time()`; None if it did not: it is busy, stuck, or has another key.
    key_id
        The id of the key that it accepts; of both, while keys are changed.
    memory_limit
        Bytes that a worker may use, or None.
    cpus, memory_total
        Processors that it may use, and memory in bytes that there is for it; None if it has not said.
    jobs_refused, jobs_repeated
        Jobs that did not open, as nobody with this key has sealed them for it; and jobs that it had finished before,
        and has not run again.
    """

    node_id: str
    name: str
    addresses: tuple[str, ...]
    servers: tuple[str, ...]
    queues: tuple[str, ...]
    python: str
    key_id: str
    workers: tuple[WorkerStatus, ...]
    pid: int | None = None
    uptime: float | None = None
    seen: float | None = None
    memory_limit: int | None = None
    cpus: int | None = None
    memory_total: int | None = None
    jobs_refused: int = 0
    jobs_repeated: int = 0

    @property
    def warning(self) -> str:
        """What is to be said of jobs that honest clients do not send; nothing, nearly always."""
        if not self.jobs_refused:
            return ""
        jobs = "a job that does" if self.jobs_refused == 1 else f"{self.jobs_refused:,} jobs that do"
        return f"refused {jobs} not open: somebody else reaches its job servers"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """What `gearmap.status()` returns; `taken` is when, in seconds of `time.time()`."""

    where: str
    taken: float
    servers: tuple[ServerStatus, ...] = ()
    queues: tuple[QueueStatus, ...] = ()
    nodes: tuple[NodeStatus, ...] = ()

    @property
    def workers(self) -> tuple[WorkerStatus, ...]:
        """The workers of all nodes."""
        return tuple(worker for node in self.nodes for worker in node.workers)

    def _repr_html_(self) -> str:
        from gearmap.overview.html import status_html  # most never ask

        return status_html(self)

    def __str__(self) -> str:
        """One line for each thing that there is."""
        lines = [self.where]
        lines += [f"  server {each.address}: {each.problem or each.kind}" for each in self.servers]
        for queue in self.queues:
            level = f" level {queue.level}" if queue.level else ""
            mine = "" if queue.is_mine else f", Python {queue.python}, key {queue.key_id}"
            counts = f"{queue.workers} workers, {queue.queued} queued, {queue.running} running"
            lines.append(f"  queue {queue.queue!r}{level}{mine}: {counts}")
        for node in self.nodes:
            busy = sum(worker.state == "busy" for worker in node.workers)
            known = "no answer" if node.seen is None else f"{busy} of {len(node.workers)} workers busy"
            warning = f"; {node.warning}" if node.warning else ""
            lines.append(f"  node {node.name} ({', '.join(node.addresses)}): {known}{warning}")
        return "\n".join(lines)


def cluster_status(
    *,
    where: str,
    taken: float,
    answers: Sequence[ServerAnswer],
    described: Mapping[str, Mapping[str, Any]],
    key_id: str,
    python: str,
) -> ClusterStatus:
    """Put together what job servers listed and nodes described.

    Parameters
    ----------
    described
        What nodes told of themselves, by their ids; those that did not answer are missing.
    key_id, python
        The asking client's.
    """
    queues = [
        QueueStatus(
            queue=row.lane.queue,
            level=row.lane.level,
            python=_dotted(row.lane.python),
            key_id=row.lane.key_id,
            is_mine=row.lane.key_id == key_id and _dotted(row.lane.python) == python,
            workers=row.workers,
            queued=row.queued,
            running=row.running,
        )
        for row in lane_rows(answers)
        if not row.lane.queue.startswith("on-")  # a private lane of somebody's `on_every_worker`
    ]
    servers = [
        ServerStatus(
            address=each.server,
            origin=each.origin,
            kind="" if each.problem else server_kind(each.version),
            problem=each.problem,
        )
        for each in answers
    ]
    nodes = node_statuses(answers, described, taken)
    return ClusterStatus(where=where, taken=taken, servers=tuple(servers), queues=tuple(queues), nodes=nodes)


def node_statuses(
    answers: Sequence[ServerAnswer], described: Mapping[str, Mapping[str, Any]], taken: float
) -> tuple[NodeStatus, ...]:
    """Return the nodes that job servers list, with what they told; see `cluster_status`."""
    return tuple(_node(row, described.get(row.node_id), taken) for row in node_rows(answers))


def _node(row: NodeRow, told: Mapping[str, Any] | None, taken: float) -> NodeStatus:
    queues = tuple(sorted({lane.queue for lane in row.lanes if not lane.queue.startswith("on-")}))
    known = told if told is not None else {}
    limits = known.get("limits")
    jobs: Any = known.get("jobs")
    jobs = jobs if isinstance(jobs, Mapping) else {}
    return NodeStatus(
        node_id=row.node_id,
        name=_of(known, "name", str) or row.node_id,
        addresses=tuple(sorted(row.addresses)),
        servers=tuple(row.servers),
        queues=queues,
        python=", ".join(sorted({_dotted(lane.python) for lane in row.lanes})),
        key_id=", ".join(sorted({lane.key_id for lane in row.lanes})),
        workers=_silent_workers(row) if told is None else _workers(told.get("workers")),
        pid=_of(known, "pid", int),
        uptime=_of(known, "uptime", float),
        seen=None if told is None else taken,
        memory_limit=_of(limits, "memory_limit", int) if isinstance(limits, Mapping) else None,
        cpus=_of(known, "cpus", int),
        memory_total=_of(known, "memory_total", int),
        jobs_refused=_of(jobs, "refused", int) or 0,
        jobs_repeated=_of(jobs, "repeated", int) or 0,
    )


def _silent_workers(row: NodeRow) -> tuple[WorkerStatus, ...]:
    return tuple(WorkerStatus(name=f"{row.node_id}/{number}", state="unknown") for number in sorted(row.workers))


def _workers(told: Any) -> tuple[WorkerStatus, ...]:
    rows: Iterable[Any] = told if isinstance(told, list) else ()
    return tuple(_worker(each) for each in rows if isinstance(each, Mapping))


def _worker(told: Mapping[str, Any]) -> WorkerStatus:
    is_busy = told.get("busy") is True
    return WorkerStatus(
        name=_of(told, "name", str) or "?",
        state="busy" if is_busy else "idle",
        level=_of(told, "level", int) or 0,
        run_id=_of(told, "run", str) if is_busy else None,
        position=_of(told, "position", int) if is_busy else None,
        n_tasks=_of(told, "tasks", int) if is_busy else None,
        jobs_done=_of(told, "jobs_done", int) or 0,
        cpu_seconds=_of(told, "cpu", float),
        memory_bytes=_of(told, "memory", int),
    )


def _of(told: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return a field of somebody's answer, or None if it is not what it should be."""
    value = told.get(name)
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else None


def _dotted(python: tuple[int, int]) -> str:
    return f"{python[0]}.{python[1]}"
