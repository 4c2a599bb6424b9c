"""Tasks in the calling process: the same options as elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from gearmap.config import RunOptions
from gearmap.errors import TaskTimeout
from gearmap.runtime.arguments import ArgumentSource
from gearmap.runtime.inline import InlineMap, submit_inline
from gearmap.runtime.maprecord import MapRecord

CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    CALLS.clear()


def flaky(error: type[Exception], good_from: int = 3) -> int:
    CALLS.append(error)
    if len(CALLS) < good_from:
        raise error("not yet")
    return len(CALLS)


def run(options: RunOptions, error: type[Exception] = ValueError) -> Any:
    return submit_inline(flaky, (error,), {}, 0, options)


def run_rows(rows: list[tuple[Any, ...]], options: RunOptions) -> list[Any]:
    record = MapRecord(flaky, ArgumentSource([rows], rows=True), options)
    InlineMap(record).execute()
    return record.all_results()


def test_a_task_is_run_again_as_often_as_it_may_and_the_attempts_are_told() -> None:
    future = run(RunOptions(retries=5))
    assert (future.result(), future.attempts) == (3, 3)


def test_the_last_error_is_raised_when_the_retries_are_spent() -> None:
    future = run(RunOptions(retries=1))
    with pytest.raises(ValueError, match="not yet"):
        future.result()
    assert (len(CALLS), future.attempts) == (2, 2)


def test_an_exception_that_is_not_to_be_retried_is_raised_at_once() -> None:
    assert isinstance(run(RunOptions(retries=5, retry_exceptions=[OSError])).exception(), ValueError)
    assert len(CALLS) == 1


def test_a_map_retries_each_of_its_tasks() -> None:
    assert run_rows([(ValueError,), (ValueError,)], RunOptions(retries=2)) == [3, 4]


@pytest.mark.parametrize(
    ("retry", "calls"), [((Exception,), 2), (TimeoutError, 2), (TaskTimeout, 2), (OSError, 2), ((), 1)]
)
def test_a_task_that_took_too_long_has_failed_when_it_returns(retry: Any, calls: int) -> None:
    options = RunOptions(retries=1, task_timeout=1e-9, retry_exceptions=retry, return_exceptions=True)
    (error,) = run_rows([(ValueError, 0)], options)
    assert type(error) is TaskTimeout
    assert "task 0 ran longer than task_timeout=1e-09 s (attempt " in str(error)
    assert len(CALLS) == calls
