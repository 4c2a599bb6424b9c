"""A cluster's status as HTML that survives: saved, exported and re-opened notebooks, on light and dark pages.

Law of the file: pure, and everything that came from elsewhere is escaped. Inline styles only, in what notebooks let
through: no style sheet, no variables, no text colour, and words wherever there is a colour.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape

from gearmap.core.sizes import shown_bytes
from gearmap.overview.values import ClusterStatus, NodeStatus, QueueStatus, ServerStatus, WorkerStatus

__all__ = ["counted", "queue_owner", "status_html", "task_words"]

# Rows of workers that are shown; a hundred hosts must not make a page of thousands of lines.
SHOWN_WORKERS = 40

_CELL = "text-align:left;padding:2px 12px 2px 0"
_NUMBER = "text-align:right;padding:2px 12px 2px 0;font-variant-numeric:tabular-nums"
_COLOURS = {"busy": "#1976d2", "idle": "#9e9e9e", "unknown": "#d32f2f", "up": "#388e3c", "down": "#d32f2f"}


def status_html(status: ClusterStatus) -> str:
    """Return the status as a small page."""
    busy = sum(worker.state == "busy" for worker in status.workers)
    parts = [f"<b>gearmap</b>: {escape(status.where)}"]
    if status.nodes:
        parts.append(
            f"<div>{counted(len(status.nodes), 'node')}, {counted(len(status.workers), 'worker')}, {busy} busy</div>"
        )
    elif status.servers:
        parts.append("<div>no node is connected; start one: <code>gearmap worker</code></div>")
    parts += [_servers(status.servers), _queues(status.queues), _nodes(status.nodes)]
    parts.append(f"<div>as of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(status.taken))}</div>")
    return f'<div style="font-size:90%;line-height:1.5">{"".join(parts)}</div>'


def _servers(servers: Sequence[ServerStatus]) -> str:
    rows = [
        (escape(each.address), escape(each.origin), _dot("down" if each.problem else "up", each.problem or each.kind))
        for each in servers
    ]
    return _table("job servers", ("address", "from", "state"), rows)


def queue_owner(queue: QueueStatus) -> str:
    """Say for whom a queue is."""
    return "yours" if queue.is_mine else f"Python {queue.python}, key {queue.key_id}"


def _queues(queues: Sequence[QueueStatus]) -> str:
    rows = []
    for each in queues:
        level = f" (level {each.level})" if each.level else ""
        counts = (f"{each.workers:,}", f"{each.queued:,}", f"{each.running:,}")
        rows.append((escape(each.queue + level), escape(queue_owner(each)), *counts))
    return _table("queues", ("queue", "for", "workers", "queued", "running"), rows, numbers=(2, 3, 4))


def _nodes(nodes: Sequence[NodeStatus]) -> str:
    left = SHOWN_WORKERS
    parts = []
    for node in nodes:
        shown = node.workers[:left]
        left -= len(shown)
        parts.append(_node(node, shown))
    return "".join(parts)


def _node(node: NodeStatus, shown: Sequence[WorkerStatus]) -> str:
    facts = [", ".join(node.addresses), f"Python {node.python}", f"queues {', '.join(node.queues)}"]
    if node.memory_total is not None:
        facts.append(f"{node.cpus} CPUs, {shown_bytes(node.memory_total)}")
    if node.memory_limit is not None:
        facts.append(f"limit {shown_bytes(node.memory_limit)} a worker")
    if node.seen is None:
        facts.append("has not answered")
    rows = [
        (
            escape(worker.name),
            _dot(worker.state, worker.state),
            task_words(worker),
            f"{worker.jobs_done:,}",
            *_use(worker),
        )
        for worker in shown
    ]
    heading = f"node {escape(node.name)}: {escape('; '.join(facts))}"
    columns = ("worker", "state", "task", "jobs done", "CPU time", "memory")
    table = _table("", columns, rows, numbers=(3, 4, 5))
    hidden = len(node.workers) - len(shown)
    more = f"<div>and {counted(hidden, 'more worker')}</div>" if hidden else ""
    return f'<details style="margin-top:4px" open><summary>{heading}</summary>{table}{more}</details>'


def task_words(worker: WorkerStatus) -> str:
    """Say what a worker is at; nothing, if it is idle."""
    if worker.state != "busy":
        return ""
    if worker.position is None:
        return "between tasks"
    of = "" if worker.n_tasks is None else f" of {worker.n_tasks:,} in its chunk"
    return f"{worker.position + 1:,}{of}"


def _use(worker: WorkerStatus) -> tuple[str, str]:
    cpu = "" if worker.cpu_seconds is None else f"{worker.cpu_seconds:,.1f} s"
    return cpu, "" if worker.memory_bytes is None else shown_bytes(worker.memory_bytes)


def _dot(state: str, text: str) -> str:
    style = f"display:inline-block;width:9px;height:9px;margin-right:5px;background-color:{_COLOURS[state]}"
    return f'<span style="{style}"></span>{escape(text)}'


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Return a table of cells that are HTML already, or nothing if there are no rows."""
    styles = [_NUMBER if at in numbers else _CELL for at in range(len(columns))]
    lines = [
        "<tr>" + "".join(f'<td style="{style}">{cell}</td>' for style, cell in zip(styles, row, strict=True)) + "</tr>"
        for row in rows
    ]
    if not lines:
        return ""
    head = "".join(f'<th style="{style}">{escape(name)}</th>' for style, name in zip(styles, columns, strict=True))
    caption = f'<div style="margin-top:4px">{escape(title)}</div>' if title else ""
    return f"{caption}<table><tr>{head}</tr>{''.join(lines)}</table>"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
