"""What the tasks of a map printed is printed again, in the thread that takes their results.

Law of the file: called only where something was printed, so that results cost nothing more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from gearmap.core.snapshot import ProgressSink
from gearmap.runtime.failed import Failed
from gearmap.runtime.futures import ResultBatch
from gearmap.wire.printed import Output

__all__ = ["print_again", "print_failed", "print_live", "show_output"]


def print_again(batch: ResultBatch, offset: int, size: int) -> None:
    """Print what the tasks of `size` results from `offset` on printed, in their order."""
    for at in sorted(batch.outputs):
        if offset <= at < offset + size:
            _print(batch.outputs[at])


def show_output(sink: ProgressSink, task: int, output: Output) -> None:
    """Tell a display what one task printed and was not shown yet."""
    for stream, text in zip(Output._fields, output.unseen, strict=True):
        if text:
            sink.printed(task, stream, text)


def print_live(sink: ProgressSink, printed: Iterable[tuple[int, str, str]]) -> None:
    """Print what tasks that run have written, and tell a display: task, stream and text of each."""
    for task, name, text in printed:
        sink.printed(task, name, text)
        _print(Output(**{name: text}))


def print_failed(failed: Failed) -> None:
    """Print what a task printed before it failed."""
    _print(failed.output)


def _print(output: Output) -> None:
    """Print what was not shown yet, to the streams of this process; one that is closed or absent takes nothing."""
    unseen = output.unseen
    for stream, text in ((sys.stdout, unseen.stdout), (sys.stderr, unseen.stderr)):
        if text and stream is not None and not stream.closed:
            stream.write(text)
            stream.flush()
