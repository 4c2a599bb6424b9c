"""`gearmap key`: make the file that lets clients and workers trust each other, or name the key that is in use.

Law of the file: the secret itself is never shown.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from gearmap.cli.common import FoundKey, find_key, key_place

__all__ = ["key_commands"]

_FILE = click.argument("file", required=False, metavar="[FILE]", type=click.Path(path_type=Path, dir_okay=False))


@click.group("key")
def key_commands() -> None:
    """Make a key file, or show which key is in use.

    Clients and workers seal with a key what they send through a job server. All of a cluster have the same one.
    """


@key_commands.command()
@_FILE
def new(file: Path | None) -> None:
    """Make a key file that only you can read.

    Default: GEARMAP_KEY_FILE, the config file, then the config folder.
    """
    from gearmap.keyfile import make_key

    path, _ = key_place(file)
    made = FoundKey(make_key(path), path)
    click.echo(f"made key {made.id}: {path}")
    click.echo("Copy the file to every host of the cluster; nobody else may read it.")
    if file is not None:
        click.echo(f"To use it: --key {shlex.quote(str(path))}, or GEARMAP_KEY_FILE={shlex.quote(str(path))}")


@key_commands.command("show-id")
@_FILE
def show_id(file: Path | None) -> None:
    """Print the id of the key in use. The id is no secret."""
    click.echo(find_key(file, may_make=False).id)
