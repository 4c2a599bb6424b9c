"""A map's report: what a person needs who was not there."""

from __future__ import annotations

import functools

from gearmap.config import RunOptions
from gearmap.core.snapshot import ProgressSnapshot
from gearmap.core.tally import Tally
from gearmap.runtime.report import RunNotes, write_report

LAST = ProgressSnapshot(
    total=10, done=7, failed=1, cancelled=2, running=0, queued=0, again=3, elapsed=2.0, workers=2, earlier=3
)


def report_of(*runs: RunNotes, options: RunOptions | None = None) -> str:
    return write_report(function="mine.fn", options=options or RunOptions(), counts="failed", runs=runs)


def test_counts_reasons_and_workers_are_told() -> None:
    notes = RunNotes("head:4730 (from GEARMAP_SERVERS)", run_id="abc", outcome="failed: KeyError", elapsed=2.0)
    notes.arrived("gpu1/0", 2, 0.5)
    notes.arrived("gpu2/0", 4, 0.9)
    notes.arrived("gpu1/0", 1, 1.0)
    notes.last, notes.tally = LAST, Tally(jobs=5, executions=6, failures=1)
    notes.tally.lost("no beat for too long")
    notes.tally.given_back("draining")
    notes.tally.given_back("draining")
    text = report_of(notes)
    assert text.startswith("map of mine.fn: failed\ngearmap ")
    for line in (
        "options: all as by default",
        "run 1 (abc): failed: KeyError",
        "  where: head:4730 (from GEARMAP_SERVERS)",
        "  time: 2.00 s, first result after 0.50 s",
        "  tasks: 7 done (3 before this run), 1 failed, 2 not run, 0 under way, 3 run again; 2 a second",
        "  jobs: 5 submitted, 6 executions seen, 1 failures of tasks",
        "  lost: no beat for too long x1",
        "  not run by a node: draining x2",
        "  workers: 2 at last; results by worker: gpu2/0 4, gpu1/0 3",
    ):
        assert line in text.splitlines()


def test_a_run_that_has_just_begun_is_told_too() -> None:
    assert report_of(RunNotes("in this process")).endswith(
        "run 1: running\n  where: in this process\n  time: 0.00 s, no result\n  workers: results by worker: none"
    )


def test_options_are_named_but_arguments_are_not() -> None:
    options = RunOptions(
        retries=2,
        retry_exceptions=[OSError, ValueError],
        queue="gpu",
        desc="private",
        initializer=functools.partial(print, "private"),
        initargs=("private",),
    )
    text = report_of(options=options)
    for word in ("retries=2", "retry_exceptions=(OSError, ValueError)", "queue='gpu'", "initializer=partial"):
        assert word in text
    assert "private" not in text


def test_of_many_workers_those_with_most_results_are_named() -> None:
    notes = RunNotes("there")
    for number in range(100):
        notes.arrived(f"w{number}", number + 1, 0.1)
    line = report_of(notes).splitlines()[-1]
    assert "w99 100, w98 99" in line
    assert line.endswith("and 80 more")


def test_a_tally_that_was_copied_changes_no_more() -> None:
    tally = Tally()
    tally.lost("x")
    copy = tally.copy()
    tally.lost("x")
    tally.given_back("y")
    assert (copy.losses, copy.not_run) == ({"x": 1}, {})
