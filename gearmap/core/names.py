"""Gearman function names: they carry all compatibility, so that nobody is offered what it cannot run.

`gearmap1.<queue>[~level].py311.<key id>` is a lane of work; `gearmap1.task:<task>[~level].<key id>` that of a named
task, whose callers may have another Python; `gearmap1.node.<node id>.<key id>` is a node's control function,
`gearmap1.blobs.<client id>.<key id>` that by which a client gives large arrays. The number after `gearmap` is the wire
version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "DEFAULT_QUEUE",
    "WIRE_VERSION",
    "Lane",
    "TaskLane",
    "blobs_name",
    "control_name",
    "explain_no_worker",
    "is_task_name",
    "key_ids_of_nodes",
    "node_ids",
]

WIRE_VERSION = 1
DEFAULT_QUEUE = "default"

_LANE = re.compile(r"gearmap(\d+)\.([A-Za-z0-9_-]{1,64})(?:~(\d+))?\.py(\d)(\d+)\.([0-9a-f]{8})")
_TASK_LANE = re.compile(r"gearmap(\d+)\.task:([!-}]{1,200}?)(?:~(\d+))?\.([0-9a-f]{8})")
_TASK_NAME = re.compile(r"[!-}]{1,200}")
_CONTROL = re.compile(r"gearmap1\.node\.([A-Za-z0-9-]+)\.([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class Lane:
    """One queue at one nesting level, for one Python version and one key.

    >>> Lane("gpu", (3, 11), "1f3a77c0").name
    'gearmap1.gpu.py311.1f3a77c0'
    >>> Lane.parse("gearmap1.gpu~2.py311.1f3a77c0").level
    2
    """

    queue: str
    python: tuple[int, int]
    key_id: str
    level: int = 0
    version: int = WIRE_VERSION

    @property
    def name(self) -> str:
        """The Gearman function name."""
        level = f"~{self.level}" if self.level else ""
        return f"gearmap{self.version}.{self.queue}{level}.py{self.python[0]}{self.python[1]}.{self.key_id}"

    @classmethod
    def parse(cls, name: str) -> Lane | None:
        """Return the lane that a function name means, or None if it is not one of ours."""
        match = _LANE.fullmatch(name)
        if match is None:
            return None
        version, queue, level, major, minor, key_id = match.groups()
        return cls(queue, (int(major), int(minor)), key_id, int(level or 0), int(version))


@dataclass(frozen=True, slots=True)
class TaskLane:
    """One named task at one nesting level, for one key.

    >>> TaskLane("shop.send_mail", "1f3a77c0").name
    'gearmap1.task:shop.send_mail.1f3a77c0'
    >>> TaskLane.parse("gearmap1.task:shop.send_mail~2.1f3a77c0").level
    2
    """

    task: str
    key_id: str
    level: int = 0
    version: int = WIRE_VERSION

    @property
    def name(self) -> str:
        """The Gearman function name."""
        level = f"~{self.level}" if self.level else ""
        return f"gearmap{self.version}.task:{self.task}{level}.{self.key_id}"

    @classmethod
    def parse(cls, name: str) -> TaskLane | None:
        """Return the lane that a function name means, or None if it is not that of a named task."""
        match = _TASK_LANE.fullmatch(name)
        if match is None:
            return None
        version, task, level, key_id = match.groups()
        return cls(task, key_id, int(level or 0), int(version))


def is_task_name(name: str) -> bool:
    """Whether a task may be called so: 1 to 200 characters of ASCII, no white space and no `~`.

    >>> is_task_name("shop.send_mail"), is_task_name("send mail"), is_task_name("")
    (True, False, False)
    """
    return _TASK_NAME.fullmatch(name) is not None


def control_name(node_id: str, key_id: str) -> str:
    """Return the name of a node's control function."""
    return f"gearmap{WIRE_VERSION}.node.{node_id}.{key_id}"


def blobs_name(client_id: str, key_id: str) -> str:
    """Return the name of the function by which a client gives its blobs."""
    return f"gearmap{WIRE_VERSION}.blobs.{client_id}.{key_id}"


def node_ids(functions: Iterable[str], key_id: str) -> list[str]:
    """Return the ids of the nodes of one key whose control functions are among `functions`."""
    return [node for node, key_ids in key_ids_of_nodes(functions).items() if key_id in key_ids]


def key_ids_of_nodes(functions: Iterable[str]) -> dict[str, set[str]]:
    """Return the ids of the nodes whose control functions are among `functions`, with those of the keys they accept.

    >>> key_ids_of_nodes(["gearmap1.node.1a-2b.1f3a77c0", "gearmap1.default.py311.1f3a77c0"])
    {'1a-2b': {'1f3a77c0'}}
    """
    found: dict[str, set[str]] = {}
    for name in functions:
        match = _CONTROL.fullmatch(name)
        if match and Lane.parse(name) is None:  # a queue may be called "node": its lane is no node
            found.setdefault(match.group(1), set()).add(match.group(2))
    return found


def explain_no_worker(lane: Lane | TaskLane, served: Iterable[tuple[str, int]], servers: Sequence[str]) -> str:
    """Say why nothing runs in `lane`, from the (function name, workers) pairs that the job servers list.

    >>> print(explain_no_worker(Lane("gpu", (3, 11), "1f3a77c0"), [("gearmap1.gpu.py312.1f3a77c0", 12)], ["head:4730"]))
    no worker serves queue 'gpu' for Python 3.11 with your key (1f3a77c0) on head:4730: 12 serve it with Python 3.12; \
start one: gearmap worker -s head:4730 -q gpu
    """
    if isinstance(lane, TaskLane):
        return _explain_no_task(lane, served, servers)
    other_python: dict[tuple[int, int], int] = {}
    other_key: dict[str, int] = {}
    other_queue: dict[str, int] = {}
    for name, workers in served:
        other = Lane.parse(name)
        if other is None or not workers or other.level != lane.level:
            continue
        if other.queue != lane.queue:
            if (other.python, other.key_id) == (lane.python, lane.key_id):
                other_queue[other.queue] = workers
        elif other.key_id != lane.key_id:
            other_key[other.key_id] = other_key.get(other.key_id, 0) + workers
        elif other.python != lane.python:
            other_python[other.python] = workers
    facts = [f"{count} serve it with Python {v[0]}.{v[1]}" for v, count in sorted(other_python.items())]
    facts += [f"{count} have another key ({key_id})" for key_id, count in sorted(other_key.items())]
    facts += [f"{count} serve {queue!r}" for queue, count in sorted(other_queue.items())]
    there = ": " + ", ".join(facts) if facts else ""
    return (
        f"no worker serves queue {lane.queue!r} for Python {lane.python[0]}.{lane.python[1]} with your key "
        f"({lane.key_id}) on {', '.join(servers)}{there}; start one: gearmap worker"
        + "".join(f" -s {server}" for server in servers)
        + (f" -q {lane.queue}" if lane.queue != "default" else "")
    )


def _explain_no_task(lane: TaskLane, served: Iterable[tuple[str, int]], servers: Sequence[str]) -> str:
    """Say why nobody runs a named task: with another key, under a name that is nearly the same, or not at all.

    >>> served = [("gearmap1.task:shop.send_mail.1f3a77c0", 2), ("gearmap1.task:shop.sendmail.77c01f3a", 3)]
    >>> print(explain_no_worker(TaskLane("shop.sendmail", "1f3a77c0"), served, ["head"]))
    no worker serves task 'shop.sendmail' with your key (1f3a77c0) on head, 3 have another key (77c01f3a); did you \
mean 'shop.send_mail'? start one: gearmap worker -s head --tasks MODULE
    """
    from difflib import get_close_matches  # only for who is told

    others = [(other, workers) for name, workers in served if workers and (other := TaskLane.parse(name)) is not None]
    elsewhere = {each.key_id: workers for each, workers in others if each.task == lane.task}
    names = {each.task for each, _ in others if each.key_id == lane.key_id and each.task != lane.task}
    alike = get_close_matches(lane.task, sorted(names), n=1)
    there = "".join(
        f", {workers} have another key ({key_id})"
        for key_id, workers in sorted(elsewhere.items())
        if key_id != lane.key_id
    )
    meant = f" did you mean {alike[0]!r}?" if alike else ""
    return (
        f"no worker serves task {lane.task!r} with your key ({lane.key_id}) on {', '.join(servers)}{there};{meant} "
        "start one: gearmap worker" + "".join(f" -s {server}" for server in servers) + " --tasks MODULE"
    )
