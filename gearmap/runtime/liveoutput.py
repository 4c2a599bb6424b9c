"""What tasks print while they run, on its way from the reader of outcomes to whoever shows it.

What must not live here: how much a node sends (`nodeoutput`), and where it is shown (`port`, `callrun`).

Rule 1: only the newest execution of a task is shown, and only until the task is settled.
Rule 2: what is shown is bounded for each second. What does not fit is not lost: it comes with the task's outcome, of
which only what was not shown is printed.
Rule 3: driver thread; nothing here waits.
"""

from __future__ import annotations

from gearmap.core.engine import RunEngine
from gearmap.runtime.consumer import Consumer
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.wire.printed import left_out, live_stream

__all__ = ["BURST_BYTES", "BYTES_PER_SECOND", "LiveOutput"]

# What a run shows of all its tasks while they run. Raised: more of many chatty tasks is seen at once; lowered: a flood
# costs the caller, and a notebook, less.
BYTES_PER_SECOND = 65536
BURST_BYTES = 2 * BYTES_PER_SECOND


class LiveOutput:
    """The live output of one run."""

    def __init__(self, engine: RunEngine, consumer: Consumer) -> None:
        self._engine = engine
        self._consumer = consumer
        self._room = float(BURST_BYTES)
        self._filled = 0.0  # when

    def show(self, attempt: int, reader: OutcomeReader, now: float) -> None:
        """Show what has come for an attempt."""
        self._room = min(BURST_BYTES, self._room + BYTES_PER_SECOND * (now - self._filled))
        self._filled = now
        for execution, piece in reader.take_live():
            task = self._engine.running_task(attempt, execution, piece.position)
            stream = live_stream(piece.stream)
            if task is None or stream is None or len(piece.data) > self._room:
                continue
            gap = piece.at - reader.shown_until(execution, piece)
            text = piece.data.decode("utf-8", "replace")
            if gap < 0 or not self._consumer.printed(task, stream, left_out(gap) + text if gap else text):
                continue
            self._room -= len(piece.data)
            reader.has_shown(execution, piece)
