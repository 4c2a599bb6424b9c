"""Values that cross the border of the transport: what is asked of it and what it reports.

Law of the file: values only. No sockets, no behaviour, nothing of gearman3.

The classes may be built and matched by position (`case WorkComplete(token, data)`), unlike most values of
gearmap, because they are small, made once per packet and taken apart at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from gearmap.errors import TransportError
from gearmap.tls import TlsAddress

__all__ = [
    "Accepted",
    "Address",
    "AssignedJob",
    "Body",
    "ClientEvent",
    "ConnectFailed",
    "Connected",
    "JobAssigned",
    "JobLost",
    "JobRequest",
    "LazyBody",
    "Lost",
    "Payload",
    "Priority",
    "Rejected",
    "ServerDown",
    "ServerUp",
    "StatusListing",
    "StatusRow",
    "UniqueStatus",
    "WorkComplete",
    "WorkData",
    "WorkException",
    "WorkFailed",
    "WorkStatus",
    "WorkWarning",
    "WorkerEvent",
    "bare_address",
    "show_address",
]

# Whoever has the address knows how to speak there: no part of the transport can forget TLS.
Address: TypeAlias = tuple[str, int] | TlsAddress
Priority: TypeAlias = Literal["low", "normal", "high"]


class LazyBody(Protocol):
    """A body made while it is sent: `len()` is its exact size in bytes, and it is iterated once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes | bytearray | memoryview]: ...


# What may be sent as the data of a packet, and what is received: bytes when small, writable memory of its own when
# large (so that unpickling may refer into it instead of copying).
Body: TypeAlias = bytes | bytearray | memoryview | LazyBody
Payload: TypeAlias = bytes | bytearray | memoryview


def bare_address(address: Address) -> str:
    """The address as people type it: `127.0.0.1:4730`, `tls://[::1]:4730`, `unix:/path`."""
    host, port = address[0], address[1]
    if host.startswith("/"):
        return f"unix:{host}"
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"tls://{place}" if isinstance(address, TlsAddress) else place


def show_address(address: Address) -> str:
    """The address as messages show it: `'127.0.0.1:4730'`, `'tls://[::1]:4730'`, with the quotes."""
    return repr(bare_address(address))


# ---------------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True, slots=True, eq=False)
class JobRequest:
    """One job to submit.

    Parameters
    ----------
    token
        The caller's own name for the request; comes back in every event.
    function
        Gearman function name, without NUL.
    unique
        Gearman unique of at most 63 bytes; fresh for each attempt.
    body
        The data; sent without copying when it is large.
    priority
        Place inside the function's queue.
    background
        If true the job has no events after `Accepted`.
    """

    token: Hashable
    function: str
    unique: str
    body: Body
    priority: Priority = "normal"
    background: bool = False


# --------------------------------------------------------------------------------------- events of a client


@dataclass(frozen=True, slots=True)
class Connected:
    """The peer answered as a Gearman server."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """No Gearman server answered in time; nothing of what was submitted has been sent."""

    reason: TransportError


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job server has queued the job."""

    token: Hashable
    handle: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The job server answered ERROR in place of a handle; terminal."""

    token: Hashable
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class WorkData:
    """A piece of data that the worker sent ahead of the outcome."""

    token: Hashable
    data: Payload


@dataclass(frozen=True, slots=True)
class WorkWarning:
    """A warning of the worker."""

    token: Hashable
    data: Payload


@dataclass(frozen=True, slots=True)
class WorkStatus:
    """Progress as the worker wrote it: text, since workers may send any."""

    token: Hashable
    numerator: str
    denominator: str


@dataclass(frozen=True, slots=True)
class WorkComplete:
    """The outcome; terminal."""

    token: Hashable
    data: Payload


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """The job failed without data; terminal."""

    token: Hashable


@dataclass(frozen=True, slots=True)
class WorkException:
    """The job failed with data; terminal."""

    token: Hashable
    data: Payload


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One line of the `status` listing."""

    function: str
    total: int
    running: int
    workers: int


@dataclass(frozen=True, slots=True)
class StatusListing:
    """Answer to `request_status`."""

    rows: tuple[StatusRow, ...]


@dataclass(frozen=True, slots=True)
class UniqueStatus:
    """Answer to a question about a unique: does it exist, does it run, how many clients wait for it?"""

    unique: str
    known: bool
    running: bool
    numerator: int
    denominator: int
    clients: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The open connection is gone, and with it every request named in `tokens`."""

    reason: TransportError
    tokens: tuple[Hashable, ...]


# --------------------------------------------------------------------------------------- events of a worker


@dataclass(frozen=True, slots=True, eq=False)
class AssignedJob:
    """A job that this worker holds. `data` is writable memory of its own when it is large."""

    server: Address
    handle: str
    function: str
    unique: str
    data: Payload


@dataclass(frozen=True, slots=True)
class ServerUp:
    """A job server answers and knows this worker's functions."""

    server: Address


@dataclass(frozen=True, slots=True)
class ServerDown:
    """A job server is away; the link tries again by itself."""

    server: Address
    reason: TransportError


@dataclass(frozen=True, slots=True)
class JobAssigned:
    """A job has come."""

    job: AssignedJob


@dataclass(frozen=True, slots=True)
class JobLost:
    """The server of the held job is gone: nobody waits for this outcome here any more."""

    job: AssignedJob


ClientEvent: TypeAlias = (
    Connected
    | ConnectFailed
    | Accepted
    | Rejected
    | WorkData
    | WorkWarning
    | WorkStatus
    | WorkComplete
    | WorkFailed
    | WorkException
    | StatusListing
    | UniqueStatus
    | Lost
)
WorkerEvent: TypeAlias = ServerUp | ServerDown | JobAssigned | JobLost | UniqueStatus
