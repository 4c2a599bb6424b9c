"""One run in the driver, between its engine and its job servers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gearmap.config import ServerAddress
from gearmap.core import events as ev
from gearmap.core.engine import BEAT_TIMEOUT, RunEngine
from gearmap.core.names import Lane, control_name
from gearmap.core.retry import RetryPolicy
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.run import Place, Run, RunSettings
from gearmap.secret import Secret
from gearmap.transport.events import (
    Connected,
    JobRequest,
    Rejected,
    UniqueStatus,
    WorkComplete,
    WorkData,
    WorkFailed,
)
from gearmap.wire import envelope, seal
from gearmap.wire.jobheader import BlockKind
from gearmap.wire.outcome import NotRun, NotRunReason, Outcome, encode_outcome
from gearmap.wire.serializer import dump_function, dumps

SECRET = Secret(b"s" * 32)
SESSION_ID = b"i" * 16
SESSION_KEY = seal.session_key(SECRET, SESSION_ID)
LANE = Lane("default", (3, 11), seal.key_id(SECRET))
EXECUTION = b"e" * 16


class FakeLink:
    """A job server that takes everything and says what a test lets it say."""

    number = 0
    address = ServerAddress("head", 4730, "the test")
    deadline = None
    is_up = was_up = True
    failures = 0

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.sent: list[JobRequest] = []
        self.asked: list[str] = []

    def step(self, now: float) -> Sequence[Any]:
        events, self.events = self.events, []
        return events

    def submit(self, requests: Sequence[JobRequest]) -> None:
        self.sent += requests

    def request_status(self) -> None: ...

    def query_unique(self, unique: str) -> None:
        self.asked.append(unique)

    def leave(self, *_: Any) -> None: ...


class FakeConsumer:
    """Takes down how tasks end."""

    def __init__(self) -> None:
        self.given_up: list[GivenUp] = []
        self.is_over = False

    def claim(self, first: int, stop: int) -> Sequence[int]:
        return ()

    def gave_up(self, task: int, reason: GivenUp) -> None:
        self.given_up.append(reason)

    def ended(self, snapshot: Any) -> None:
        self.is_over = True

    def progressed(self, snapshot: Any) -> None: ...


class World:
    """A run with one job, out and running."""

    def __init__(self, *numbers: int, fail_fast: bool = False, **policy: Any) -> None:
        settings = RunSettings(run_id="r", lane=LANE, session_id=SESSION_ID, session_key=SESSION_KEY, task_timeout=2.0)
        self.link, self.consumer = FakeLink(), FakeConsumer()
        engine = RunEngine(policy=RetryPolicy(**policy), chunksize=10, fail_fast=fail_fast)
        self.run = Run(settings, engine, self.consumer, [self.link])  # type: ignore[arg-type, list-item]  # fakes
        block = ev.Block(0, 0, len(numbers), b"digest", 10)
        self.run.add_block(block, BlockKind.COLUMNS, dumps((list(numbers),)), Place(), (b"digest", dump_function(abs)))
        self.run.tell(ev.InputEnded())
        self.link.events.append(Connected())
        self.run.step(0.0)
        (self.job,) = self.link.sent
        self.link.sent.clear()
        self.sequence = 0

    def node_says(self, now: float, *, execution: bytes = EXECUTION, **fields: Any) -> None:
        """Let the node say something about an execution."""
        header, body = encode_outcome(Outcome(worker="gpu1", **fields))
        unique = self.job.unique.encode()
        message = envelope.seal_message(
            kind=envelope.Kind.NODE,
            key=seal.node_key(SESSION_KEY, unique, execution),
            session_id=SESSION_ID,
            execution_id=execution,
            sequence=self.sequence,
            expiry=0,
            context=envelope.make_context(LANE.name.encode(), unique),
            header=header,
            body=body,
        ).to_bytes()
        self.sequence += 1
        kind = WorkComplete if fields.get("final") else WorkData
        self.link.events.append(kind(self.job.token, message))
        self.run.step(now)

    def stops(self) -> list[tuple[str, dict[str, Any]]]:
        """What was asked of which control function, opened as a node does it."""
        found = []
        for request in self.link.sent:
            if request.function != LANE.name:
                unique = request.unique.encode()
                assert isinstance(request.body, bytes)
                prefix = envelope.parse_prefix(request.body)
                key = seal.job_key(seal.session_key(SECRET, prefix.session_id), unique)
                context = envelope.make_context(request.function.encode(), unique)
                found.append((request.function, json.loads(envelope.open_header(request.body, prefix, key, context))))
        return found


# ----------------------------------------------------------------------------------------------------------- stopping


def test_an_execution_that_was_given_up_is_stopped_by_the_node_that_told_of_it() -> None:
    world = World(1, 2)
    world.node_says(1.0, node="n1", beat=0)
    world.run.step(1.0 + BEAT_TIMEOUT)
    assert world.stops() == [(control_name("n1", LANE.key_id), {"op": "stop", "execution": EXECUTION.hex()})]
    assert [request.function for request in world.link.sent].count(LANE.name) == 2  # it is run again, in halves


def test_an_execution_of_an_unknown_node_is_left_alone() -> None:
    world = World(1)
    world.node_says(1.0, beat=0)
    world.run.step(1.0 + BEAT_TIMEOUT)
    assert world.stops() == []


def test_nothing_is_asked_of_nodes_when_the_run_ends_because_its_session_does() -> None:
    world = World(1)
    world.node_says(1.0, node="n1", beat=0)
    world.run.cancel()
    assert world.consumer.is_over
    assert world.link.sent == []


@pytest.mark.parametrize("answer", ["refused", "failed", "answered"])
def test_what_becomes_of_a_request_to_stop_changes_nothing(answer: str) -> None:
    world = World(1)
    world.node_says(1.0, node="n1", beat=0)
    world.run.step(1.0 + BEAT_TIMEOUT)
    token = next(request.token for request in world.link.sent if request.function != LANE.name)
    before = world.run.engine.snapshot(1.0)
    news = {
        "refused": Rejected(token, "QUEUE_FULL", "full"),
        "failed": WorkFailed(token),
        "answered": WorkComplete(token, b"{}"),
    }
    for _ in range(30):
        world.link.events.append(news[answer])
        world.run.step(40.0)
    assert world.run.engine.snapshot(1.0) == before
    assert not world.run.closed


# ------------------------------------------------------------------------------------------------------------ vanished


def answer(world: World, *, known: bool, running: bool) -> None:
    world.link.events.append(UniqueStatus(world.link.asked[-1], known, running, 0, 0, 1))


def test_nobody_is_asked_about_a_job_that_was_sent_just_now_or_tells_of_itself() -> None:
    world = World(1)
    world.run.step(1.0)
    assert world.link.asked == []
    world.node_says(2.0, beat=0)
    world.run.step(20.0)
    assert world.link.asked == []


def test_a_job_that_a_worker_took_and_nobody_tells_of_is_sent_again() -> None:
    world = World(1)
    for now in range(10, 45):
        world.run.step(float(now))
        answer(world, known=True, running=True)
    assert world.link.asked[0] == world.job.unique
    assert [request.function for request in world.link.sent] == [LANE.name]


def test_a_job_that_waits_its_turn_may_wait() -> None:
    world = World(1)
    for now in range(10, 100):
        world.run.step(float(now))
        answer(world, known=True, running=False)
    assert world.link.sent == []


def test_a_job_that_the_server_does_not_know_is_sent_again_and_nobody_is_charged() -> None:
    world = World(1, max_worker_losses=1)
    world.run.step(10.0)
    answer(world, known=False, running=False)
    world.run.step(10.1)
    assert [request.function for request in world.link.sent] == [LANE.name]
    assert world.consumer.given_up == []
    answer(world, known=False, running=False)
    world.run.step(10.2)
    assert len(world.link.sent) == 1


# ------------------------------------------------------------------------------------------------------------ given up


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (NotRunReason.TIMED_OUT, "task 1 (abs(57)) ran longer than task_timeout=2 s on gpu1"),
        (NotRunReason.CHILD_DIED, "task 1 (abs(57)) killed its worker once: SIGKILL, last on gpu1; out of memory?"),
    ],
)
def test_a_task_that_is_given_up_keeps_its_call(reason: NotRunReason, said: str) -> None:
    world = World(1, 57, max_worker_losses=1, fail_fast=True)
    world.node_says(1.0, not_run=NotRun(reason=reason, detail="SIGKILL"), beat=1, final=True)
    (given_up,) = world.consumer.given_up
    assert str(given_up.error()) == said
