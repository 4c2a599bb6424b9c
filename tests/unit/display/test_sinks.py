"""Which display is chosen, and that a bar tells the truth and never disturbs a run."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from gearmap.core.snapshot import ProgressSink, ProgressSnapshot
from gearmap.display.registry import SinkRequest
from gearmap.display.sinks import SHOW_AFTER, LogSink, NoSink, SinkKind, TqdmSink, choose_sink, make_sink


@pytest.fixture(autouse=True)
def no_monitor_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tqdm starts a thread that redraws slow bars; a test needs none."""
    from tqdm import tqdm

    monkeypatch.setattr(tqdm, "monitor_interval", 0)


def at(elapsed: float, *, done: int = 0, failed: int = 0, total: int | None = 10) -> ProgressSnapshot:
    return ProgressSnapshot(
        total=total,
        done=done,
        failed=failed,
        cancelled=0,
        running=1,
        queued=2,
        again=0,
        elapsed=elapsed,
        workers=2,
    )


def sink_of(kind: SinkKind, *, desc: str | None, where: str, explicit: bool) -> ProgressSink:
    request = SinkRequest(title=desc or "f", where=where, delay=0.0 if explicit else SHOW_AFTER)
    return make_sink(kind, request, desc=desc, notebook=None)


def last_line(text: str) -> str:
    """What a terminal shows after these characters."""
    return re.split(r"[\r\n]", text.rstrip("\n"))[-1]


# ------------------------------------------------------------------------------------------------------------ choosing


@pytest.mark.parametrize(
    ("progress", "is_terminal", "environ", "kind"),
    [
        (None, False, {}, SinkKind.LOG),
        (None, True, {}, SinkKind.TQDM),
        (True, False, {}, SinkKind.TQDM),
        (True, True, {}, SinkKind.TQDM),
        (False, True, {}, SinkKind.NOTHING),
        (False, False, {}, SinkKind.NOTHING),
        (None, True, {"GEARMAP_PROGRESS": "off"}, SinkKind.NOTHING),
        (True, True, {"GEARMAP_PROGRESS": "off"}, SinkKind.NOTHING),
        (True, True, {"GEARMAP_PROGRESS": "OFF"}, SinkKind.NOTHING),
        (True, True, {"GEARMAP_PROGRESS": "0"}, SinkKind.NOTHING),
        (None, True, {"GEARMAP_PROGRESS": ""}, SinkKind.TQDM),
        (None, False, {"GEARMAP_PROGRESS": "on"}, SinkKind.LOG),
    ],
)
def test_the_users_wish_then_the_terminal_decides_and_off_is_off(
    progress: bool | None, is_terminal: bool, environ: dict[str, str], kind: SinkKind
) -> None:
    assert choose_sink(progress=progress, is_terminal=is_terminal, environ=environ) is kind


@pytest.mark.parametrize(
    ("progress", "has_widgets", "wish", "kind"),
    [
        (None, True, "", SinkKind.CARD),
        (True, True, "", SinkKind.CARD),
        (None, False, "", SinkKind.HTML),
        (None, True, "html", SinkKind.HTML),
        (None, True, "text", SinkKind.TQDM),
        (None, True, "off", SinkKind.NOTHING),
        (True, True, "off", SinkKind.NOTHING),
        (False, True, "", SinkKind.NOTHING),
    ],
)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_notebook_has_a_card_where_it_can_be_made(
    progress: bool | None, has_widgets: bool, wish: str, kind: SinkKind, is_terminal: bool
) -> None:
    chosen = choose_sink(
        progress=progress,
        is_terminal=is_terminal,
        environ={"GEARMAP_PROGRESS": wish},
        is_notebook=True,
        has_widgets=has_widgets,
    )
    assert chosen is kind


@pytest.mark.parametrize(
    ("kind", "cls"), [(SinkKind.NOTHING, NoSink), (SinkKind.LOG, LogSink), (SinkKind.TQDM, TqdmSink)]
)
def test_every_kind_has_a_sink(kind: SinkKind, cls: type) -> None:
    sink: ProgressSink = sink_of(kind, desc=None, where="here", explicit=False)
    assert isinstance(sink, cls)


def test_nothing_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    sink = NoSink()
    sink.update(at(100.0))
    sink.notice("no worker")
    sink.finish(at(100.0), "failed")
    assert capsys.readouterr() == ("", "")


def test_a_run_that_took_its_time_leaves_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gearmap")
    sink = sink_of(SinkKind.LOG, desc="fitting", where="here", explicit=False)
    sink.update(at(1.0))
    assert caplog.messages == []
    sink.finish(at(SHOW_AFTER, done=9, failed=1), "failed: KeyError")
    (line,) = caplog.messages
    assert line.startswith("gearmap fitting: failed: KeyError after 0.5 s · 10/10")
    assert line.endswith("1 failed")
    sink_of(SinkKind.LOG, desc=None, where="here", explicit=False).finish(at(SHOW_AFTER / 2, done=10), "")
    assert len(caplog.messages) == 1


# --------------------------------------------------------------------------------------------------------------- a bar


def test_a_bar_shows_counts_description_and_place_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    sink = sink_of(SinkKind.TQDM, desc="fitting", where="local cluster", explicit=True)
    sink.update(at(0.0, done=3, failed=1))
    shown = capsys.readouterr()
    assert shown.out == ""
    line = last_line(shown.err)
    assert line.startswith("fitting:")
    assert "4/10" in line
    assert "local cluster" in line
    sink.finish(at(1.0, done=10), "")
    assert "10/10" in last_line(capsys.readouterr().err)


def test_a_short_map_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    sink = sink_of(SinkKind.TQDM, desc=None, where="here", explicit=False)
    sink.update(at(SHOW_AFTER - 0.01, done=5))
    sink.finish(at(SHOW_AFTER - 0.001, done=10), "")
    assert capsys.readouterr().err == ""


def test_a_longer_map_shows_one_with_the_time_since_its_start(capsys: pytest.CaptureFixture[str]) -> None:
    sink = sink_of(SinkKind.TQDM, desc=None, where="here", explicit=False)
    sink.update(at(0.1, done=1))
    sink.update(at(65.0, done=5))
    assert "01:05<01:05" in last_line(capsys.readouterr().err)
    sink.finish(at(65.0, done=10), "")


def test_a_bar_that_was_asked_for_is_shown_even_if_the_map_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    sink = sink_of(SinkKind.TQDM, desc=None, where="here", explicit=True)
    sink.finish(at(0.01, done=10), "")
    assert "10/10" in last_line(capsys.readouterr().err)


def test_how_a_map_ended_is_said_if_that_was_not_well(capsys: pytest.CaptureFixture[str]) -> None:
    sink = sink_of(SinkKind.TQDM, desc=None, where="here", explicit=True)
    sink.update(at(1.0, done=3))
    sink.finish(at(2.0, done=3, failed=1), "failed: KeyError")
    line = last_line(capsys.readouterr().err)
    assert "failed: KeyError" in line
    assert "4/10" in line


def test_an_unknown_total_is_shown_once_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    sink = sink_of(SinkKind.TQDM, desc=None, where="here", explicit=True)
    sink.update(at(1.0, done=3, total=None))
    assert "3task" in last_line(capsys.readouterr().err)
    sink.finish(at(2.0, done=7, total=7), "")
    assert "7/7" in last_line(capsys.readouterr().err)


def test_a_notice_stands_beside_the_bar_until_there_are_workers(capsys: pytest.CaptureFixture[str]) -> None:
    sink = sink_of(SinkKind.TQDM, desc=None, where="two servers", explicit=True)
    sink.notice("no worker: start one")
    sink.update(replace(at(1.0), workers=0))
    assert "no worker: start one" in last_line(capsys.readouterr().err)
    sink.update(replace(at(2.0), workers=1))
    line = last_line(capsys.readouterr().err)
    assert "no worker" not in line
    assert "two servers" in line
    sink.finish(at(9.0, done=10), "")


class Broken(io.StringIO):
    """A terminal that goes away after some writes."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def write(self, text: str) -> int:
        if self.left <= 0:
            raise OSError("the terminal is gone")
        self.left -= 1
        return super().write(text)


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), Broken(0), Broken(1), Broken(3)])
def test_a_terminal_that_is_gone_does_not_raise_into_the_run(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    sink = sink_of(SinkKind.TQDM, desc="x", where="here", explicit=True)
    for done in range(5):
        sink.update(at(1.0 + done, done=done))
    sink.finish(at(9.0, done=9), "failed")


def test_an_interrupt_while_the_bar_is_drawn_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stderr", Interrupted())
    sink = sink_of(SinkKind.TQDM, desc="x", where="here", explicit=True)
    with pytest.raises(KeyboardInterrupt):
        sink.update(at(1.0))
