"""The run engine in a hostile world: whatever happens, every task settles once, in its place, and the run ends.

`World` stands for the runtime, the job servers and the nodes. It carries instructions out, checks each of them against
its own books, and can answer anything: the truth, the truth twice, or nonsense.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gearmap.core import events as ev
from gearmap.core.board import DELAYED
from gearmap.core.engine import JOBS_PER_WORKER, UNKNOWN_WORKERS, RunEngine
from gearmap.core.retry import RetryPolicy, retry_delay

SERVERS = st.integers(0, 2)
EXECUTIONS = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f", b"g"])
WORKERS = st.sampled_from(["w0", "w1", "w2"])
POSITIONS = st.integers(-3, 12)
RANGES = st.lists(st.tuples(POSITIONS, POSITIONS), max_size=3).map(tuple)
REPORTS = st.builds(
    ev.NotRunReport,
    st.sampled_from(ev.NotRunKind),
    charged=st.none() | POSITIONS,
    failure=st.none() | st.just("missing"),
)
MEASURES = st.tuples(
    st.sampled_from([0.0, 1e-9, 0.01, 10.0, -1.0, math.nan, math.inf]), st.sampled_from([-1, 0, 1, 5, 10**12])
)


@dataclass
class Job:
    attempt: int
    server: int
    tasks: list[int]
    live: bool = True
    over: bool = False
    failed: set[int] = field(default_factory=set)


@dataclass
class World:
    """The runtime's side of a run, with the books that the engine is checked against."""

    engine: RunEngine
    fail_fast: bool
    max_workers: int | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    now: float = 0.0
    size: int = 0
    workers: int | None = None
    up: set[int] = field(default_factory=set)
    blocks: dict[int, ev.Block] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    settled: dict[int, str] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    not_before: dict[int, float] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    input_ended: bool = False
    ended: int = 0
    broken: bool = False
    cancelled: bool = False

    # ------------------------------------------------------------------------------------------------ what happens

    def add(self, size: int, function: str, payload_bytes: int = 10, done: Iterable[int] = ()) -> ev.AddBlock:
        """Return a block of which the tasks at the offsets `done` were done by an earlier run."""
        block = ev.Block(len(self.blocks), self.size, size, function, payload_bytes)
        self.blocks[block.id] = block
        self.size += size
        tasks = sorted({block.first + offset for offset in done if offset < size})
        return ev.AddBlock(block, tuple((task, task + 1) for task in tasks))

    def tell(self, *events: ev.Input) -> list[ev.Instruction]:
        """Tell the engine what happened, carry out what it wants and check that it may."""
        outcome = None
        for event in events:
            if isinstance(event, ev.OutcomeArrived):
                outcome = event
            self._note(event)
            if isinstance(event, ev.AddBlock) and not self.engine.ended:
                for start, _ in event.done:
                    self._settle(start, "done")
        was_ended = self.engine.ended
        instructions = self.engine.handle_all(list(events), self.now)
        if was_ended:
            assert all(isinstance(one, ev.DropBlock) for one in instructions)
        for one in instructions:
            self._carry_out(one, outcome)
        self.check()
        return instructions

    def _note(self, event: ev.Input) -> None:
        if isinstance(event, ev.ServerUp):
            self.up.add(event.server)
        elif isinstance(event, ev.ServerDown):
            if event.server in self.up:
                self._close(job for job in self.jobs.values() if job.server == event.server)
            self.up.discard(event.server)
        elif isinstance(event, ev.WorkersSeen):
            self.workers = event.count
        elif isinstance(event, ev.OutcomeArrived):
            self._note_failures(event)
            if event.final:
                self._close(job for job in self.jobs.values() if job.attempt == event.attempt)
        elif isinstance(event, ev.AttemptLost):
            self._close(job for job in self.jobs.values() if job.attempt == event.attempt)
        elif isinstance(event, ev.InputEnded):
            self.input_ended = True
        elif isinstance(event, ev.CancelRun):
            self.cancelled = True
        elif isinstance(event, ev.CancelTask) and not self.engine.ended:
            held = {task for job in self.jobs.values() if job.live for task in job.tasks}
            if 0 <= event.task < self.size and event.task not in held:
                self.settled.setdefault(event.task, "cancelled")

    def _note_failures(self, event: ev.OutcomeArrived) -> None:
        """Keep count of what tasks are charged with, and from when on they may run again."""
        job = self.jobs.get(event.attempt)
        if job is None or not job.live:
            return
        done = {at for start, stop in event.done for at in range(max(0, start), min(stop, len(job.tasks)))}
        told = [failed.position for failed in event.failed]
        report = event.not_run
        if event.final and report is not None and report.reason is ev.NotRunKind.TIMED_OUT:
            told += [] if report.charged is None else [report.charged]
        for at in told:
            if not 0 <= at < len(job.tasks) or at in done:
                continue
            task = job.tasks[at]
            if task in self.settled or task in job.failed:
                continue
            job.failed.add(task)
            count = self.failures[task] = self.failures.get(task, 0) + 1
            self.not_before[task] = self.now + retry_delay(self.policy, count, seed=0, task=task)

    @staticmethod
    def _close(jobs: Iterable[Job]) -> None:
        for job in jobs:
            job.live, job.over = False, True

    # --------------------------------------------------------------------------------------------- what is wanted

    def _carry_out(self, one: ev.Instruction, outcome: ev.OutcomeArrived | None) -> None:
        if isinstance(one, ev.Submit):
            self._submit(one)
        elif isinstance(one, ev.Deliver):
            assert outcome is not None
            assert one.attempt == outcome.attempt
            start, stop = outcome.done[one.payload]
            assert one.offset >= 0
            assert start + one.offset + one.size <= stop
            at = start + one.offset
            assert at >= 0
            assert self.jobs[one.attempt].tasks[at : at + one.size] == list(range(one.first, one.first + one.size))
            for task in range(one.first, one.first + one.size):
                self._settle(task, "done")
        elif isinstance(one, ev.FailTask):
            self._settle(one.task, "failed")
            if one.failure != "missing":
                assert isinstance(one.failure, tuple)
                attempt, position = one.failure
                assert self.jobs[attempt].tasks[position] == one.task
        elif isinstance(one, ev.LoseTask):
            self._settle(one.task, "lost")
        elif isinstance(one, ev.TimeOutTask):
            self._settle(one.task, "timed out")
        elif isinstance(one, ev.CancelAttempt):
            assert self.jobs[one.attempt].live
            self.jobs[one.attempt].live = False
        elif isinstance(one, ev.DropBlock):
            assert one.block not in self.dropped
            self.dropped.add(one.block)
        elif isinstance(one, ev.BreakRun):
            self.broken = True
        else:
            assert isinstance(one, ev.RunEnded)
            self.ended += 1
            for job in self.jobs.values():
                job.live = False

    def _submit(self, one: ev.Submit) -> None:
        assert not self.ended
        assert one.attempt not in self.jobs
        assert one.server in self.up
        assert {span.block.function for span in one.spans} == {one.function}
        tasks = [task for span in one.spans for task in range(span.first, span.first + span.size)]
        assert tasks
        assert len(set(tasks)) == len(tasks)
        live = [job for job in self.jobs.values() if job.live]
        assert not set(tasks) & {task for job in live for task in job.tasks}
        assert not set(tasks) & set(self.settled)
        assert not {span.block.id for span in one.spans} & self.dropped
        assert all(self.failures.get(task, 0) <= self.policy.retries for task in tasks)
        assert all(self.not_before.get(task, self.now) <= self.now for task in tasks)
        self.jobs[one.attempt] = Job(one.attempt, one.server, tasks)
        assert self.max_workers is None or len(live) < self.max_workers
        here = sum(job.server == one.server for job in live)
        workers = UNKNOWN_WORKERS if self.workers is None else self.workers
        window = JOBS_PER_WORKER * workers
        assert here < (window if self.workers is None else max(2, math.ceil(window / len(self.up))))

    def _settle(self, task: int, how: str) -> None:
        assert 0 <= task < self.size
        assert task not in self.settled
        self.settled[task] = how

    # --------------------------------------------------------------------------------------------- what must be true

    def check(self) -> None:
        assert self.ended == self.engine.ended
        live = [job for job in self.jobs.values() if job.live]
        assert {server: count for server, count in self.engine._in_flight.items() if count} == {
            server: sum(job.server == server for job in live) for server in {job.server for job in live}
        }
        known = [] if self.ended else [job.attempt for job in self.jobs.values() if not job.over]
        assert sorted(self.engine._attempts) == known
        shot = self.engine.snapshot(1.0)
        assert shot.settled + shot.running + shot.queued == (self.size_seen if shot.total is None else shot.total)
        assert min(shot.done, shot.failed, shot.cancelled, shot.running, shot.queued) >= 0
        if not self.ended:
            held = {task for job in live for task in job.tasks} - set(self.settled)
            assert (shot.running, shot.settled) == (len(held), len(self.settled))
            assert shot.done == list(self.settled.values()).count("done")
            whole = {
                block.id
                for block in self.blocks.values()
                if all(task in self.settled for task in range(block.first, block.first + block.size))
            }
            assert self.dropped == whole
        else:
            assert self.dropped == set(self.blocks)
            assert self.engine.deadline is None

    @property
    def size_seen(self) -> int:
        return self.engine._board.size

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.tell(ev.Tick())
        assert self.engine.deadline is None or self.engine.deadline > self.now

    def answer(self, job: Job, **changes: object) -> None:
        """Answer a job as a good node does."""
        size = len(job.tasks)
        fields: dict[str, object] = {"done": ((0, size),), "elapsed": 0.01 * size, "count": size, "final": True}
        self.tell(ev.OutcomeArrived(job.attempt, b"good", "w0", **(fields | changes)))  # type: ignore[arg-type]

    def turn_benign(self) -> None:
        """Everything works from now on: the run must end, without a tick unless the engine asks for one."""
        self.tell(ev.ServerUp(0), ev.WorkersSeen(2), ev.InputEnded())
        for _ in range(2 * self.size + 20):
            for job in [job for job in self.jobs.values() if job.live]:
                if job.live:
                    self.answer(job)
            if self.engine.deadline is not None:
                self.tick(max(0.0, self.engine.deadline - self.now))
        assert self.ended == 1
        assert set(self.engine._in_flight.values()) <= {0}
        if not (self.cancelled or self.broken or self.fail_fast):
            assert set(self.settled) == set(range(self.size))


def new_world(
    *,
    fail_fast: bool = False,
    retries: int = 0,
    retry_delay: float = 0.0,
    retry_timeouts: bool = True,
    losses: int = 3,
    chunksize: int | None = None,
    max_workers: int | None = None,
    total: int | None = None,
) -> World:
    policy = RetryPolicy(
        retries=retries, retry_timeouts=retry_timeouts, max_worker_losses=losses, retry_delay=retry_delay
    )
    engine = RunEngine(policy=policy, chunksize=chunksize, max_workers=max_workers, fail_fast=fail_fast, total=total)
    return World(engine, fail_fast, max_workers, policy)


class HostileWorld(RuleBasedStateMachine):
    """Any event at any time, true or not."""

    def __init__(self) -> None:
        super().__init__()
        self.world = new_world()
        self.last: ev.OutcomeArrived | None = None

    @initialize(
        fail_fast=st.sampled_from([False, False, False, True]),
        retries=st.sampled_from([2, 1, 3, 0]),
        retry_delay=st.sampled_from([20.0, 0.5, 0.01, 0.0]),
        retry_timeouts=st.sampled_from([True, True, False]),
        losses=st.integers(1, 3),
        chunksize=st.none() | st.integers(1, 7),
        max_workers=st.none() | st.integers(1, 3),
        total=st.none() | st.integers(0, 40),
        start=st.sampled_from(["at once", "quick", "cold"]),
        first=st.integers(1, 12),
    )
    def begin(self, start: str, first: int, **options: int | None) -> None:
        self.world = new_world(**options)  # type: ignore[arg-type]  # drawn to fit
        if start != "cold":
            self.world.tell(ev.ServerUp(0), self.world.add(first, "f"))
        if start == "quick":
            self.world.answer(self.world.jobs[1], elapsed=1e-6)

    @precondition(lambda self: not self.world.input_ended)
    @rule(
        sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6),
        function=st.sampled_from("ffg"),
        huge=st.booleans(),
        done=st.sets(st.integers(0, 5), max_size=3),
    )
    def blocks_come(self, sizes: list[int], function: str, huge: bool, done: set[int]) -> None:
        self.world.tell(*[self.world.add(size, function, 3 << 20 if huge else 10, done) for size in sizes])

    @precondition(lambda self: not self.world.input_ended and self.world.engine.next_block_size("f"))
    @rule()
    def the_block_that_is_asked_for_comes(self) -> None:
        self.world.tell(self.world.add(min(12, self.world.engine.next_block_size("f")), "f"))

    @precondition(lambda self: self.world.size > 10)
    @rule(really=st.integers(0, 5))
    def the_input_ends(self, really: int) -> None:
        if not really:
            self.world.tell(ev.InputEnded())

    @rule(server=SERVERS)
    def a_server_comes(self, server: int) -> None:
        self.world.tell(ev.ServerUp(server))

    @rule(server=SERVERS)
    def a_server_goes(self, server: int) -> None:
        self.world.tell(ev.ServerDown(server))

    @rule(count=st.integers(0, 4))
    def workers_are_counted(self, count: int) -> None:
        self.world.tell(ev.WorkersSeen(count))

    @rule(task=st.integers(-2, 60))
    def a_task_is_cancelled(self, task: int) -> None:
        self.world.tell(ev.CancelTask(task))

    @rule(really=st.integers(0, 30))
    def the_run_is_cancelled(self, really: int) -> None:
        if not really:
            self.world.tell(ev.CancelRun())

    @rule(seconds=st.sampled_from([0.0, 0.005, 0.5, 5.0, 29.0, 31.0, 1e7]))
    def time_passes(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(data=st.data(), execution=EXECUTIONS, worker=WORKERS, position=st.none() | POSITIONS)
    def a_beat(self, data: st.DataObject, execution: bytes, worker: str, position: int | None) -> None:
        self.world.tell(ev.Beat(self._attempt(data), execution, worker, position))

    @rule(data=st.data(), running=st.booleans())
    def a_job_is_seen(self, data: st.DataObject, running: bool) -> None:
        self.world.tell(ev.JobSeen(self._attempt(data), running))

    @rule(data=st.data(), reason=st.sampled_from(ev.LossReason))
    def an_attempt_is_lost(self, data: st.DataObject, reason: ev.LossReason) -> None:
        self.world.tell(ev.AttemptLost(self._attempt(data), reason))

    @rule(
        data=st.data(),
        execution=EXECUTIONS,
        worker=WORKERS,
        done=RANGES,
        failed=st.lists(POSITIONS, max_size=3),
        report=st.none() | REPORTS,
        measure=MEASURES,
        final=st.booleans(),
        retry=st.booleans(),
    )
    def any_outcome(
        self,
        data: st.DataObject,
        execution: bytes,
        worker: str,
        done: tuple[ev.TaskRange, ...],
        failed: list[int],
        report: ev.NotRunReport | None,
        measure: tuple[float, int],
        final: bool,
        retry: bool,
    ) -> None:
        attempt = self._attempt(data)
        failures = tuple(ev.TaskFailed(at, (attempt, at), retry) for at in failed)
        self.last = ev.OutcomeArrived(attempt, execution, worker, done, failures, report, *measure, final)
        self.world.tell(self.last)

    @precondition(lambda self: any(job.live for job in self.world.jobs.values()))
    @rule(data=st.data())
    def a_good_node_answers(self, data: st.DataObject) -> None:
        live = [job for job in self.world.jobs.values() if job.live]
        self.world.answer(data.draw(st.sampled_from(live)))

    @precondition(lambda self: any(job.live for job in self.world.jobs.values()))
    @rule(
        data=st.data(),
        failed=st.sets(st.integers(0, 3), min_size=1),
        kind=st.none() | st.sampled_from([ev.NotRunKind.TIMED_OUT, ev.NotRunKind.DIED, ev.NotRunKind.AGAIN]),
        charged=st.none() | st.integers(0, 4),
        final=st.booleans(),
    )
    def a_job_fails_in_part(
        self, data: st.DataObject, failed: set[int], kind: ev.NotRunKind | None, charged: int | None, final: bool
    ) -> None:
        live = [job for job in self.world.jobs.values() if job.live]
        job = data.draw(st.sampled_from(live))
        failures = tuple(ev.TaskFailed(at, (job.attempt, at)) for at in sorted(failed) if at < len(job.tasks))
        report = None if kind is None else ev.NotRunReport(kind, "", charged)
        self.world.answer(job, done=(), failed=failures, not_run=report, final=final)

    @precondition(lambda self: self.world.engine._board.counts[DELAYED])
    @rule(data=st.data(), late=st.booleans())
    def a_task_that_waits_for_its_retry_is_cancelled_or_delivered_late(self, data: st.DataObject, late: bool) -> None:
        world = self.world
        delayed = [at for low, high in world.engine._board.delayed_ranges(0, world.size) for at in range(low, high)]
        task = data.draw(st.sampled_from(delayed))
        known = [job for job in world.jobs.values() if task in job.tasks and not job.over]
        if late and known:
            at = known[0].tasks.index(task)
            world.answer(known[0], done=((at, at + 1),), final=False)
        else:
            world.tell(ev.CancelTask(task))

    @precondition(lambda self: self.last is not None)
    @rule(execution=EXECUTIONS)
    def the_last_outcome_comes_again(self, execution: bytes) -> None:
        assert self.last is not None
        last = self.last
        again = ev.OutcomeArrived(
            last.attempt,
            execution,
            last.worker,
            last.done,
            last.failed,
            last.not_run,
            last.elapsed,
            last.count,
            not last.final,
        )
        self.world.tell(again)

    @rule(share=st.floats(0.0, 1.0))
    def the_clock_comes_to_just_before_or_beyond_what_is_due(self, share: float) -> None:
        if self.world.engine.deadline is not None:
            self.world.tick(max(0.0, (self.world.engine.deadline - self.world.now) * 1.1 * share))

    @invariant()
    def a_task_that_waits_for_its_retry_keeps_the_run_and_its_clock_going(self) -> None:
        engine = self.world.engine
        if not engine.ended and engine._board.counts[DELAYED]:
            assert engine.deadline is not None
            assert engine.wants_workers

    @invariant()
    def a_deadline_exists_while_something_could_fall_silent(self) -> None:
        engine = self.world.engine
        if any(attempt.live and attempt.executions for attempt in engine._attempts.values()):
            assert engine.deadline is not None

    def teardown(self) -> None:
        self.world.turn_benign()

    def _attempt(self, data: st.DataObject) -> int:
        """An attempt that exists, mostly; the newest more often."""
        newest = max(self.world.jobs, default=0)
        return max(0, newest + 1 - data.draw(st.integers(0, 8)))


HostileWorld.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnythingMayHappenAtAnyTime = pytest.mark.slow(HostileWorld.TestCase)


# ------------------------------------------------------------------------------------------ a world that is only rough


class RoughCluster:
    """Honest nodes and servers that lose, double, delay, reorder and requeue.

    Tasks listed in `deadly` kill a node, those in `slow` take too long, `failing` ones raise whenever they run, and
    `flaky` ones as often as it is forgiven.
    """

    def __init__(
        self,
        world: World,
        draw: st.DataObject,
        *,
        deadly: set[int],
        slow: set[int],
        failing: set[int],
        flaky: set[int],
    ) -> None:
        self.world = world
        self.draw = draw
        self.deadly = deadly
        self.slow = slow
        self.failing = failing
        self.flaky = dict.fromkeys(flaky, world.policy.retries)
        self.executions = 0
        self.mail: list[ev.OutcomeArrived | ev.AttemptLost] = []

    def execute(self, job: Job) -> None:
        """Run a job as a node does that reports its child's death."""
        self.executions += 1
        execution = self.executions.to_bytes(16, "big")
        bad = [at for at, task in enumerate(job.tasks) if task in self.deadly | self.slow]
        stop = bad[0] if bad else len(job.tasks)
        failed = [at for at in range(stop) if self._fails(job.tasks[at])]
        good = [(at, at + 1) for at in range(stop) if at not in failed]
        kind = ev.NotRunKind.DIED if bad and job.tasks[stop] in self.deadly else ev.NotRunKind.TIMED_OUT
        report = ev.NotRunReport(kind, "signal 11", stop) if bad else None
        failures = tuple(ev.TaskFailed(at, (job.attempt, at)) for at in failed)
        half = len(good) // 2
        self.mail.append(ev.OutcomeArrived(job.attempt, execution, "w0", tuple(good[:half])))
        self.mail.append(
            ev.OutcomeArrived(job.attempt, execution, "w0", tuple(good[half:]), failures, report, final=True)
        )

    def _fails(self, task: int) -> bool:
        if self.flaky.get(task):
            self.flaky[task] -= 1
            return True
        return task in self.failing

    def step(self) -> None:
        live = [job for job in self.world.jobs.values() if job.live]
        move = self.draw.draw(st.integers(0, 9))
        if live and move < 6:
            job = self.draw.draw(st.sampled_from(live))
            if move == 0:
                self.mail.append(ev.AttemptLost(job.attempt, ev.LossReason.WORKER))
            elif move == 1:
                self.world.tell(ev.Beat(job.attempt, b"silent", "w1", 0))
            else:
                self.execute(job)
        elif move == 6:
            self.world.tick(self.draw.draw(st.sampled_from([0.2, 1.0, 31.0, 1e6])))
        elif move == 7:
            self.world.tell(ev.ServerDown(0))
            self.world.tell(ev.ServerUp(0))
        if self.mail and move > 1:
            at = self.draw.draw(st.integers(0, len(self.mail) - 1))
            self.world.tell(self.mail[at] if move == 9 else self.mail.pop(at))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    deadly=st.sets(st.integers(0, 12), max_size=1),
    slow=st.sets(st.integers(0, 12), max_size=1),
    failing=st.sets(st.integers(0, 12), max_size=2),
    flaky=st.sets(st.integers(0, 12), max_size=2),
    retries=st.integers(0, 2),
    retry_delay=st.sampled_from([0.0, 0.5]),
    steps=st.integers(0, 60),
)
def test_honest_nodes_on_a_rough_network_settle_every_task_by_what_it_does(
    data: st.DataObject,
    sizes: list[int],
    deadly: set[int],
    slow: set[int],
    failing: set[int],
    flaky: set[int],
    retries: int,
    retry_delay: float,
    steps: int,
) -> None:
    # given a cluster where no innocent task reaches the limit of losses
    world = new_world(losses=100, retries=retries, retry_delay=retry_delay)
    slow -= deadly
    failing -= deadly | slow
    flaky -= deadly | slow | failing
    world.tell(ev.ServerUp(0), *[world.add(size, "f") for size in sizes], ev.InputEnded())
    cluster = RoughCluster(world, data, deadly=deadly, slow=slow, failing=failing, flaky=flaky)
    # when it is rough for a while, and then only honest
    for _ in range(steps):
        cluster.step()
    for _ in range(400):
        if world.ended:
            break
        for job in [job for job in world.jobs.values() if job.live]:
            cluster.execute(job)
        while cluster.mail:
            world.tell(cluster.mail.pop(0))
        if world.engine.deadline is not None:
            world.tick(max(0.0, world.engine.deadline - world.now))
    # then
    assert world.ended == 1
    expected = {task: "failed" if task in failing else "done" for task in range(world.size)}
    expected |= {task: "lost" for task in deadly if task in expected}
    expected |= {task: "timed out" for task in slow if task in expected}
    assert world.settled == expected


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    deadly=st.sets(st.integers(0, 60), min_size=1, max_size=3),
    reason=st.sampled_from([ev.LossReason.WORKER, ev.LossReason.UNREADABLE]),
)
def test_tasks_that_kill_hosts_without_a_trace_are_found_and_nothing_else_is_lost(
    sizes: list[int], deadly: set[int], reason: ev.LossReason
) -> None:
    world = new_world()
    world.tell(ev.ServerUp(0), *[world.add(size, "f") for size in sizes], ev.InputEnded())
    for _ in range(1000):
        for job in [job for job in world.jobs.values() if job.live]:
            if deadly & set(job.tasks):
                world.tell(ev.AttemptLost(job.attempt, reason))
            else:
                world.answer(job)
    assert world.ended
    assert {task for task, how in world.settled.items() if how == "lost"} == deadly & set(range(world.size))
