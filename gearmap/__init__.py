"""The notebook's cluster on Gearman: run any Python callable over many machines, results in order.

>>> import gearmap
>>> with gearmap.LocalCluster(0):                     # 0 workers: in this process, for a quick try
...     gearmap.map(lambda x: x * x, range(5))
[0, 1, 4, 9, 16]

Everything below is loaded on first use, so that `import gearmap` costs next to nothing. A star import takes classes
and errors only: the builtin `map` stays what it is.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gearmap.errors import (
    ClockSkew,
    ClusterBroken,
    ConfigurationError,
    ConnectionLost,
    EnvelopeError,
    GearmapError,
    JobRejected,
    ProtocolError,
    RemoteError,
    RemoteTraceback,
    RunTimeout,
    SealError,
    SerializationError,
    ServerUnavailable,
    TaskError,
    TaskTimeout,
    TlsFailed,
    TransportError,
    WireError,
    WorkerLost,
)

if TYPE_CHECKING:
    from gearmap.api import connect as connect
    from gearmap.api import current_client as current_client
    from gearmap.api import forget as forget
    from gearmap.api import imap as imap
    from gearmap.api import imap_unordered as imap_unordered
    from gearmap.api import last as last
    from gearmap.api import map as map
    from gearmap.api import map_async as map_async
    from gearmap.api import on_every_node as on_every_node
    from gearmap.api import on_every_worker as on_every_worker
    from gearmap.api import options as options
    from gearmap.api import starmap as starmap
    from gearmap.api import status as status
    from gearmap.api import submit as submit
    from gearmap.client import Client, LocalCluster
    from gearmap.config import RunOptions
    from gearmap.executor import GearmanExecutor
    from gearmap.named import NamedTask
    from gearmap.named import task as task
    from gearmap.notebook.magics import load_ipython_extension as load_ipython_extension
    from gearmap.notebook.magics import unload_ipython_extension as unload_ipython_extension
    from gearmap.overview.values import ClusterStatus
    from gearmap.runtime.futures import Future
    from gearmap.runtime.mapfuture import FailedTask, MapFuture
    from gearmap.runtime.sharing import share as share
    from gearmap.runtime.task import Task
    from gearmap.runtime.task import current_task as current_task
    from gearmap.runtime.task import report_progress as report_progress

__version__ = "0.1.0"

__all__ = [
    "Client",
    "ClockSkew",
    "ClusterBroken",
    "ClusterStatus",
    "ConfigurationError",
    "ConnectionLost",
    "EnvelopeError",
    "FailedTask",
    "Future",
    "GearmanExecutor",
    "GearmapError",
    "JobRejected",
    "LocalCluster",
    "MapFuture",
    "NamedTask",
    "ProtocolError",
    "RemoteError",
    "RemoteTraceback",
    "RunOptions",
    "RunTimeout",
    "SealError",
    "SerializationError",
    "ServerUnavailable",
    "Task",
    "TaskError",
    "TaskTimeout",
    "TlsFailed",
    "TransportError",
    "WireError",
    "WorkerLost",
]

_HOME = {
    "Client": "gearmap.client",
    "ClusterStatus": "gearmap.overview.values",
    "FailedTask": "gearmap.runtime.mapfuture",
    "Future": "gearmap.runtime.futures",
    "GearmanExecutor": "gearmap.executor",
    "LocalCluster": "gearmap.client",
    "MapFuture": "gearmap.runtime.mapfuture",
    "NamedTask": "gearmap.named",
    "RunOptions": "gearmap.config",
    "Task": "gearmap.runtime.task",
    "connect": "gearmap.api",
    "current_client": "gearmap.api",
    "current_task": "gearmap.runtime.task",
    "forget": "gearmap.api",
    "imap": "gearmap.api",
    "imap_unordered": "gearmap.api",
    "last": "gearmap.api",
    "load_ipython_extension": "gearmap.notebook.magics",
    "map": "gearmap.api",
    "map_async": "gearmap.api",
    "on_every_node": "gearmap.api",
    "on_every_worker": "gearmap.api",
    "options": "gearmap.api",
    "report_progress": "gearmap.runtime.task",
    "share": "gearmap.runtime.sharing",
    "starmap": "gearmap.api",
    "status": "gearmap.api",
    "submit": "gearmap.api",
    "task": "gearmap.named",
    "unload_ipython_extension": "gearmap.notebook.magics",
}


# Shows runs in notebooks; loaded in their kernels only.
_NOTEBOOK = "gearmap.notebook.display"


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'gearmap' has no attribute {name!r}")
    if "ipykernel" in sys.modules:
        import_module(_NOTEBOOK).install()
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
