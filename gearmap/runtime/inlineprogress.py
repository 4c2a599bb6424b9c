"""What is shown of a map whose tasks run in the calling process.

Law of the file: whatever a task says, and however often, a display hears of it ten times a second.
"""

from __future__ import annotations

from time import monotonic

from gearmap.core.snapshot import ProgressSink, ProgressSnapshot, WorkerView
from gearmap.runtime.failed import Failed
from gearmap.runtime.maprecord import MapRecord

__all__ = ["InlineProgress"]

# Between two looks of a display (seconds). Raised: tiny tasks cost less; lowered: smoother.
INTERVAL = 0.1

WORKER = "inline"


class InlineProgress:
    """Tells a display of one run; for the thread that runs the tasks."""

    def __init__(self, record: MapRecord, sink: ProgressSink) -> None:
        self._record = record
        self._sink = sink
        self._earlier = record.n_done
        self._began = self._next = self._task_began = monotonic()
        self._task: int | None = None
        self._partial = 0.0

    def begin(self, task: int) -> None:
        """A task begins."""
        self._task, self._partial, self._task_began = task, 0.0, monotonic()
        self._show()

    def report(self, fraction: float) -> None:
        """The task has said how far it is."""
        self._partial = fraction
        self._show()

    def failed(self, failed: Failed) -> None:
        """The task has failed for good."""
        self._sink.failed(failed.row())

    def settled(self) -> None:
        """The task has a result, or will have none."""
        self._task, self._partial = None, 0.0
        self._show()

    def end(self, note: str) -> None:
        """No task will run any more; `note` says why, empty if all is well."""
        self._task, self._partial = None, 0.0
        self._sink.finish(self._snapshot(monotonic()), note)

    def _show(self) -> None:
        now = monotonic()
        if now >= self._next:
            self._next = now + INTERVAL
            self._sink.update(self._snapshot(now))

    def _snapshot(self, now: float) -> ProgressSnapshot:
        record = self._record
        done, failed, running = record.n_done, len(record.failed), int(self._task is not None)
        known = record.size if record.total is None else record.total
        view = WorkerView(WORKER, self._task, now - self._task_began)
        return ProgressSnapshot(
            total=record.total,
            done=done,
            failed=failed,
            cancelled=0,
            running=running,
            queued=max(0, known - done - failed - running),
            again=0,
            elapsed=now - self._began,
            workers=1,
            earlier=self._earlier,
            working=(view,) if running else (),
            partial=self._partial,
        )
