"""Which progress display fits, and the plain ones: nothing, one line in the log, and a tqdm bar on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any

from gearmap.core.snapshot import FailureRow, ProgressSink, ProgressSnapshot
from gearmap.display.registry import Notebook, SinkRequest
from gearmap.display.view import RunView, one_line

__all__ = ["SHOW_AFTER", "LogSink", "NoSink", "SinkKind", "TqdmSink", "choose_sink", "make_sink"]

logger = logging.getLogger(__name__)

# Where people look for what is logged of a run, whatever shows it.
run_logger = logging.getLogger("gearmap")

# A map that is over sooner shows nothing: a bar that flashes up only disturbs.
SHOW_AFTER = 0.5


class SinkKind(Enum):
    """How progress is shown."""

    NOTHING = "nothing"
    LOG = "one line in the log"
    TQDM = "a tqdm bar"
    HTML = "HTML in a notebook"
    CARD = "a live card in a notebook"


def choose_sink(
    *,
    progress: bool | None,
    is_terminal: bool,
    environ: Mapping[str, str],
    is_notebook: bool = False,
    has_widgets: bool = False,
) -> SinkKind:
    """Return how to show progress.

    Parameters
    ----------
    progress
        The user's wish: True and False win over everything but `GEARMAP_PROGRESS=off`.
    is_terminal
        Whether standard error is one.
    environ
        The environment. `GEARMAP_PROGRESS` may also be `html` or `text`: no more than that in notebooks.
    is_notebook
        Whether this is the kernel of a notebook.
    has_widgets
        Whether a live card can be made there.

    Examples
    --------
    >>> choose_sink(progress=None, is_terminal=False, environ={})
    <SinkKind.LOG: 'one line in the log'>
    >>> choose_sink(progress=True, is_terminal=False, environ={})
    <SinkKind.TQDM: 'a tqdm bar'>
    >>> choose_sink(progress=None, is_terminal=False, environ={}, is_notebook=True, has_widgets=True)
    <SinkKind.CARD: 'a live card in a notebook'>
    """
    wish = environ.get("GEARMAP_PROGRESS", "").lower()
    if wish in ("off", "0", "no") or progress is False:
        return SinkKind.NOTHING
    if is_notebook and wish != "text":
        return SinkKind.CARD if has_widgets and wish != "html" else SinkKind.HTML
    if progress or is_terminal or is_notebook:
        return SinkKind.TQDM
    return SinkKind.LOG


def make_sink(kind: SinkKind, request: SinkRequest, *, desc: str | None, notebook: Notebook | None) -> ProgressSink:
    """Return a sink of the kind; `desc` stands before a bar."""
    if kind is SinkKind.CARD and notebook is not None:
        return notebook.make_card(request)
    if kind is SinkKind.HTML and notebook is not None:
        return notebook.make_html(request)
    if kind is SinkKind.LOG:
        return LogSink(request)
    if kind is SinkKind.TQDM:
        return TqdmSink(desc=desc, where=request.where, delay=request.delay)
    return NoSink()


class NoSink:
    """Shows nothing."""

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Show nothing."""

    def notice(self, text: str) -> None:
        """Show nothing."""

    def failed(self, row: FailureRow) -> None:
        """Show nothing."""

    def printed(self, task: int, stream: str, text: str) -> None:
        """Show nothing."""

    def finish(self, snapshot: ProgressSnapshot, note: str) -> None:
        """Show nothing."""


class LogSink(NoSink):
    """Logs one line when a run that took its time has ended: a log file is no place for a bar."""

    def __init__(self, request: SinkRequest) -> None:
        self._request = request

    def finish(self, snapshot: ProgressSnapshot, note: str) -> None:
        """Log how the run ended."""
        if snapshot.elapsed >= self._request.delay and run_logger.isEnabledFor(logging.INFO):
            view = RunView(title=self._request.title, snapshot=snapshot, ended=note)
            run_logger.info("%s", one_line(view), extra={"action": "end_run"})


class TqdmSink:
    """A tqdm bar on standard error. Where it cannot be shown (a closed terminal) the run goes on without."""

    def __init__(self, *, desc: str | None, where: str, delay: float) -> None:
        self._desc = desc
        self._where = where
        self._delay = delay
        self._notice = ""
        self._bar: Any = None
        self._broken = False

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Move the bar; it appears once the run has lasted `delay` seconds."""
        self._show(snapshot, "", is_last=False)

    def notice(self, text: str) -> None:
        """Say it beside the bar in place of where tasks run, until there are workers."""
        self._notice = text

    def failed(self, row: FailureRow) -> None:
        """The bar counts it; the error itself is raised, or among the results."""

    def printed(self, task: int, stream: str, text: str) -> None:
        """It is printed as text, beside the bar."""

    def finish(self, snapshot: ProgressSnapshot, note: str) -> None:
        """Leave the bar as it ended, with a word if that was not well."""
        self._show(snapshot, note, is_last=True)

    def _show(self, snapshot: ProgressSnapshot, note: str, *, is_last: bool) -> None:
        if self._broken or (self._bar is None and snapshot.elapsed < self._delay):
            return
        try:
            if self._bar is None:
                self._bar = self._make_bar(snapshot)
            if snapshot.workers:
                self._notice = ""
            self._bar.set_postfix_str(note or self._notice or self._where, refresh=False)
            self._move(snapshot)
            if is_last:
                self._bar.close()
        except Exception as error:  # whatever a stream may raise: results matter more than a bar
            logger.debug("the progress bar is given up: %s", error)
            self._broken = True
            if self._bar is not None:
                self._bar.disable = True  # or it would try once more when it is collected

    def _make_bar(self, snapshot: ProgressSnapshot) -> Any:
        from tqdm import tqdm

        bar = tqdm(total=snapshot.total, desc=self._desc, unit="task", file=sys.stderr, dynamic_ncols=True)
        bar.start_t -= snapshot.elapsed  # the clock runs from the start of the run, not of the bar
        return bar

    def _move(self, snapshot: ProgressSnapshot) -> None:
        self._bar.total = snapshot.total
        self._bar.n = snapshot.done + snapshot.failed
        self._bar.refresh()
