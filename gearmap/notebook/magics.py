"""`%load_ext gearmap`: `%%gearmap` runs a cell on every worker, `%gearmap` shows and chooses the cluster.

Law of the file: a magic only joins what `gearmap` offers to everybody, and prints.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from gearmap.api import connect, current_client
from gearmap.errors import ConfigurationError, RemoteError
from gearmap.notebook.remotecell import CellOutcome, run_cell

__all__ = ["gearmap_magic", "load_ipython_extension", "unload_ipython_extension"]


def load_ipython_extension(shell: Any) -> None:
    """Give a shell of IPython the magics `%gearmap` and `%%gearmap`: this is what `%load_ext gearmap` calls."""
    shell.register_magic_function(gearmap_magic, magic_kind="line_cell", magic_name="gearmap")


def unload_ipython_extension(shell: Any) -> None:
    """Take the magics from it: this is what `%unload_ext gearmap` calls."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("gearmap", None)


def gearmap_magic(line: str, cell: str | None = None) -> Any:
    """Run a cell on workers, or show and choose the cluster.

    In a cell::

        %%gearmap [--queue QUEUE] [--one | --nodes]
        import os
        os.getpid()

    The cell runs on every worker, on one of them (`--one`), or on one of each node (`--nodes`). What it prints, and the
    value of its last line, are shown by worker. Names that it makes are there for the next such cell on that worker.

    In a line::

        %gearmap status
        %gearmap connect [tls://]HOST[:PORT] ... [--key FILE] [--tls-ca FILE] [--tls-cert FILE] [--tls-key FILE]
        %gearmap scale N

    Raises
    ------
    ConfigurationError
        If the line says something else.
    RemoteError
        If the cell raised on a worker; what the others did is shown all the same.
    """
    words = shlex.split(line)
    if cell is not None:
        _run_everywhere(_CELL.parse_args(words), cell)
        return None
    chosen = _LINE.parse_args(words or ["status"])
    return chosen.act(chosen)


# --------------------------------------------------------------------------------------------------------------- lines


def _status(chosen: argparse.Namespace) -> Any:
    return current_client().status()


def _connect(chosen: argparse.Namespace) -> Any:
    files = {"tls_ca": chosen.tls_ca, "tls_cert": chosen.tls_cert, "tls_key": chosen.tls_key}
    return connect(chosen.servers, key=chosen.key, **files).status()


def _scale(chosen: argparse.Namespace) -> None:
    client = current_client()
    scale = getattr(client, "scale", None)
    if scale is None:
        raise ConfigurationError(f"only a local cluster can be scaled, and this is {client!r}")
    scale(chosen.workers)


# --------------------------------------------------------------------------------------------------------------- cells


def _run_everywhere(chosen: argparse.Namespace, cell: str) -> None:
    client = current_client().options(queue=chosen.queue)
    name = f"<gearmap cell {zlib.crc32(cell.encode()):x}>"
    if chosen.one:
        future = client.submit(run_cell, cell, name)
        outcome = future.result()
        outcomes: Mapping[str, Any] = {future.worker or "inline": outcome}
    elif chosen.nodes:
        outcomes = client.on_every_node(run_cell, cell, name)
    else:
        outcomes = client.on_every_worker(run_cell, cell, name)
    _show(outcomes)
    _raise_failures(outcomes)


def _show(outcomes: Mapping[str, CellOutcome | BaseException]) -> None:
    """Print what workers did; those that did the same share a heading."""
    alike: dict[Any, list[str]] = {}
    for worker, outcome in outcomes.items():
        key = outcome if isinstance(outcome, CellOutcome) else f"{type(outcome).__name__}: {outcome}"
        alike.setdefault(key, []).append(worker)
    for outcome, workers in alike.items():
        if outcome == CellOutcome():
            continue
        _write(f"[{_names(workers)}]", sys.stdout)
        if isinstance(outcome, str):
            _write(outcome, sys.stderr)
            continue
        _write(outcome.stdout, sys.stdout)
        _write(outcome.stderr, sys.stderr)
        _write(outcome.result, sys.stdout)
        _write(outcome.traceback, sys.stderr)


def _write(text: str, stream: Any) -> None:
    if text:
        stream.write(text if text.endswith("\n") else f"{text}\n")
        stream.flush()


def _names(workers: Sequence[str]) -> str:
    if len(workers) <= 4:
        return ", ".join(workers)
    return f"{workers[0]}, {workers[1]} ... {workers[-1]}: {len(workers)} workers"


def _raise_failures(outcomes: Mapping[str, CellOutcome | BaseException]) -> None:
    failed = {worker: outcome for worker, outcome in outcomes.items() if not _is_well(outcome)}
    if not failed:
        return
    worker, first = next(iter(failed.items()))
    error = first.error if isinstance(first, CellOutcome) else f"{type(first).__name__}: {first}"
    raise RemoteError(f"the cell failed on {len(failed)} of {len(outcomes)} workers; first on {worker}: {error}")


def _is_well(outcome: CellOutcome | BaseException) -> bool:
    return isinstance(outcome, CellOutcome) and not outcome.error


# ------------------------------------------------------------------------------------------------------------- options


class _Parser(argparse.ArgumentParser):
    """Raises where others would end the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; usage: {self.format_usage().removeprefix('usage: ').strip()}")


def _cell_parser() -> _Parser:
    parser = _Parser(prog="%%gearmap", add_help=False, allow_abbrev=False)
    parser.add_argument("-q", "--queue", default="default")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--one", action="store_true")
    which.add_argument("--nodes", action="store_true")
    return parser


def _line_parser() -> _Parser:
    parser = _Parser(prog="%gearmap", add_help=False, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, dest="command", parser_class=_Parser)
    commands.add_parser("status", add_help=False).set_defaults(act=_status)
    command = commands.add_parser("connect", add_help=False)
    command.add_argument("servers", nargs="+", metavar="[tls://]HOST[:PORT]")
    for option in ("--key", "--tls-ca", "--tls-cert", "--tls-key"):
        command.add_argument(option, metavar="FILE")
    command.set_defaults(act=_connect)
    command = commands.add_parser("scale", add_help=False)
    command.add_argument("workers", type=int)
    command.set_defaults(act=_scale)
    return parser


_CELL = _cell_parser()
_LINE = _line_parser()
