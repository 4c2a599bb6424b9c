"""What a node tells of itself, its workers and their jobs: plain values for JSON, and lines for people.

What must not live here: who asks, and how it is answered (`control`).
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from gearmap.core.names import WIRE_VERSION, Lane, TaskLane
from gearmap.runtime.cpus import usable_cpus
from gearmap.runtime.crew import Worker
from gearmap.runtime.hostfacts import host_facts
from gearmap.runtime.memory_use import total_bytes
from gearmap.runtime.nodesettings import NodeSettings
from gearmap.runtime.work import Work

__all__ = ["describe_job", "describe_node", "describe_worker"]


def describe_node(settings: NodeSettings, uptime: float) -> dict[str, Any]:
    """Return what is known of a node that has been up for so many seconds, but for its workers."""
    return {
        "node": settings.node_id,
        "name": settings.name,
        "pid": os.getpid(),
        "cpus": usable_cpus(),
        "memory_total": total_bytes(),
        "python": ".".join(map(str, settings.python)),
        "queues": list(settings.queues),
        "limits": {
            "memory_limit": settings.memory_limit,
            "max_tasks_per_child": settings.max_tasks_per_child,
            "grace": settings.grace,
        },
        "uptime": round(uptime, 3),
        # The package is loaded if this is; it stands above us in the layers.
        "gearmap": getattr(sys.modules.get("gearmap"), "__version__", "?"),
        "wire": WIRE_VERSION,
        "keys": list(settings.keys.ids),
        "clock": time.time(),
        **host_facts(),
    }


def describe_worker(worker: Worker, position: int | None, used: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a worker, its task's position in its job, and what its child uses."""
    work = worker.work
    return {
        "name": worker.name,
        "level": worker.level,
        "busy": work is not None,
        "jobs_done": worker.done,
        "execution": None if work is None else work.execution_id.hex(),
        "run": None if work is None else work.header.run,
        "position": position,
        "tasks": None if work is None else work.header.n_tasks,
        **used,
    }


def describe_job(worker: str, work: Work, elapsed: float, how: str) -> str:
    """Return a line about a job that has ended."""
    size = work.header.n_tasks
    tasks = "1 task" if size == 1 else f"{size} tasks"
    lane, named = Lane.parse(work.job.function), TaskLane.parse(work.job.function)
    what = f"task {named.task}" if named is not None else f"queue {'?' if lane is None else lane.queue}"
    return f"{worker}  {work.job.handle}  {what}  {tasks}  {elapsed:.3f} s  {how}"
