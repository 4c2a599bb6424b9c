"""From the listings of job servers to the rows that `gearmap status` shows.

Law of the file: pure. Whoever asked the servers hands the answers in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gearmap.core.names import Lane, TaskLane, explain_no_worker
from gearmap.transport.admin import WorkerRow
from gearmap.transport.events import StatusRow

__all__ = [
    "FunctionRow",
    "LaneRow",
    "NodeRow",
    "ServerAnswer",
    "TaskRow",
    "function_rows",
    "hints",
    "lane_rows",
    "node_rows",
    "server_kind",
    "task_rows",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """What one job server said; `problem` is why it did not."""

    server: str
    origin: str
    version: str = ""
    functions: tuple[StatusRow, ...] = ()
    connections: tuple[WorkerRow, ...] = ()
    problem: str = ""


@dataclass(slots=True, kw_only=True)
class FunctionRow:
    """One function over all servers."""

    name: str
    workers: int = 0
    queued: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRow:
    """One of our queues, for one Python version and one key, over all servers."""

    lane: Lane
    workers: int
    queued: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One named task, for one key, over all servers."""

    lane: TaskLane
    workers: int
    queued: int
    running: int


@dataclass(slots=True, kw_only=True)
class NodeRow:
    """One node: its workers have connections to each of its servers."""

    node_id: str
    addresses: set[str] = field(default_factory=set)
    workers: set[int] = field(default_factory=set)
    lanes: set[Lane] = field(default_factory=set)
    servers: list[str] = field(default_factory=list)


def server_kind(version: str) -> str:
    """Return what a `version` answer means for people.

    >>> server_kind("1.1.20"), server_kind("1.1.20+gearmap")
    ('gearmand 1.1.20', 'embedded')
    """
    return "embedded" if version.endswith("+gearmap") else f"gearmand {version}"


def _functions(answers: Iterable[ServerAnswer]) -> dict[str, FunctionRow]:
    """Add up what several servers say. The same workers stand on each of them; a job is on one only."""
    found: dict[str, FunctionRow] = {}
    for answer in answers:
        for listed in answer.functions:
            row = found.setdefault(listed.function, FunctionRow(name=listed.function))
            row.workers = max(row.workers, listed.workers)
            row.queued += max(0, listed.total - listed.running)
            row.running += listed.running
    # A server never forgets a name; one that nobody serves or uses is of no interest.
    return {name: row for name, row in found.items() if row.workers or row.queued or row.running}


def lane_rows(answers: Iterable[ServerAnswer]) -> list[LaneRow]:
    """Return our queues, in the order of queue, Python and key."""
    rows = []
    for row in _functions(answers).values():
        lane = Lane.parse(row.name)
        if lane is not None:
            rows.append(LaneRow(lane=lane, workers=row.workers, queued=row.queued, running=row.running))
    return sorted(rows, key=lambda row: (row.lane.queue, row.lane.level, row.lane.python, row.lane.key_id))


def task_rows(answers: Iterable[ServerAnswer]) -> list[TaskRow]:
    """Return our named tasks, in the order of name and key."""
    rows = []
    for row in _functions(answers).values():
        lane = TaskLane.parse(row.name)
        if lane is not None:
            rows.append(TaskRow(lane=lane, workers=row.workers, queued=row.queued, running=row.running))
    return sorted(rows, key=lambda row: (row.lane.task, row.lane.level, row.lane.key_id))


def function_rows(answers: Iterable[ServerAnswer]) -> list[FunctionRow]:
    """Return the functions that are not ours."""
    rows = _functions(answers).values()
    return sorted((row for row in rows if not row.name.startswith("gearmap1.")), key=lambda row: row.name)


def node_rows(answers: Iterable[ServerAnswer]) -> list[NodeRow]:
    """Return the nodes, found by the client ids `gearmap:<node id>:<worker>` of their connections."""
    nodes: dict[str, NodeRow] = {}
    for answer in answers:
        for connection in answer.connections:
            word, _, rest = connection.client_id.partition(":")
            node_id, _, index = rest.rpartition(":")
            if word != "gearmap" or not node_id or not index.isdigit():
                continue
            node = nodes.setdefault(node_id, NodeRow(node_id=node_id))
            node.addresses.add(connection.ip)
            node.workers.add(int(index))
            node.lanes.update(lane for name in connection.functions if (lane := Lane.parse(name)) is not None)
            if answer.server not in node.servers:
                node.servers.append(answer.server)
    return sorted(nodes.values(), key=lambda node: (sorted(node.addresses), node.node_id))


def hints(answers: Sequence[ServerAnswer], lanes: Sequence[LaneRow | TaskRow]) -> list[str]:
    """Say why jobs wait that nobody will run."""
    served: Mapping[str, int] = {name: row.workers for name, row in _functions(answers).items()}
    up = [answer.server for answer in answers if not answer.problem]
    return [
        explain_no_worker(row.lane, served.items(), up[:1]).replace("your key", "the key")
        for row in lanes
        if row.queued and not row.workers
    ]
