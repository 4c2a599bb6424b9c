"""The workers of a node: those that are always there, and those of the nested levels that are served now.

What must not live here: what workers do with their jobs (`node`), and which levels are served (`nesting`).

Law of the file: a worker's place in the list is its number to the engine, for ever. The workers of a nested level take
their places when the level is served for the first time, and keep them when they are closed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gearmap.core import node_events as ne
from gearmap.runtime.children import Child
from gearmap.runtime.nodesettings import NodeSettings
from gearmap.runtime.work import Work
from gearmap.transport.worker import WorkerLinks

__all__ = ["Crew", "Worker"]

# What a worker holds of a large outcome that is on its way. Raised: the network runs dry less easily while the node is
# busy; lowered: less memory for each worker.
MOST_WAITING_BYTES = 8 * 2**20


@dataclass(slots=True, eq=False)
class Worker:
    """One Gearman worker of the node.

    Attributes
    ----------
    index
        Its place in the crew.
    number
        Its number among the workers of its level.
    held_back
        The child that is not read, as the job server has not taken yet what was read of it.
    """

    index: int
    name: str
    links: WorkerLinks
    number: int
    level: int = 0
    work: Work | None = None
    done: int = 0
    deadline: float = float("inf")
    is_leaving: bool = False
    is_closed: bool = False
    held_back: Child | None = None

    def send_part(self, work: Work, child: Child) -> None:
        """Forward a part of a large outcome; the child is not read on while too much waits to be sent."""
        self.links.send_data(work.job, work.take_committed())
        if self.held_back is None and self.links.backlog_bytes > MOST_WAITING_BYTES:
            self.held_back = child
            child.hold_back(True)

    def let_go(self) -> None:
        """Read its child again, once enough of what was read has gone."""
        child = self.held_back
        if child is not None and self.links.backlog_bytes <= MOST_WAITING_BYTES // 2:
            self.held_back = None
            child.hold_back(False)


class Crew:
    """The workers of one node.

    Parameters
    ----------
    watch, unwatch
        Begin and cease to look after a worker's connections.
    tell
        Tell the engine.

    Attributes
    ----------
    workers
        All that ever were, in the order of their places.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        watch: Callable[[Worker, float], None],
        unwatch: Callable[[Worker], None],
        tell: Callable[[ne.Input], None],
    ) -> None:
        self.workers: list[Worker] = []
        self._settings = settings
        self._watch = watch
        self._unwatch = unwatch
        self._tell = tell
        self._first_of: dict[int, int] = {}  # the first worker of each nested level that was ever served

    def start(self, now: float) -> None:
        """Open the workers that are always there."""
        for number in range(self._settings.workers):
            self.workers.append(self._open(number, number, 0, now))

    def open_level(self, level: int, now: float) -> None:
        """Have as many workers serve a nested level as serve the first one; those that are about to leave stay."""
        size = self._settings.workers
        first = self._first_of.setdefault(level, len(self.workers))
        for number in range(size):
            index = first + number
            if index == len(self.workers):
                self.workers.append(self._open(index, number, level, now))
            elif self.workers[index].is_closed:
                self.workers[index] = self._open(index, number, level, now)
            elif self.workers[index].is_leaving:
                self.workers[index].is_leaving = False
                self.workers[index].links.come_back(self._settings.functions_at(level))
        self._tell(ne.OpenWorkers(first, size))

    def change_keys(self, added: Sequence[str], removed: Sequence[str]) -> list[Worker]:
        """Serve those who have other keys; return the workers that do. Jobs that are here go on."""
        staying = [worker for worker in self.workers if not worker.is_closed and not worker.is_leaving]
        for worker in staying:
            for name in self._settings.functions_of(added, worker.level):
                worker.links.add_function(name)
            for name in self._settings.functions_of(removed, worker.level):
                worker.links.remove_function(name)
        return staying

    def leave_level(self, level: int) -> bool:
        """Let the workers of a nested level go as soon as they are idle; return whether all have gone."""
        first = self._first_of[level]
        workers = self.workers[first : first + self._settings.workers]
        for worker in workers:
            if not worker.is_leaving:
                worker.is_leaving = True
                worker.links.leave()
            if worker.links.has_left and not worker.is_closed:
                self._close(worker)
        return all(worker.is_closed for worker in workers)

    def _open(self, index: int, number: int, level: int, now: float) -> Worker:
        settings = self._settings
        # Each worker lists its names from another one on, so that no queue is always the last to be asked.
        names = settings.functions_at(level)
        turn = number % len(names)
        called = f"{number}~{level}" if level else str(number)
        client_id = f"gearmap:{settings.node_id}:{called}"
        links = WorkerLinks(
            settings.servers,
            names[turn:] + names[:turn],
            client_id,
            send_timeout=settings.patience.send_timeout,
            jitter=random.random,
        )
        worker = Worker(index, f"{settings.name}/{called}", links, number, level)
        self._watch(worker, now)
        return worker

    def _close(self, worker: Worker) -> None:
        worker.is_closed = True
        self._unwatch(worker)
        self._tell(ne.CloseWorkers(worker.index, 1))
