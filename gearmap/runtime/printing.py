"""What the tasks of a map printed and warned of is said again, in the thread that takes their results.

Law of the file: called only where something was printed, so that results cost nothing more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from gearmap.core.snapshot import ProgressSink
from gearmap.runtime.failed import Failed
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.retelling import Retelling, show, shows
from gearmap.wire.printed import Output
from gearmap.wire.shown import Bundle

__all__ = ["Echo"]

# Tasks that displayed something and are named.
MAX_NAMED = 10


class Echo:
    """Says again what the tasks of one map said, and tells its display.

    Parameters
    ----------
    sink
        The display.
    is_kept
        Whether the map keeps what its tasks displayed: then it is said how to see it, else it is shown.
    """

    def __init__(self, sink: ProgressSink, *, is_kept: bool) -> None:
        self._sink = sink
        self._is_kept = is_kept
        self._showed: list[int] = []  # the tasks that displayed something
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
        if self._showed and shows():
            tasks = ", ".join(map(str, sorted(self._showed)[:MAX_NAMED])) + (
                ", ..." if len(self._showed) > MAX_NAMED else ""
            )
            noun = "task" if len(self._showed) == 1 else "tasks"
            hint = f"gearmap.last().output({min(self._showed)})"
            _write(sys.stdout, f"{len(self._showed)} {noun} displayed something ({tasks}); {hint} shows it\n")
        self._retelling.end(is_raising=is_raising)

    def _say(self, task: int, output: Output, *, is_live: bool = False) -> None:
        """Say what was not shown yet; a stream that is closed or absent takes nothing."""
        told = self._retelling.take(task, output.notes, is_live=is_live) if output.notes else ""
        if output.shown:
            told += self._show(task, output.outputs)
        for stream, text in (("stdout", output.stdout), ("stderr", output.stderr + told)):
            if text:
                self._sink.printed(task, stream, text)
        _write(sys.stdout, output.stdout)
        _write(sys.stderr, output.stderr)

    def _show(self, task: int, outputs: list[Bundle]) -> str:
        """Show what a task displayed, or note that it did; return it as text."""
        if self._is_kept:
            self._showed.append(task)
        else:
            show(outputs)
        return "".join(f"{bundle.text}\n" for bundle in outputs)


def _write(file: TextIO | None, text: str) -> None:
    if text and file is not None and not file.closed:
        file.write(text)
        file.flush()
