"""The node: one thread and one selector over job servers, children and timers, driven by the pure `NodeEngine`.

Rule 1: the node opens headers, never bodies, and unpickles nothing.
Rule 2: everything waits in one place, `Poller.dispatch`; everything that happens is an event for the engine.
Rule 3: what the engine answers is carried out at once and never blocks.

Data flow::

    job server --JobAssigned--> open header --JobTaken--> engine --RunJob--> child
    child --Committed--> engine --Forward / Finish--> job server
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gearmap.core import node_engine as ne
from gearmap.core.names import Lane, control_name
from gearmap.errors import WireError
from gearmap.runtime.child import ChildSettings, encode_job
from gearmap.runtime.children import Child, Committed, Ended, Ready, child_context
from gearmap.runtime.control import ControlDesk
from gearmap.runtime.parts import Parts
from gearmap.transport.events import (
    AssignedJob,
    JobAssigned,
    JobLost,
    ServerDown,
    ServerUp,
    UniqueStatus,
)
from gearmap.transport.poller import Poller, Waker
from gearmap.transport.worker import WorkerLinks
from gearmap.wire import envelope, seal
from gearmap.wire.jobheader import JobHeader
from gearmap.wire.outcome import NotRun, NotRunReason, Outcome, encode_outcome

__all__ = ["Node", "NodeSettings"]

logger = logging.getLogger(__name__)

# How long the last answers may take to reach the job servers when a node leaves.
FLUSH_SECONDS = 3.0

# Session keys that are kept derived. Raised: fewer derivations with many clients; lowered: less memory.
KEPT_SESSIONS = 256

_REASONS = {
    ne.NodeReason.AVOIDED: NotRunReason.AVOIDED,
    ne.NodeReason.EXPIRED: NotRunReason.EXPIRED,
    ne.NodeReason.DRAINING: NotRunReason.DRAINING,
    ne.NodeReason.STOPPED: NotRunReason.STOPPED,
    ne.NodeReason.CHILD_DIED: NotRunReason.CHILD_DIED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What a node is.

    Attributes
    ----------
    servers
        Job servers as (host, port); each worker connects to all of them.
    secret
        The key that clients seal with.
    workers
        How many chunks run at once.
    queues
        Lanes of work that every worker serves.
    name
        How people call the node; the host's name.
    node_id
        Unique; letters, digits and `-`.
    """

    servers: tuple[tuple[str, int], ...]
    secret: bytes = field(repr=False)
    workers: int
    queues: tuple[str, ...]
    name: str
    node_id: str
    python: tuple[int, int]
    children: ChildSettings = field(default_factory=ChildSettings)

    @property
    def key_id(self) -> str:
        """The public id of the key."""
        return seal.key_id(self.secret)

    @property
    def functions(self) -> tuple[str, ...]:
        """The Gearman function names that its workers serve."""
        return tuple(Lane(queue, self.python, self.key_id).name for queue in self.queues)


@dataclass(slots=True)
class _Work:
    """One job that a worker holds, with what is needed to answer it."""

    job: AssignedJob
    prefix: envelope.Prefix
    context: bytes
    session_key: bytes
    job_key: bytes
    header: JobHeader
    execution_id: bytes
    began: float
    committed: list[bytes | bytearray] = field(default_factory=list)
    node_sequence: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    """One Gearman worker of the node."""

    index: int
    name: str
    links: WorkerLinks
    work: _Work | None = None
    done: int = 0
    deadline: float = float("inf")


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
        self._engine = ne.NodeEngine(workers=settings.workers)
        self._poller = Poller()
        self._waker = Waker()
        self._context = child_context()
        self._children: dict[int, Child] = {}
        self._workers: list[_Worker] = []
        self._owners: dict[Any, _Worker | Child | ControlDesk] = {}
        self._touched: set[_Worker | Child | ControlDesk] = set()
        self._session_keys: OrderedDict[bytes, bytes] = OrderedDict()
        self._control: ControlDesk | None = None
        self._exit: ne.Exit | None = None
        self._drain_grace: float | None = None
        self._up: set[tuple[str, int]] = set()
        self._started = time.monotonic()

    # --------------------------------------------------------------------------------------------------------- surface

    def drain(self, grace: float) -> None:
        """Ask the node to leave; safe from a signal handler. Within `grace` seconds running jobs may finish."""
        self._drain_grace = grace if self._drain_grace is None else min(grace, self._drain_grace)
        self._waker.wake()

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
        settings = self.settings
        now = time.monotonic()
        self._do(ne.Start())
        for index in range(settings.workers):
            # Each worker lists its names from another one on, so that no queue is always the last to be asked.
            turn = index % len(settings.functions)
            names = settings.functions[turn:] + settings.functions[:turn]
            name = f"{settings.name}/{index}"
            links = WorkerLinks(settings.servers, names, f"gearmap:{settings.node_id}:{index}", jitter=random.random)
            worker = _Worker(index, name, links)
            self._workers.append(worker)
            self._open(links, worker, now)
        links = WorkerLinks(
            settings.servers,
            (control_name(settings.node_id, settings.key_id),),
            f"gearmap:{settings.node_id}:control",
            jitter=random.random,
        )
        self._control = ControlDesk(links, settings.secret, self._describe, self._stop_execution, self.drain)
        self._open(links, self._control, now)

    def _open(self, links: WorkerLinks, owner: _Worker | ControlDesk, now: float) -> None:
        links.start(now)
        for link in links.links:
            self._owners[link] = owner
            self._poller.add(link)
        self._touched.add(owner)

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
        for desk in (*self._workers, self._control):
            if desk is not None and now >= desk.deadline:
                desk.links.tick(now)
                self._touched.add(desk)
        while self._touched:
            # Hearing one may touch another: an outcome of a child is sent by its worker.
            heard, self._touched = self._touched, set()
            for owner in heard:
                self._hear(owner)
        if self._engine.deadline is not None and now >= self._engine.deadline:
            self._do(ne.Tick())
            for owner in self._touched:
                self._settle(owner)

    def _hear(self, owner: _Worker | Child | ControlDesk) -> None:
        """Take in what one connection or child has to say."""
        if isinstance(owner, Child):
            self._hear_child(owner)
        elif isinstance(owner, _Worker):
            for event in owner.links.take_events():
                self._on_server_event(owner, event)
            self._settle(owner)
        else:
            owner.work()
            self._settle(owner)

    def _settle(self, owner: _Worker | Child | ControlDesk) -> None:
        """After something was sent: what is still to be written, and when the connection wants to be woken."""
        if isinstance(owner, Child):
            self._poller.update(owner)
            return
        for link in owner.links.links:
            self._poller.update(link)
        due = owner.links.deadline
        owner.deadline = float("inf") if due is None else due

    def _timeout(self) -> float | None:
        due = min(worker.deadline for worker in self._workers)
        if self._control is not None:
            due = min(due, self._control.deadline)
        if self._engine.deadline is not None:
            due = min(due, self._engine.deadline)
        return None if due == float("inf") else max(0.0, due - time.monotonic())

    # ---------------------------------------------------------------------------------------------------------- events

    def _on_server_event(self, worker: _Worker, event: Any) -> None:
        match event:
            case JobAssigned(job):
                self._on_job(worker, job)
            case UniqueStatus() if worker.work is not None and event.unique == worker.work.job.unique:
                self._do(ne.ClientsCounted(worker.index, worker.work.execution_id, event.clients))
            case JobLost():
                worker.work = None
                self._do(ne.JobGone(worker.index))
            case ServerUp(server) if server not in self._up:
                self._up.add(server)
                self._report(f"connected to {server[0]}:{server[1]}")
            case ServerDown(server, reason) if server in self._up:
                self._up.discard(server)
                self._report(f"lost {server[0]}:{server[1]}: {reason}; trying again")
            case _:
                pass

    def _on_job(self, worker: _Worker, job: AssignedJob) -> None:
        context = envelope.make_context(job.function.encode(), job.unique.encode())
        try:
            prefix = envelope.parse_prefix(job.data)
            session_key = self._session_key(prefix.session_id)
            job_key = seal.job_key(session_key, job.unique.encode())
            header = JobHeader.decode(envelope.open_header(job.data, prefix, job_key, context))
        except WireError as error:
            logger.warning("job %s refused: %s", job.handle, error, extra={"action": "refuse_job"})
            self._report(f"refused a job that does not open: {error}")
            worker.work = None
            worker.links.fail(job)
            return
        work = _Work(job, prefix, context, session_key, job_key, header, os.urandom(16), time.monotonic())
        worker.work = work
        self._do(
            ne.JobTaken(
                worker.index,
                work.execution_id,
                foreground=header.foreground and bool(job.unique),
                avoided=worker.name in header.avoid,
                expired=time.time() > prefix.expiry,
            )
        )

    def _session_key(self, session_id: bytes) -> bytes:
        key = self._session_keys.get(session_id)
        if key is None:
            key = self._session_keys[session_id] = seal.session_key(self.settings.secret, session_id)
            if len(self._session_keys) > KEPT_SESSIONS:
                self._session_keys.popitem(last=False)
        return key

    def _hear_child(self, child: Child) -> None:
        for report in child.take_reports():
            match report:
                case Ready():
                    self._do(ne.ChildReady(child.number))
                case Committed(sealed, final):
                    self._on_committed(child, sealed, final)
                case Ended(position, detail):
                    self._forget_child(child)
                    self._do(ne.ChildGone(child.number, position, detail))

    def _on_committed(self, child: Child, sealed: bytes | bytearray, final: bool) -> None:
        index = self._engine.worker_of(child.number)
        work = None if index is None else self._workers[index].work
        if work is None:
            return  # the job went away while the child worked on
        work.committed.append(sealed)
        self._do(ne.OutcomeFinal(child.number) if final else ne.OutcomeCommitted(child.number))

    # ----------------------------------------------------------------------------------------------------- instructions

    def _do(self, event: ne.Input) -> None:
        for instruction in self._engine.handle(event, time.monotonic()):
            self._carry_out(instruction)

    def _carry_out(self, instruction: ne.Instruction) -> None:
        match instruction:  # the commonest first
            case ne.StartChild(number):
                self._start_child(number)
            case ne.KillChild(number):
                if number in self._children:
                    self._children[number].kill()
            case ne.RunJob(index, number):
                self._run_job(self._workers[index], self._children[number])
            case ne.Forward(index):
                self._forward(self._workers[index])
            case ne.Finish(index):
                self._finish(self._workers[index])
            case ne.AnswerNotRun():
                self._answer_not_run(instruction)
            case ne.SendBeat(index):
                self._send_beat(self._workers[index])
            case ne.AskClients(index):
                worker = self._workers[index]
                if worker.work is not None:
                    worker.links.ask_clients(worker.work.job)
                    self._touched.add(worker)
            case ne.Pause():
                for worker in self._workers:
                    worker.links.pause()
            case ne.Exit():
                self._exit = instruction

    def _start_child(self, number: int) -> None:
        child = Child(number, self._context, self.settings.children)
        child.start()
        self._children[number] = child
        for pollable in (child, child.sentinel):
            self._owners[pollable] = child
            self._poller.add(pollable)

    def _forget_child(self, child: Child) -> None:
        self._children.pop(child.number, None)
        for pollable in (child, child.sentinel):
            self._owners.pop(pollable, None)
            self._poller.remove(pollable)

    def _run_job(self, worker: _Worker, child: Child) -> None:
        work = worker.work
        assert work is not None
        unique = work.job.unique.encode()
        head = encode_job(
            execution_id=work.execution_id,
            job_key=work.job_key,
            outcome_key=seal.outcome_key(work.session_key, unique, work.execution_id),
            context=work.context,
            worker=worker.name,
            index=worker.index,
            expiry=work.prefix.expiry,
            sealed_bytes=len(work.job.data),
        )
        child.send_job(head, (work.job.data,))
        self._poller.update(child)

    def _forward(self, worker: _Worker) -> None:
        work = worker.work
        if work is not None and work.committed:
            committed, work.committed = work.committed, []
            worker.links.send_data(work.job, Parts(committed))
            self._touched.add(worker)

    def _finish(self, worker: _Worker) -> None:
        work = worker.work
        assert work is not None
        worker.work = None
        worker.links.complete(work.job, Parts(work.committed))
        self._touched.add(worker)
        self._tell(worker, work, "done")

    def _answer_not_run(self, answer: ne.AnswerNotRun) -> None:
        worker = self._workers[answer.worker]
        work = worker.work
        if work is None:
            return
        worker.work = None
        reason = _REASONS[answer.reason]
        detail = answer.detail
        if reason is NotRunReason.EXPIRED:
            detail = f"the clock of {worker.name} says {time.time():.0f}, the job was good until {work.prefix.expiry}"
        not_run = NotRun(reason=reason, detail=detail)
        outcome = Outcome(not_run=not_run, final=True, worker=worker.name, beat=answer.charged)
        worker.links.complete(work.job, Parts([*work.committed, self._sealed(work, outcome)]))
        self._touched.add(worker)
        self._tell(worker, work, f"not run ({answer.reason.value}{': ' if answer.detail else ''}{answer.detail})")

    def _send_beat(self, worker: _Worker) -> None:
        work = worker.work
        if work is None:
            return
        position = self._position(worker)
        outcome = Outcome(worker=worker.name, beat=position)
        worker.links.send_data(work.job, self._sealed(work, outcome))
        size = sum(high - low for block in work.header.blocks for low, high in block.run)
        worker.links.send_status(work.job, position or 0, size)
        self._touched.add(worker)

    def _sealed(self, work: _Work, outcome: Outcome) -> bytes:
        """Seal what the node itself says about an execution, under the key that only the node writes with."""
        header, body = encode_outcome(outcome, ())
        message = envelope.seal_message(
            kind=envelope.Kind.NODE,
            key=seal.node_key(work.session_key, work.job.unique.encode(), work.execution_id),
            session_id=work.prefix.session_id,
            execution_id=work.execution_id,
            sequence=work.node_sequence,
            expiry=work.prefix.expiry,
            context=work.context,
            header=header,
            body=body,
        )
        work.node_sequence += 1
        return message.to_bytes()

    def _position(self, worker: _Worker) -> int | None:
        for child in self._children.values():
            if self._engine.worker_of(child.number) == worker.index:
                return child.position
        return None

    def _tell(self, worker: _Worker, work: _Work, how: str) -> None:
        worker.done += 1
        if self._verbose is None:
            return
        size = sum(high - low for block in work.header.blocks for low, high in block.run)
        tasks = "1 task" if size == 1 else f"{size} tasks"
        lane = Lane.parse(work.job.function)
        queue = "?" if lane is None else lane.queue
        elapsed = time.monotonic() - work.began
        self._verbose(f"{worker.name}  {work.job.handle}  queue {queue}  {tasks}  {elapsed:.3f} s  {how}")

    # --------------------------------------------------------------------------------------------------------- control

    def _describe(self) -> dict[str, Any]:
        """Return what the control function tells about this node."""
        settings = self.settings
        return {
            "node": settings.node_id,
            "name": settings.name,
            "pid": os.getpid(),
            "python": ".".join(map(str, settings.python)),
            "queues": list(settings.queues),
            "uptime": round(time.monotonic() - self._started, 3),
            "workers": [
                {
                    "name": worker.name,
                    "busy": worker.work is not None,
                    "jobs_done": worker.done,
                    "execution": None if worker.work is None else worker.work.execution_id.hex(),
                    "run": None if worker.work is None else worker.work.header.run,
                    "position": self._position(worker),
                }
                for worker in self._workers
            ],
        }

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
        for child in self._children.values():
            child.kill()
        for child in list(self._children.values()):
            child.wait(2.0)
            self._forget_child(child)
            child.close()
        for worker in self._workers:
            worker.links.close()
        if self._control is not None:
            self._control.close()
        self._poller.remove(self._waker)
        self._waker.close()
        self._poller.close()
