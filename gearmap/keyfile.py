"""The secret's file: reading it, making it, refusing one that others can read.

Law of the file: the secret is never printed, logged or put in an error; a key is known to people by its id.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from gearmap.errors import ConfigurationError

__all__ = ["SECRET_BYTES", "load_key", "load_or_make_key", "make_key"]

SECRET_BYTES = 32


def make_key(path: Path) -> bytes:
    """Make a key file (0600) and return its secret.

    Raises
    ------
    ConfigurationError
        If there is a file already, or it cannot be written.
    """
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written whole under another name first: two processes that make the key at once must not read half of one.
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, secret.hex().encode() + b"\n")
        finally:
            os.close(handle)
        try:
            os.link(draft, path)
        finally:
            os.unlink(draft)
    except FileExistsError:
        raise ConfigurationError(
            f"there is a key file already: {str(path)!r}; remove it first if it is not used"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the key file {str(path)!r} cannot be made: {error.strerror}") from None
    return secret


def load_key(path: Path, origin: str) -> bytes:
    """Return the secret in a key file.

    Raises
    ------
    ConfigurationError
        If there is none, it is not a key, or others can read it.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4 * SECRET_BYTES)
    except FileNotFoundError:
        raise ConfigurationError(
            f"no key file at {str(path)!r} (from {origin}); make one: gearmap key new, and copy it to every host"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"the key file {str(path)!r} (from {origin}) cannot be read: {error.strerror}"
        ) from None
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(f"others can read the key file {str(path)!r} (from {origin}): chmod 600 it")
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise ConfigurationError(f"{str(path)!r} (from {origin}) is not a key file; make one: gearmap key new")
    return secret


def load_or_make_key(path: Path, origin: str) -> bytes:
    """Return the secret in a key file, made on first use."""
    # Of os.path, for it answers False where Path.exists() raises: a folder that may not be entered, too long a name.
    if not os.path.exists(path):
        try:
            return make_key(path)
        except ConfigurationError:
            if not os.path.exists(path):
                raise
    return load_key(path, origin)
