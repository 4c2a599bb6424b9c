"""Which backend calls go to: job servers that somebody has named, a task's own node, a local cluster, or none.

What must not live here: what a backend does (`backend`), and who was named where (`servers`, `config`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gearmap.backend import Backend, LocalBackend, NestedBackend
from gearmap.config import ServerChoice, ServerMode
from gearmap.errors import ConfigurationError
from gearmap.runtime import child
from gearmap.servers import find_key, find_servers
from gearmap.tls import TlsOptions

__all__ = ["choose_backend", "named_backend"]

# Programs in which a cluster that starts by itself would be started by each of many processes.
_WEB_SERVERS = (
    "django.core.wsgi", "django.core.asgi", "gunicorn", "uwsgi", "uvicorn", "daphne", "hypercorn", "waitress",
)  # fmt: skip


def named_backend(
    servers: str | Sequence[str] | None, key: str | os.PathLike[str] | None, tls: TlsOptions | None = None
) -> Backend:
    """Return the backend for job servers that somebody has named, here or in the environment.

    Raises
    ------
    ConfigurationError
        If nobody has, an address is malformed, a file of TLS is not fit, or there is no key for a server that is not on
        this machine.
    """
    choice = find_servers(servers, tls)
    if choice.mode is ServerMode.LOCAL:
        raise ConfigurationError(
            "no job server is named; give servers='HOST[:PORT]', set GEARMAP_SERVERS, or use LocalCluster()"
        )
    return _of_choice(choice, key)


def choose_backend(
    servers: str | Sequence[str] | None = None, key: str | os.PathLike[str] | None = None, workers: int | None = None
) -> Backend:
    """Return the backend for the job servers that are named, else for a local cluster of so many workers.

    Raises
    ------
    ConfigurationError
        As `named_backend`; also if a local cluster would start inside a web server.
    """
    if child.is_child and servers is None:
        return NestedBackend()
    choice = find_servers(servers)
    if choice.mode is not ServerMode.LOCAL:
        return _of_choice(choice, key)
    host = next((name for name in _WEB_SERVERS if name in sys.modules), None)
    if host is not None:
        raise ConfigurationError(
            f"no cluster is started by itself inside a web server ({host}); set GEARMAP_SERVERS=HOST[:PORT], "
            "or GEARMAP_SERVERS=inline for tests"
        )
    return LocalBackend(workers)


def _of_choice(choice: ServerChoice, key: str | os.PathLike[str] | None) -> Backend:
    if choice.mode is ServerMode.NONE:
        raise ConfigurationError(f"there is no cluster to use: {choice.origin} says 'none'")
    secret = find_key(key, choice.addresses) if choice.mode is ServerMode.SERVERS else None
    return Backend(choice.mode, choice.addresses, secret)
