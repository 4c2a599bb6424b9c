"""What the live card of a cluster is sent: one small object of plain values.

Law of the file: pure, and bounded: a hundred hosts make no larger message than ten.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gearmap.core.sizes import shown_bytes
from gearmap.overview.html import counted, queue_owner, task_words
from gearmap.overview.values import ClusterStatus, NodeStatus, WorkerStatus

__all__ = ["cluster_card_state", "cpu_shares"]

# Rows of each kind. Raised: more to see; lowered: smaller messages, once a second for each card that is looked at.
SHOWN_SERVERS = 8
SHOWN_QUEUES = 12
SHOWN_NODES = 16
SHOWN_WORKERS = 24


def cpu_shares(before: ClusterStatus | None, now: ClusterStatus) -> dict[str, float]:
    """Return how much of a processor each worker has used between two looks, by its name; 1.0 is one of them."""
    if before is None or now.taken <= before.taken:
        return {}
    known = {worker.name: worker.cpu_seconds for worker in before.workers}
    elapsed = now.taken - before.taken
    shares = {}
    for worker in now.workers:
        then = known.get(worker.name)
        # Less than before: another process has taken the worker's place.
        if then is not None and worker.cpu_seconds is not None and worker.cpu_seconds >= then:
            shares[worker.name] = (worker.cpu_seconds - then) / elapsed
    return shares


def cluster_card_state(
    status: ClusterStatus,
    shares: Mapping[str, float],
    *,
    seen: Mapping[str, float] = MappingProxyType({}),
    wanted: int | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Return what the card shows.

    Parameters
    ----------
    shares
        See `cpu_shares`.
    seen
        When nodes answered last, in seconds of `time.time()`, by their ids.
    wanted
        How many workers a local cluster should have; None if that is not ours to choose.
    note
        What went wrong last, or an empty text.
    """
    have = len(status.workers)
    if wanted is not None and not note and have != wanted:
        note = f"{counted(wanted, 'worker')} wanted, {have} here"
    return {
        "where": status.where,
        "as_of": _clock(status.taken),
        "line": _line(status),
        "servers": [
            [each.address, "down" if each.problem else "up", each.problem or each.kind, each.origin]
            for each in status.servers[:SHOWN_SERVERS]
        ],
        "queues": [
            [
                each.queue + (f" (level {each.level})" if each.level else ""),
                queue_owner(each),
                each.workers,
                each.queued,
                each.running,
            ]
            for each in status.queues[:SHOWN_QUEUES]
        ],
        "nodes": _nodes(status, shares, seen),
        "hidden": _hidden(status),
        "wanted": wanted,
        "note": note,
    }


def _line(status: ClusterStatus) -> str:
    if not status.nodes:
        return "no node is connected" if status.servers else "not started yet"
    busy = sum(worker.state == "busy" for worker in status.workers)
    return f"{counted(len(status.nodes), 'node')} · {counted(len(status.workers), 'worker')} · {busy:,} busy"


def _nodes(status: ClusterStatus, shares: Mapping[str, float], seen: Mapping[str, float]) -> list[list[Any]]:
    left = SHOWN_WORKERS
    rows = []
    for node in sorted(status.nodes, key=lambda each: (each.name, each.node_id))[:SHOWN_NODES]:
        shown = node.workers[:left]
        left -= len(shown)
        workers = [_worker(worker, shares) for worker in shown]
        rows.append([node.node_id, node.name, _facts(node), _use(node, shares, seen), workers])
    return rows


def _facts(node: NodeStatus) -> str:
    facts = [", ".join(node.addresses), f"Python {node.python}"]
    if node.memory_total is not None:
        facts.append(f"{node.cpus} CPUs, {shown_bytes(node.memory_total)}")
    return " · ".join(facts)


def _use(node: NodeStatus, shares: Mapping[str, float], seen: Mapping[str, float]) -> str:
    if node.seen is None:
        last = seen.get(node.node_id)
        return "has not answered" if last is None else f"last seen at {_clock(last)}"
    busy = sum(worker.state == "busy" for worker in node.workers)
    words = [f"{busy} of {counted(len(node.workers), 'worker')} busy"]
    known = [shares[worker.name] for worker in node.workers if worker.name in shares]
    if known:
        words.append(f"CPU {sum(known):.0%}")
    memory = [worker.memory_bytes for worker in node.workers if worker.memory_bytes is not None]
    if memory:
        words.append(shown_bytes(sum(memory)))
    return " · ".join(words)


def _worker(worker: WorkerStatus, shares: Mapping[str, float]) -> list[str]:
    share = shares.get(worker.name)
    return [
        worker.name,
        worker.state,
        task_words(worker),
        "" if share is None else f"{share:.0%}",
        "" if worker.memory_bytes is None else shown_bytes(worker.memory_bytes),
    ]


def _hidden(status: ClusterStatus) -> str:
    """Say what is not shown."""
    hidden = []
    for shown, there, noun in (
        (SHOWN_SERVERS, len(status.servers), "server"),
        (SHOWN_QUEUES, len(status.queues), "queue"),
        (SHOWN_NODES, len(status.nodes), "node"),
    ):
        if there > shown:
            hidden.append(counted(there - shown, f"more {noun}"))
    seen = sum(len(node.workers) for node in status.nodes[:SHOWN_NODES])
    if seen > SHOWN_WORKERS:
        hidden.append(counted(seen - SHOWN_WORKERS, "more worker"))
    return ", ".join(hidden)


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
