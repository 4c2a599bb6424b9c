"""The card of a run: when it appears, what it sends, and what it leaves. The front end is a fake one."""

from __future__ import annotations

import contextvars
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from gearmap.core.snapshot import FailureRow, ProgressSnapshot, WorkerView
from gearmap.display.registry import SinkRequest
from gearmap.display.view import SHOWN_FAILURES
from gearmap.notebook.runcard import CardFace, HtmlFace, RunCard

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

SHOT = ProgressSnapshot(
    total=10,
    done=4,
    failed=0,
    cancelled=0,
    running=2,
    queued=4,
    again=0,
    elapsed=1.0,
    workers=2,
    working=(WorkerView("w0", 4, 0.1),),
)

cell = contextvars.ContextVar("cell", default="none")


class Handle:
    """A display: the bundles that it was given, and in which cell."""

    def __init__(self) -> None:
        self.bundles: list[dict[str, Any]] = []
        self.cells: list[str] = []

    def display(self, bundle: dict[str, Any], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        self.update(bundle, raw=True)
        return self

    def update(self, bundle: dict[str, Any], *, raw: bool) -> None:
        self.bundles.append(bundle)
        self.cells.append(cell.get())


class Widget:
    """A widget that counts what is sent."""

    model_id = "model"

    def __init__(self, **traits: Any) -> None:
        self.__dict__.update(traits, text="", sent=[], closed=False, handler=None)

    def __setattr__(self, name: str, value: Any) -> None:
        self.sent.append(name)
        self.__dict__[name] = value

    def hold_sync(self) -> Any:
        return nullcontext()

    def on_msg(self, handler: Any) -> None:
        self.__dict__["handler"] = handler

    def close(self) -> None:
        self.__dict__["closed"] = True


class ByHand:
    """A ticker whose ticks are called by the test."""

    def __init__(self) -> None:
        self.live: list[Any] = []
        self.add = self.live.append
        self.remove = lambda each: self.live.remove(each) if each in self.live else None


class Scene:
    def __init__(self, **request: Any) -> None:
        self.handle = Handle()
        self.widgets: list[Widget] = []
        self.ticker: Any = ByHand()
        self.request = SinkRequest(**({"title": "f", "where": "here", "total": 10} | request))

    def card(self) -> RunCard:
        def make(**traits: Any) -> Widget:
            self.widgets.append(Widget(**traits))
            return self.widgets[-1]

        return RunCard(self.request, CardFace(self.request, self.handle.display, make), self.ticker)

    def html(self) -> RunCard:
        return RunCard(self.request, HtmlFace(self.request, self.handle.display), self.ticker)


def test_a_run_that_is_over_soon_shows_nothing() -> None:
    scene = Scene(delay=0.5)
    card = scene.card()
    card.update(replace(SHOT, elapsed=0.4))
    card.finish(replace(SHOT, elapsed=0.49, done=10), "")
    assert scene.handle.bundles == []
    assert scene.ticker.live == []


def test_one_that_lasts_shows_a_widget_over_a_sentence_that_is_true_for_ever() -> None:
    scene = Scene(delay=0.5)
    card = scene.card()
    card.update(SHOT)
    sentence, live = scene.handle.bundles
    assert live[WIDGET_VIEW]["model_id"] == "model"
    assert list(live) == [WIDGET_VIEW]
    assert "no final status recorded" in sentence["text/plain"]
    assert "no final status recorded" in sentence["text/html"]
    assert f'class="{scene.widgets[0].hides}"' in sentence["text/html"]
    assert scene.widgets[0].state["settled"] == 4


def test_what_a_card_hides_is_its_own_sentence() -> None:
    scenes = [Scene(), Scene()]
    for scene in scenes:
        scene.card()
    assert scenes[0].widgets[0].hides != scenes[1].widgets[0].hides


def test_without_a_delay_it_is_there_at_once() -> None:
    scene = Scene()
    scene.card()
    assert len(scene.handle.bundles) == 2
    assert scene.widgets[0].state["status"] == "starting"


def test_the_summary_takes_the_place_of_the_widget() -> None:
    scene = Scene()
    card = scene.card()
    card.update(SHOT)
    card.finish(replace(SHOT, done=10, running=0, queued=0), "")
    emptied, last = scene.handle.bundles[-2:]
    assert emptied == {"text/plain": "", "text/html": "<div></div>"}
    assert WIDGET_VIEW not in last
    assert last["text/plain"].startswith("gearmap f: finished after 1.0 s · 10/10 · 100%")
    assert "done 10" in last["text/html"]
    assert scene.widgets[0].closed
    assert scene.ticker.live == []


def test_what_was_under_way_when_it_was_cancelled_is_not_said_to_run() -> None:
    scene = Scene()
    card = scene.card()
    card.finish(SHOT, "cancelled")
    html = scene.handle.bundles[-1]["text/html"]
    assert "cancelled 6" in html
    assert "running" not in html


def test_a_tick_sends_one_state_and_failures_only_when_there_are_more() -> None:
    scene = Scene()
    card = scene.card()
    for done in range(1000):
        card.update(replace(SHOT, done=done, failed=1))
    card.failed(FailureRow(task=1, call="f(1)", error="E", message="m", worker="w0", attempts=1))
    card.tick()
    card.tick()
    widget = scene.widgets[0]
    assert widget.sent == ["rows", "state", "state"]
    assert widget.state["settled"] == 1000
    assert widget.rows[0]["task"] == 1


def test_rows_of_failures_wait_for_the_counts_that_have_them() -> None:
    scene = Scene()
    card = scene.card()
    for task in (1, 2):
        card.failed(FailureRow(task=task, call="", error="E", message="m", worker=None, attempts=1))
        card.tick()
    widget = scene.widgets[0]
    assert (widget.rows, widget.state["n_failed"]) == ([], 0)
    card.update(replace(SHOT, failed=1))
    card.tick()
    assert ([row["task"] for row in widget.rows], widget.state["n_failed"]) == ([1], 1)
    card.finish(SHOT, "interrupted")  # the last counts that have come
    html = scene.handle.bundles[-1]["text/html"]
    assert "2 failed" in html
    assert "failed 2" in html
    assert "cancelled 4" in html


def test_failures_and_output_are_bounded() -> None:
    scene = Scene()
    card = scene.card()
    for task in range(1000):
        card.failed(FailureRow(task=task, call="", error="E", message="m", worker=None, attempts=1))
        card.printed(task, "stdout", "x" * 10_000)
    card.update(replace(SHOT, failed=1000))
    card.tick()
    widget = scene.widgets[0]
    assert len(widget.rows) == SHOWN_FAILURES
    assert len(widget.text) <= 4000


def test_a_notice_is_the_status_until_there_are_workers() -> None:
    scene = Scene()
    card = scene.card()
    card.notice("no worker serves 'gpu'")
    card.tick()
    assert scene.widgets[0].state["status"] == "no worker serves 'gpu'"
    card.update(SHOT)
    card.tick()
    assert scene.widgets[0].state["status"] == "running"


def test_a_worker_that_has_nothing_now_is_idle() -> None:
    scene = Scene()
    card = scene.card()
    card.update(SHOT)
    card.update(replace(SHOT, working=(WorkerView("w1", 5, 0.0),)))
    card.tick()
    assert scene.widgets[0].state["workers"] == [["w0", "idle", "idle"], ["w1", "busy", "#5"]]


def test_a_click_on_cancel_cancels_and_nothing_else_does() -> None:
    cancelled = []
    scene = Scene(cancel=lambda: cancelled.append(1))
    scene.card()
    widget = scene.widgets[0]
    assert widget.can_cancel
    for content in ({"op": "other"}, None, [], {"op": ["cancel"]}):
        widget.handler(widget, content, [])
    assert cancelled == []
    widget.handler(widget, {"op": "cancel"}, [])
    assert cancelled == [1]


def test_clicks_take_the_route_that_the_front_end_chose() -> None:
    class Comm:
        def _reply_subshell_for(self, data: Any, default: Any) -> str:
            return "the busy one"

    scene = Scene()
    comm = Comm()
    Widget.comm = comm  # type: ignore[attr-defined]  # as a real one has it
    try:
        scene.card()
    finally:
        del Widget.comm  # type: ignore[attr-defined]
    assert comm._reply_subshell_for({}, "the other") == "the other"


def test_what_another_thread_shows_goes_to_the_cell_that_began_the_run() -> None:
    scene = Scene()
    token = cell.set("first")
    card = scene.card()
    cell.reset(token)
    card.finish(SHOT, "")
    assert scene.handle.cells == ["first"] * 4


def test_a_front_end_that_fails_does_not_raise_into_the_run() -> None:
    scene = Scene(delay=0.5)
    card = scene.card()

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("the kernel is going")

    scene.handle.update = broken  # type: ignore[method-assign]
    card.update(SHOT)
    card.tick()
    card.finish(SHOT, "")


def test_an_interrupt_is_not_swallowed() -> None:
    scene = Scene(delay=0.5)
    card = scene.card()

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    scene.handle.update = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        card.update(SHOT)


def test_html_says_when_it_was_true_and_ends_with_the_summary() -> None:
    scene = Scene()
    card = scene.html()
    card.update(SHOT)
    card.tick()
    card.tick()  # too soon for another
    card.finish(replace(SHOT, done=10, running=0, queued=0), "")
    first, running, last = (bundle["text/html"] for bundle in scene.handle.bundles)
    assert "no final status recorded" in first
    assert "(as of " in running
    assert "finished" in last
    assert "as of" not in last
