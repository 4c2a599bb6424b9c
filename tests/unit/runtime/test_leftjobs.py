"""Jobs whose run has left a session that goes on."""

from __future__ import annotations

import pytest

from gearmap.runtime.leftjobs import FIRST_INTERVAL, LONGEST_INTERVAL, LeftJob, LeftJobs
from gearmap.transport.events import Accepted, JobRequest, Rejected, UniqueStatus, WorkComplete, WorkData, WorkFailed

TOKEN = (1, 7)


class FakeReader:
    """Of outcomes that are the name of a node."""

    def __init__(self):
        self.nodes = None

    def find_nodes(self, data):
        self.nodes = {b"execution": data.decode()}


class FakeAsker:
    """Takes down what the job server is told."""

    def __init__(self):
        self.said = []

    def query_unique(self, unique):
        self.said.append(("ask", unique))

    def cancel_job(self, handle):
        self.said.append(("cancel", handle))

    def forget_job(self, handle):
        self.said.append(("forget", handle))

    def send_stops(self, requests):
        self.said += [("stop", request.function) for request in requests]

    def take(self):
        said, self.said = self.said, []
        return said


class World:
    """One job that was left at 10.0, and asked about."""

    def __init__(self, handle="H:1"):
        self.asker = FakeAsker()
        self.left = LeftJobs(self.asker)
        self.left.take({TOKEN: LeftJob("u", handle, FakeReader(), stops)})
        self.left.work(10.0)
        assert self.asker.take() == [("ask", "u")]

    def answer(self, now, *, known=True, running=True):
        self.left.answered(UniqueStatus("u", known, running, 0, 0, 1), now)
        return self.asker.take()


def stops(nodes):
    return [JobRequest(-1, node, "s", b"") for node in nodes.values()]


@pytest.fixture
def world():
    return World()


def test_a_queued_job_is_dropped_and_forgotten_with_the_next_answer(world):
    assert world.answer(10.0, running=False) == [("cancel", "H:1")]
    world.left.told(TOKEN, WorkFailed(TOKEN))
    assert len(world.left) == 1
    assert world.answer(10.3, running=False) == [("forget", "H:1")]
    assert len(world.left) == 0
    assert world.left.due == float("inf")


def test_a_job_that_a_worker_took_meanwhile_is_listened_to_and_stopped(world):
    assert world.answer(10.0, running=False) == [("cancel", "H:1")]
    world.left.told(TOKEN, WorkFailed(TOKEN))
    assert world.answer(10.3) == []
    world.left.told(TOKEN, WorkData(TOKEN, b"node"))
    world.left.work(10.4)
    assert world.asker.take() == [("ask", "u")]
    assert world.answer(10.4) == [("stop", "node")]
    world.left.told(TOKEN, WorkComplete(TOKEN, b""))
    assert world.asker.take() == [("forget", "H:1")]
    assert len(world.left) == 0


def test_a_job_that_runs_is_stopped_after_its_first_sign(world):
    assert world.answer(10.0) == []
    world.left.told(TOKEN, WorkData(TOKEN, b"node"))
    assert world.left.due == 0.0
    world.left.work(10.3)
    world.asker.take()
    assert world.answer(10.3) == [("stop", "node")]


def test_one_that_was_not_accepted_yet_is_dropped_when_it_is():
    world = World(handle=None)
    assert world.answer(10.0, running=False) == []
    world.left.told(TOKEN, Accepted(TOKEN, "H:2"))
    assert world.answer(10.3, running=False) == [("cancel", "H:2")]


@pytest.mark.parametrize("end", [WorkComplete(TOKEN, b""), WorkFailed(TOKEN), Rejected(TOKEN, "code", "text")])
def test_one_that_ends_by_itself_is_nobodys_business(world, end):
    world.left.told(TOKEN, end)
    assert len(world.left) == 0
    assert world.answer(10.3) == []
    assert world.asker.take() == []


def test_questions_become_rarer_and_begin_anew_with_new_jobs(world):
    now, gaps = 10.0, []
    for _ in range(20):
        gaps.append(world.left.due - now)
        now = world.left.due
        world.left.work(now)
    assert gaps[0] == pytest.approx(FIRST_INTERVAL)
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(LONGEST_INTERVAL)
    world.left.take({(2, 1): LeftJob("v")})
    world.left.work(now)
    assert world.left.due == pytest.approx(now + FIRST_INTERVAL)


def test_all_of_them_go_with_the_connection(world):
    world.left.clear()
    assert (len(world.left), world.left.due) == (0, float("inf"))
