"""A run in a notebook: a card that lives while the run does, and then a summary that stays true.

What must not live here: what a card says (`display.view`).

Rule 1: whatever the front end does, nothing is raised into the run.
Rule 2: everything is sent in the context of the cell that began the run, under one lock: a thread without it would
write into whatever cell runs now.
Rule 3: what stands in the saved notebook is true at any time: first a sentence that holds however the run goes on, at
the end the summary in its place, without a widget.
"""

from __future__ import annotations

import contextvars
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from html import escape
from typing import Any, Protocol

from gearmap.core.snapshot import FailureRow, ProgressSnapshot
from gearmap.display.registry import SinkRequest
from gearmap.display.view import (
    SHOWN_FAILURES,
    RunView,
    card_rows,
    card_state,
    no_final_status,
    one_line,
    summary_html,
)
from gearmap.notebook.ticker import Ticker
from gearmap.notebook.widgets import route_directly, widget_view

__all__ = ["CardFace", "Face", "HtmlFace", "RunCard"]

logger = logging.getLogger(__name__)

# Workers that are remembered as idle when they have nothing. Raised: more of a large cluster's; lowered: less memory.
MAX_SEEN = 64

# What tasks printed is shown once a second, the end of it. Raised: more to read; lowered: smaller messages.
TEXT_SECONDS = 1.0
MAX_TEXT_CHARS = 4000

# HTML is made anew by the browser with each update. Raised: fewer messages; lowered: smoother.
HTML_SECONDS = 0.25


class Face(Protocol):
    """What is shown in a cell."""

    def appear(self, view: RunView) -> None:
        """Show it for the first time."""

    def show(self, view: RunView, text: str) -> None:
        """Show the present state, and the end of what tasks printed."""

    def end(self, view: RunView) -> None:
        """Leave the summary."""


class RunCard:
    """The sink of one run.

    Parameters
    ----------
    request
        What is shown.
    face
        Shows it.
    ticker
        Moves it.
    """

    def __init__(self, request: SinkRequest, face: Face, ticker: Ticker) -> None:
        self._request = request
        self._face = face
        self._ticker = ticker
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._snapshot: ProgressSnapshot | None = None
        self._told_at = 0.0
        self._failures: list[FailureRow] = []
        self._n_failed = 0
        self._seen: dict[str, None] = {}
        self._notice = ""
        self._text = ""
        self._ended: str | None = None
        self._is_shown = False
        self._is_broken = False
        if request.delay <= 0:
            self._appear()

    # ------------------------------------------------------------------------------------- the thread that waits

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Keep it for the next tick; the card appears once the run has lasted long enough."""
        self._snapshot, self._told_at = snapshot, time.monotonic()
        if snapshot.workers:
            self._notice = ""
        for each in snapshot.working:
            if len(self._seen) < MAX_SEEN and not each.is_lost:
                self._seen[each.name] = None
        if not self._is_shown and snapshot.elapsed >= self._request.delay:
            self._appear()

    def notice(self, text: str) -> None:
        """Say it in place of the status, until there are workers."""
        self._notice = text

    def failed(self, row: FailureRow) -> None:
        """Show the first of them, once the counts have them too."""
        self._n_failed += 1
        if len(self._failures) < SHOWN_FAILURES:
            self._failures.append(row)

    def printed(self, task: int, stream: str, text: str) -> None:
        """Keep the end."""
        self._text = (self._text + f"[task {task}] " + text.rstrip("\n")[-MAX_TEXT_CHARS:] + "\n")[-MAX_TEXT_CHARS:]

    def finish(self, snapshot: ProgressSnapshot, note: str) -> None:
        """Leave the summary in place of the card, if that was shown."""
        snapshot = self._snapshot = _with_failures(snapshot, self._n_failed)
        self._ended = note
        self._ticker.remove(self)
        if self._is_shown:
            self._carefully(lambda: self._face.end(self._view(snapshot)))

    def _appear(self) -> None:
        self._is_shown = True
        self._carefully(lambda: self._face.appear(self._view(self._snapshot)))
        self._ticker.add(self)

    # ------------------------------------------------------------------------------------------- the ticker's thread

    def tick(self) -> None:
        """Show the present state."""
        self._carefully(self._show)

    def _show(self) -> None:
        if self._ended is not None:
            return
        shot = self._snapshot
        if shot is not None:
            # The thread that waits may be busy with the user's objects: time goes on all the same.
            shot = replace(shot, elapsed=shot.elapsed + max(0.0, time.monotonic() - self._told_at))
        self._face.show(self._view(shot), self._text)

    # ------------------------------------------------------------------------------------------------------ any thread

    def _view(self, shot: ProgressSnapshot | None) -> RunView:
        n_told = 0 if shot is None else shot.failed  # rows come before the counts that have them
        return RunView(
            title=self._request.title,
            where=self._request.where,
            snapshot=shot,
            failures=tuple(self._failures[:n_told]),
            seen=tuple(self._seen),
            notice=self._notice,
            ended=self._ended,
        )

    def _carefully(self, show: Callable[[], None]) -> None:
        with self._lock:
            if self._is_broken:
                return
            try:
                self._context.run(show)
            except Exception as error:  # whatever a front end may raise: results matter more than a card
                logger.debug("the card is given up: %s: %s", type(error).__name__, error)
                self._is_broken = True


def _with_failures(shot: ProgressSnapshot, failed: int) -> ProgressSnapshot:
    """Return the last counts, which may be older than the last failure of a run that was ended, with all of them."""
    more = failed - shot.failed
    if more <= 0:
        return shot
    running = max(0, shot.running - more)
    queued = max(0, shot.queued - (more - (shot.running - running)))
    return replace(shot, failed=failed, running=running, queued=queued)


class HtmlFace:
    """HTML that is replaced as a whole, for notebooks without widgets."""

    def __init__(self, request: SinkRequest, display: Callable[..., Any]) -> None:
        self._request = request
        self._display = display
        self._handle: Any = None
        self._next = 0.0

    def appear(self, view: RunView) -> None:
        """Show the sentence that holds however the run goes on."""
        self._handle = self._display(_bundle(_sentence(self._request)), raw=True, display_id=True)

    def show(self, view: RunView, text: str) -> None:
        """Show counts, with the time at which they held: the kernel may die any moment."""
        now = time.monotonic()
        if view.snapshot is None or now < self._next:
            return
        self._next = now + HTML_SECONDS
        as_of = f"{view.where} (as of {time.strftime('%H:%M:%S')})"
        self._handle.update(_bundle(_sentence(self._request), summary_html(replace(view, where=as_of))), raw=True)

    def end(self, view: RunView) -> None:
        """Leave the summary."""
        self._handle.update(_bundle(one_line(view), summary_html(view)), raw=True)


class CardFace:
    """The live card, in an output of its own.

    A front end that finds a card in a notebook whose kernel has died says that there is no such model, and shows
    nothing else of that output. So what is to be read then stands in another one before it, and hides while the card is
    there.
    """

    def __init__(self, request: SinkRequest, display: Callable[..., Any], make_widget: Callable[..., Any]) -> None:
        self._request = request
        self._display = display
        self._make_widget = make_widget
        self._widget: Any = None
        self._handle: Any = None
        self._card_handle: Any = None
        self._next_text = 0.0

    def appear(self, view: RunView) -> None:
        """Show the card, and, for whoever reads the notebook later, a sentence that stays true."""
        cancel = self._request.cancel
        mark = f"gm-of-{secrets.token_hex(8)}"
        self._widget = self._make_widget(
            state=card_state(view), rows=card_rows(view.failures), can_cancel=cancel is not None, hides=mark
        )
        route_directly(self._widget)
        if cancel is not None:
            self._widget.on_msg(lambda _widget, content, _buffers: _on_message(content, cancel))
        sentence = _sentence(self._request)
        self._handle = self._display(
            _bundle(sentence, f'<div class="{mark}">{escape(sentence)}</div>'), raw=True, display_id=True
        )
        self._card_handle = self._display(widget_view(self._widget), raw=True, display_id=True)

    def show(self, view: RunView, text: str) -> None:
        """Send what has changed."""
        widget = self._widget
        with widget.hold_sync():  # one message, so that rows and counts change together
            if len(view.failures) != len(widget.rows):
                widget.rows = card_rows(view.failures)
            widget.state = card_state(view)
        now = time.monotonic()
        if text != widget.text and now >= self._next_text:
            self._next_text = now + TEXT_SECONDS
            widget.text = text

    def end(self, view: RunView) -> None:
        """Put the summary in the place of the card, whose output stays, empty."""
        self._card_handle.update(_bundle(""), raw=True)  # exporters complain of one without data
        self._handle.update(_bundle(one_line(view), summary_html(view)), raw=True)
        self._widget.close()
        self._widget = None  # it knows who cancels the run, and so its results


def _on_message(content: Any, cancel: Callable[[], object]) -> None:
    """Take a message of the card. It comes in whatever thread the kernel has for it."""
    if isinstance(content, dict) and content.get("op") == "cancel":
        cancel()


def _sentence(request: SinkRequest) -> str:
    return no_final_status(request.title, request.total, time.strftime("%H:%M"))


def _bundle(text: str, html: str = "") -> dict[str, Any]:
    return {"text/plain": text, "text/html": html or f"<div>{escape(text)}</div>"}
