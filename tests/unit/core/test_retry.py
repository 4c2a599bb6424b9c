"""What is done about a failure."""

from __future__ import annotations

import pytest

from gearmap.core.events import NotRunKind
from gearmap.core.retry import (
    MAX_FETCHES,
    History,
    RetryPolicy,
    Verdict,
    after_loss,
    after_refusal,
    decide,
    refusal_delay,
)


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_a_task_runs_again_as_often_as_retries_say(retries: int) -> None:
    policy = RetryPolicy(retries=retries)
    verdicts = [decide(policy, failures=n) for n in range(1, retries + 2)]
    assert verdicts == [Verdict.RUN_AGAIN] * retries + [Verdict.GIVE_UP]


def test_lost_workers_do_not_spend_retries_and_have_a_limit_of_their_own() -> None:
    policy = RetryPolicy(retries=0, max_worker_losses=3)
    assert [decide(policy, losses=n) for n in (1, 2, 3)] == [Verdict.RUN_AGAIN, Verdict.RUN_AGAIN, Verdict.GIVE_UP]


@pytest.mark.parametrize("limit", [-1, 0, 1])
def test_the_first_lost_worker_is_the_last_at_a_limit_of_one_or_less(limit: int) -> None:
    assert decide(RetryPolicy(max_worker_losses=limit), losses=1) is Verdict.GIVE_UP
    assert decide(RetryPolicy(max_worker_losses=limit)) is Verdict.RUN_AGAIN


def test_a_worker_that_cannot_load_the_function_is_avoided() -> None:
    history = after_refusal(History(), NotRunKind.CANNOT_LOAD, "a", workers=8)
    assert history == History(avoid=("a",), lacking=("a",))


def test_one_worker_that_refuses_again_and_again_does_not_speak_for_the_others() -> None:
    history: History | None = History()
    for _ in range(100):
        assert history is not None
        history = after_refusal(history, NotRunKind.CANNOT_LOAD, "a", workers=2)
    assert history == History(avoid=("a",), lacking=("a",))


@pytest.mark.parametrize(("workers", "needed"), [(None, 2), (0, 2), (1, 1), (3, 3)])
def test_tasks_fail_when_as_many_workers_as_there_are_cannot_load_the_function(
    workers: int | None, needed: int
) -> None:
    history: History | None = History()
    for worker in range(needed):
        assert history is not None
        history = after_refusal(history, NotRunKind.CANNOT_LOAD, str(worker), workers=workers)
    assert history is None


def test_what_could_not_be_fetched_is_tried_some_times_whoever_tried_and_lost_workers_do_not_count() -> None:
    history: History | None = History(lacking=("b",))
    for times in range(1, MAX_FETCHES):
        assert history is not None
        history = after_refusal(history, NotRunKind.NO_BLOB, "a", workers=1)
        assert history == History(avoid=("b",), lacking=("b",), unfetched=times)
        assert history is not None
        history = after_loss(history)
    assert history is not None
    assert after_refusal(history, NotRunKind.NO_BLOB, "c", workers=None) is None


def test_the_avoid_list_is_dropped_when_only_avoided_workers_take_the_chunk() -> None:
    first = after_refusal(History(avoid=("a",)), NotRunKind.AVOIDED, "a", workers=2)
    assert first is not None
    assert first.avoid == ("a",)
    second = after_refusal(first, NotRunKind.AVOIDED, "a", workers=2)
    assert second == History()


def test_a_chunk_that_expired_twice_does_not_go_again() -> None:
    first = after_refusal(History(), NotRunKind.EXPIRED, "a", workers=2)
    assert first is not None
    assert first.avoid == ("a",)
    assert after_refusal(first, NotRunKind.EXPIRED, "b", workers=2) is None


def test_a_wrong_clock_is_that_of_the_worker_once_anybody_has_run_the_function() -> None:
    history: History | None = History()
    delays = []
    for worker in ("a", "b", "a", "b", "a", "b", "a", "b"):
        history = after_refusal(history or History(), NotRunKind.EXPIRED, worker, workers=3, is_loaded=True)
        assert history is not None
        assert history.avoid == (worker,)
        delays.append(refusal_delay(history))
    assert delays == [0, 1, 2, 4, 8, 16, 30, 30]


def test_another_answer_in_between_starts_the_count_anew() -> None:
    first = after_refusal(History(), NotRunKind.EXPIRED, "a", workers=2)
    assert first is not None
    assert after_refusal(first, NotRunKind.AGAIN, "b", workers=2) == History()


def test_a_worker_that_cannot_load_is_still_avoided_after_another_answer() -> None:
    history = after_refusal(History(lacking=("a",)), NotRunKind.AGAIN, "b", workers=4)
    assert history == History(avoid=("a",), lacking=("a",))
