"""`gearmap worker`: check what was asked for, then become a node.

Law of the file: the key goes to the node through a pipe, never through a command line or the environment. The process
stays the same (exec), so that signals, exit status and process id are the node's own; and the node's main module is
the tiny one that its children can import again.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import click

from gearmap.cli.common import NamedServers, find_key, find_servers, key_option, servers_option
from gearmap.errors import ConfigurationError
from gearmap.secret import Secret

__all__ = ["parse_environment", "worker_command"]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@click.command("worker")
@servers_option
@click.option(
    "-w",
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many tasks run at once. Default: one for each usable CPU.",
)
@click.option(
    "-q", "--queue", "queues", multiple=True, metavar="QUEUE", help="Queue to serve; may be repeated. Default: default."
)
@click.option(
    "--tasks",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Module whose named tasks are served, too; may be repeated. Without -q: those of all queues.",
)
@click.option(
    "--cwd", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where tasks run."
)
@click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="Variable for the tasks; {index} in it is the worker's number, as in CUDA_VISIBLE_DEVICES={index}.",
)
@click.option(
    "--clean-env",
    is_flag=True,
    help="Keep this environment from tasks, but for PATH, HOME, language and what libraries need; --env adds to it.",
)
@click.option(
    "--memory-limit",
    metavar="SIZE",
    help="Memory that each worker's tasks may use, such as 4G. What uses more is ended, as if it had crashed.",
)
@click.option(
    "--max-tasks-per-child",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replace the process that runs a worker's tasks once it has run N of them.",
)
@click.option(
    "--blob-cache",
    metavar="SIZE",
    help="How much memory may hold large arrays of clients for their next jobs, such as 2G. Default: a quarter.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0, max=1e6),
    metavar="SECONDS",
    help="How long running jobs may go on after SIGTERM before they are given back. Default: 30.",
)
@key_option
@click.option("--name", metavar="NAME", help="What to call this node. Default: the host's name.")
@click.option("-v", "--verbose", is_flag=True, help="A line for each job.")
def worker_command(
    named: NamedServers,
    workers: int | None,
    queues: tuple[str, ...],
    modules: tuple[str, ...],
    cwd: Path | None,
    variables: tuple[str, ...],
    clean_env: bool,
    memory_limit: str | None,
    max_tasks_per_child: int | None,
    blob_cache: str | None,
    grace: float | None,
    key_file: Path | None,
    name: str | None,
    verbose: bool,
) -> None:
    """Run tasks on this machine until told to stop.

    SIGTERM or Ctrl-C lets running jobs finish, for as long as --grace says, and gives the others back; a second one
    stops at once.
    """
    from gearmap.cluster import make_node_id
    from gearmap.core.sizes import parse_bytes
    from gearmap.runtime.cpus import usable_cpus
    from gearmap.runtime.environment import environment_for_tasks
    from gearmap.runtime.memory_use import memory_limit_bytes
    from gearmap.runtime.noderun import DRAIN_GRACE, encode_node_config

    environment = environment_for_tasks(os.environ, clean=clean_env)
    folder = str((cwd or Path.cwd()).absolute())
    chosen, tasks = _find_tasks(modules, queues, folder, {**environment, **dict(parse_environment(variables))})
    servers = find_servers(named)
    key = find_key(key_file, may_make=all(server.is_loopback for server in servers))
    config = encode_node_config(
        servers=tuple(server.endpoint for server in servers),
        keys=key.keys.accepted,
        key_file=str(key.path.absolute()),
        workers=workers or usable_cpus(),
        queues=chosen,
        tasks=tasks,
        task_modules=modules,
        name=_check_name(name),
        node_id=make_node_id(),
        cwd=folder,
        environment=parse_environment(variables),
        memory_limit=None if memory_limit is None else memory_limit_bytes(memory_limit, "--memory-limit"),
        max_tasks_per_child=max_tasks_per_child,
        blob_cache=None if blob_cache is None else parse_bytes(blob_cache),
        grace=DRAIN_GRACE if grace is None else grace,
        quiet=False,
        verbose=verbose,
    )
    _become_node(config, environment)


def _find_tasks(
    modules: Sequence[str], queues: Sequence[str], cwd: str, environment: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the queues to serve, and the names of the tasks that belong to them."""
    from gearmap.config import check_queue
    from gearmap.core.names import DEFAULT_QUEUE
    from gearmap.runtime.tasklist import list_tasks

    chosen = tuple(dict.fromkeys(check_queue(queue) for queue in queues))
    if not modules:
        return chosen or (DEFAULT_QUEUE,), ()
    tasks = list_tasks(modules, cwd=cwd, environment=environment)
    if not chosen:
        chosen = tuple(dict.fromkeys([DEFAULT_QUEUE, *(task.queue for task in tasks if task.queue)]))
    served = tuple(task.name for task in tasks if (task.queue or DEFAULT_QUEUE) in chosen)
    if not served:
        named = ", ".join(sorted({task.queue or DEFAULT_QUEUE for task in tasks}))
        raise ConfigurationError(
            f"no task of {', '.join(modules)} is in queue {', '.join(chosen)}; their queues are {named}"
        )
    return chosen, served


def parse_environment(variables: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return names and values of `NAME=VALUE` words.

    Raises
    ------
    ConfigurationError
        If a word is not of that form.

    Examples
    --------
    >>> parse_environment(["CUDA_VISIBLE_DEVICES={index}"])
    (('CUDA_VISIBLE_DEVICES', '{index}'),)
    """
    parsed = []
    for word in variables:
        name, separator, value = word.partition("=")
        if not separator or not _VARIABLE.fullmatch(name) or "\0" in value:
            raise ConfigurationError(f"--env takes NAME=VALUE, got {word!r}")
        parsed.append((name, value))
    return tuple(parsed)


def _check_name(name: str | None) -> str:
    if name is None:
        return socket.gethostname() or "node"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"--name must be 1 to 64 letters, digits, '.', '_' or '-', got {name!r}")
    return name


def _become_node(config: Secret, environment: Mapping[str, str]) -> NoReturn:
    command = [sys.executable, "-m", "gearmap.runtime.node_main"]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        # Windows has no exec that keeps the process, and no descriptors to hand over but the standard ones.
        import subprocess

        sys.exit(subprocess.run([*command, "0"], input=config.reveal(), env=environment, check=False).returncode)
    reading, writing = os.pipe()
    # A pipe holds 64 KiB before anybody reads, on Linux and macOS; a larger configuration would wait here for ever.
    size = len(config.reveal())
    if size > 60_000:
        raise ConfigurationError(f"too many servers, queues or variables: {size} bytes of configuration")
    os.write(writing, config.reveal())
    os.close(writing)
    os.set_inheritable(reading, True)
    # Python looks for modules in the folder where it is started: a random.py there must not end the node. Tasks run in
    # the folder that the configuration names.
    os.chdir(os.sep)
    os.execve(sys.executable, [*command, str(reading)], environment)
