"""Futures and runs as HTML, where a cell ends with one.

Law of the file: looking changes nothing. It waits for nobody, and no result is unpickled to be shown.
"""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

from gearmap.core.snapshot import FailureRow, ProgressSnapshot
from gearmap.display.view import SHOWN_FAILURES, RunView, failures_html, summary_html
from gearmap.runtime.futures import Future
from gearmap.runtime.mapfuture import FailedTask, FailedTasks, MapFuture
from gearmap.runtime.retelling import show
from gearmap.wire.printed import Output

__all__ = ["failed_html", "future_html", "install_formatters", "map_html", "show_output"]


def install_formatters(formatter: Any, displayer: Any) -> None:
    """Have IPython's formatter of HTML show futures and runs, and what shows things by itself what tasks printed."""
    displayer.for_type(Output, show_output)
    formatter.for_type(MapFuture, map_html)
    formatter.for_type(Future, future_html)
    formatter.for_type(FailedTasks, failed_html)


def map_html(run: MapFuture[Any]) -> str:
    """Return a map as it is now."""
    record = run.record
    notes = record.notes[-1] if record.notes else None
    where = "" if notes is None else notes.where
    if not run.done():
        where = f"{where} (as of {time.strftime('%H:%M:%S')})"
    view = RunView(
        title=record.options.desc or str(getattr(record.fn, "__qualname__", type(record.fn).__name__)),
        where=where,
        snapshot=None if notes is None else notes.last or _counted(run, notes.elapsed),
        failures=[failed.row() for failed in list(record.failed.values())[:SHOWN_FAILURES]],
        ended=_ending(run),
    )
    return summary_html(view)


def _counted(run: MapFuture[Any], elapsed: float) -> ProgressSnapshot:
    """Return the counts of a run that has told of none: it ran in this process, or was over too soon."""
    record = run.record
    done, failed = record.n_done, len(record.failed)
    total = record.total
    left = 0 if total is None else max(0, total - done - failed)
    return ProgressSnapshot(
        total=total,
        done=done,
        failed=failed,
        cancelled=0,
        running=0,
        queued=left,
        again=0,
        elapsed=elapsed,
        workers=None,
    )


def _ending(run: MapFuture[Any]) -> str | None:
    if not run.done():
        return None
    if run.cancelled():
        return "cancelled"
    error = run.exception()
    return "" if error is None else f"failed: {type(error).__name__}"


def future_html(future: Future[Any]) -> str:
    """Return a future on one line."""
    # What the standard library says of it, without the address: "finished returned int", "pending".
    state = repr(future).partition("state=")[2].rstrip(">") or "unknown"
    facts = [f"<b>task {future.task_index}</b>: {escape(state)}"]
    if future.worker:
        facts.append(f"on {escape(future.worker)}")
    if future.attempts:
        facts.append("1 attempt" if future.attempts == 1 else f"{future.attempts} attempts")
    seconds = future.duration
    if seconds is not None:
        facts.append(f"{seconds:.3g} s")
    return f"<div>{' · '.join(facts)}</div>"


def show_output(output: Output) -> None:
    """Show what a task printed and displayed."""
    for file, text in ((sys.stdout, output.stdout), (sys.stderr, output.stderr)):
        file.write(text)
    show(output.outputs)


def failed_html(failed: FailedTasks) -> str:
    """Return failed tasks, with their remote tracebacks to open."""
    if not failed:
        return "<div>no task has failed</div>"
    return failures_html([_row(each) for each in failed[:SHOWN_FAILURES]], len(failed), is_open=True)


def _row(failed: FailedTask) -> FailureRow:
    error = failed.exception
    return FailureRow(
        task=failed.task_index,
        call=failed.call,
        error=type(error).__name__,
        message=str(error),
        worker=failed.worker,
        attempts=failed.attempts,
        traceback=failed.traceback,
    )
