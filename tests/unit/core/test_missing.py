"""When it is said that nobody serves a run."""

from __future__ import annotations

from gearmap.core.missing import NOTICE_SECONDS, WorkerWatch
from gearmap.core.names import Lane

HERE = Lane("default", (3, 11), "1f3a77c0")
NAME = HERE.name
ONE, TWO = 0, 1
NEVER = float("inf")


def watch() -> WorkerWatch:
    return WorkerWatch(HERE)


def test_it_is_said_in_less_than_two_seconds() -> None:
    assert NOTICE_SECONDS <= 1.5


def test_nothing_is_said_before_a_server_has_answered() -> None:
    nobody = watch()
    nobody.wake(0.0)
    assert (nobody.count, nobody.due) == (None, NEVER)
    assert nobody.notice(100.0, ["a:1"]) is None


def test_it_is_said_once_when_nobody_was_there_for_long_enough() -> None:
    nobody = watch()
    nobody.listed(ONE, [("reverse", 3)], 1.0)
    nobody.listed(ONE, [("reverse", 3)], 2.0)
    assert nobody.due == 1.0 + NOTICE_SECONDS
    assert nobody.notice(nobody.due - 0.01, ["a:1"]) is None
    assert "no worker serves queue 'default'" in (nobody.notice(nobody.due, ["a:1"]) or "")
    nobody.listed(ONE, [], 3.0)
    nobody.wake(9.0)
    assert nobody.due == NEVER


def test_a_worker_that_comes_in_time_is_not_missed() -> None:
    some = watch()
    some.listed(ONE, [], 0.0)
    some.listed(ONE, [(NAME, 1)], 1.0)
    assert (some.count, some.due) == (1, NEVER)
    assert some.notice(100.0, ["a:1"]) is None


def test_one_server_with_workers_is_enough() -> None:
    some = watch()
    some.listed(ONE, [], 0.0)
    some.listed(TWO, [(NAME, 4)], 0.5)
    some.listed(ONE, [], 1.0)
    assert (some.count, some.due) == (4, NEVER)


def test_workers_that_went_are_missed_anew() -> None:
    nobody = watch()
    nobody.listed(ONE, [], 0.0)
    assert nobody.notice(nobody.due, ["a:1"])
    nobody.listed(ONE, [(NAME, 1)], 5.0)
    nobody.listed(ONE, [(NAME, 0)], 6.0)
    assert nobody.due == 6.0 + NOTICE_SECONDS
    assert nobody.notice(nobody.due, ["a:1"])


def test_the_workers_of_a_server_that_is_gone_count_no_more() -> None:
    nobody = watch()
    nobody.listed(ONE, [(NAME, 4)], 0.0)
    nobody.listed(TWO, [], 0.0)
    nobody.server_gone(ONE, 1.0)
    assert (nobody.count, nobody.due) == (0, 1.0 + NOTICE_SECONDS)
    nobody.server_gone(TWO, 1.5)
    assert (nobody.count, nobody.due) == (None, NEVER)


def test_a_run_without_tasks_misses_nobody_and_begins_to_when_it_has_some() -> None:
    nobody = watch()
    nobody.listed(ONE, [], 0.0)
    nobody.rest()
    assert nobody.due == NEVER
    nobody.wake(7.0)
    assert nobody.due == 7.0 + NOTICE_SECONDS
    nobody.wake(8.0)
    assert nobody.due == 7.0 + NOTICE_SECONDS


def test_workers_that_stand_on_both_servers_are_counted_once() -> None:
    nobody = watch()
    for server in (ONE, TWO):
        nobody.listed(server, [("gearmap1.default.py312.1f3a77c0", 3)], 0.0)
    text = nobody.notice(nobody.due, ["a:1", "b:2"])
    assert text is not None
    assert ": 3 serve it with Python 3.12; start one: gearmap worker -s a:1 -s b:2" in text


def test_workers_that_are_on_their_way_are_given_the_time_that_they_need() -> None:
    own = WorkerWatch(HERE, patience=30.0)
    own.listed(ONE, [], 0.0)
    assert own.notice(29.9, ["a:1"]) is None
    assert own.notice(30.0, ["a:1"])
