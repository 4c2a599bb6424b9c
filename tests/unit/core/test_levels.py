"""Which nested levels a node serves, and how long."""

from __future__ import annotations

from gearmap.core.levels import LOOK_INTERVAL, ServedLevels

ONE, TWO = b"1" * 16, b"2" * 16


def test_a_node_that_nobody_asks_serves_no_level_and_looks_at_nothing() -> None:
    levels = ServedLevels()
    assert (levels.served, levels.deadline) == ((), None)


def test_a_level_is_opened_when_the_first_task_asks_and_not_again() -> None:
    levels = ServedLevels()
    assert levels.asked(1, ONE, 0.0)
    assert not levels.asked(1, ONE, 0.1)
    assert not levels.asked(1, TWO, 0.1)
    assert levels.asked(2, TWO, 0.2)
    assert levels.served == (1, 2)


def test_a_level_is_served_as_long_as_one_of_its_askers_runs() -> None:
    levels = ServedLevels()
    levels.asked(1, ONE, 0.0)
    levels.asked(1, TWO, 0.0)
    assert levels.look({ONE}, 5.0) == []
    assert levels.look({ONE}, 10.0) == []
    assert levels.look({TWO}, 15.0) == [1], "an asker that has ended does not come back"
    assert levels.deadline is None


def test_only_the_level_that_nobody_asks_for_is_left() -> None:
    levels = ServedLevels()
    levels.asked(1, ONE, 0.0)
    levels.asked(2, TWO, 0.0)
    assert levels.look({ONE}, 5.0) == [2]
    assert levels.served == (1,)


def test_it_is_looked_again_after_a_while() -> None:
    levels = ServedLevels()
    levels.asked(1, ONE, 1.0)
    assert levels.deadline == 1.0 + LOOK_INTERVAL
    levels.asked(2, ONE, 3.0)
    assert levels.deadline == 1.0 + LOOK_INTERVAL
    levels.look({ONE}, 7.0)
    assert levels.deadline == 7.0 + LOOK_INTERVAL


def test_a_level_that_was_left_is_opened_again_when_it_is_asked_for() -> None:
    levels = ServedLevels()
    levels.asked(1, ONE, 0.0)
    levels.look((), 5.0)
    assert levels.asked(1, TWO, 6.0)
