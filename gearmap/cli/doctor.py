"""`gearmap doctor`: look at a deployment, and say of each thing whether it is right and what to do if it is not.

Law of the file: it asks and shows; what the answers mean is the business of `overview.checkup`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gearmap import __version__
from gearmap.cli.common import FoundKey, NamedServers, find_key, find_servers, key_option, key_place, servers_option
from gearmap.cli.status import make_console
from gearmap.errors import ConfigurationError

if TYPE_CHECKING:
    from gearmap.overview.checkup import Finding, KeyFacts

__all__ = ["doctor_command"]

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@servers_option
@key_option
@click.option(
    "-q",
    "--queue",
    "queues",
    multiple=True,
    metavar="QUEUE",
    help="Queue to be served; may be repeated. Default: default.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON list of {state, subject, says, advice}.")
def doctor_command(named: NamedServers, key_file: Path | None, queues: tuple[str, ...], as_json: bool) -> int:
    """Check job servers, key, nodes, versions, clocks and queues.

    Each line is ok, warn or fail, with what to do. The exit status is 1 if one failed.
    """
    from gearmap.config import check_queue
    from gearmap.overview.checkup import Verdict, findings
    from gearmap.overview.examine import examine

    servers = find_servers(named)
    found, key = _key(key_file)
    wanted = tuple(dict.fromkeys(check_queue(queue) for queue in queues)) or ("default",)
    secrets = () if found is None else found.keys.accepted
    lines = findings(examine(servers, secrets, key, queues=wanted, version=__version__))
    if as_json:
        click.echo(json.dumps([_as_dict(line) for line in lines], indent=2))
    else:
        _show(lines)
    return 1 if any(line.verdict is Verdict.FAIL for line in lines) else 0


def _key(key_file: Path | None) -> tuple[FoundKey | None, KeyFacts]:
    """Return the keys, if the file is fit, and what is to be said of it. None is made."""
    from gearmap.overview.checkup import KeyFacts

    path, _ = key_place(key_file)
    try:
        found = find_key(key_file, may_make=False)
    except ConfigurationError as error:
        return None, KeyFacts(path=str(path), problem=str(error))
    return found, KeyFacts(path=str(path), ids=found.ids, stage=found.keys.stage.value)


def _as_dict(line: Finding) -> dict[str, str]:
    return {"state": line.verdict.value, "subject": line.subject, "says": line.says, "advice": line.advice}


def _show(lines: Sequence[Finding]) -> None:
    from rich.text import Text

    console = make_console()
    for line in lines:
        state = line.verdict.value
        console.print(Text.assemble((f"{state:<4}", _STYLES[state]), f"  {line.subject}: {line.says}"), soft_wrap=True)
        if line.advice:
            console.print(f"      {line.advice}", soft_wrap=True)
