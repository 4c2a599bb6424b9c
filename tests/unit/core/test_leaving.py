"""Which session a run gets, and what becomes of its jobs in one that others go on using."""

from __future__ import annotations

import pytest

from gearmap.core.leaving import GRACE_SECONDS, MAX_SESSIONS, LeavingStep, next_step, shares_session


def test_runs_share_when_all_sessions_of_their_own_are_taken():
    assert [shares_session(count) for count in (0, MAX_SESSIONS - 1, MAX_SESSIONS, 500)] == [False, False, True, True]


def step(**said):
    return next_step(
        **({"known": True, "running": True, "is_cancelled": False, "is_heard": True, "elapsed": 9.0} | said)
    )


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize("is_heard", [False, True])
def test_what_the_job_server_does_not_know_is_gone(is_cancelled, is_heard):
    assert step(known=False, is_cancelled=is_cancelled, is_heard=is_heard) is LeavingStep.FORGET


def test_a_queued_job_is_dropped_once():
    assert step(running=False, elapsed=0.0) is LeavingStep.CANCEL
    assert step(running=False, is_cancelled=True) is LeavingStep.FORGET


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_job_that_runs_is_stopped_where_it_runs_as_soon_as_that_is_known(is_cancelled):
    assert step(is_cancelled=is_cancelled) is LeavingStep.STOP
    assert step(is_cancelled=is_cancelled, is_heard=False) is LeavingStep.WAIT


def test_a_job_that_runs_may_end_by_itself_before_its_child_is_killed():
    assert step(elapsed=GRACE_SECONDS / 2) is LeavingStep.WAIT
