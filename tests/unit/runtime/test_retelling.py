"""What many tasks warned of is said once."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest

from gearmap.runtime.retelling import BURST_RECORDS, MAX_WARNINGS, Retelling, retell
from gearmap.wire.notes import Logged, Warned, note_line

LOGGED = Logged("far.away", 30, "odd", "/remote/place.py", 7, "work", 1000.25, "Traceback: it broke")
DIVIDED = Warned("builtins:RuntimeWarning", "divide by zero", "/remote/place.py", 12, "place")


class Picky(UserWarning):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)


def text_of(*notes: Warned | Logged, worker: str = "host/1") -> str:
    return b"".join(note_line(number, worker, note) for number, note in enumerate(notes, 1)).decode()


def said(retelling: Retelling) -> list[Any]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        retelling.end()
    return seen


def test_a_warning_of_many_tasks_is_issued_once_with_its_place_and_the_first_of_them() -> None:
    retelling = Retelling()
    for task in (9, 4, 30, 3, 12):
        retelling.take(task, text_of(DIVIDED))
    (seen,) = said(retelling)
    assert str(seen.message) == "divide by zero (5 tasks, first 3, 4, 9; worker host/1)"
    assert (seen.category, seen.filename, seen.lineno) == (RuntimeWarning, "/remote/place.py", 12)
    assert said(retelling) == []


def test_one_task_is_named_alone() -> None:
    retelling = Retelling()
    shown = retelling.take(7, text_of(DIVIDED, worker=""))
    assert shown == "/remote/place.py:12: RuntimeWarning: divide by zero\n"
    assert [str(seen.message) for seen in said(retelling)] == ["divide by zero (task 7)"]


@pytest.mark.parametrize(
    ("category", "text"),
    [
        ("nowhere.to.be:Found", "Found: no (task 0; worker host/1)"),
        ("__main__:NotThere", "NotThere: no (task 0; worker host/1)"),
        ("builtins:int", "int: no (task 0; worker host/1)"),
        (f"{__name__}:Picky", "Picky: no (task 0; worker host/1)"),
    ],
)
def test_a_category_that_cannot_be_had_here_is_named_in_the_text(category: str, text: str) -> None:
    retelling = Retelling()
    retelling.take(0, text_of(DIVIDED._replace(category=category, message="no")))
    (seen,) = said(retelling)
    assert (seen.category, str(seen.message)) == (UserWarning, text)


def test_the_filters_of_this_process_decide() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module="place")
        retell(0, text_of(DIVIDED, DIVIDED._replace(module="elsewhere")))
    assert [str(each.message) for each in seen] == ["divide by zero (task 0; worker host/1)"]
    with pytest.raises(RuntimeWarning, match="divide by zero"):
        retell(0, text_of(DIVIDED))
    retell(0, text_of(DIVIDED), is_raising=False)


def test_of_very_many_different_warnings_the_first_are_issued_and_the_others_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    retelling = Retelling()
    for task in range(MAX_WARNINGS + 7):
        retelling.take(task, text_of(DIVIDED._replace(lineno=task)))
    assert len(said(retelling)) == MAX_WARNINGS
    assert caplog.messages == ["... and 7 more warnings and log records of tasks"]


def test_what_was_lost_on_the_way_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    retelling = Retelling()
    retelling.take(0, (note_line(2, "w", DIVIDED) + note_line(9, "w")).decode())  # 1 and 3 to 9 are missing
    said(retelling)
    assert caplog.messages == ["... and 8 more warnings and log records of tasks"]


def test_what_comes_while_a_task_runs_is_told_apart_from_what_comes_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    retelling = Retelling()
    lines = [note_line(number, "w", DIVIDED._replace(lineno=number)).decode() for number in range(1, 5)]
    retelling.take(0, lines[0], is_live=True)
    retelling.take(0, lines[1] + lines[2], is_live=True)
    retelling.take(0, lines[3])
    retelling.take(0, lines[0])  # it ran again
    assert [seen.lineno for seen in said(retelling)] == [1, 2, 3, 4]
    assert not caplog.messages


def test_a_log_record_is_handled_at_once_by_the_logger_of_its_name(caplog: pytest.LogCaptureFixture) -> None:
    retelling = Retelling()
    assert retelling.take(3, text_of(LOGGED)) == "WARNING far.away: odd\n"
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage(), record.lineno) == ("far.away", "WARNING", "odd", 7)
    assert (record.funcName, record.pathname, record.created) == ("work", "/remote/place.py", 1000.25)
    assert (vars(record)["gearmap_task"], vars(record)["gearmap_worker"]) == (3, "host/1")
    assert logging.Formatter("%(threadName)s %(message)s").format(record).endswith("odd\nTraceback: it broke")


def test_a_record_that_its_logger_does_not_want_is_not_handled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "far.away")
    retell(0, text_of(LOGGED, LOGGED._replace(level=40), LOGGED._replace(level=40, name="root")))
    assert [(record.name, record.levelno) for record in caplog.records] == [("far.away", 40), ("root", 40)]


def test_of_a_flood_of_records_the_first_are_handled_and_the_others_counted(caplog: pytest.LogCaptureFixture) -> None:
    retelling = Retelling()
    for task in range(BURST_RECORDS * 3):
        retelling.take(task, text_of(LOGGED))
    retelling.end()
    *records, last = caplog.records
    assert BURST_RECORDS <= len(records) < BURST_RECORDS * 3
    assert last.getMessage() == f"... and {BURST_RECORDS * 3 - len(records)} more warnings and log records of tasks"
