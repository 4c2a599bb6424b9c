"""From a node's configuration to a running node: environment, children's starter, signals, lifeline."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gearmap.memory import keep_what_is_freed
from gearmap.runtime.child import ChildSettings
from gearmap.runtime.cpus import blas_defaults
from gearmap.secret import Secret

if TYPE_CHECKING:
    from gearmap.runtime.nodesettings import NodeSettings
    from gearmap.transport.events import Address

__all__ = ["DRAIN_GRACE", "encode_node_config", "run_node"]

# Seconds that running jobs may go on after SIGTERM before they are given back. Raised: less work is run twice; lowered:
# a node leaves sooner.
DRAIN_GRACE = 30.0

# How a node that leaves takes its name along: requests to each job server, and seconds for each.
FORGET_TRIES = 5
FORGET_SECONDS = 1.0


def encode_node_config(
    *,
    servers: tuple[Address, ...],
    keys: Sequence[Secret],
    workers: int,
    queues: tuple[str, ...],
    name: str,
    node_id: str,
    cwd: str | None = None,
    environment: tuple[tuple[str, str], ...] = (),
    memory_limit: int | None = None,
    max_tasks_per_child: int | None = None,
    blob_cache: int | None = None,
    grace: float = DRAIN_GRACE,
    tasks: tuple[str, ...] = (),
    task_modules: tuple[str, ...] = (),
    lifeline: bool = False,
    quiet: bool = True,
    verbose: bool = False,
    python: tuple[int, int] | None = None,
    patience: dict[str, float] | None = None,
    workers_here: int | None = None,
    key_file: str | None = None,
) -> Secret:
    """Return the line of configuration for `node_main`. It holds the keys: hand it over by a pipe only.

    `workers_here` are those of all nodes that share this machine's processors, if there are others. `key_file` is what
    the node looks at for other keys.

    For tests: `python` is the version that the node says it has, `patience` what is other than in `Patience`.
    """
    told = {
        "servers": [[*each[:2], *(files.to_json() for files in each[2:])] for each in servers],
        "workers": workers,
        "queues": queues,
        "name": name,
        "node_id": node_id,
        "cwd": cwd,
        "environment": environment,
        "memory_limit": memory_limit,
        "max_tasks_per_child": max_tasks_per_child,
        "blob_cache": blob_cache,
        "grace": grace,
        "tasks": tasks,
        "task_modules": task_modules,
        "lifeline": lifeline,
        "quiet": quiet,
        "verbose": verbose,
        "python": python,
        "patience": patience,
        "workers_here": workers_here,
        "key_file": key_file,
    }
    # The keys stand in front and not in the JSON: what json fails at, it has in variables.
    rest = json.dumps(told).encode()
    return Secret(b",".join(key.reveal().hex().encode() for key in keys) + b" " + rest + b"\n")


def get_ready(workers: int) -> None:
    """Do what needs no configuration but the number of workers on this machine; cheap if it was done before."""
    _leave_no_core()
    os.environ.update(blas_defaults(workers))
    # The process that starts children starts while this one still imports: that is a tenth of a second of each.
    from gearmap.runtime.children import child_context

    context = child_context()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()

    import gearmap.runtime.node  # noqa: F401  # most of what is to be imported


def _leave_no_core() -> None:
    """Have this process, and all that it starts, write no core file: the keys are here, and the data of tasks there.

    Rejected: PR_SET_DUMPABLE, which also closes /proc/<pid>/fd to the children, and with it the memory of large arrays.
    """
    try:
        import resource  # not on Windows
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_line(source: int) -> Secret:
    """Return the line of configuration that comes on a descriptor; nothing if whoever has the other end is gone."""
    parts: list[Secret] = []
    while not parts or not parts[-1].reveal().endswith(b"\n"):
        parts.append(Secret(os.read(source, 65536)))
        if parts[-1] == Secret(b""):
            return parts[-1]
    return Secret(b"".join(part.reveal() for part in parts))


def _key(text: Secret) -> Secret:
    return Secret(bytes.fromhex(text.reveal().decode()))


def run_node(source: int) -> int:
    """Run a node as a line of configuration says, which comes on the descriptor `source`; return the exit status."""
    from gearmap.runtime.keyring import Keyring

    line = read_line(source)
    if line == Secret(b""):
        return 0  # whoever started it has changed their mind, or has ended
    keys = Keyring(map(_key, map(Secret, line.reveal().partition(b" ")[0].split(b","))))
    config = json.loads(line.reveal().partition(b" ")[2])
    lifeline = source if config["lifeline"] else None
    if lifeline is None:
        os.close(source)
    get_ready(config.get("workers_here") or config["workers"])
    keep_what_is_freed()

    from gearmap.config import Patience
    from gearmap.runtime.keywatch import KeyWatch
    from gearmap.runtime.memory_use import default_cache_bytes
    from gearmap.runtime.node import Node
    from gearmap.runtime.nodesettings import NodeSettings
    from gearmap.tls import TlsAddress, TlsFiles

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    servers = tuple(
        TlsAddress(host, port, TlsFiles.from_json(*tls)) if tls else (host, port)
        for host, port, *tls in config["servers"]
    )
    settings = NodeSettings(
        servers=servers,
        keys=keys,
        workers=config["workers"],
        queues=tuple(config["queues"]),
        tasks=tuple(config["tasks"]),
        name=config["name"],
        node_id=config["node_id"],
        python=tuple(config.get("python") or sys.version_info[:2]),
        children=ChildSettings(
            environment=tuple((name, value) for name, value in config["environment"]),
            cwd=config["cwd"],
            servers=servers,
            task_modules=tuple(config["task_modules"]),
            is_local=lifeline is not None,
        ),
        memory_limit=config["memory_limit"],
        max_tasks_per_child=config["max_tasks_per_child"],
        grace=config["grace"],
        blob_cache_bytes=config["blob_cache"] if config["blob_cache"] is not None else default_cache_bytes(),
        patience=Patience(**(config.get("patience") or {})),
    )
    say = _quiet if config["quiet"] else _say
    node = Node(settings, report=say, verbose=say if config["verbose"] else None)
    _install_signals(node, say, settings.grace)
    if lifeline is not None:
        node.watch(_Lifeline(lifeline, node))
    if config.get("key_file") is not None:
        watch = KeyWatch(Path(config["key_file"]), node.change_keys, say)
        node.watch(watch)
        watch.start()
    say(_greeting(settings))
    problem = node.run()
    if lifeline is None:
        _forget_control_name(settings)
    if problem:
        print(f"gearmap worker: {problem}", file=sys.stderr, flush=True)
        return 1
    say("ended")
    return 0


def _forget_control_name(settings: NodeSettings) -> None:
    """Take the names of our control function off the job servers: gearmand never forgets one by itself."""
    from gearmap.core.names import control_name
    from gearmap.errors import GearmapError
    from gearmap.transport.admin import drop_function

    for server in settings.servers:
        try:
            for name in (control_name(settings.node_id, key_id) for key_id in settings.keys.ids_ever):
                # The server may still be closing our connections; then it refuses, and is asked again.
                for _ in range(FORGET_TRIES):
                    if drop_function(server, name, timeout=FORGET_SECONDS):
                        break
        except GearmapError:
            continue  # it is away, and has forgotten more than a name


def _say(line: str) -> None:
    print(line, flush=True)


def _quiet(line: str) -> None:
    pass


def _greeting(settings: NodeSettings) -> str:
    from gearmap.transport.events import bare_address

    servers = ", ".join(map(bare_address, settings.servers))
    queues = ", ".join(settings.queues)
    python = ".".join(map(str, settings.python))
    noun = "worker" if settings.workers == 1 else "workers"
    noun_of_keys = "key" if len(settings.keys.ids) == 1 else "keys"
    limits = "".join(f"; {limit}" for limit in _limits(settings))
    tasks = "".join(f"\n  task {task}" for task in settings.tasks)
    return (
        f"node {settings.name}: {settings.workers} {noun} for queue {queues} on {servers} "
        f"(Python {python}, {noun_of_keys} {', '.join(settings.keys.ids)}{limits}){tasks}"
    )


def _limits(settings: NodeSettings) -> list[str]:
    """Return the limits that somebody has set, for people."""
    from gearmap.core.sizes import shown_bytes

    shown = []
    if settings.memory_limit is not None:
        shown.append(f"memory limit {shown_bytes(settings.memory_limit)}")
    if settings.max_tasks_per_child is not None:
        noun = "task" if settings.max_tasks_per_child == 1 else "tasks"
        shown.append(f"{settings.max_tasks_per_child} {noun} per child")
    if settings.grace != DRAIN_GRACE:
        shown.append(f"grace {settings.grace:g} s")
    return shown


def _install_signals(node: Any, say: Any, grace: float) -> None:
    if threading.current_thread() is not threading.main_thread():
        return

    def drain(number: int, frame: Any) -> None:
        # The second signal does not wait any more.
        is_patient = grace > 0 and not asked
        asked.append(number)
        say(f"draining: running jobs may finish for {grace:g} s; again to stop at once" if is_patient else "stopping")
        node.drain(grace if is_patient else 0.0)

    asked: list[int] = []
    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, drain)


class _Lifeline:
    """A pollable whose end of file means that whoever started the node has gone."""

    wants_write = False

    def __init__(self, fd: int, node: Any) -> None:
        self._fd = fd
        self._node = node

    def fileno(self) -> int:
        return self._fd

    def on_readable(self) -> None:
        if not os.read(self._fd, 4096):
            os.close(self._fd)
            self._fd = -1
            self._node.drain(0.0)

    def on_writable(self) -> None:
        """Never wanted."""
