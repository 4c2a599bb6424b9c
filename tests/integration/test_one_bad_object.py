"""One object that misbehaves takes its own run down at most, never its client."""

from __future__ import annotations

import time

import pytest
from integration_support import DEADLINE, wait_until

import gearmap
from gearmap.runtime.run import Run

pytestmark = pytest.mark.usefixtures("functions_travel")


def hold(flag, x):
    while not flag.exists():
        time.sleep(0.01)
    return x


def raises(*arguments, **options):
    raise ValueError("a bug of ours")


@pytest.fixture
def flag(tmp_path):
    return tmp_path / "go"


@pytest.mark.parametrize("method", ["delivered", "claim", "ended"])
def test_a_consumer_that_raises_ends_its_own_run_and_the_others_go_on(cluster, flag, method, monkeypatch, caplog):
    neighbour = cluster.map_async(hold, [flag] * 4, range(4), chunksize=1)
    neighbours_call = cluster.submit(hold, flag, "call")
    wait_until(neighbours_call.running, "the calls' run is under way")
    add, bad = Run.add_block, []

    def spoil(run, *arguments, **options):
        if not bad:
            bad.append(run)
            monkeypatch.setattr(run.consumer, method, raises)
        add(run, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "add_block", spoil)
        victim = cluster.map_async(hold, [flag] * 4, range(4))
        wait_until(lambda: bool(bad), "a run has a consumer that raises")
    flag.touch()
    ends = [each for each in (neighbour, victim) if isinstance(each.exception(DEADLINE), gearmap.ClusterBroken)]
    assert len(ends) == 1
    assert "a bug of ours" in str(ends[0].exception())
    assert "a run failed, the others go on" in caplog.text
    (other,) = {neighbour, victim} - set(ends)
    assert other.result(DEADLINE) == [0, 1, 2, 3]
    assert neighbours_call.result(DEADLINE) == "call"
    assert cluster.map(abs, [-1, -2]) == [1, 2]


def test_a_command_that_raises_ends_the_run_that_it_is_for(cluster, flag, monkeypatch):
    call = cluster.submit(hold, flag, "call")
    wait_until(call.running, "the other run is under way")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "add_block", raises)
        with pytest.raises(gearmap.ClusterBroken, match=r"please report this.*a bug of ours"):
            cluster.map(abs, [-1, -2])
    flag.touch()
    assert call.result(DEADLINE) == "call"
    assert cluster.map(abs, [-1, -2]) == [1, 2]


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_a_future_that_a_user_ends_is_left_alone_and_everything_else_goes_on(cluster, flag, when):
    def hold_here(x):  # nothing is known of its duration, so no two calls of it travel together
        return hold(flag, x)

    running = [cluster.submit(hold_here, number) for number in range(2)]
    wait_until(lambda: all(future.running() for future in running), "two calls run")
    waiting = [cluster.submit(hold_here, number) for number in range(2, 60)]
    mapped = cluster.map_async(hold, [flag] * 4, range(4))
    theirs = running if when == "running" else waiting[-2:]
    theirs[0].set_result("theirs")
    theirs[1].set_exception(LookupError("theirs"))
    if when == "waiting":
        waiting[-3].set_running_or_notify_cancel()
    flag.touch()
    others = [future for future in (*running, *waiting) if future not in theirs]
    expected = [number for number, future in enumerate((*running, *waiting)) if future not in theirs]
    assert [future.result(DEADLINE) for future in others] == expected
    assert mapped.result(DEADLINE) == [0, 1, 2, 3]
    assert theirs[0].result(0) == "theirs"
    assert repr(theirs[1].exception(0)) == "LookupError('theirs')"
    assert cluster.submit(abs, -7).result(DEADLINE) == 7
