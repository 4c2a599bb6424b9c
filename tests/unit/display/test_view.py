"""What a run's card shows: whatever it is told, it is true, small, escaped, and readable without colours."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from gearmap.core.snapshot import FailureRow, ProgressSnapshot, WorkerView
from gearmap.display.view import (
    SHOWN_FAILURES,
    RunView,
    card_rows,
    card_state,
    no_final_status,
    one_line,
    summary_html,
)

SHOT = ProgressSnapshot(
    total=1000,
    done=602,
    failed=5,
    cancelled=0,
    running=8,
    queued=385,
    again=0,
    elapsed=14.5,
    workers=8,
    retried=22,
    working=(WorkerView("w0", 615, 0.3), WorkerView("w7", None, 3.0, is_lost=True)),
)
ROW = FailureRow(
    task=17, call="f(-1)", error="ValueError", message="negative mass", worker="w2", attempts=3, traceback="Traceback"
)
HOSTILE = "<script>alert(1)</script>\"' & <b>\ud800 \x00\n line"


def view(**changes: Any) -> RunView:
    values: dict[str, Any] = {"title": "simulate", "where": "local cluster, 8 workers", "snapshot": SHOT}
    return RunView(**(values | changes))


class Page(HTMLParser):
    """Collects tags, attributes and text; `open` tags were not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.names: set[str] = set()
        self.styles: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        self.styles += [value or "" for name, value in attrs if name == "style"]
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_line_tells_counts_rate_and_times() -> None:
    assert card_state(view())["line"] == "607/1,000 · 60% · 41.9/s · elapsed 0:14 · ETA 9.4 s"


def test_the_parts_are_those_of_the_bar_and_add_up_to_all_tasks() -> None:
    parts = card_state(view())["parts"]
    assert [(name, count) for name, _, count in parts] == [
        ("done", 580),
        ("retried", 22),
        ("running", 8),
        ("failed", 5),
        ("cancelled", 0),
        ("queued", 385),
    ]
    assert sum(count for _, _, count in parts) == 1000


def test_the_strip_tells_of_silence_beside_the_task_before_a_worker_is_lost() -> None:
    working = (WorkerView("w0", 615, 20.0, silent=13.0), WorkerView("w7", None, 40.0, is_lost=True, silent=31.0))
    strip = card_state(view(snapshot=replace(SHOT, working=working)))["workers"]
    assert strip[:2] == [["w0", "lost", "#615, no sign for 0:13"], ["w7", "lost", "lost 0:40"]]


def test_the_strip_tells_who_is_busy_idle_and_lost() -> None:
    workers = card_state(view(seen=("w0", "w1", "w7")))["workers"]
    assert workers == [
        ["w0", "busy", "#615"],
        ["w1", "idle", "idle"],
        ["w7", "lost", "lost 3.0 s"],
        ["", "more", "and 5 more"],
    ]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"snapshot": None}, "starting"),
        ({}, "running"),
        ({"notice": "no worker serves 'gpu'"}, "no worker serves 'gpu'"),
        ({"ended": ""}, "finished after 0:14, 5 failed"),
        ({"ended": "", "snapshot": replace(SHOT, failed=0)}, "finished after 0:14"),
        ({"ended": "interrupted", "notice": "no worker"}, "interrupted after 0:14"),
        ({"ended": "failed: KeyError"}, "failed: KeyError after 0:14"),
    ],
)
def test_the_status_says_how_it_stands(changes: dict[str, Any], status: str) -> None:
    assert card_state(view(**changes))["status"] == status
    assert status in one_line(view(**changes))


def test_nearly_all_is_not_all() -> None:
    shot = replace(SHOT, done=999_999, failed=0, total=1_000_000, queued=1, running=0)
    assert "999,999/1,000,000 · 99%" in one_line(view(snapshot=shot))


def test_what_running_tasks_say_of_themselves_moves_the_card_but_never_to_the_end() -> None:
    shot = replace(SHOT, total=4, done=1, failed=0, running=2, queued=1)
    assert "1/4 · 25%" in one_line(view(snapshot=shot))
    assert "1/4 · 37%" in one_line(view(snapshot=replace(shot, partial=0.5)))
    assert "1/4 · 99%" in one_line(view(snapshot=replace(shot, partial=3.0)))
    assert "4/4 · 100%" in one_line(view(snapshot=replace(shot, done=4, running=0, queued=0)))


ODD = [
    view(snapshot=None),
    view(title="", where=""),
    view(snapshot=replace(SHOT, total=None, elapsed=0.0, workers=None, working=())),
    view(snapshot=replace(SHOT, total=0, done=0, failed=0, running=0, queued=0, retried=0), ended=""),
    view(snapshot=replace(SHOT, total=10**12, done=10**11, elapsed=1e-9)),
    view(snapshot=replace(SHOT, elapsed=1e300, done=1, failed=0), ended="cancelled"),
    view(title=HOSTILE * 50, where=HOSTILE * 50, notice=HOSTILE * 50),
    view(seen=[HOSTILE * 9 + str(n) for n in range(500)]),
    view(snapshot=replace(SHOT, working=tuple(WorkerView("w" * 500 + str(n), 10**15, 1e9) for n in range(100)))),
    view(snapshot=replace(SHOT, partial=1e12)),
    view(title="имя 名前 🜚" * 30),
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_whatever_is_known_the_state_is_small_and_plain(odd: RunView) -> None:
    text = json.dumps(card_state(odd), allow_nan=False)
    assert len(text) < 5000
    text.encode()
    one_line(odd).encode()
    assert "\n" not in one_line(odd)


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_whatever_is_known_the_html_holds_nothing_that_notebooks_strip(odd: RunView) -> None:
    row = FailureRow(
        task=0, call=HOSTILE, error=HOSTILE, message=HOSTILE, worker=HOSTILE, attempts=1, traceback=HOSTILE
    )
    html = summary_html(replace(odd, failures=[row]))
    page = Page(html)
    assert page.open == []
    assert set(page.tags) <= {"div", "span", "b", "br", "details", "summary", "pre"}
    assert page.names <= {"style", "title"}
    assert not any("var(" in style or re.search(r"(?<![-\w])color:", style) for style in page.styles)
    assert "<script" not in html
    html.encode()


def test_the_html_says_in_words_what_the_colours_say() -> None:
    text = Page(summary_html(view(failures=[ROW]))).text
    for words in (
        "done 580",
        "done after retry 22",
        "failed 5",
        "queued 385",
        "task 17",
        "on w2",
        "3 attempts",
        "f(-1)",
    ):
        assert words in text
    assert "and 4 more" in text


def test_many_failures_are_counted_and_the_first_are_shown() -> None:
    rows = [replace(ROW, task=n, traceback="x" * 100_000) for n in range(1000)]
    assert len(card_rows(rows)) == SHOWN_FAILURES
    shot = replace(SHOT, failed=1000)
    html = summary_html(view(snapshot=shot, failures=rows))
    assert f"and {1000 - SHOWN_FAILURES} more" in html
    assert len(html) < 110_000
    assert len(json.dumps(card_rows(rows))) < 110_000


def test_of_a_long_traceback_the_end_is_kept() -> None:
    (row,) = card_rows([replace(ROW, traceback="begin" + "x" * 10_000 + "KeyError: 7")])
    assert row["traceback"].startswith("…")
    assert row["traceback"].endswith("KeyError: 7")


def test_what_stays_if_the_kernel_dies_is_true_however_the_run_went_on() -> None:
    assert no_final_status("f", None, "13:52") == "gearmap f: started 13:52 (no final status recorded)"
    assert "%" not in no_final_status("f", 10, "13:52")
    assert no_final_status("f", 1, "1:00").startswith("gearmap f: 1 task,")
