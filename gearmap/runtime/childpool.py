"""The children that a node has: started, watched, measured, ended.

What must not live here: when any of this happens (`core.node_engine`), and what children say (`node`).

Law of the file: children are started by the node's own thread. A number of a child that has gone is no error: it may
have ended since somebody asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gearmap.runtime.child import ChildSettings
from gearmap.runtime.children import Child, child_context
from gearmap.runtime.cpus import cpu_seconds
from gearmap.runtime.memory_use import MemoryMeter

__all__ = ["ChildPool"]

# How long a killed child may take to end when the node leaves.
_END_SECONDS = 2.0


class ChildPool:
    """The children of one node.

    Parameters
    ----------
    settings
        What every child is told.
    watch, unwatch
        Have a pollable of a child watched, and not any more.
    """

    def __init__(
        self, settings: ChildSettings, *, watch: Callable[[Any, Child], object], unwatch: Callable[[Any], object]
    ) -> None:
        self._settings = settings
        self._watch = watch
        self._unwatch = unwatch
        self._context = child_context()
        self._children: dict[int, Child] = {}
        self._meter = MemoryMeter()

    def start(self, number: int) -> None:
        """Start a child under a number; raises like `Child.start`."""
        child = Child(number, self._context, self._settings)
        child.start()
        self._children[number] = child
        for pollable in child.pollables:
            self._watch(pollable, child)

    def get(self, number: int | None) -> Child | None:
        """Return the child with a number, or None."""
        return None if number is None else self._children.get(number)

    def kill(self, number: int) -> None:
        """Kill a child and its process group. It stays known until it has been reaped."""
        child = self._children.get(number)
        if child is not None:
            child.kill()

    def forget(self, child: Child) -> None:
        """Let go of a child that has ended."""
        self._children.pop(child.number, None)
        for pollable in child.pollables:
            self._unwatch(pollable)

    def note_high_water(self, numbers: Iterable[int]) -> None:
        """Have children remember how much memory they used at most, for the case that they die."""
        for number in numbers:
            child = self._children.get(number)
            if child is not None:
                child.saw_memory()

    def measure(self, numbers: Iterable[int], now: float) -> list[tuple[int, int]]:
        """Return the bytes that children use with all that their tasks have started, by their numbers."""
        children = [child for number in numbers if (child := self._children.get(number)) is not None]
        used = self._meter.measure([child.pid for child in children if child.pid is not None], now)
        measured = []
        for child in children:
            used_bytes = used.get(child.pid or 0, 0)
            child.saw_memory(used_bytes)
            measured.append((child.number, used_bytes))
        return measured

    def uses(self, numbers: Iterable[int], now: float) -> dict[int | None, dict[str, Any]]:
        """Return what children use, by their numbers: `memory` in bytes, `cpu` in seconds since they started."""
        found: dict[int | None, dict[str, Any]] = {}
        for number, used_bytes in self.measure(numbers, now):
            pid = self._children[number].pid
            found[number] = {"memory": used_bytes, "cpu": None if pid is None else cpu_seconds(pid)}
        return found

    def close(self) -> None:
        """End every child."""
        for child in self._children.values():
            child.kill()
        for child in list(self._children.values()):
            child.wait(_END_SECONDS)
            self.forget(child)
            child.close()
