"""Sessions for tasks that use the cluster themselves, and the nested levels that serve them: the node's side.

What must not live here: which levels are served for how long (`core.levels`), and workers (`node`).

Rule 1: the secret stays with the node. A task gets a session of its own, and the key of that session.
Rule 2: a task of one level waits only for tasks of the next, which has workers of its own: so nobody waits in a circle,
and a node has at most `workers` children for each level.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from gearmap.core.levels import MAX_LEVEL, ServedLevels
from gearmap.core.names import DEFAULT_QUEUE, Lane, TaskLane
from gearmap.runtime.keyring import key_id_of
from gearmap.runtime.nodesettings import NodeSettings
from gearmap.runtime.work import Work

__all__ = ["NestingDesk"]

# How soon is looked again whether workers that leave are idle. Raised: less work for the node; lowered: their processes
# end sooner.
LEAVE_INTERVAL = 0.5


class LevelHost(Protocol):
    """Whoever has the workers."""

    def open_level(self, level: int, now: float) -> None:
        """Serve a level."""

    def leave_level(self, level: int) -> bool:
        """Serve a level no more, once its workers are idle; return whether they are gone."""


class NestingDesk:
    """Answers the tasks of one node that want to use the cluster."""

    def __init__(self, settings: NodeSettings, host: LevelHost) -> None:
        self._settings = settings
        self._host = host
        self._levels = ServedLevels()
        self._leaving: dict[int, float] = {}  # levels whose workers leave, and when to look at them again

    @property
    def deadline(self) -> float | None:
        """When `look` must be called (monotonic seconds), or None."""
        due = self._levels.deadline
        if self._leaving:
            soonest = min(self._leaving.values())
            due = soonest if due is None else min(due, soonest)
        return due

    def answer(self, question: list[Any], work: Work | None, now: float) -> tuple[bool, Any]:
        """Return whether a question is answered, and the answer or why not; `work` is what the child that asks runs."""
        if work is None or len(question) < 2 or question[1] != work.execution_id.hex():
            return False, "the task that this belongs to has ended"
        if question[0] in ("session", "task session") and len(question) == 3:
            return self._open_session(question[2], question[0] == "task session", work, now)
        return False, f"this worker's node does not know the question {question[0]!r}"

    def look(self, running: set[bytes], now: float) -> None:
        """Let levels go that no running execution has asked for."""
        due = self._levels.deadline
        if due is not None and now >= due:
            for level in self._levels.look(running, now):
                self._leaving[level] = now
        for level, when in list(self._leaving.items()):
            if now < when:
                continue
            if self._host.leave_level(level):
                del self._leaving[level]
            else:
                self._leaving[level] = now + LEAVE_INTERVAL

    def _open_session(self, name: str, is_task: bool, work: Work, now: float) -> tuple[bool, Any]:
        """Return a session for a queue, or for a named task."""
        settings = self._settings
        depth = work.header.level + 1
        if depth > MAX_LEVEL:
            return False, (
                f"tasks can be nested {MAX_LEVEL} deep, and this one is: it cannot use the cluster itself; "
                "return values, and map over them one level up"
            )
        if not is_task and name == DEFAULT_QUEUE and name not in settings.queues:
            own = Lane.parse(work.job.function)
            name = settings.queues[0] if own is None else own.queue  # nobody has named one: stay
        level = 0
        if name in (settings.tasks if is_task else settings.queues):
            level = depth
            if self._levels.asked(level, work.execution_id, now):
                self._leaving.pop(level, None)
                self._host.open_level(level, now)
        key_id = key_id_of(work.job.function)
        if key_id not in settings.keys:  # it was taken away while the task ran
            key_id = settings.keys.ids[0]
        lane = TaskLane(name, key_id, level) if is_task else Lane(name, settings.python, key_id, level)
        session_id = os.urandom(16)
        return True, {
            "id": session_id.hex(),
            "key": settings.keys.session_key(key_id, session_id).hex(),
            "lane": lane.name,
            "depth": depth,
        }
