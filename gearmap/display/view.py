"""What a run's card shows: a plain value for the live card, a line of text, and HTML that stays true.

Law of the file: pure. What comes from tasks is shortened here and escaped where it becomes HTML. The HTML has inline
styles with colours that read on light and dark pages, and no style sheet, script, variable or ARIA: notebooks that are
not trusted strip those. Words and numbers stand beside every colour.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from gearmap.core.snapshot import FailureRow, ProgressSnapshot, WorkerView

__all__ = ["RunView", "card_rows", "card_state", "failures_html", "no_final_status", "one_line", "summary_html"]

# Failures with their tracebacks. Raised: more to read in the card; lowered: smaller messages and notebooks.
SHOWN_FAILURES = 20

# Workers in the strip. Raised: more of a large cluster's are seen; lowered: smaller messages, ten times a second.
SHOWN_WORKERS = 24

MAX_TITLE_CHARS = 80
MAX_NAME_CHARS = 60
MAX_TEXT_CHARS = 300
MAX_TRACEBACK_CHARS = 4000

# Part of a task, its word, and its colour, in the order of the bar.
_PARTS = (
    ("done", "done", "#388e3c"),
    ("retried", "done after retry", "#f57c00"),
    ("running", "running", "#1976d2"),
    ("failed", "failed", "#d32f2f"),
    ("cancelled", "cancelled", "#757575"),
    ("queued", "queued", "#bdbdbd"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What is known of a run that is shown.

    `seen` are the workers that have worked for it, `notice` why nothing happens, `ended` how it ended: None while it
    runs, empty if all is well. What was under way or queued at the end counts as cancelled.
    """

    title: str
    where: str = ""
    snapshot: ProgressSnapshot | None = None
    failures: Sequence[FailureRow] = ()
    seen: Collection[str] = ()
    notice: str = ""
    ended: str | None = None

    def __post_init__(self) -> None:
        shot = self.snapshot
        if self.ended is not None and shot is not None:
            cancelled = shot.cancelled + shot.running + shot.queued
            shot = replace(shot, running=0, queued=0, cancelled=cancelled, working=())
            object.__setattr__(self, "snapshot", shot)


def card_state(view: RunView) -> dict[str, Any]:
    """Return what the live card shows, without the failures: a plain value of a few kB at most."""
    shot = view.snapshot
    return {
        "title": _short(view.title, MAX_TITLE_CHARS),
        "where": _short(view.where, MAX_TEXT_CHARS),
        "status": _short(_status(view), MAX_TEXT_CHARS),
        "is_over": view.ended is not None,
        "line": _line(shot),
        "total": None if shot is None else shot.total,
        "settled": 0 if shot is None else shot.settled,
        "parts": [[name, word, count] for name, word, _, count in _parts(shot)],
        "workers": _workers(view),
        "n_failed": 0 if shot is None else shot.failed,
    }


def card_rows(failures: Iterable[FailureRow]) -> list[dict[str, Any]]:
    """Return the first failures as the live card shows them: plain values, of shortened texts."""
    rows = []
    for row in list(failures)[:SHOWN_FAILURES]:
        short = _short_row(row)
        rows.append(
            {
                "task": short.task,
                "call": short.call,
                "error": f"{short.error}: {short.message}" if short.message else short.error,
                "worker": short.worker or "unknown",
                "attempts": short.attempts,
                "traceback": short.traceback,
            }
        )
    return rows


def one_line(view: RunView) -> str:
    """Return the run on one line.

    >>> one_line(RunView(title="f"))
    'gearmap f: starting'
    """
    shot = view.snapshot
    counts = "" if shot is None else f" · {_line(shot)}"
    failed = "" if shot is None or not shot.failed or view.ended == "" else f" · {shot.failed:,} failed"
    return f"gearmap {_short(view.title, MAX_TITLE_CHARS)}: {_short(_status(view), MAX_TEXT_CHARS)}{counts}{failed}"


def no_final_status(title: str, total: int | None, started: str) -> str:
    """Return what is true of a run however it goes on: it stays if the kernel dies.

    >>> no_final_status("f", 1000, "13:52")
    'gearmap f: 1,000 tasks, started 13:52 (no final status recorded)'
    """
    tasks = "" if total is None else f"{total:,} task{'' if total == 1 else 's'}, "
    return f"gearmap {_short(title, MAX_TITLE_CHARS)}: {tasks}started {started} (no final status recorded)"


def summary_html(view: RunView) -> str:
    """Return the run as HTML that needs nothing else."""
    title = escape(_short(view.title, MAX_TITLE_CHARS))
    where = escape(_short(view.where, MAX_TEXT_CHARS))
    status = escape(_short(_status(view), MAX_TEXT_CHARS))
    shot = view.snapshot
    parts = [
        f"<div><b>{title}</b> &nbsp;{status}{f' &nbsp;·&nbsp; {where}' if where else ''}</div>",
        _bar(shot),
        f'<div style="font-variant-numeric:tabular-nums">{escape(_line(shot))}</div>' if shot is not None else "",
        _legend(shot),
        _failures(view),
    ]
    style = (
        "border:1px solid #9e9e9e;border-radius:4px;padding:8px 12px;box-sizing:border-box;font-size:90%;"
        "line-height:1.6;max-width:760px"
    )
    return f'<div style="{style}">{"".join(parts)}</div>'


# ---------------------------------------------------------------------------------------------------------------- words


def _status(view: RunView) -> str:
    shot = view.snapshot
    if view.ended is not None:
        took = f" after {_clock(shot.elapsed)}" if shot is not None else ""
        if not view.ended:
            return f"finished{took}" if shot is None or not shot.failed else f"finished{took}, {shot.failed:,} failed"
        return f"{view.ended}{took}"
    if view.notice:
        return view.notice
    if shot is None or not (shot.settled or shot.running):
        return "starting"
    return "running"


def _line(shot: ProgressSnapshot | None) -> str:
    if shot is None:
        return ""
    settled = shot.done + shot.failed
    if shot.total is None:
        counts = f"{settled:,} tasks"
    elif not shot.total:
        counts = "0/0"
    else:
        # Rounded down: 100 % means that nothing is left. What tasks that run say of themselves counts up to there.
        percent = max(100 * settled // shot.total, min(99, int(100 * (settled + shot.partial) / shot.total)))
        counts = f"{settled:,}/{shot.total:,} · {percent}%"
    parts = [counts, f"{_rate(shot.rate)}/s", f"elapsed {_clock(shot.elapsed)}"]
    if shot.eta is not None and shot.total != shot.settled:
        parts.append(f"ETA {_clock(shot.eta)}")
    return " · ".join(parts)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _clock(seconds: float) -> str:
    """Return seconds as people read them.

    >>> _clock(0.42), _clock(75), _clock(4000), _clock(float("inf"))
    ('0.4 s', '1:15', '1:06:40', '-')
    """
    if not 0 <= seconds < 1e9:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(text: object, limit: int) -> str:
    """Return a text on one line, of `limit` characters at most, which any encoder takes."""
    line = " ".join(str(text).encode("utf-8", "replace").decode().split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _short_row(row: FailureRow) -> FailureRow:
    traceback = row.traceback.encode("utf-8", "replace").decode()
    if len(traceback) > MAX_TRACEBACK_CHARS:
        traceback = "…" + traceback[1 - MAX_TRACEBACK_CHARS :]  # what was raised, and where, stands at its end
    return replace(
        row,
        call=_short(row.call, MAX_TEXT_CHARS),
        error=_short(row.error, MAX_NAME_CHARS),
        message=_short(row.message, MAX_TEXT_CHARS),
        worker=None if row.worker is None else _short(row.worker, MAX_NAME_CHARS),
        traceback=traceback.rstrip(),
    )


# --------------------------------------------------------------------------------------------------------------- counts


def _parts(shot: ProgressSnapshot | None) -> list[tuple[str, str, str, int]]:
    if shot is None:
        return []
    counts = {
        "done": max(0, shot.done - shot.retried),
        "retried": shot.retried,
        "running": shot.running,
        "failed": shot.failed,
        "cancelled": shot.cancelled,
        "queued": shot.queued,
    }
    return [(name, word, colour, counts[name]) for name, word, colour in _PARTS]


def _doing(worker: WorkerView) -> tuple[str, str]:
    """Return state and words of a worker that has work. One that is silent looks lost, but still has its task."""
    if worker.is_lost:
        return "lost", f"lost {_clock(worker.seconds)}"
    words = "busy" if worker.task is None else f"#{worker.task}"
    if worker.silent is None:
        return "busy", words
    return "lost", f"{words}, no sign for {_clock(worker.silent)}"


def _workers(view: RunView) -> list[list[str]]:
    """Return name, state and words of the workers that are known, and how many more there are."""
    shot = view.snapshot
    if shot is None or view.ended is not None:
        return []
    strip = []
    for each in shot.working:
        strip.append([each.name, *_doing(each)])
    busy = {name for name, _, _ in strip}
    strip += [[name, "idle", "idle"] for name in view.seen if name not in busy]
    strip.sort(key=lambda row: row[0])
    shown = [[_short(name, MAX_NAME_CHARS), state, words] for name, state, words in strip[:SHOWN_WORKERS]]
    more = max(len(strip), shot.workers or 0) - len(shown)
    return [*shown, ["", "more", f"and {more:,} more"]] if more > 0 and shown else shown


# ----------------------------------------------------------------------------------------------------------------- HTML


def _bar(shot: ProgressSnapshot | None) -> str:
    shown = [(word, colour, count) for _, word, colour, count in _parts(shot) if count]
    if not shown:
        return ""
    total = sum(count for _, _, count in shown)
    cells = "".join(
        f'<div title="{count:,} {word}" '
        f'style="width:{100 * count / total:.2f}%;min-width:3px;background-color:{colour}"></div>'
        for word, colour, count in shown
    )
    return f'<div style="display:flex;height:10px;margin:4px 0">{cells}</div>'


def _legend(shot: ProgressSnapshot | None) -> str:
    words = [
        f'<span style="display:inline-block;margin-right:14px"><span style="display:inline-block;width:9px;height:9px;'
        f'background-color:{colour}"></span> {word} {count:,}</span>'
        for name, word, colour, count in _parts(shot)
        if count or name == "done"
    ]
    return f"<div>{''.join(words)}</div>" if words else ""


def _failures(view: RunView) -> str:
    if not view.failures:
        return ""
    total = max(len(view.failures), 0 if view.snapshot is None else view.snapshot.failed)
    return failures_html(view.failures, total)


def failures_html(failures: Sequence[FailureRow], total: int, *, is_open: bool = False) -> str:
    """Return the first of `total` failures, to be opened."""
    rows = "".join(map(_failure, failures[:SHOWN_FAILURES]))
    left = total - min(len(failures), SHOWN_FAILURES)
    more = f"<div>and {left:,} more</div>" if left > 0 else ""
    return f"<details{' open' if is_open else ''}><summary>{total:,} failed</summary>{rows}{more}</details>"


def _failure(row: FailureRow) -> str:
    short = _short_row(row)
    what = f"{short.error}: {short.message}" if short.message else short.error
    tries = "1 attempt" if short.attempts == 1 else f"{short.attempts} attempts"
    facts = " · ".join(fact for fact in (short.call, f"on {short.worker}" if short.worker else "", tries) if fact)
    text = f"<b>task {short.task}</b> {escape(what)}<br>{escape(facts)}"
    if not short.traceback:
        return f'<div style="margin:4px 0 4px 16px">{text}</div>'
    trace = f'<pre style="font-size:90%;overflow:auto">{escape(short.traceback)}</pre>'
    return f'<details style="margin:4px 0 4px 16px"><summary>{text}</summary>{trace}</details>'
