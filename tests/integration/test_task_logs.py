"""What tasks log from WARNING on is handled by the loggers here."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import pytest
from integration_support import in_background, wait_until

import gearmap

LIMIT = 60.0

pytestmark = pytest.mark.usefixtures("functions_travel")


def said(caplog: Any) -> list[tuple[str, str, str]]:
    """What tasks have said: of gearmap itself there may be more."""
    return [
        (record.name, record.levelname, record.getMessage())
        for record in caplog.records
        if hasattr(record, "gearmap_task")
    ]


def speaks(x):
    logger = logging.getLogger("of.a.task")
    logger.info("not wanted")
    logger.warning("x is %d", x)
    return x


def test_records_from_warning_on_come_back_and_are_not_printed_too(cluster, caplog):
    future = cluster.submit(speaks, 3)
    assert future.result() == 3
    assert said(caplog) == [("of.a.task", "WARNING", "x is 3")]
    assert future.stderr == ""
    (record,) = (record for record in caplog.records if record.name == "of.a.task")
    assert (record.gearmap_task, record.gearmap_worker) == (future.task_index, future.worker)
    assert (record.pathname, record.funcName) == (__file__, "speaks")


def test_a_map_hands_on_the_records_of_all_its_tasks(cluster, caplog):
    assert cluster.map(speaks, range(20)) == list(range(20))
    assert {record.gearmap_task: record.getMessage() for record in caplog.records if record.name == "of.a.task"} == {
        x: f"x is {x}" for x in range(20)
    }


@pytest.mark.parametrize(("level", "expected"), [("INFO", 2), (logging.WARNING, 1), ("error", 0), (None, 0)])
def test_the_level_is_an_option_of_the_run(cluster, caplog, level, expected):
    caplog.set_level(logging.INFO)
    future = cluster.options(log_level=level).submit(speaks, 0)
    assert future.result() == 0
    assert len(said(caplog)) == expected
    assert future.stderr == ("" if expected else "x is 0\n")
    assert cluster.submit(speaks, 0).result() == 0
    assert len(said(caplog)) == expected + 1


def test_a_record_comes_with_the_exception_that_was_logged(cluster, caplog):
    def task():
        try:
            1 / 0  # noqa: B018  # it raises
        except ZeroDivisionError:
            logging.exception("it failed")

    cluster.submit(task).result()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("root", "ERROR")
    assert record.exc_text.endswith("ZeroDivisionError: division by zero")


def test_what_a_handler_of_the_task_prints_comes_back_as_output_only(cluster, caplog):
    def task():
        logger = logging.getLogger("own")
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        logger.warning("by itself")
        logger.removeHandler(handler)

    future = cluster.submit(task)
    future.result()
    assert future.stderr == "by itself\n"
    assert said(caplog) == []


def test_a_handler_of_the_task_that_prints_nothing_does_its_work_beside(cluster, caplog, tmp_path):
    path = str(tmp_path / "log")

    def task():
        handler = logging.FileHandler(path)
        logging.getLogger("own").addHandler(handler)
        logging.getLogger("own").warning("for both")
        logging.getLogger("own").removeHandler(handler)
        handler.close()

    cluster.submit(task).result()
    assert (tmp_path / "log").read_text() == "for both\n"
    assert said(caplog) == [("own", "WARNING", "for both")]


def test_records_come_while_a_task_of_a_map_runs_and_only_once(cluster, caplog, tmp_path):
    gate = str(tmp_path / "go on")

    def task(gate):
        logging.warning("begun")
        until = time.monotonic() + LIMIT
        while not os.path.exists(gate) and time.monotonic() < until:
            time.sleep(0.01)
        logging.warning("done")

    result = in_background(lambda: cluster.map(task, [gate]))
    wait_until(lambda: [text for _, _, text in said(caplog)] == ["begun"], "the record comes live")
    open(gate, "x").close()
    assert result() == [None]
    assert [text for _, _, text in said(caplog)] == ["begun", "done"]


def test_what_a_task_logged_survives_that_it_ran_out_of_time(cluster, caplog):
    def task():
        logging.error("stuck")
        time.sleep(LIMIT)

    with pytest.raises(gearmap.TaskTimeout):
        cluster.options(task_timeout=0.5).submit(task).result()
    assert said(caplog) == [("root", "ERROR", "stuck")]


def test_a_flood_of_records_is_cut_and_counted(cluster, caplog):
    def task():
        for number in range(20_000):
            logging.warning("number %d", number)

    cluster.submit(task).result()
    n_said = len(said(caplog))
    assert 0 < n_said < 1000
    assert caplog.messages[-1] == f"... and {20_000 - n_said} more warnings and log records of tasks"


def test_arguments_that_do_not_fit_a_message_are_told(cluster, caplog):
    cluster.submit(lambda: logging.getLogger("odd").warning("%d items", "no")).result()
    assert said(caplog) == [("odd", "WARNING", "%d items (its arguments do not fit: TypeError)")]
