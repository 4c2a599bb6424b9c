"""The node engine: what a node does with its workers' jobs and with its children.

Rule 1: one job a worker, one execution a child; a worker keeps its child as long as that lives.
Rule 2: a job that was taken is always answered: by the child's final outcome, or by one NOT_RUN of the node.
Rule 3: silence of a job server is not news. Only "nobody waits", twice in a row, stops an execution.
Rule 4: a child that ran a tenant's initializer, or as many tasks as it may, is never given a job that this is not for:
it is replaced, and the job goes to the fresh one.
Rule 5: a worker of a nested level goes on while the node drains: what still runs may wait for it.
Rule 6: nothing here knows what is in an envelope, and nothing here waits: `now` is an argument, `deadline` an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gearmap.config import Patience
from gearmap.core import node_events as ne
from gearmap.core.childstarts import ChildStarts
from gearmap.core.limits import ChildUse, TaskClock
from gearmap.core.sizes import shown_bytes

__all__ = ["NodeEngine"]

# First sign of an execution, so that a short job costs no beat at all; also the longest time that a finished outcome
# waits in the node. Raised: fewer packets; lowered: progress that is seen sooner.
FIRST_BEAT = 0.25

BEAT_INTERVAL = Patience().beat_interval

# How often a job server is asked whether anybody still waits. Raised: less traffic; lowered: a cancelled task stops
# sooner (after two answers).
ASK_INTERVAL = 0.5

# How often the node takes what a task has written to its descriptors: more often from a child that has lately written
# so many bytes between two looks, because one that fills its pipe waits. Raised: less work for the node; lowered: who
# writes much waits less, and what a long task says is seen sooner.
OUTPUT_INTERVAL = 0.25
LOUD_INTERVAL = 0.005
LOUD_BYTES = 32768
LOUD_SECONDS = 5.0

# How long a worker that is to be avoided keeps the job before it gives it back, so that another one can be woken first.
AVOID_DELAY = 0.2

# How often the memory of children that work is looked at, with a limit and without one (then only to say, should one
# die, how much it had). Raised: less work for the node; lowered: a child gets less far beyond its limit.
LIMITED_MEMORY_INTERVAL = 0.1
MEMORY_INTERVAL = 0.25

_NEVER = float("inf")


@dataclass(slots=True)
class _Execution:
    """One job of a worker. `child` is None until a child has it; `give_back_at` is set for one that is not run.

    `stopping` says why it is being stopped, and `detail` tells people more; `seconds` is how long the task ran that is
    stopped for that.
    """

    id: bytes
    foreground: bool
    n_tasks: int
    needs: ne.JobNeeds | None
    clock: TaskClock | None
    lacks_blobs: bool = False
    child: int | None = None
    next_beat: float = _NEVER
    next_forward: float = _NEVER
    next_ask: float = _NEVER
    next_output: float = _NEVER
    give_back_at: float = _NEVER
    nobody_waits: int = 0
    stopping: ne.NodeReason | None = None
    detail: str = ""
    seconds: float = 0.0

    @property
    def deadline(self) -> float:
        soonest = min(self.next_beat, self.next_forward, self.next_ask, self.next_output, self.give_back_at)
        return soonest if self.clock is None else min(soonest, self.clock.next_look)


class NodeEngine:
    """All decisions of one node.

    Parameters
    ----------
    workers
        How many workers the node has; they are numbered from 0. Those of nested levels come after.
    spares
        Warm children beyond one for each worker, so that a lost child is replaced at once.
    memory_limit
        Bytes that a child and what it started may use, or None.
    max_tasks_per_child
        How many tasks a child runs, or None: once it has run so many it is replaced.
    beat_interval
        Seconds between two signs of an execution that lasts.
    """

    def __init__(
        self,
        *,
        workers: int,
        spares: int = 1,
        memory_limit: int | None = None,
        max_tasks_per_child: int | None = None,
        beat_interval: float = BEAT_INTERVAL,
    ) -> None:
        self._beat_interval = beat_interval
        self._spares = spares
        self._memory_limit = memory_limit
        self._memory_interval = MEMORY_INTERVAL if memory_limit is None else LIMITED_MEMORY_INTERVAL
        self._max_tasks_per_child = max_tasks_per_child
        self._workers = workers
        self._closed: set[int] = set()  # workers of nested levels that nobody wants now
        self._child_of: list[int | None] = [None] * workers
        self._executions: list[_Execution | None] = [None] * workers
        self._workers_of: dict[int, int] = {}  # children that run an execution, and whose it is
        self._busy = 0
        # No execution has anything to do before this. It may be too early by an execution that is over: a look too many
        # now and then is cheaper than to compare all of them after each event.
        self._next_look = _NEVER
        self._next_memory_look = _NEVER
        self._worked: set[int] = set()  # children that had a job since the last look at memory
        self._uses: dict[int, ChildUse] = {}  # of every child that is a worker's
        self._starting = ChildStarts()
        self._idle: list[int] = []  # ready, and no worker's yet
        self._draining = False
        self._give_back_all_at = _NEVER
        self._exited = False
        self._handlers: dict[type, Callable[[Any, float, list[ne.Instruction]], None]] = {
            ne.Start: self._on_start,
            ne.OpenWorkers: self._on_open,
            ne.CloseWorkers: self._on_close,
            ne.ChildReady: self._on_child_ready,
            ne.ChildGone: self._on_child_gone,
            ne.JobTaken: self._on_job,
            ne.JobGone: self._on_job_gone,
            ne.BlobsHere: self._on_blobs,
            ne.BlobsMissing: self._on_blobs,
            ne.OutcomeCommitted: self._on_committed,
            ne.OutcomeFinal: self._on_final,
            ne.TaskSeen: self._on_task_seen,
            ne.OutputSeen: self._on_output_seen,
            ne.MemorySeen: self._on_memory_seen,
            ne.ClientsCounted: self._on_clients,
            ne.StopExecution: self._on_stop,
            ne.Drain: self._on_drain,
            ne.Tick: self._on_tick,
        }

    @property
    def deadline(self) -> float | None:
        """When a `Tick` is due (monotonic seconds), or None. The tick may find that there was nothing to do."""
        return None if self._next_look == _NEVER else self._next_look

    @property
    def busy(self) -> int:
        """Workers that have a job."""
        return self._busy

    def execution_of(self, worker: int) -> bytes | None:
        """Return the execution that a worker has, or None."""
        execution = self._executions[worker]
        return None if execution is None else execution.id

    def worker_of(self, child: int) -> int | None:
        """Return whose execution a child runs, or None."""
        return self._workers_of.get(child)

    def child_of(self, worker: int) -> int | None:
        """Return which child runs a worker's execution, or None."""
        execution = self._executions[worker]
        return None if execution is None else execution.child

    def kept_by(self, worker: int) -> int | None:
        """Return the child that a worker has, whether it runs something or not, or None."""
        return self._child_of[worker]

    def handle(self, event: ne.Input, now: float) -> list[ne.Instruction]:
        """Take in one event; return what to do."""
        out: list[ne.Instruction] = []
        if self._exited:
            return out
        self._handlers[type(event)](event, now, out)
        if now >= self._next_look and not self._exited:
            self._on_time(now, out)
        if self._draining and not self._busy and not self._exited:
            self._exited = True
            out.append(ne.Exit())
        return out

    def _on_start(self, event: ne.Start, now: float, out: list[ne.Instruction]) -> None:
        self._refill(out)

    def _on_open(self, event: ne.OpenWorkers, now: float, out: list[ne.Instruction]) -> None:
        workers = range(event.first, event.first + event.count)
        missing = workers.stop - len(self._child_of)
        self._child_of += [None] * missing
        self._executions += [None] * missing
        self._closed.difference_update(workers)
        self._refill(out)
        self._place_children(out)

    def _on_close(self, event: ne.CloseWorkers, now: float, out: list[ne.Instruction]) -> None:
        for worker in range(event.first, event.first + event.count):
            self._closed.add(worker)
            child = self._child_of[worker]
            if child is not None:
                self._replace(child, out)
        self._trim(out)

    def _on_stop(self, event: ne.StopExecution, now: float, out: list[ne.Instruction]) -> None:
        for execution in self._executions:
            if execution is not None and execution.id == event.execution:
                self._stop(execution, ne.NodeReason.STOPPED, now, out)

    def _on_drain(self, event: ne.Drain, now: float, out: list[ne.Instruction]) -> None:
        self._draining = True
        self._give_back_all_at = min(self._give_back_all_at, now + event.grace)
        self._next_look = min(self._next_look, self._give_back_all_at)
        out.append(ne.Pause())

    def _on_tick(self, event: ne.Tick, now: float, out: list[ne.Instruction]) -> None:
        """Nothing but the time: `handle` looks at that after every event."""

    # ------------------------------------------------------------------------------------------------------ executions

    def _end(self, worker: int) -> _Execution | None:
        """Take a worker's execution from it."""
        execution, self._executions[worker] = self._executions[worker], None
        if execution is not None:
            if execution.child is not None:
                del self._workers_of[execution.child]
            self._busy -= 1
            if not self._busy:
                if self._memory_limit is None:
                    self._next_memory_look = _NEVER
                self._next_look = min(self._give_back_all_at, self._next_memory_look, self._starting.next_try)
        return execution

    # ------------------------------------------------------------------------------------------------------- children

    def _refill(self, out: list[ne.Instruction]) -> None:
        """Start children until every worker has one and the spares are there."""
        lacking, spares = self._lacking(), self._spares
        if self._draining:
            lacking, spares = [worker for worker in lacking if worker >= self._workers], 0
        wanted = len(lacking) + spares - len(self._idle) - len(self._starting)
        out.extend(map(ne.StartChild, self._starting.begin(wanted)))

    def _trim(self, out: list[ne.Instruction]) -> None:
        """End idle children that no worker needs any more."""
        surplus = len(self._idle) + len(self._starting) - self._spares - len(self._lacking())
        for _ in range(min(surplus, len(self._idle))):
            out.append(ne.KillChild(self._idle.pop()))

    def _lacking(self) -> list[int]:
        """Return the workers that should have a child and have none."""
        lacking = [worker for worker, child in enumerate(self._child_of) if child is None]
        if self._closed:
            lacking = [worker for worker in lacking if worker not in self._closed]
        return lacking

    def _on_child_ready(self, event: ne.ChildReady, now: float, out: list[ne.Instruction]) -> None:
        child = event.child
        if child not in self._starting:
            return
        may_start_more = self._starting.ready(child)
        self._idle.append(child)
        self._place_children(out)
        if may_start_more:
            self._refill(out)
        if self._closed:
            self._trim(out)

    def _place_children(self, out: list[ne.Instruction]) -> None:
        """Give idle children to workers without one: those with a job first."""
        lacking = self._lacking()
        lacking.sort(key=lambda worker: self._executions[worker] is None)
        for worker in lacking:
            if not self._idle:
                return
            child = self._child_of[worker] = self._idle.pop(0)
            self._uses[child] = ChildUse(self._max_tasks_per_child)
            self._run(worker, out)

    def _replace(self, child: int, out: list[ne.Instruction]) -> None:
        """End a worker's child that runs nothing, and have another one take its place."""
        out.append(ne.KillChild(child))
        self._part_with(child, out)

    def _run(self, worker: int, out: list[ne.Instruction]) -> None:
        """Hand a worker's job to its child, if there are both and they fit."""
        execution, child = self._executions[worker], self._child_of[worker]
        if execution is None or child is None or execution.child is not None or execution.give_back_at != _NEVER:
            return
        if execution.lacks_blobs:
            return
        use = self._uses[child]
        if not use.suits(execution.n_tasks, execution.needs):
            self._replace(child, out)
            return
        use.takes(execution.n_tasks, execution.needs)
        execution.child = child
        self._workers_of[child] = worker
        self._worked.add(child)
        if use.loud_until != 0.0:
            execution.next_output = self._next_look = 0.0  # now: what it writes at once may be more than a pipe holds
        out.append(ne.RunJob(worker, child))

    def _on_child_gone(self, event: ne.ChildGone, now: float, out: list[ne.Instruction]) -> None:
        child = event.child
        worker = self._workers_of.get(child)
        if child in self._starting:
            self._starting.failed(child, now)
            self._next_look = min(self._next_look, self._starting.next_try)
            if self._starting.is_hopeless:
                self._give_up(f"children end before they are ready: {event.detail}", out)
                return
        elif child in self._idle:
            self._idle.remove(child)
        if worker is not None:
            self._after_death(worker, event, out)
        self._part_with(child, out)

    def _give_up(self, problem: str, out: list[ne.Instruction]) -> None:
        """End the node. A job that it still has is given back, not left to the loss of the connection."""
        for worker in range(len(self._executions)):
            execution = self._end(worker)
            if execution is not None:
                out.append(ne.AnswerNotRun(worker, ne.NodeReason.DRAINING))
        self._exited = True
        out.append(ne.Exit(problem))

    def _after_death(self, worker: int, event: ne.ChildGone, out: list[ne.Instruction]) -> None:
        execution = self._end(worker)
        assert execution is not None
        out.append(_verdict(worker, execution, event))

    # ----------------------------------------------------------------------------------------------------------- jobs

    def _on_job(self, event: ne.JobTaken, now: float, out: list[ne.Instruction]) -> None:
        self._end(event.worker)
        if event.expired and not event.avoided:
            out.append(ne.AnswerNotRun(event.worker, ne.NodeReason.EXPIRED))
            return
        if self._draining and event.worker < self._workers:
            # It was on its way when the workers were paused. Run, it could outlive the grace that is over by now.
            out.append(ne.AnswerNotRun(event.worker, ne.NodeReason.DRAINING))
            return
        needs = event.needs
        clock = None if needs is None or needs.task_timeout is None else TaskClock(needs.task_timeout)
        lacks_blobs = needs is not None and needs.blobs
        execution = _Execution(event.execution, event.foreground, event.n_tasks, needs, clock, lacks_blobs)
        if event.avoided:
            execution.give_back_at = first_look = now + AVOID_DELAY
        else:
            execution.next_beat = execution.next_output = first_look = now + FIRST_BEAT
            if event.n_tasks > 1:
                execution.next_forward = first_look  # what a child commits before the end, it does not tell
            if event.foreground:
                execution.next_ask = now + ASK_INTERVAL
            if clock is not None:
                clock.look_soon(now)
                first_look = min(first_look, clock.next_look)
        self._executions[event.worker] = execution
        self._busy += 1
        if self._next_memory_look == _NEVER:
            self._next_memory_look = now + self._memory_interval
            first_look = min(first_look, self._next_memory_look)
        if first_look < self._next_look:
            self._next_look = first_look
        self._run(event.worker, out)

    def _on_job_gone(self, event: ne.JobGone, now: float, out: list[ne.Instruction]) -> None:
        execution = self._end(event.worker)
        if execution is not None and execution.child is not None and execution.stopping is None:
            out.append(ne.KillChild(execution.child))
            self._part_with(execution.child, out)

    def _on_blobs(self, event: ne.BlobsHere | ne.BlobsMissing, now: float, out: list[ne.Instruction]) -> None:
        execution = self._executions[event.worker]
        if execution is None or execution.id != event.execution or not execution.lacks_blobs:
            return
        if type(event) is ne.BlobsMissing:
            execution.detail = event.detail
            self._stop(execution, ne.NodeReason.BLOB_UNAVAILABLE, now, out)
            return
        execution.lacks_blobs = False
        self._run(event.worker, out)

    def _part_with(self, child: int, out: list[ne.Instruction]) -> None:
        """Take a child that is dead or dying from its worker, so that no new job goes to it."""
        self._child_of = [None if held == child else held for held in self._child_of]
        self._uses.pop(child, None)
        self._refill(out)
        self._place_children(out)

    def _on_committed(self, event: ne.OutcomeCommitted, now: float, out: list[ne.Instruction]) -> None:
        worker = self._workers_of.get(event.child)
        execution = None if worker is None else self._executions[worker]
        if execution is not None:
            execution.next_forward = min(execution.next_forward, now + FIRST_BEAT)
            self._next_look = min(self._next_look, execution.next_forward)

    def _on_final(self, event: ne.OutcomeFinal, now: float, out: list[ne.Instruction]) -> None:
        worker = self._workers_of.get(event.child)
        if worker is not None:
            self._end(worker)
            out.append(ne.Finish(worker))
            use = self._uses.get(event.child)  # none, if it is being killed already
            if use is not None and (event.last or use.is_spent):
                self._replace(event.child, out)

    def _on_task_seen(self, event: ne.TaskSeen, now: float, out: list[ne.Instruction]) -> None:
        worker = self._workers_of.get(event.child)
        execution = None if worker is None else self._executions[worker]
        if execution is None or execution.clock is None or execution.stopping is not None:
            return
        clock = execution.clock
        if clock.sees(event.position, now):
            execution.seconds = now - clock.since
            execution.detail = f"stopped after {execution.seconds:.2f} s"
            self._stop(execution, ne.NodeReason.TIMED_OUT, now, out)
        else:
            self._next_look = min(self._next_look, clock.next_look)

    def _on_output_seen(self, event: ne.OutputSeen, now: float, out: list[ne.Instruction]) -> None:
        worker = self._workers_of.get(event.child)
        execution = None if worker is None else self._executions[worker]
        use = self._uses.get(event.child)
        if execution is None or use is None or execution.stopping is not None:
            return
        if event.n_bytes >= LOUD_BYTES:
            use.loud_until = now + LOUD_SECONDS
        elif now >= use.loud_until:
            use.loud_until = 0.0
        execution.next_output = now + (LOUD_INTERVAL if use.loud_until else OUTPUT_INTERVAL)
        self._next_look = min(self._next_look, execution.next_output)

    def _on_memory_seen(self, event: ne.MemorySeen, now: float, out: list[ne.Instruction]) -> None:
        limit, child = self._memory_limit, event.child
        if limit is None or event.used_bytes <= limit or child not in self._uses:
            return
        worker = self._workers_of.get(child)
        execution = None if worker is None else self._executions[worker]
        if execution is None:
            self._replace(child, out)
            return
        execution.detail = f"memory limit of {shown_bytes(limit)} (it used {shown_bytes(event.used_bytes)})"
        self._stop(execution, ne.NodeReason.CHILD_DIED, now, out)

    def _on_clients(self, event: ne.ClientsCounted, now: float, out: list[ne.Instruction]) -> None:
        execution = self._executions[event.worker]
        if execution is None or execution.id != event.execution or not execution.foreground:
            return
        execution.nobody_waits = 0 if event.clients else execution.nobody_waits + 1
        if execution.nobody_waits >= 2:
            self._stop(execution, ne.NodeReason.STOPPED, now, out)

    def _stop(self, execution: _Execution, reason: ne.NodeReason, now: float, out: list[ne.Instruction]) -> None:
        """Stop an execution: by its child's death, or at once if no child has it."""
        if execution.stopping is not None:
            return
        execution.stopping = reason
        execution.next_ask = execution.next_beat = execution.next_forward = execution.next_output = _NEVER
        if execution.clock is not None:
            execution.clock.next_look = _NEVER
        if execution.child is not None:
            out.append(ne.KillChild(execution.child))
            self._part_with(execution.child, out)
        else:
            execution.give_back_at = now
        self._next_look = min(self._next_look, now)

    # ----------------------------------------------------------------------------------------------------------- time

    def _on_time(self, now: float, out: list[ne.Instruction]) -> None:
        """Do what is due, and find out what is due next."""
        for worker, execution in enumerate(self._executions):
            if execution is None:
                continue
            if now >= self._give_back_all_at:
                self._stop(execution, ne.NodeReason.DRAINING, now, out)
            if now >= execution.give_back_at:
                self._end(worker)
                reason = execution.stopping or ne.NodeReason.AVOIDED
                out.append(ne.AnswerNotRun(worker, reason, detail=execution.detail))
                continue
            if now >= execution.next_forward:
                execution.next_forward = now + FIRST_BEAT if execution.n_tasks > 1 else _NEVER
                out.append(ne.Forward(worker))
            if now >= execution.next_beat:
                execution.next_beat = now + self._beat_interval
                out.append(ne.SendBeat(worker))
            if now >= execution.next_ask:
                execution.next_ask = now + ASK_INTERVAL
                out.append(ne.AskClients(worker))
            if now >= execution.next_output:
                execution.next_output = now + OUTPUT_INTERVAL
                if execution.child is not None:
                    out.append(ne.LookAtOutput(worker, execution.child))
            if execution.clock is not None and now >= execution.clock.next_look:
                execution.clock.look_soon(now)
                if execution.child is not None:
                    out.append(ne.LookAtTask(execution.child))
        if now >= self._next_memory_look:
            self._look_at_memory(now, out)
        if now >= self._give_back_all_at:
            self._give_back_all_at = _NEVER
        if self._starting.may_try(now):
            self._refill(out)
        waiting = (execution.deadline for execution in self._executions if execution is not None)
        self._next_look = min(waiting, default=_NEVER)
        self._next_look = min(self._next_look, self._give_back_all_at, self._next_memory_look, self._starting.next_try)

    def _look_at_memory(self, now: float, out: list[ne.Instruction]) -> None:
        """Look at every child that worked since the last time: one that ran many short jobs is seen, too."""
        children = tuple(sorted(self._worked & self._uses.keys()))
        if children:
            out.append(ne.LookAtMemory(children))
        self._worked = set(self._workers_of)
        self._next_memory_look = now + self._memory_interval if self._worked else _NEVER


def _verdict(worker: int, execution: _Execution, event: ne.ChildGone) -> ne.AnswerNotRun:
    """Say what became of an execution whose child is gone. Only here is known where the child was in the end."""
    reason = execution.stopping or ne.NodeReason.CHILD_DIED
    if reason is ne.NodeReason.CHILD_DIED:
        detail = execution.detail or event.detail
        if event.initializing:
            return ne.AnswerNotRun(worker, ne.NodeReason.INITIALIZER_FAILED, None, f"its process ended: {detail}")
        if not event.begun:  # it died while it was idle: none of this job's tasks is to blame
            return ne.AnswerNotRun(worker, ne.NodeReason.STOPPED, None, f"{detail}, before it began")
        if event.loading:
            return ne.AnswerNotRun(worker, ne.NodeReason.DIED_LOADING, event.position, f"{detail}, while it was loaded")
        return ne.AnswerNotRun(worker, reason, event.position, detail)
    if reason is ne.NodeReason.TIMED_OUT:
        assert execution.clock is not None
        # A child that has gone on had committed the task that took so long: that one is done, and nobody is charged.
        overdue = event.position if event.position == execution.clock.position else None
        return ne.AnswerNotRun(worker, reason, overdue, execution.detail, execution.seconds)
    return ne.AnswerNotRun(worker, reason)
