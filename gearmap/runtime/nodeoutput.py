"""What a node takes in of what its tasks print: while one lasts, and when its child is dead.

What must not live here: when that happens (`core.node_engine`), and how it is told (`work`, `node`).

Law of the file: what a task has written is kept with its job; what no task has written goes where the node's own output
goes.
"""

from __future__ import annotations

import os
from contextlib import suppress

from gearmap.runtime.children import Child, Ended
from gearmap.runtime.work import Work

__all__ = ["keep_last_words", "take_written"]


def keep_last_words(child: Child, report: Ended, work: Work | None) -> None:
    """Keep what the task has printed that a dead child was at."""
    position = None
    if work is not None:
        work.last_words = child.printed()
        position = report.position if report.begun else None
    _take_in(work, position, child.unread)


def take_written(child: Child, work: Work) -> int:
    """Take what the child's task has written to its descriptors; return how many bytes that are."""
    position = child.running  # before it is read: what is there now was written by this task
    read = child.read_outlets()
    _take_in(work, position, read)
    return sum(len(data) for _, data in read)


def _take_in(work: Work | None, position: int | None, read: list[tuple[str, bytes]]) -> None:
    for stream, data in read:
        if work is not None and position is not None:
            work.hear(position, stream, data)
        else:
            with suppress(OSError):  # nobody reads it
                os.write(1 if stream == "stdout" else 2, data)
