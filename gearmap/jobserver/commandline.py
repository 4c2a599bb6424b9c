"""Command lines of job servers: which program, with which flags.

What lives here: looking for gearmand, and what a server of ours is started with. What must not: starting anything.

Rule 1: the embedded server is started in isolation: neither the current directory nor the environment decides what
it imports.
Rule 2: a server of ours serves loopback unless told otherwise.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gearmap.errors import ConfigurationError
from gearmap.tls import TlsServerFiles

__all__ = ["LaunchOptions", "embedded_command", "find_gearmand", "gearmand_command"]

# Debian installs into /usr/sbin, which is on no user's PATH; Homebrew into either of two places.
GEARMAND_DIRECTORIES: Final = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/opt/homebrew/sbin",
    "/opt/homebrew/opt/gearman/sbin",
    "/usr/local/opt/gearman/sbin",
    "/opt/local/sbin",
)

# gearmand refuses to start if it asks for more than the hard limit.
GEARMAND_FILES: Final = 65536
# With the default of 991 a long queue makes every look-up slow.
GEARMAND_HASH_BUCKETS: Final = 100003
# With the default of 32, hundreds of workers that connect at once wait for TCP's resends.
GEARMAND_BACKLOG: Final = 1024

_VERBOSE_LEVELS: Final = ("ERROR", "INFO", "DEBUG")

# `-c` and not `-m`: with -I and -S the package is found nowhere but where it lies.
_EMBEDDED_MAIN: Final = """
import sys
sys.path.append(sys.argv.pop(1))
from gearmap.jobserver.__main__ import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """How a job server is started.

    Attributes
    ----------
    host
        Address to listen on.
    port
        Port to listen on; 0 is a free one.
    job_retries
        How many workers a job may lose before it fails; 0 is no limit.
    threads
        I/O threads of gearmand; 0 handles everything in one.
    workers_wake_one
        Whether a job wakes one sleeping worker and not all. Only where each worker has exactly one server.
    private
        Whether the embedded server is for this user alone: a Unix socket in a private folder, where there are any. Host
        and port mean nothing then. gearmand listens on loopback all the same: it knows nothing else.
    verbose
        0, 1 or 2: how much is logged.
    log
        Log file; None logs nothing.
    tls
        What TLS is spoken with; None speaks plain text. Only the embedded server can.
    """

    host: str = "127.0.0.1"
    port: int = 0
    job_retries: int = 5
    threads: int = 0
    workers_wake_one: bool = False
    private: bool = False
    verbose: int = 0
    log: str | None = None
    tls: TlsServerFiles | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"a port is a number from 0 to 65535, not {self.port!r}")
        if self.job_retries < 0 or self.threads < 0 or self.verbose < 0:
            raise ConfigurationError(
                "job_retries, threads and verbose are 0 or more, "
                f"not {self.job_retries!r}, {self.threads!r}, {self.verbose!r}"
            )


def find_gearmand(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the path of gearmand, or None if it is not installed.

    `GEARMAP_GEARMAND` decides if it is set; an empty value says that there is none. Then come PATH and the usual
    places outside of it.

    Raises
    ------
    ConfigurationError
        If `GEARMAP_GEARMAND` names something that cannot be run.
    """
    environ = os.environ if environ is None else environ
    override = environ.get("GEARMAP_GEARMAND")
    if override is not None:
        if not override:
            return None
        found = shutil.which(override, path=environ.get("PATH"))
        if found is None:
            raise ConfigurationError(f"GEARMAP_GEARMAND is {override!r}, which is not a program")
        return found
    path = os.pathsep.join((environ.get("PATH", os.defpath), *GEARMAND_DIRECTORIES))
    return shutil.which("gearmand", path=path)


def gearmand_command(program: str, options: LaunchOptions, *, port: int, pid_file: str) -> list[str]:
    """Return the command line of a gearmand that listens on `port`."""
    command = [program, "-L", options.host, "-p", str(port), "-b", str(GEARMAND_BACKLOG)]
    command += ["-f", str(min(GEARMAND_FILES, _hard_file_limit())), f"--job-retries={options.job_retries}"]
    command += [
        "--keepalive",
        "--keepalive-idle",
        "60",
        "--keepalive-interval",
        "15",
        "--keepalive-count",
        "4",
    ]
    command += [
        "--hashtable-buckets",
        str(GEARMAND_HASH_BUCKETS),
        "--round-robin",
        "-t",
        str(options.threads),
    ]
    if options.workers_wake_one:
        command += ["-w", "1"]
    level = _VERBOSE_LEVELS[min(options.verbose, len(_VERBOSE_LEVELS) - 1)]
    return [*command, "--verbose", level, "-l", options.log or os.devnull, "-P", pid_file]


def embedded_command(options: LaunchOptions, *, folder: str | None = None) -> list[str]:
    """Return the command line of an embedded server that ends with its standard input.

    With a folder it listens there, for this user alone.

    Raises
    ------
    ConfigurationError
        If this Python does not know its own program.
    """
    if not sys.executable:
        raise ConfigurationError("the embedded job server needs a Python program, and sys.executable is not set")
    import_root = str(Path(__file__).resolve().parents[2])
    # -S, because the server needs nothing from site-packages, and what lies there may be slow to look at.
    command = [sys.executable, "-I", "-S", "-c", _EMBEDDED_MAIN, import_root, "--lifeline"]
    command += [
        "--host",
        options.host,
        "--port",
        str(options.port),
        "--job-retries",
        str(options.job_retries),
    ]
    if options.tls is not None:
        for name, file in (("cert", options.tls.cert), ("key", options.tls.key), ("ca", options.tls.ca)):
            command += [] if file is None else [f"--tls-{name}", file.path]
    if folder is not None:
        command += ["--folder", folder]
    if options.workers_wake_one:
        command.append("--wake-one")
    if options.log is not None:
        command += ["--log", options.log]
    return command + ["-v"] * options.verbose


def _hard_file_limit() -> int:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return GEARMAND_FILES if hard == resource.RLIM_INFINITY else hard
