"""What several commands need: their servers, their key, their words.

Law of the file: an address or a key is never used without saying where it came from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gearmap.errors import ConfigurationError

if TYPE_CHECKING:
    from gearmap.keyfile import Keys

__all__ = ["FoundKey", "count", "find_key", "find_servers", "key_option", "key_place", "servers_option"]

F = TypeVar("F", bound=Callable[..., Any])

LOCAL_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class FoundKey:
    """The keys in a file."""

    keys: Keys
    path: Path

    @property
    def id(self) -> str:
        """What people call the key that clients seal with."""
        return self.ids[0]

    @property
    def ids(self) -> tuple[str, ...]:
        """What people call the keys that workers accept, the clients' first."""
        from gearmap.wire.seal import key_id

        return tuple(key_id(secret) for secret in self.keys.accepted)


def servers_option(command: F) -> F:
    """Give a command `-s`."""
    return click.option(
        "-s",
        "--server",
        "named",
        metavar="HOST[:PORT]",
        multiple=True,
        help="Job server; may be repeated. Default: GEARMAP_SERVERS, GEARMAN_SERVERS, the config file, "
        "then 127.0.0.1:4730.",
    )(command)


def key_option(command: F) -> F:
    """Give a command `--key`."""
    return click.option(
        "--key",
        "key_file",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Key file. Default: GEARMAP_KEY_FILE, the config file, then the config folder.",
    )(command)


def find_servers(named: Sequence[str]) -> tuple[Any, ...]:
    """Return the job servers, as `ServerAddress`es: those of `-s`, else what is configured, else the local default.

    Raises
    ------
    ConfigurationError
        If an address is malformed, or the environment asks for no server at all.
    """
    from gearmap.backend import read_config
    from gearmap.config import DEFAULT_PORT, ServerAddress, ServerMode, resolve_servers

    choice = resolve_servers(list(named) or None, environ=os.environ, config_text=read_config())
    if choice.mode is ServerMode.LOCAL:
        return (ServerAddress(LOCAL_HOST, DEFAULT_PORT, "default"),)
    if choice.mode is not ServerMode.SERVERS:
        word = "inline" if choice.mode is ServerMode.INLINE else "none"
        origin = "-s" if named else choice.origin
        raise ConfigurationError(f"no job server is named: {origin} says {word!r}; give one with -s HOST[:PORT]")
    origin = "-s" if named else choice.origin
    return tuple(ServerAddress(each.host, each.port, origin) for each in choice.addresses)


def key_place(argument: Path | None) -> tuple[Path, str]:
    """Return the key file and where that choice came from."""
    from gearmap.backend import read_config
    from gearmap.config import resolve_key_file

    path, origin = resolve_key_file(argument, environ=os.environ, home=Path.home(), config_text=read_config())
    return path, origin


def find_key(argument: Path | None, *, may_make: bool) -> FoundKey:
    """Return the key, made on first use where `may_make` says so.

    Raises
    ------
    ConfigurationError
        If there is none, or its file is not fit; the message says how to make one.
    """
    from gearmap.keyfile import load_keys, load_or_make_keys

    path, origin = key_place(argument)
    load = load_or_make_keys if may_make else load_keys
    return FoundKey(load(path, origin), path)


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "worker"), count(1500, "task")
    ('1 worker', '1,500 tasks')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
