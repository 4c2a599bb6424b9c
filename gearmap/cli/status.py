"""`gearmap status`: what the job servers know, as tables.

Law of the file: it asks and shows; what the answers mean is `listing`'s business.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gearmap.cli.common import FoundKey, NamedServers, find_key, find_servers, key_option, servers_option
from gearmap.core.sizes import shown_bytes
from gearmap.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gearmap.config import ServerAddress
    from gearmap.core.names import Lane
    from gearmap.overview.listing import FunctionRow, LaneRow, ServerAnswer, TaskRow
    from gearmap.overview.values import NodeStatus

__all__ = ["status_command"]

# Width where nobody says how wide it is: a pipe, a file.
PIPE_WIDTH = 120


@click.command("status")
@servers_option
@key_option
def status_command(named: NamedServers, key_file: Path | None) -> int:
    """Show job servers, queues, nodes and jobs.

    The exit status is 1 if no server answers.
    """
    from gearmap.overview import listing
    from gearmap.overview.survey import ask_servers

    servers = find_servers(named)
    answers = ask_servers(servers)
    key, note = _my_key(key_file)
    mine = "" if key is None else key.id
    console = make_console()
    lanes, tasks = listing.lane_rows(answers), listing.task_rows(answers)
    console.print(_server_table(answers))
    if not any(not answer.problem for answer in answers):
        console.print("no job server answers; start one: gearmap server", style="red")
        return 1
    _show_queues(console, lanes, mine)
    _show_tasks(console, tasks, mine)
    _show_nodes(console, _nodes(servers, answers, key), mine)
    _show_others(console, listing.function_rows(answers))
    for line in (*listing.hints(answers, [*lanes, *tasks]), *([note] if note else [])):
        console.print(line, style="yellow", soft_wrap=True)
    return 0


def _nodes(
    servers: Sequence[ServerAddress], answers: Sequence[ServerAnswer], key: FoundKey | None
) -> Sequence[NodeStatus]:
    """Return the nodes; those that have our key tell of themselves."""
    from gearmap.overview.survey import describe_nodes
    from gearmap.overview.values import node_statuses
    from gearmap.runtime.sessions import new_session

    described = {} if key is None else describe_nodes(servers, answers, new_session(key.keys.current, "default"))
    return node_statuses(answers, described, time.time())


def make_console() -> Console:
    """Return a console for tables: as wide as the terminal, of a fixed width and without colours elsewhere."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    width = None if is_terminal or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False, force_jupyter=False)


def _my_key(key_file: Path | None) -> tuple[FoundKey | None, str]:
    """Return the key in use, and a note if there is none."""
    try:
        return find_key(key_file, may_make=False), ""
    except ConfigurationError as error:
        if key_file is not None:
            raise
        return None, str(error)


def _table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def _server_table(answers: Sequence[ServerAnswer]) -> Table:
    from rich.text import Text

    from gearmap.overview.listing import server_kind

    table = _table("job servers", "address", "from", "state")
    for answer in answers:
        state = Text(answer.problem, "red") if answer.problem else Text(f"up, {server_kind(answer.version)}", "green")
        table.add_row(answer.server, answer.origin, state)
    return table


def _show_queues(console: Console, lanes: Sequence[LaneRow], mine: str) -> None:
    if not lanes:
        console.print("no queues yet: no gearmap worker, no job", style="yellow")
        return
    numbers = ("level", "workers", "queued", "running")
    table = _table("queues", "queue", "python", "key", *numbers, numbers=numbers)
    for row in lanes:
        lane = row.lane
        style = "yellow" if row.queued and not row.workers else None
        counts = (f"{row.workers:,}", f"{row.queued:,}", f"{row.running:,}")
        table.add_row(lane.queue, _python(lane), _key(lane.key_id, mine), str(lane.level), *counts, style=style)
    console.print(table)


def _show_tasks(console: Console, tasks: Sequence[TaskRow], mine: str) -> None:
    if not tasks:
        return
    numbers = ("level", "workers", "queued", "running")
    table = _table("named tasks", "task", "key", *numbers, numbers=numbers)
    for row in tasks:
        style = "yellow" if row.queued and not row.workers else None
        counts = (f"{row.workers:,}", f"{row.queued:,}", f"{row.running:,}")
        table.add_row(row.lane.task, _key(row.lane.key_id, mine), str(row.lane.level), *counts, style=style)
    console.print(table)


def _show_nodes(console: Console, nodes: Sequence[NodeStatus], mine: str) -> None:
    if not nodes:
        return
    numbers = ("workers", "busy", "memory")
    table = _table("nodes", "node", "host", *numbers, "queues", "python", "key", "servers", numbers=numbers)
    for node in nodes:
        table.add_row(
            node.node_id if node.name == node.node_id else f"{node.name} {node.node_id}",
            ", ".join(node.addresses),
            str(len(node.workers)),
            *_use(node),
            ", ".join(node.queues),
            node.python,
            _key(node.key_id, mine),
            ", ".join(node.servers),
        )
    console.print(table)
    for node in nodes:
        if node.warning:
            console.print(f"node {node.name} has {node.warning}", style="yellow")


def _use(node: NodeStatus) -> tuple[str, str]:
    """Say how many workers are busy, and what memory they use; nothing of a node that has not answered."""
    if node.seen is None:
        return "?", "?"
    busy = sum(worker.state == "busy" for worker in node.workers)
    return str(busy), shown_bytes(sum(worker.memory_bytes or 0 for worker in node.workers))


def _show_others(console: Console, functions: Sequence[FunctionRow]) -> None:
    if not functions:
        return
    numbers = ("workers", "queued", "running")
    table = _table("other functions", "function", *numbers, numbers=numbers)
    for row in functions:
        table.add_row(row.name, f"{row.workers:,}", f"{row.queued:,}", f"{row.running:,}")
    console.print(table)


def _python(lane: Lane) -> str:
    return ".".join(map(str, lane.python))


def _key(key_id: str, mine: str) -> str:
    """Mark one's own among key ids."""
    ids = key_id.split(", ")
    return ", ".join(f"{each} (yours)" if each == mine else each for each in ids)
