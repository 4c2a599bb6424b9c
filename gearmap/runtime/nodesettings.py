"""What a node is told at its start.

What must not live here: how it is told (`noderun`), and what it does about it (`node`, `core.node_engine`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gearmap.config import Patience
from gearmap.core.names import Lane, TaskLane, control_name
from gearmap.runtime.child import ChildSettings
from gearmap.runtime.keyring import Keyring
from gearmap.transport.events import Address

__all__ = ["NodeSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What a node is.

    Attributes
    ----------
    servers
        Job servers; each worker connects to all of them.
    keys
        The keys that clients may seal with. They change while the node runs.
    workers
        How many chunks run at once.
    queues
        Lanes of work that every worker serves.
    tasks
        Names of the named tasks that every worker serves.
    name
        How people call the node; the host's name.
    node_id
        Unique; letters, digits and `-`.
    memory_limit
        Bytes that a worker's child may use with what its tasks have started, or None.
    max_tasks_per_child
        How many tasks a child runs before it is replaced, or None.
    grace
        Seconds that running jobs may go on when the node is told to leave.
    blob_cache_bytes
        How much of the large arrays that came from clients is kept when no job needs them.
    patience
        How often it gives signs of life, and how long job servers may be silent.
    """

    servers: tuple[Address, ...]
    keys: Keyring
    workers: int
    queues: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    name: str
    node_id: str
    python: tuple[int, int]
    grace: float
    children: ChildSettings = field(default_factory=ChildSettings)
    memory_limit: int | None = None
    max_tasks_per_child: int | None = None
    blob_cache_bytes: int = 2 * 1024**3
    patience: Patience = field(default_factory=Patience)

    @property
    def functions(self) -> tuple[str, ...]:
        """The Gearman function names that its workers serve."""
        return self.functions_at(0)

    def functions_at(self, level: int) -> tuple[str, ...]:
        """The names that workers of a nesting level serve."""
        return self.functions_of(self.keys.ids, level)

    def functions_of(self, key_ids: Iterable[str], level: int) -> tuple[str, ...]:
        """Those of them that belong to some keys."""
        names: list[str] = []
        for key_id in key_ids:
            names += [Lane(queue, self.python, key_id, level).name for queue in self.queues]
            names += [TaskLane(task, key_id, level).name for task in self.tasks]
        return tuple(names)

    @property
    def control_functions(self) -> tuple[str, ...]:
        """The names of its control function, one for each key."""
        return tuple(control_name(self.node_id, key_id) for key_id in self.keys.ids)
