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
from gearmap.wire.printed import LIVE, LIVE_HEARD, Printed

__all__ = ["keep_last_words", "take_live", "take_progress", "take_written"]

# What is told of one stream at one look, the newest lines. Raised: more is seen of a task that prints much; lowered: a
# flood costs everybody less.
LIVE_BYTES = 8192

# A line that is not complete is told if it is so long.
_LONG_LINE_BYTES = 1024


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


def take_live(child: Child, work: Work) -> tuple[Printed, ...]:
    """Return what the child's task has written since the last call."""
    position = child.running
    if position is None:
        return ()
    told = work.told_of(position)
    strips = [(LIVE + name, strip, 0) for name, strip in child.strips.items()]
    strips += [(LIVE_HEARD + name, strip, before) for name, strip, before in work.heard_of(position)]
    pieces = []
    for stream, strip, before in strips:
        begin, data = strip.since(max(0, told.get(stream, 0) - before), LIVE_BYTES)
        data = _whole_lines(data)
        if data:
            told[stream] = before + begin + len(data)
            pieces.append(Printed(position, stream, data, before + begin))
    # What belongs to the next task already must not be told of this one.
    return tuple(pieces) if child.running == position else ()


def take_progress(child: Child, work: Work) -> float | None:
    """Return how far the child's task says that it is, from 0.0 to 1.0, if that is news."""
    position = child.running
    return None if position is None else work.take_progress(position, child.progress_of(position))


def _whole_lines(data: bytes) -> bytes:
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    return data[:end] if end or len(data) < _LONG_LINE_BYTES else data


def _take_in(work: Work | None, position: int | None, read: list[tuple[str, bytes]]) -> None:
    for stream, data in read:
        if work is not None and position is not None:
            work.hear(position, stream, data)
        else:
            with suppress(OSError):  # nobody reads it
                os.write(1 if stream == "stdout" else 2, data)
