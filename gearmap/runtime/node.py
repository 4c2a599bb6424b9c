"""The node: one thread and one selector over job servers, children and timers, driven by the pure `NodeEngine`.

Rule 1: the node opens headers, never bodies, and unpickles nothing.
Rule 2: everything waits in one place, `Poller.dispatch`; everything that happens is an event for the engine.
Rule 3: what the engine answers is carried out at once and never blocks.

Data flow::

    job server --JobAssigned--> open header --JobTaken--> engine --RunJob--> child
    child --Committed--> engine --Forward / Finish--> job server
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gearmap.core import node_events as ne
from gearmap.core.node_engine import NodeEngine
from gearmap.keyfile import Keys
from gearmap.runtime.blobdesk import BlobDesk
from gearmap.runtime.childpool import ChildPool
from gearmap.runtime.children import Child, Committed, Ended, Ready
from gearmap.runtime.control import ControlDesk
from gearmap.runtime.crew import Crew, Worker
from gearmap.runtime.gate import Gate
from gearmap.runtime.nesting import NestingDesk
from gearmap.runtime.nodeoutput import keep_last_words, take_live, take_progress, take_written
from gearmap.runtime.nodeportrait import describe_job, describe_node, describe_worker
from gearmap.runtime.nodesettings import NodeSettings
from gearmap.runtime.privatelanes import PrivateLanes
from gearmap.runtime.refusal import refusal
from gearmap.runtime.work import Work
from gearmap.transport.events import (
    Address,
    AssignedJob,
    JobAssigned,
    JobLost,
    ServerDown,
    ServerUp,
    UniqueStatus,
    bare_address,
)
from gearmap.transport.poller import Poller, Waker
from gearmap.transport.worker import WorkerLinks
from gearmap.wire.outcome import Outcome, Printed

__all__ = ["Node"]

# How long the last answers may take to reach the job servers when a node leaves.
FLUSH_SECONDS = 3.0

_Owner = Worker | Child | ControlDesk | BlobDesk


class Node:
    """A running node. `run` is its only thread's loop."""

    def __init__(
        self,
        settings: NodeSettings,
        *,
        report: Callable[[str], None] = lambda line: None,
        verbose: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self._report = report
        self._verbose = verbose
        self._engine = NodeEngine(
            workers=settings.workers,
            memory_limit=settings.memory_limit,
            max_tasks_per_child=settings.max_tasks_per_child,
            beat_interval=settings.patience.beat_interval,
        )
        self._poller = Poller()
        self._waker = Waker()
        self._children = ChildPool(settings.children, watch=self._watch, unwatch=self._unwatch)
        self._crew = Crew(settings, watch=self._watch_worker, unwatch=self._close_worker, tell=self._do)
        self._workers = self._crew.workers
        self._owners: dict[Any, _Owner] = {}
        self._touched: set[_Owner] = set()
        # No connection wants to be woken before this; it may be too early, which costs one look at all of them.
        self._links_due = float("inf")
        self._gate = Gate(settings.keys)
        self._nested = NestingDesk(settings, self._crew)
        self._lanes = PrivateLanes(settings, self._workers, self._touch)
        self._blobs = BlobDesk(
            settings.keys,
            settings.blob_cache_bytes,
            patience=settings.patience.blob_timeout,
            watch=lambda session: self._watch(session, self._blobs),
            unwatch=self._unwatch,
            tell=self._tell_of_blobs,
        )
        self._control: ControlDesk | None = None
        self._exit: ne.Exit | None = None
        self._drain_grace: float | None = None
        # What was said about the servers: one line for each change, not for each worker or attempt.
        self._up: set[Address] = set()
        self._missing: set[Address] = set()
        self._started = time.monotonic()
        self._carriers: dict[type, Callable[[Any], None]] = {
            ne.StartChild: self._start_child,
            ne.KillChild: self._kill_child,
            ne.RunJob: self._run_job,
            ne.Forward: self._forward,
            ne.Finish: self._finish,
            ne.AnswerNotRun: self._answer_not_run,
            ne.SendBeat: self._send_beat,
            ne.AskClients: self._ask_clients,
            ne.LookAtTask: self._look_at_task,
            ne.LookAtOutput: self._look_at_output,
            ne.LookAtMemory: self._look_at_memory,
            ne.Pause: self._pause,
            ne.Exit: self._leave,
        }

    # --------------------------------------------------------------------------------------------------------- surface

    def drain(self, grace: float) -> None:
        """Ask the node to leave; safe from a signal handler. Within `grace` seconds running jobs may finish."""
        self._drain_grace = grace if self._drain_grace is None else min(grace, self._drain_grace)
        self._waker.wake()

    def change_keys(self, keys: Keys) -> None:
        """Accept these keys from now on. In the node's thread; jobs that are here go on."""
        added, removed = self.settings.keys.change(keys.accepted)
        if added or removed:
            self._touched.update(self._crew.change_keys(added, removed))
            self._lanes.forget_keys(removed)
            if self._control is not None:
                self._control.change_keys(added, removed)
                self._touched.add(self._control)
            self._report(f"the key file has changed: keys {', '.join(self.settings.keys.ids)} from now on")

    def watch(self, pollable: Any) -> None:
        """Let the node's loop watch something more."""
        self._poller.add(pollable)

    def run(self) -> str:
        """Serve until drained; return the problem that ended it, or an empty string."""
        try:
            self._start()
            while self._exit is None:
                self._step()
            self._flush_all()
            return self._exit.problem
        finally:
            self._close()

    # ------------------------------------------------------------------------------------------------------------ loop

    def _start(self) -> None:
        self._poller.add(self._waker)
        now = time.monotonic()
        self._do(ne.Start())
        self._crew.start(now)
        self._control = ControlDesk(self.settings, self._describe, self._stop_execution, self.drain, self._lanes)
        self._open(self._control.links, self._control, now)

    def _watch_worker(self, worker: Worker, now: float) -> None:
        self._open(worker.links, worker, now)

    def _close_worker(self, worker: Worker) -> None:
        worker.links.close()
        worker.deadline = float("inf")
        for link in worker.links.links:
            self._unwatch(link)

    def _open(self, links: WorkerLinks, owner: Worker | ControlDesk, now: float) -> None:
        links.start(now)
        for link in links.links:
            self._watch(link, owner)
        self._touched.add(owner)

    def _touch(self, worker: Worker) -> None:
        self._touched.add(worker)

    def _watch(self, pollable: Any, owner: _Owner) -> None:
        self._owners[pollable] = owner
        self._poller.add(pollable)

    def _unwatch(self, pollable: Any) -> None:
        self._owners.pop(pollable, None)
        self._poller.remove(pollable)

    def _step(self) -> None:
        """One round. Only who was touched is looked at: a round must not cost more the more workers there are."""
        for pollable in self._poller.dispatch(self._timeout()):
            owner = self._owners.get(pollable)
            if owner is not None:
                self._touched.add(owner)
        now = time.monotonic()
        if self._drain_grace is not None:
            grace, self._drain_grace = self._drain_grace, None
            self._do(ne.Drain(grace))
        if now >= self._links_due:
            self._tick_links(now)
        while self._touched:
            # Hearing one may touch another: an outcome of a child is sent by its worker.
            heard, self._touched = self._touched, set()
            for owner in heard:
                self._hear(owner)
        due = self._engine.deadline
        if due is not None and now >= due:
            self._do(ne.Tick())
            for owner in self._touched:
                self._settle(owner)
        due = self._nested.deadline
        if due is not None and now >= due:
            self._nested.look({w.work.execution_id for w in self._workers if w.work is not None}, now)
        due = self._lanes.deadline
        if due is not None and now >= due:
            self._lanes.look(now)

    def _tick_links(self, now: float) -> None:
        """Let the deadlines of connections fire, and find the next one."""
        self._links_due = float("inf")
        for desk in (*self._workers, self._control, self._blobs):
            if desk is None:
                continue
            if now >= desk.deadline:
                desk.links.tick(now)
                self._touched.add(desk)
            else:
                self._links_due = min(self._links_due, desk.deadline)

    def _hear(self, owner: _Owner) -> None:
        """Take in what one connection or child has to say."""
        if isinstance(owner, Child):
            self._hear_child(owner)
        elif isinstance(owner, Worker):
            for event in owner.links.take_events():
                if type(event) is JobAssigned:
                    self._on_job(owner, event.job)
                else:
                    self._on_server_event(owner, event)
            self._settle(owner)
        else:
            owner.work()
            self._settle(owner)

    def _settle(self, owner: _Owner) -> None:
        """After something was heard or sent: when the connection wants to be woken."""
        if isinstance(owner, Child):
            return
        due = owner.links.deadline
        owner.deadline = float("inf") if due is None else due
        if isinstance(owner, Worker) and owner.held_back:
            owner.let_go()
        if owner.deadline < self._links_due:
            self._links_due = owner.deadline

    def _timeout(self) -> float | None:
        due = self._links_due
        for other in (self._engine.deadline, self._nested.deadline, self._lanes.deadline):
            if other is not None and other < due:
                due = other
        return None if due == float("inf") else max(0.0, due - time.monotonic())

    # ---------------------------------------------------------------------------------------------------------- events

    def _on_server_event(self, worker: Worker, event: Any) -> None:
        match event:
            case UniqueStatus() if worker.work is not None and event.unique == worker.work.job.unique:
                self._do(ne.ClientsCounted(worker.index, worker.work.execution_id, event.clients))
            case JobLost():
                self._part_with_work(worker)
                self._do(ne.JobGone(worker.index))
            case ServerUp(server) if server not in self._up:
                self._up.add(server)
                self._missing.discard(server)
                self._report(f"connected to {bare_address(server)}")
            case ServerDown(server, reason) if server not in self._missing:
                lost = f"lost {bare_address(server)}: " if server in self._up else ""
                self._up.discard(server)
                self._missing.add(server)
                self._report(f"{lost}{reason}; trying again")
            case _:
                pass

    def _on_job(self, worker: Worker, job: AssignedJob) -> None:
        work = self._gate.admit(job)
        if isinstance(work, bytes):
            worker.work = None
            if work:
                worker.links.complete(job, work)
            else:
                worker.links.fail(job)
            return
        worker.work = work
        self._do(
            ne.JobTaken(
                worker.index,
                work.execution_id,
                foreground=work.header.foreground and bool(job.unique),
                avoided=worker.name in work.header.avoid,
                expired=time.time() > work.prefix.expiry,
                n_tasks=work.header.n_tasks,
                needs=work.needs,
            )
        )
        if work.header.blobs and worker.work is work:
            self._blobs.want(work, time.monotonic())
            self._touched.add(self._blobs)

    def _tell_of_blobs(self, make: Callable[[int], ne.Input], execution: bytes) -> None:
        """Tell the engine what became of the blobs of an execution."""
        for worker in self._workers:
            if worker.work is not None and worker.work.execution_id == execution:
                self._do(make(worker.index))

    def _part_with_work(self, worker: Worker) -> None:
        """The worker's job is over, here at least."""
        work, worker.work = worker.work, None
        if work is not None and work.header.blobs:
            self._blobs.release(work.execution_id)
            self._touched.add(self._blobs)

    def _hear_child(self, child: Child) -> None:
        for report in child.take_reports():
            if isinstance(report, Committed):
                self._on_committed(child, report)
            elif isinstance(report, Ready):
                self._do(ne.ChildReady(child.number))
            elif isinstance(report, Ended):
                index = self._engine.worker_of(child.number)
                keep_last_words(child, report, None if index is None else self._workers[index].work)
                self._children.forget(child)
                self._do(
                    ne.ChildGone(
                        child.number,
                        report.position,
                        report.detail,
                        report.initializing,
                        loading=report.loading,
                        begun=report.begun,
                    )
                )
        for request in child.line.take_requests():
            index = self._engine.worker_of(child.number)
            work = None if index is None else self._workers[index].work
            child.line.answer(*self._nested.answer(request, work, time.monotonic()))

    def _on_committed(self, child: Child, report: Committed) -> None:
        index = self._engine.worker_of(child.number)
        work = None if index is None else self._workers[index].work
        if index is None or work is None:
            return  # the job went away while the child worked on
        if report.is_refused:
            assert not isinstance(report.sealed, list)
            self._gate.refuse(bytes(report.sealed).decode("utf-8", "replace"))
            work.is_refused = True
            self._do(ne.OutcomeFinal(child.number, report.last))
            return
        work.commit(report.sealed)
        if report.part:
            self._workers[index].send_part(work, child)
            self._touched.add(self._workers[index])
            return
        number = child.number
        self._do(ne.OutcomeFinal(number, report.last) if report.final else ne.OutcomeCommitted(number))

    # ----------------------------------------------------------------------------------------------------- instructions

    def _do(self, event: ne.Input) -> None:
        for instruction in self._engine.handle(event, time.monotonic()):
            self._carriers[type(instruction)](instruction)

    def _start_child(self, instruction: ne.StartChild) -> None:
        try:
            self._children.start(instruction.child)
        except (EOFError, OSError) as error:
            # The process that starts children was killed; the next one is started by another.
            self._do(ne.ChildGone(instruction.child, None, f"it could not be started: {error!r}"))

    def _kill_child(self, instruction: ne.KillChild) -> None:
        self._children.kill(instruction.child)

    def _run_job(self, instruction: ne.RunJob) -> None:
        worker = self._workers[instruction.worker]
        work = worker.work
        assert work is not None
        child = self._children.get(instruction.child)
        assert child is not None
        child.send_job(work.head_for_child(worker.name, worker.number), work.job.data)

    def _forward(self, instruction: ne.Forward) -> None:
        number = self._engine.child_of(instruction.worker)
        child = None if number is None else self._children.get(number)
        if child is not None:
            child.fetch()
            self._hear_child(child)
        worker = self._workers[instruction.worker]
        work = worker.work
        committed = None if work is None else work.take_committed()
        if work is not None and committed is not None:
            worker.links.send_data(work.job, committed)
            self._touched.add(worker)

    def _finish(self, instruction: ne.Finish) -> None:
        worker = self._workers[instruction.worker]
        work = worker.work
        assert work is not None
        self._part_with_work(worker)
        if work.is_refused:
            worker.links.fail(work.job)
        else:
            worker.links.complete(work.job, work.take_committed())
            self._gate.finished(work)
        self._touched.add(worker)
        self._tell(worker, work, "refused" if work.is_refused else "done")

    def _ask_clients(self, instruction: ne.AskClients) -> None:
        worker = self._workers[instruction.worker]
        if worker.work is not None:
            worker.links.ask_clients(worker.work.job)
            self._touched.add(worker)

    def _look_at_task(self, instruction: ne.LookAtTask) -> None:
        child = self._children.get(instruction.child)
        if child is not None:
            self._do(ne.TaskSeen(child.number, child.running))

    def _look_at_output(self, instruction: ne.LookAtOutput) -> None:
        child = self._children.get(instruction.child)
        work = self._workers[instruction.worker].work
        if child is not None and work is not None:
            child.nudge()
            self._do(ne.OutputSeen(child.number, take_written(child, work)))
            printed = take_live(child, work)
            progress = take_progress(child, work)
            if printed or progress is not None:
                self._send_sign(self._workers[instruction.worker], work, printed, progress)

    def _look_at_memory(self, instruction: ne.LookAtMemory) -> None:
        if self.settings.memory_limit is None:
            self._children.note_high_water(instruction.children)
            return
        for number, used_bytes in self._children.measure(instruction.children, time.monotonic()):
            self._do(ne.MemorySeen(number, used_bytes))

    def _pause(self, instruction: ne.Pause) -> None:
        for worker in self._workers:
            if not worker.level:
                worker.is_leaving = True
                worker.links.leave()
                self._touched.add(worker)

    def _leave(self, instruction: ne.Exit) -> None:
        self._exit = instruction

    def _answer_not_run(self, answer: ne.AnswerNotRun) -> None:
        worker = self._workers[answer.worker]
        work = worker.work
        if work is None:
            return
        self._part_with_work(worker)
        work.commit_own(refusal(answer, work, worker.name))
        worker.links.complete(work.job, work.take_committed())
        self._touched.add(worker)
        self._tell(worker, work, f"not run ({answer.reason.value}{': ' if answer.detail else ''}{answer.detail})")

    def _send_beat(self, instruction: ne.SendBeat) -> None:
        worker = self._workers[instruction.worker]
        work = worker.work
        if work is not None:
            position = self._send_sign(worker, work)
            worker.links.send_status(work.job, position or 0, work.header.n_tasks)

    def _send_sign(
        self, worker: Worker, work: Work, printed: tuple[Printed, ...] = (), progress: float | None = None
    ) -> int | None:
        """Say that an execution goes on, what its task prints and how far it is; return the task's position."""
        position, node = self._position(worker), self.settings.node_id
        outcome = Outcome(worker=worker.name, node=node, beat=position, printed=printed, progress=progress)
        worker.links.send_data(work.job, work.sign(outcome))
        self._touched.add(worker)
        return position

    def _position(self, worker: Worker) -> int | None:
        child = self._children.get(self._engine.child_of(worker.index))
        return None if child is None else child.position

    def _tell(self, worker: Worker, work: Work, how: str) -> None:
        worker.done += 1
        if self._verbose is None:
            return
        self._verbose(describe_job(worker.name, work, time.monotonic() - work.began, how))

    # --------------------------------------------------------------------------------------------------------- control

    def _describe(self) -> dict[str, Any]:
        """Return what the control function tells about this node."""
        kept = {worker.index: self._engine.kept_by(worker.index) for worker in self._workers}
        uses = self._children.uses((child for child in kept.values() if child is not None), time.monotonic())
        workers = [
            describe_worker(worker, self._position(worker), uses.get(kept[worker.index], {}))
            for worker in self._workers
            if not worker.is_closed
        ]
        jobs = {"refused": self._gate.refused, "repeated": self._gate.repeated}
        return {**describe_node(self.settings, time.monotonic() - self._started), "jobs": jobs, "workers": workers}

    def _stop_execution(self, execution_id: bytes) -> bool:
        """Stop an execution; return whether this node has it."""
        known = any(w.work is not None and w.work.execution_id == execution_id for w in self._workers)
        self._do(ne.StopExecution(execution_id))
        return known

    # ---------------------------------------------------------------------------------------------------------- ending

    def _flush_all(self) -> None:
        """Let the last answers out, for at most FLUSH_SECONDS."""
        deadline = time.monotonic() + FLUSH_SECONDS
        links = [link for worker in self._workers for link in worker.links.links]
        while any(link.wants_write for link in links) and time.monotonic() < deadline:
            self._poller.dispatch(0.05)

    def _close(self) -> None:
        self._children.close()
        for worker in self._workers:
            worker.links.close()
        if self._control is not None:
            self._control.close()
        self._blobs.close()
        self._poller.remove(self._waker)
        self._waker.close()
        self._poller.close()
