"""Which job servers and which key: `config` and `tls` asked with this process's environment, config file and folder.

What must not live here: what is done with them (`backend`, `cli`), and how words are understood (`config`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gearmap.config import (
    ServerAddress,
    ServerChoice,
    add_tls,
    config_folder,
    resolve_key_file,
    resolve_servers,
)
from gearmap.errors import ConfigurationError
from gearmap.keyfile import load_keys, load_or_make_keys
from gearmap.secret import Secret
from gearmap.tls import TlsOptions, client_context

__all__ = ["find_key", "find_servers", "key_place"]


def find_servers(words: str | Sequence[str] | None, tls: TlsOptions | None = None) -> ServerChoice:
    """Return the job servers, with the files for those that TLS is spoken with; these are looked at here.

    Raises
    ------
    ConfigurationError
        If an address is malformed, or a file of TLS is not there or not what it should be.
    """
    config_text = _read_config()
    choice = resolve_servers(words, environ=os.environ, config_text=config_text)
    choice = add_tls(
        choice,
        tls or TlsOptions(),
        environ=os.environ,
        home=Path.home(),
        folder=Path.cwd(),
        config_text=config_text,
    )
    for files in {address.tls for address in choice.addresses if address.tls is not None}:
        client_context(files)
    return choice


def key_place(argument: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Return the key file and where that choice came from."""
    return resolve_key_file(argument, environ=os.environ, home=Path.home(), config_text=_read_config())


def find_key(argument: str | os.PathLike[str] | None, addresses: Sequence[ServerAddress]) -> Secret:
    """Return the key for these job servers; where all are on this machine, it is made on first use.

    Raises
    ------
    ConfigurationError
        If there is none, or its file is not fit.
    """
    path, origin = key_place(argument)
    load = load_or_make_keys if all(address.is_loopback for address in addresses) else load_keys
    return load(path, origin).current


def _read_config() -> str:
    """Return the config file's text, or nothing if there is none."""
    try:
        return (config_folder(os.environ, Path.home()) / "config.ini").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise ConfigurationError(f"the config file cannot be read: {error}") from None
