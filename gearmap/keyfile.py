"""The key file: reading it, making it, changing it, refusing one that others could read or replace.

The first line is the key that clients seal with. While keys are changed there is a second line, which begins with
`next` or `old`: workers accept that key, too. Whoever has such a file, of any stage, understands whoever has the one
before it or after it.

Law of the file: a secret is never printed, logged or put in an error, nor in a variable that a traceback could show; a
key is known to people by its id.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from gearmap.errors import ConfigurationError
from gearmap.secret import Secret

__all__ = [
    "SECRET_BYTES",
    "Keys",
    "Stage",
    "finish_rotation",
    "load_key",
    "load_keys",
    "load_or_make_keys",
    "make_key",
    "new_secret",
    "start_rotation",
    "step_back",
    "switch_keys",
]

SECRET_BYTES = 32

# A file that is longer is no key file.
_MOST_BYTES = 1024

_MAKE_ONE = "make one: gearmap key new, and copy it to every host"


class Stage(Enum):
    """How far a change of keys is."""

    NONE = ""
    NEXT = "next"  # workers accept the other key; clients will use it
    OLD = "old"  # clients use the new key; workers still accept the other one


@dataclass(frozen=True, slots=True)
class Keys:
    """What is in a key file: the key that clients seal with, and while keys are changed another one."""

    current: Secret
    other: Secret | None = None
    stage: Stage = Stage.NONE

    @property
    def accepted(self) -> tuple[Secret, ...]:
        """The keys that workers serve, the clients' first."""
        return (self.current,) if self.other is None else (self.current, self.other)


def new_secret() -> Secret:
    """Return a fresh random key."""
    return Secret(secrets.token_bytes(SECRET_BYTES))


# --------------------------------------------------------------------------------------------------------- reading


def load_key(path: Path, origin: str) -> Secret:
    """Return the key that clients seal with; see `load_keys`."""
    return load_keys(path, origin).current


def load_keys(path: Path, origin: str) -> Keys:
    """Return what is in a key file.

    Raises
    ------
    ConfigurationError
        If there is none, it holds no key, or others can read or replace it.
    """
    named = f"{str(path)!r} (from {origin})"
    try:
        if os.name == "posix":
            _check_places(path, named)
        return _read(path, named)
    except FileNotFoundError:
        raise ConfigurationError(f"no key file at {named}; {_MAKE_ONE}") from None
    except OSError as error:
        raise ConfigurationError(f"the key file {named} cannot be read: {error.strerror}") from None


def load_or_make_keys(path: Path, origin: str) -> Keys:
    """Return what is in a key file, made on first use."""
    # Of os.path, for it answers False where Path.exists() raises: a folder that may not be entered, too long a name.
    # A link that leads nowhere is there: what it names may be on a disk that comes later.
    if not os.path.lexists(path):
        try:
            return Keys(make_key(path))
        except ConfigurationError:
            if not os.path.lexists(path):
                raise
    return load_keys(path, origin)


def _check_places(path: Path, named: str) -> None:
    """Refuse a file that somebody else could put another one in place of."""
    real = Path(os.path.realpath(path))
    for place in dict.fromkeys((path, real)):
        status = os.lstat(place)
        if not _is_trusted(status):
            what = "a symbolic link of" if stat.S_ISLNK(status.st_mode) else "owned by"
            raise ConfigurationError(f"the key file {named} is {what} another user (uid {status.st_uid}); use your own")
        folder = os.stat(place.parent)
        mode = folder.st_mode
        # Many systems give each user a group of his own, and let that write.
        by_group = mode & stat.S_IWGRP and folder.st_gid != os.getegid()
        if not _is_trusted(folder) or ((mode & stat.S_IWOTH or by_group) and not mode & stat.S_ISVTX):
            raise ConfigurationError(
                f"others can replace the key file {named}: they may write to the folder {str(place.parent)!r}; "
                "chmod go-w it, or keep the key elsewhere"
            )


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in (os.geteuid(), 0)


def _read(path: Path, named: str) -> Keys:
    # A pipe must not make us wait for a writer. Windows has no such flag, and no such pipes in folders.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{named} is not a key file, but a folder or a device; {_MAKE_ONE}")
        if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigurationError(f"others can read the key file {named}: chmod 600 it")
        if os.name == "posix" and not _is_trusted(status):
            raise ConfigurationError(f"the key file {named} is owned by another user (uid {status.st_uid})")
        # Revealed to nobody but the parser, which names no part of it: a variable here could be seen in a traceback.
        content = Secret(os.read(handle, _MOST_BYTES + 1))
    finally:
        os.close(handle)
    problem, keys = _parse(content)
    if keys is None:
        raise ConfigurationError(f"{named} is not a key file: {problem}; copy it anew, or {_MAKE_ONE}")
    return keys


def _parse(content: Secret) -> tuple[str, Keys | None]:
    """Return the keys in a file, or what is wrong with it."""
    if len(content.reveal()) > _MOST_BYTES:
        return f"it is longer than {_MOST_BYTES} bytes", None
    words = [[Secret(word) for word in line.split()] for line in content.reveal().splitlines() if line.strip()]
    if not words:
        return "it is empty; it may have been copied only in part", None
    if len(words) > 2:
        return f"it has {len(words)} lines, and a key file has one or two", None
    current, *more = words[0]
    other, stage = None, Stage.NONE
    if len(words) == 2:
        stage = next((each for each in Stage if words[1][0] == Secret(each.value.encode())), Stage.NONE)
        if stage is Stage.NONE or len(words[1]) != 2:
            return "its second line must be 'next' or 'old' and a key", None
        other = _of_hex(words[1][1])
    secret = None if more else _of_hex(current)
    if secret is None or (stage is not Stage.NONE and other is None):
        number = 1 if secret is None else 2
        return f"line {number} is not a key of {2 * SECRET_BYTES} hexadecimal digits; it may have been cut short", None
    if secret == other:
        return "both of its keys are the same", None
    return "", Keys(secret, other, stage)


def _of_hex(word: Secret) -> Secret | None:
    """Return the key that a word means, or None."""
    if len(word.reveal()) == 2 * SECRET_BYTES:
        with suppress(ValueError):
            return Secret(bytes.fromhex(word.reveal().decode("ascii")))
    return None


# --------------------------------------------------------------------------------------------------------- writing


def make_key(path: Path) -> Secret:
    """Make a key file (0600) and return its key.

    Raises
    ------
    ConfigurationError
        If there is a file already, or it cannot be written.
    """
    keys = Keys(new_secret())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Two processes that make the key at once must not take each other's away.
        _put(path, keys, os.link)
    except FileExistsError:
        raise ConfigurationError(
            f"there is a key file already: {str(path)!r}; remove it first if it is not used"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the key file {str(path)!r} cannot be made: {error.strerror}") from None
    return keys.current


def start_rotation(path: Path, origin: str) -> Keys:
    """Put a new key beside the one that is used: workers that have the file accept both.

    Raises
    ------
    ConfigurationError
        If the keys are being changed already, or the file is not fit or cannot be written; so do the other steps.
    """
    keys = load_keys(path, origin)
    if keys.stage is not Stage.NONE:
        step = "--switch" if keys.stage is Stage.NEXT else "--finish"
        raise ConfigurationError(f"the keys in {str(path)!r} are being changed already; go on with {step}, or --back")
    return _rewrite(path, Keys(keys.current, new_secret(), Stage.NEXT))


def switch_keys(path: Path, origin: str) -> Keys:
    """Have clients use the new key; workers go on to accept the old one."""
    keys = load_keys(path, origin)
    if keys.stage is not Stage.NEXT or keys.other is None:
        raise ConfigurationError(f"there is no next key in {str(path)!r}; begin with gearmap key rotate")
    return _rewrite(path, Keys(keys.other, keys.current, Stage.OLD))


def finish_rotation(path: Path, origin: str) -> Keys:
    """Remove the old key; return what is left."""
    keys = load_keys(path, origin)
    if keys.stage is not Stage.OLD:
        first = "--switch" if keys.stage is Stage.NEXT else "gearmap key rotate"
        raise ConfigurationError(f"there is no old key in {str(path)!r}; first comes {first}")
    return _rewrite(path, Keys(keys.current))


def step_back(path: Path, origin: str) -> Keys:
    """Undo the last step: have clients use the old key again, or else forget the new one."""
    keys = load_keys(path, origin)
    if keys.other is None:
        raise ConfigurationError(f"the keys in {str(path)!r} are not being changed")
    if keys.stage is Stage.OLD:
        return _rewrite(path, Keys(keys.other, keys.current, Stage.NEXT))
    return _rewrite(path, Keys(keys.current))


def _rewrite(path: Path, keys: Keys) -> Keys:
    """Put other keys into a file; whoever reads it meanwhile finds the old ones or the new ones."""
    try:
        _put(Path(os.path.realpath(path)), keys, os.replace)
    except OSError as error:
        raise ConfigurationError(f"the key file {str(path)!r} cannot be written: {error.strerror}") from None
    return keys


def _put(path: Path, keys: Keys, move: Callable[[Path, Path], object]) -> None:
    """Write a key file under another name, and move it to its place."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            os.write(handle, b"".join(_lines(keys)))
            os.fsync(handle)
        finally:
            os.close(handle)
        move(draft, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)


def _lines(keys: Keys) -> list[bytes]:
    first = keys.current.reveal().hex().encode() + b"\n"
    if keys.other is None:
        return [first]
    return [first, keys.stage.value.encode() + b" " + keys.other.reveal().hex().encode() + b"\n"]
