"""What the tasks of a map printed and warned of is said again, in the thread that takes their results.

Law of the file: called only where something was printed, so that results cost nothing more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from gearmap.core.snapshot import ProgressSink
from gearmap.runtime.failed import Failed
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.retelling import Retelling
from gearmap.wire.printed import Output

__all__ = ["Echo"]


class Echo:
    """Says again what the tasks of one map said, and tells its display.

    Parameters
    ----------
    sink
        The display.
    """

    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink
        self._retelling = Retelling()

    def results(self, first: int, batch: ResultBatch, offset: int, size: int) -> None:
        """Print what `size` tasks from `first` on printed, in their order; their results are in a batch."""
        for at in sorted(batch.outputs):
            if offset <= at < offset + size:
                self._say(first + at - offset, batch.outputs[at].unseen)

    def live(self, printed: Iterable[tuple[int, str, str]]) -> None:
        """Print what tasks that run have written: task, stream and text of each."""
        for task, stream, text in printed:
            self._say(task, Output(**{stream: text}), is_live=True)

    def failed(self, failed: Failed) -> None:
        """Print what a task printed before it failed."""
        self._say(failed.task, failed.output.unseen)

    def end(self, *, is_raising: bool) -> None:
        """Warn of what tasks warned of; `is_raising` tells whether a filter may make that an error."""
        self._retelling.end(is_raising=is_raising)

    def _say(self, task: int, output: Output, *, is_live: bool = False) -> None:
        """Say what was not shown yet; a stream that is closed or absent takes nothing."""
        told = self._retelling.take(task, output.notes, is_live=is_live) if output.notes else ""
        for stream, text in (("stdout", output.stdout), ("stderr", output.stderr + told)):
            if text:
                self._sink.printed(task, stream, text)
        for file, text in ((sys.stdout, output.stdout), (sys.stderr, output.stderr)):
            if text and file is not None and not file.closed:
                file.write(text)
                file.flush()
