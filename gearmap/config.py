"""Which job servers, which key file, which options: frozen values, and pure functions that find them.

Law of the file: a value is never used without its origin. Whatever fails later can say where the wrong word came from.
Nothing here opens a file or a socket; the environment and the config file's text are arguments.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

from gearmap.errors import ConfigurationError
from gearmap.tls import TlsAddress, TlsFiles, TlsOptions, resolve_tls

__all__ = [
    "DEFAULT_PORT",
    "Patience",
    "RunOptions",
    "ServerAddress",
    "ServerChoice",
    "ServerMode",
    "add_tls",
    "check_queue",
    "check_whole",
    "config_folder",
    "exception_classes",
    "parse_server",
    "resolve_key_file",
    "resolve_servers",
]

DEFAULT_PORT = 4730

PRIORITIES = ("low", "normal", "high")
_QUEUE = re.compile(r"[A-Za-z0-9_-]{1,64}")
# 127.300.0.1 is no address, but a name that somebody may own.
_LOOPBACK = re.compile(r"localhost|127(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}|::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the silence of others is borne (seconds): numbers that fit each other, shorter only in tests.

    Attributes
    ----------
    beat_interval
        Between two signs of an execution that lasts. Raised: less traffic of long tasks; lowered: a vanished host is
        noticed sooner.
    beat_timeout
        Silence after which an execution that had begun is taken for lost; six beats. Raised: a slow network is forgiven
        longer; lowered: a vanished host costs less time.
    send_timeout
        How long what was sent may stay unacknowledged (TCP_USER_TIMEOUT): keepalive does not see a host that vanishes
        while data is on its way. Raised: longer cuts of the network cost nothing; lowered: lost hosts are seen sooner.
    blob_timeout
        How long a large array that a node fetches from a client may bring nothing. Raised: a client that serves very
        many nodes gets round; lowered: a worker is free sooner when a client hangs.
    """

    beat_interval: float = 5.0
    beat_timeout: float = 30.0
    send_timeout: float = 20.0
    blob_timeout: float = 15.0


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A job server's address and where it came from. A host that begins with `/` is a Unix socket's path.

    Attributes
    ----------
    tls
        What is needed to speak TLS there, or None where it is plain text.

    Examples
    --------
    >>> str(ServerAddress("::1", 4730, "the argument"))
    '[::1]:4730'
    >>> str(ServerAddress("head", 4730, "the argument", TlsFiles()))
    'tls://head:4730'
    """

    host: str
    port: int
    origin: str
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        if self.host.startswith("/"):
            return f"unix:{self.host}"
        place = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return place if self.tls is None else f"tls://{place}"

    @property
    def endpoint(self) -> tuple[str, int] | TlsAddress:
        """The address as connections take it: without its origin, with all that decides how to speak there."""
        return (self.host, self.port) if self.tls is None else TlsAddress(self.host, self.port, self.tls)

    @classmethod
    def at(cls, endpoint: tuple[str, int] | TlsAddress, origin: str) -> ServerAddress:
        """Return the address that has this `endpoint`."""
        return cls(endpoint[0], endpoint[1], origin, endpoint.tls if isinstance(endpoint, TlsAddress) else None)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return self.host.startswith("/") or _LOOPBACK.fullmatch(self.host) is not None


class ServerMode(Enum):
    """Where tasks run."""

    SERVERS = "on the workers of job servers"
    LOCAL = "on a local cluster, started on first use"
    INLINE = "in the calling process"
    NONE = "nowhere"


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """What was asked for, and by whom."""

    mode: ServerMode
    addresses: tuple[ServerAddress, ...]
    origin: str


def parse_server(text: str, origin: str) -> ServerAddress:
    """Return the address that `unix:/path`, `host`, `host:port` or `[v6]:port` means, all but the first perhaps after `tls://`.

    Raises
    ------
    ConfigurationError
        If it means none; the message names `origin`.

    Examples
    --------
    >>> parse_server("head", "the argument")
    ServerAddress(host='head', port=4730, origin='the argument', tls=None)
    >>> parse_server("tls://[::1]:5000", "the argument").port
    5000
    """
    text = text.strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise ConfigurationError(f"server {text!r} (from {origin}): give unix: and the whole path of the socket")
        return ServerAddress(path, 0, origin)
    scheme, separator, place = text.rpartition("://")
    if separator and scheme != "tls":
        raise ConfigurationError(f"server {text!r} (from {origin}): give HOST, HOST:PORT or tls://HOST:PORT")
    tls = TlsFiles() if separator else None
    match = re.fullmatch(r"\[([^\]]+)\](?::(.*))?", place)
    if match:
        host, port_text = match.group(1), match.group(2)
    elif place.count(":") > 1:
        host, port_text = place, None  # a bare IPv6 address
    else:
        host, _, rest = place.partition(":")
        port_text = rest if ":" in place else None
    if not host or any(c.isspace() or c in "[]/" for c in host):
        raise ConfigurationError(f"server {text!r} (from {origin}) names no host; give HOST, HOST:PORT or [IPV6]:PORT")
    if port_text is None:
        return ServerAddress(host, DEFAULT_PORT, origin, tls)
    if not (re.fullmatch(r"[0-9]{1,5}", port_text) and 0 < int(port_text) < 65536):
        raise ConfigurationError(f"server {text!r} (from {origin}): the port must be a number from 1 to 65535")
    return ServerAddress(host, int(port_text), origin, tls)


def resolve_servers(
    argument: str | Sequence[str] | None, *, environ: Mapping[str, str], config_text: str = ""
) -> ServerChoice:
    """Find the job servers: argument, then GEARMAP_SERVERS, GEARMAN_SERVERS, the config file, a local cluster.

    Raises
    ------
    ConfigurationError
        If an address is malformed, or a list mixes addresses with the words `inline` or `none`.

    Examples
    --------
    >>> resolve_servers(None, environ={"GEARMAP_SERVERS": "head, head2:4731"}).addresses[1].port
    4731
    >>> resolve_servers(None, environ={}).mode.name
    'LOCAL'
    """
    if argument is not None:
        if not isinstance(argument, str) and not isinstance(argument, Sequence):
            raise ConfigurationError(f"servers must be 'HOST[:PORT]' or a list of them, got {argument!r}")
        words = [argument] if isinstance(argument, str) else list(argument)
        return _choice(words, "the argument")
    for name in ("GEARMAP_SERVERS", "GEARMAN_SERVERS"):
        if environ.get(name, "").strip():
            return _choice([environ[name]], name)
    servers = _config_value(config_text, "servers")
    if servers:
        return _choice([servers], "the config file")
    return ServerChoice(ServerMode.LOCAL, (), "default")


def add_tls(
    choice: ServerChoice,
    options: TlsOptions,
    *,
    environ: Mapping[str, str],
    home: Path,
    folder: Path,
    config_text: str = "",
) -> ServerChoice:
    """Return the choice with the files for those of its servers that are named `tls://`.

    Raises
    ------
    ConfigurationError
        If the files make no sense, or somebody has given some in `options` while no server is named `tls://`.
    """
    if all(address.tls is None for address in choice.addresses):
        if options.is_given:
            plain = ", ".join(map(str, choice.addresses)) or choice.mode.value
            raise ConfigurationError(
                f"a file of TLS is given, but no job server is named tls://HOST[:PORT]: {plain} (from {choice.origin})"
            )
        return choice
    files = resolve_tls(
        options, environ=environ, from_config=lambda name: _config_value(config_text, name), folder=folder, home=home
    )
    addresses = tuple(each if each.tls is None else replace(each, tls=files) for each in choice.addresses)
    return replace(choice, addresses=addresses)


def _choice(words: Sequence[str], origin: str) -> ServerChoice:
    parts: list[str] = []
    for word in words:
        if not isinstance(word, str):
            raise ConfigurationError(f"servers must be 'HOST[:PORT]' or a list of them, got {word!r} in {origin}")
        parts.extend(part for part in re.split(r"[,\s]+", word.strip()) if part)
    if parts == ["inline"]:
        return ServerChoice(ServerMode.INLINE, (), origin)
    if parts == ["none"]:
        return ServerChoice(ServerMode.NONE, (), origin)
    if not parts:
        raise ConfigurationError(f"no server is named in {origin}; give HOST or HOST:PORT")
    addresses = tuple(parse_server(part, origin) for part in dict.fromkeys(parts))
    return ServerChoice(ServerMode.SERVERS, addresses, origin)


def _config_value(config_text: str, name: str) -> str:
    if not config_text:
        return ""
    import configparser  # most people have no such file

    parser = configparser.ConfigParser(interpolation=None)  # a % in a path is a %
    try:
        parser.read_string(config_text)
    except configparser.Error as error:
        raise ConfigurationError(f"the config file cannot be read: {error}") from None
    return parser.get("gearmap", name, fallback="").strip()


def config_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Return the folder of the key and config files (XDG Base Directory Specification 0.8; APPDATA on Windows)."""
    if environ.get("XDG_CONFIG_HOME"):
        return Path(environ["XDG_CONFIG_HOME"]) / "gearmap"
    if os.name == "nt" and environ.get("APPDATA"):
        return Path(environ["APPDATA"]) / "gearmap"
    return home / ".config" / "gearmap"


def resolve_key_file(
    argument: str | os.PathLike[str] | None, *, environ: Mapping[str, str], home: Path, config_text: str = ""
) -> tuple[Path, str]:
    """Return the key file and where that choice came from."""
    if argument is not None:
        return Path(argument), "the argument"
    if environ.get("GEARMAP_KEY_FILE"):
        return Path(environ["GEARMAP_KEY_FILE"]), "GEARMAP_KEY_FILE"
    named = _config_value(config_text, "key_file")
    if named:
        return Path(named).expanduser(), "the config file"
    return config_folder(environ, home) / "key", "the config folder"


def check_queue(queue: object) -> str:
    """Return the queue's name, or raise ConfigurationError."""
    if not isinstance(queue, str) or not _QUEUE.fullmatch(queue):
        raise ConfigurationError(f"queue must be 1 to 64 letters, digits, '_' or '-', got {queue!r}")
    return queue


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of a run. `MAP_ONLY` ones mean nothing to `submit`.

    Attributes
    ----------
    chunksize
        Tasks in each job, or None to measure and adapt.
    timeout
        Seconds that the caller of a map waits in all; then the run is cancelled.
    task_timeout
        Seconds that one task may run, or None. Waiting for a worker and unpickling do not count.
    retries
        Re-executions of a task that raised or ran longer than `task_timeout`.
    retry_exceptions
        Which exceptions `retries` is for: a class, a list or a tuple (kept as a tuple). `TaskTimeout` is one of them.
    return_exceptions
        Whether failures come back in place of results, instead of ending the run.
    max_workers
        The most jobs of the run in flight, or None.
    progress
        True, False, or None for a bar where somebody can see it.
    desc
        Words before the progress bar.
    total
        Number of tasks, where the iterables do not tell.
    priority
        "low", "normal" or "high".
    queue
        Lane of work; 1 to 64 letters, digits, "_", "-".
    retry_delay
        Seconds before the first re-execution of a task; they double each time, up to 30 s. 0 is at once.
    max_worker_losses
        How many workers a task may take with it before it is given up.
    initializer
        Called once in each child process before its first task of this kind; such a child serves only calls of this
        client with the same initializer. If it raises, the run is broken.
    initargs
        Its arguments, a tuple or list (kept as a tuple).
    max_tasks_per_child
        Tasks that a child process runs before it is replaced, or None.
    by_value
        Modules of pure Python, or their names, whose source travels with functions though they are installed, or large;
        with all of their submodules that are imported (kept as a tuple of names).
    by_reference
        Modules, or their names, of which every worker has its own; with their submodules (kept as a tuple of names).
    log_level
        From which level on log records of tasks come back: a name or a number (kept as a number); None for none.
    """

    chunksize: int | None = None
    timeout: float | None = None
    task_timeout: float | None = None
    retries: int = 0
    retry_exceptions: type[BaseException] | Sequence[type[BaseException]] = (Exception,)
    return_exceptions: bool = False
    max_workers: int | None = None
    progress: bool | None = None
    desc: str | None = None
    total: int | None = None
    priority: str = "normal"
    queue: str = "default"
    retry_delay: float = 0.5
    max_worker_losses: int = 3
    initializer: Callable[..., object] | None = None
    initargs: Sequence[Any] = field(default=(), hash=False)
    max_tasks_per_child: int | None = None
    by_value: Sequence[str | ModuleType] = ()
    by_reference: Sequence[str | ModuleType] = ()
    log_level: int | str | None = "WARNING"

    def __post_init__(self) -> None:
        check_whole("chunksize", self.chunksize, least=1, optional=True)
        check_whole("retries", self.retries, least=0)
        check_whole("max_workers", self.max_workers, least=1, optional=True)
        check_whole("total", self.total, least=0, optional=True)
        check_whole("max_worker_losses", self.max_worker_losses, least=0)
        check_whole("max_tasks_per_child", self.max_tasks_per_child, least=1, optional=True)
        if self.initializer is not None and not callable(self.initializer):
            raise ConfigurationError(f"initializer must be callable, got {self.initializer!r}")
        if not isinstance(self.initargs, tuple | list):
            raise ConfigurationError(f"initargs must be a tuple or list of arguments, got {self.initargs!r}")
        object.__setattr__(self, "initargs", tuple(self.initargs))
        if self.timeout is not None:
            _check_seconds("timeout", self.timeout)
        if self.task_timeout is not None:
            _check_limit("task_timeout", self.task_timeout)
        _check_seconds("retry_delay", self.retry_delay)
        object.__setattr__(self, "log_level", _log_level(self.log_level))
        object.__setattr__(self, "retry_exceptions", exception_classes(self.retry_exceptions))
        for name in ("by_value", "by_reference"):
            object.__setattr__(self, name, _module_names(name, getattr(self, name)))
        for module in set(self.by_value) & set(self.by_reference):
            raise ConfigurationError(f"module {module!r} is both in by_value and in by_reference")
        for name in ("return_exceptions", "progress"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "progress" and value is None):
                raise ConfigurationError(f"{name} must be True or False, got {value!r}")
        if self.desc is not None and not isinstance(self.desc, str):
            raise ConfigurationError(f"desc must be a str, got {self.desc!r}")
        if self.priority not in PRIORITIES:
            raise ConfigurationError(f"priority must be one of {', '.join(PRIORITIES)}, got {self.priority!r}")
        check_queue(self.queue)

    @property
    def key(self) -> Hashable:
        """What equal options have in common; initializer arguments without a hash are told apart as objects.

        Keep the options as long as the key.
        """
        try:
            hash(self.initargs)
        except TypeError:
            return replace(self, initargs=()), id(self.initargs)
        return self

    @property
    def log_number(self) -> int | None:
        """The log level, as it is kept."""
        assert not isinstance(self.log_level, str)
        return self.log_level

    def with_changes(self, changes: Mapping[str, Any]) -> RunOptions:
        """Return a copy with other values.

        Raises
        ------
        ConfigurationError
            If there is no such option, or a value is wrong.
        """
        known = [one.name for one in fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigurationError(f"there is no option {name!r}; {_advice_on(name, known)}")
        return replace(self, **changes)


def _advice_on(name: str, known: Sequence[str]) -> str:
    """Say what a person may have meant by an option that does not exist: another, or an argument of the function."""
    from difflib import get_close_matches  # nobody pays for it who spells well

    alike = get_close_matches(name, known, n=1)
    if alike:
        return f"did you mean {alike[0]!r}?"
    options = ", ".join(known)
    return f"the options are {options}; an argument of the function goes into functools.partial(fn, {name}=...)"


MAP_ONLY = ("chunksize", "timeout", "return_exceptions", "progress", "desc", "total")


def check_whole(name: str, value: object, *, least: int, optional: bool = False) -> None:
    """Raise ConfigurationError if the value of an option is no int from `least` on, nor None where that may be."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        hint = "; servers are given as servers=" if name == "max_workers" and isinstance(value, str) else ""
        raise ConfigurationError(f"{name} must be an int, got {value!r}{hint}")
    if value < least:
        raise ConfigurationError(f"{name} must be at least {least}, got {value!r}")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigurationError(f"{name} must be seconds, 0 or more, got {value!r}")


def _check_limit(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{name} must be seconds, more than 0, or None for no limit, got {value!r}")


# Those of `logging`, which is not needed to know them.
_LOG_LEVELS = {"NOTSET": 0, "DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


def _log_level(value: object) -> int | None:
    """Return the number of a level, or None for none."""
    level = _LOG_LEVELS.get(value.upper(), -1) if isinstance(value, str) else value
    if level is None:
        return None
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise ConfigurationError(
            f"log_level must be one of {', '.join(_LOG_LEVELS)}, a number from 0 on, or None, got {value!r}"
        )
    return level


def _module_names(option: str, value: object) -> tuple[str, ...]:
    """Return the names of the modules that an option lists."""
    if not isinstance(value, tuple | list):
        raise ConfigurationError(f"{option} must be a list of modules or of their names, got {value!r}")
    names = [each.__name__ if isinstance(each, ModuleType) else each for each in value]
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigurationError(f"{option} must be a list of modules or of their names, got {value!r}")
        if name.partition(".")[0] in ("__main__", "gearmap"):
            raise ConfigurationError(f"{option} is for modules that may travel; {name!r} is not one, got {value!r}")
    return tuple(names)


def exception_classes(value: object) -> tuple[type[BaseException], ...]:
    """Return what `retry_exceptions` means: one class, or a list or tuple of them.

    Raises
    ------
    ConfigurationError
        If anything in it is no exception class.

    Examples
    --------
    >>> exception_classes(OSError)
    (<class 'OSError'>,)
    >>> exception_classes([OSError, ValueError])
    (<class 'OSError'>, <class 'ValueError'>)
    """
    classes = tuple(value) if isinstance(value, list | tuple) else (value,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ConfigurationError(
                f"retry_exceptions must be an exception class, or a list or tuple of them, got {value!r}"
            )
    return classes
