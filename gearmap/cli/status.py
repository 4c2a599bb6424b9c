"""`gearmap status`: what the job servers know, as tables.

Law of the file: it asks and shows; what the answers mean is `listing`'s business.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gearmap.cli.common import find_key, find_servers, key_option, servers_option
from gearmap.errors import ConfigurationError, TransportError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gearmap.cli.listing import FunctionRow, LaneRow, NodeRow, ServerAnswer
    from gearmap.core.names import Lane

__all__ = ["status_command"]

# Seconds that each question to a server may take.
ASK_TIMEOUT = 3.0
# Width where nobody says how wide it is: a pipe, a file.
PIPE_WIDTH = 120


@click.command("status")
@servers_option
@key_option
def status_command(named: tuple[str, ...], key_file: Path | None) -> int:
    """Show job servers, queues, nodes and jobs.

    The exit status is 1 if no server answers.
    """
    from gearmap.cli import listing

    servers = find_servers(named)
    with ThreadPoolExecutor(len(servers)) as pool:
        answers = list(pool.map(_ask, servers))
    mine, note = _my_key(key_file)
    console = make_console()
    lanes = listing.lane_rows(answers)
    console.print(_server_table(answers))
    if not any(not answer.problem for answer in answers):
        console.print("no job server answers; start one: gearmap server", style="red")
        return 1
    _show_queues(console, lanes, mine)
    _show_nodes(console, listing.node_rows(answers), mine)
    _show_others(console, listing.function_rows(answers))
    for line in (*listing.hints(answers, lanes), *([note] if note else [])):
        console.print(line, style="yellow", soft_wrap=True)
    return 0


def make_console() -> Console:
    """Return a console for tables: as wide as the terminal, of a fixed width and without colours elsewhere."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    width = None if is_terminal or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False, force_jupyter=False)


def _ask(server: Any) -> ServerAnswer:
    from gearmap.cli.listing import ServerAnswer
    from gearmap.transport.admin import AdminSession

    try:
        with AdminSession((server.host, server.port), timeout=ASK_TIMEOUT) as session:
            return ServerAnswer(
                server=str(server),
                origin=server.origin,
                version=session.version(),
                functions=tuple(session.status()),
                connections=tuple(session.workers()),
            )
    except TransportError as error:
        return ServerAnswer(server=str(server), origin=server.origin, problem=str(error))


def _my_key(key_file: Path | None) -> tuple[str, str]:
    """Return the id of the key in use, and a note if there is none."""
    try:
        return find_key(key_file, may_make=False).id, ""
    except ConfigurationError as error:
        if key_file is not None:
            raise
        return "", str(error)


def _table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def _server_table(answers: Sequence[ServerAnswer]) -> Table:
    from rich.text import Text

    from gearmap.cli.listing import server_kind

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


def _show_nodes(console: Console, nodes: Sequence[NodeRow], mine: str) -> None:
    if not nodes:
        return
    table = _table("nodes", "node", "host", "workers", "queues", "python", "key", "servers", numbers=("workers",))
    for node in nodes:
        table.add_row(
            node.node_id,
            ", ".join(sorted(node.addresses)),
            str(len(node.workers)),
            ", ".join(sorted({lane.queue for lane in node.lanes})),
            ", ".join(sorted({_python(lane) for lane in node.lanes})),
            ", ".join(sorted({_key(lane.key_id, mine) for lane in node.lanes})),
            ", ".join(node.servers),
        )
    console.print(table)


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
    return f"{key_id} (yours)" if key_id == mine else key_id
