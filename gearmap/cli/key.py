"""`gearmap key`: make the file that lets clients and workers trust each other, name the keys in it, or change them.

Law of the file: a secret itself is never shown.
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
    """Make a key file, show which keys are in use, or change them.

    Clients and workers seal with a key what they send through a job server. All of a cluster have the same one.
    """


@key_commands.command()
@_FILE
def new(file: Path | None) -> None:
    """Make a key file that only you can read.

    Default: GEARMAP_KEY_FILE, the config file, then the config folder.
    """
    from gearmap.keyfile import Keys, make_key

    path, _ = key_place(file)
    made = FoundKey(Keys(make_key(path)), path)
    click.echo(f"made key {made.id}: {path}")
    click.echo("Copy the file to every host of the cluster; nobody else may read it.")
    if file is not None:
        click.echo(f"To use it: --key {shlex.quote(str(path))}, or GEARMAP_KEY_FILE={shlex.quote(str(path))}")


@key_commands.command("show-id")
@_FILE
def show_id(file: Path | None) -> None:
    """Print the id of the key in use. The id is no secret.

    While keys are changed, a second line names the other key that workers accept: the next one, or the old one.
    """
    found = find_key(file, may_make=False)
    click.echo(found.id)
    for other in found.ids[1:]:
        click.echo(f"{other} {found.keys.stage.value}")


@key_commands.command()
@_FILE
@click.option("--switch", "step", flag_value="switch", help="Step 2: clients use the new key.")
@click.option("--finish", "step", flag_value="finish", help="Step 3: remove the old key.")
@click.option("--back", "step", flag_value="back", help="Undo the last step, before step 3.")
def rotate(file: Path | None, step: str | None) -> None:
    """Change the key while everything runs, in three steps.

    Each step changes the key file here and says what to do next: copy it to every host, in any order. Running workers
    notice a changed file within seconds. A cluster works on while some hosts have the file of one step, and others that
    of the next; so finish a step on every host before you begin another.
    """
    from gearmap import keyfile

    path, origin = key_place(file)
    change = {
        None: keyfile.start_rotation,
        "switch": keyfile.switch_keys,
        "finish": keyfile.finish_rotation,
        "back": keyfile.step_back,
    }[step]
    before = find_key(file, may_make=False)
    click.echo("\n".join(_advice(before, FoundKey(change(path, origin), path), file)))


def _advice(before: FoundKey, after: FoundKey, file: Path | None) -> list[str]:
    """Return what a person does after a step."""
    place = shlex.quote(str(after.path))
    named = "" if file is None else f" {shlex.quote(str(file))}"
    with_key = "" if file is None else f" --key {shlex.quote(str(file))}"
    other = after.ids[1] if len(after.ids) > 1 else next(each for each in before.ids if each != after.id)
    stage = after.keys.stage.value
    if stage == "next":
        return [
            f"step 1 of 3: key {other} is beside key {after.id} in {after.path}; clients still use {after.id}",
            f"Now copy {place} to every host, mode 600, in any order. Running workers notice it within seconds.",
            f"When `gearmap doctor{with_key}` says that all nodes accept {other}: gearmap key rotate --switch{named}",
        ]
    if stage == "old":
        return [
            f"step 2 of 3: clients use key {after.id} from now on; workers still accept {other}",
            f"Now copy {place} to every host once more, mode 600, in any order.",
            f"Start anew what still uses {other}: notebooks and services read the file when they start.",
            f"When `gearmap doctor{with_key}` says that nothing uses {other}: gearmap key rotate --finish{named}",
        ]
    return [
        f"key {after.id} is the only one in {after.path} now; {other} is removed",
        f"Now copy {place} to every host once more, mode 600. Running workers notice it within seconds: jobs that they",
        f"have go on, and clients that still use {other} are told that no worker has their key.",
    ]
