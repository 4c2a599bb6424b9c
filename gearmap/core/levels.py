"""Which nested levels a node serves: those that its tasks wait for, and for a while after.

Rule 1: nothing here reads a clock or knows a worker; `now` is an argument, what to do comes back.
Rule 2: a level that is asked for is served before the asker has its answer: a task that waits for tasks of the next
level never waits for a worker that waits itself.
"""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["MAX_LEVEL", "ServedLevels"]

# How deep tasks may be nested. Raised: deeper recursion, and so many times more processes; lowered: it is refused
# sooner.
MAX_LEVEL = 3

# How often is looked whether the tasks that asked for a level still run; so long at least a level is served. Raised:
# fewer processes are started anew; lowered: idle ones end sooner.
LOOK_INTERVAL = 5.0


class ServedLevels:
    """The nested levels of one node.

    Attributes
    ----------
    deadline
        When `look` must be called, or None.
    """

    def __init__(self) -> None:
        self.deadline: float | None = None
        self._askers: dict[int, set[bytes]] = {}

    @property
    def served(self) -> tuple[int, ...]:
        """The levels that are served."""
        return tuple(sorted(self._askers))

    def asked(self, level: int, execution: bytes, now: float) -> bool:
        """An execution will wait for tasks of a level; return whether that level must be opened first."""
        is_new = level not in self._askers
        self._askers.setdefault(level, set()).add(execution)
        if self.deadline is None:
            self.deadline = now + LOOK_INTERVAL
        return is_new

    def look(self, running: Collection[bytes], now: float) -> list[int]:
        """Take in which executions run; return the levels that nobody asks for any more, once each."""
        left = []
        for level, askers in list(self._askers.items()):
            askers.intersection_update(running)
            if not askers:
                del self._askers[level]
                left.append(level)
        self.deadline = now + LOOK_INTERVAL if self._askers else None
        return left
