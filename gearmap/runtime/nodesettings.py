"""What a node is told at its start.

What must not live here: how it is told (`noderun`), and what it does about it (`node`, `core.node_engine`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gearmap.config import Patience
from gearmap.core.names import Lane
from gearmap.runtime.child import ChildSettings
from gearmap.wire import seal

__all__ = ["NodeSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What a node is.

    Attributes
    ----------
    servers
        Job servers as (host, port); each worker connects to all of them.
    secret
        The key that clients seal with.
    workers
        How many chunks run at once.
    queues
        Lanes of work that every worker serves.
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

    servers: tuple[tuple[str, int], ...]
    secret: bytes = field(repr=False)
    workers: int
    queues: tuple[str, ...]
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
    def key_id(self) -> str:
        """The public id of the key."""
        return seal.key_id(self.secret)

    @property
    def functions(self) -> tuple[str, ...]:
        """The Gearman function names that its workers serve."""
        return self.functions_at(0)

    def functions_at(self, level: int) -> tuple[str, ...]:
        """The names that workers of a nesting level serve."""
        return tuple(Lane(queue, self.python, self.key_id, level).name for queue in self.queues)
