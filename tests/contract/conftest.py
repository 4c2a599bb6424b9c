"""Both job servers for the contract tests.

`job_server` is a running server, shared by tests as long as it lives; `own_job_server` starts one for a single test,
with options. Both run once per kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from packets import RawConnection
from programs import KINDS, require_kind

from gearmap.jobserver.process import ServerProcess, start_job_server

StartServer = Callable[..., ServerProcess]
Connect = Callable[[], RawConnection]

_names = itertools.count()


@pytest.fixture(scope="session")
def _living_servers() -> Iterator[dict[str, ServerProcess]]:
    servers: dict[str, ServerProcess] = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(params=KINDS)
def job_server(request: pytest.FixtureRequest, _living_servers: dict[str, ServerProcess]) -> ServerProcess:
    """A running server of each kind; other tests have used it before, and it may be killed."""
    kind = request.param
    require_kind(kind)
    server = _living_servers.get(kind)
    if server is None or not server.alive:
        if server is not None:
            server.stop()
        server = _living_servers[kind] = start_job_server(kind)
    return server


@pytest.fixture(params=KINDS)
def own_job_server(request: pytest.FixtureRequest) -> Iterator[StartServer]:
    """A function that starts a server of each kind for this test alone."""
    kind = request.param
    require_kind(kind)
    servers = []

    def start(**options: object) -> ServerProcess:
        servers.append(start_job_server(kind, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def connections() -> Iterator[Callable[[ServerProcess], RawConnection]]:
    """A function that connects to a server; the connections are closed after the test."""
    opened = []

    def connect(server: ServerProcess) -> RawConnection:
        opened.append(RawConnection(server.host, server.port))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def connect(job_server: ServerProcess, connections: Callable[[ServerProcess], RawConnection]) -> Connect:
    """A function that connects to `job_server`."""
    return lambda: connections(job_server)


@pytest.fixture
def f() -> bytes:
    """A function name that no other test uses."""
    return b"function-%d" % next(_names)
