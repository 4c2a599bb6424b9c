"""What several commands need: their servers, their key, their words.

Law of the file: an address or a key is never used without saying where it came from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gearmap.errors import ConfigurationError

if TYPE_CHECKING:
    from gearmap.keyfile import Keys

__all__ = [
    "FoundKey",
    "NamedServers",
    "count",
    "find_key",
    "find_servers",
    "key_option",
    "key_place",
    "servers_option",
    "tls_files_option",
]

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


@dataclass(frozen=True, slots=True)
class NamedServers:
    """The job servers that a command line names, and its files for those that TLS is spoken with."""

    words: tuple[str, ...]
    tls: Any  # TlsOptions


def tls_files_option(name: str, what: str) -> Callable[[F], F]:
    """Give a command an option that takes a file of TLS."""
    return click.option(f"--tls-{name}", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help=what)


def servers_option(command: F) -> F:
    """Give a command `-s` and what TLS needs; it gets all of that as one argument, `named`."""

    @functools.wraps(command)
    def with_named(
        *, server: tuple[str, ...], tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, **others: Any
    ) -> Any:
        from gearmap.tls import TlsOptions

        tls = TlsOptions(ca=tls_ca, cert=tls_cert, key=tls_key, origin="the command line")
        return command(named=NamedServers(server, tls), **others)

    options = (
        click.option(
            "-s",
            "--server",
            metavar="[tls://]HOST[:PORT]",
            multiple=True,
            help="Job server; may be repeated. Default: GEARMAP_SERVERS, GEARMAN_SERVERS, the config file, "
            "then 127.0.0.1:4730.",
        ),
        tls_files_option(
            "ca",
            "For tls:// servers: the authorities that may have signed their certificates. Default: GEARMAP_TLS_CA, the "
            "config file, then those of the system.",
        ),
        tls_files_option(
            "cert", "For tls:// servers that want one: our certificate. Default: GEARMAP_TLS_CERT, the config file."
        ),
        tls_files_option("key", "Its key, if it is not in the same file. Default: GEARMAP_TLS_KEY, the config file."),
    )
    wrapped: Any = with_named
    for option in reversed(options):
        wrapped = option(wrapped)
    result: F = wrapped
    return result


def key_option(command: F) -> F:
    """Give a command `--key`."""
    return click.option(
        "--key",
        "key_file",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Key file. Default: GEARMAP_KEY_FILE, the config file, then the config folder.",
    )(command)


def find_servers(named: NamedServers) -> tuple[Any, ...]:
    """Return the job servers, as `ServerAddress`es: those of `-s`, else what is configured, else the local default.

    Raises
    ------
    ConfigurationError
        If an address is malformed, a file of TLS is not fit, or the environment asks for no server at all.
    """
    from gearmap import servers
    from gearmap.config import DEFAULT_PORT, ServerAddress, ServerMode

    choice = servers.find_servers(list(named.words) or None, named.tls)
    if choice.mode is ServerMode.LOCAL:
        return (ServerAddress(LOCAL_HOST, DEFAULT_PORT, "default"),)
    origin = "-s" if named.words else choice.origin
    if choice.mode is not ServerMode.SERVERS:
        word = "inline" if choice.mode is ServerMode.INLINE else "none"
        raise ConfigurationError(f"no job server is named: {origin} says {word!r}; give one with -s HOST[:PORT]")
    return tuple(replace(each, origin=origin) for each in choice.addresses)


def key_place(argument: Path | None) -> tuple[Path, str]:
    """Return the key file and where that choice came from."""
    from gearmap import servers

    return servers.key_place(argument)


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
