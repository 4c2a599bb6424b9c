"""One call on every worker, or on one worker of every node.

A worker has no address of its own on a job server. So its node is asked, by its control function, to have each worker
serve a private lane for a while; one ordinary job goes to each of these lanes, and the runs are those of any call:
results, exceptions, losses and time limits are what they are elsewhere. Rejected: running the call inside the control
function, which would be a second way to run tasks.

Law of the file: what is asked of nodes and job servers is given back, and would end by itself if this process did not
live to do so. A job server never forgets a function name: so the names are this client's, not the call's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from typing import Any

from gearmap.backend import Backend
from gearmap.config import RunOptions, ServerMode
from gearmap.core.names import Lane, explain_no_worker, node_ids
from gearmap.errors import ClusterBroken, ConfigurationError, RunTimeout, TransportError, WorkerLost
from gearmap.runtime import child
from gearmap.runtime.callrun import CallRun
from gearmap.runtime.futures import Future
from gearmap.runtime.inline import submit_inline
from gearmap.runtime.nodeclient import Question, ask_nodes, listed_workers
from gearmap.runtime.sessions import Session
from gearmap.transport.admin import drop_function
from gearmap.transport.events import Address
from gearmap.wire.serializer import dump_call

__all__ = ["run_everywhere"]

# How long a node may take to answer. Raised: a busy one is not left out; lowered: one that hangs costs less time.
ANSWER_SECONDS = 10.0

# How long workers that a job server lists may take to be told of by their nodes: they come one after the other.
SETTLE_SECONDS = 3.0
SETTLE_INTERVAL = 0.1

# A lane is a lease of so many seconds, and renewed in time. Raised: a client that freezes keeps its lanes; lowered: one
# that has died leaves less behind.
LEASE_SECONDS = 60.0
RENEW_SECONDS = 20.0

# How often is looked whether the workers that are waited for still stand on a job server.
LOOK_SECONDS = 2.0

# How often a job server is asked to forget a name that a worker may still serve for a moment.
FORGET_TRIES = 5
FORGET_SECONDS = 1.0


@dataclass(slots=True)
class _Target:
    """One worker that the call goes to."""

    name: str
    question: Question  # about its node; the request is filled in
    number: int
    queue: str
    lane: Lane
    run: CallRun | None = None
    future: Future[Any] | None = None
    answer: Any = None
    missed: int = 0  # looks in a row at which it stood on no job server


@dataclass(slots=True)
class _Node:
    address: Any
    id: str
    described: dict[str, Any] = field(default_factory=dict)

    def workers(self) -> list[tuple[int, dict[str, Any]]]:
        """Its workers of the first level, with their numbers."""
        return [(n, worker) for n, worker in enumerate(self.described["workers"]) if not worker["level"]]


def run_everywhere(
    backend: Backend,
    options: RunOptions,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    one_of_each_node: bool,
) -> dict[str, Any]:
    """Call `fn` on every worker that is there now; return results, or exceptions, by the workers' or nodes' names.

    Raises
    ------
    ClusterBroken
        If there is no worker.
    ConfigurationError
        If this is called inside a task: its own worker would never answer.
    """
    if backend.mode is ServerMode.INLINE:
        backend.begin_inline(options)
        return {"inline": _outcome(submit_inline(fn, args, kwargs, 0, options))}
    if child.is_child and backend.is_nested:
        raise ConfigurationError("a task cannot call something on every worker: its own is busy with the task")
    function = backend.pickle_function(fn, options)
    call = dump_call(args, kwargs, backend.place_arguments)
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    backend.ready_driver()
    session = backend.open_session(options.queue)
    with backend.exclusive:  # the lanes are this client's: another thread would end ours with its own
        targets = _find_targets(backend, session, one_of_each_node)
        try:
            targets = _lease(targets, session)
            for target in targets:
                target.run = backend.make_call_run(options.with_changes({"queue": target.queue, "timeout": None}))
                target.future = target.run.submit(function, call, backend.place())
            _wait(backend, targets, session, deadline, options.timeout)
        finally:
            _give_back(backend, targets, session)
    return {target.name: target.answer for target in targets}


# ---------------------------------------------------------------------------------------------------- finding workers


def _find_targets(backend: Backend, session: Session[Lane], one_of_each_node: bool) -> list[_Target]:
    """Return the workers that are there; wait a moment for those that a job server lists and no node tells of yet."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        listed = listed_workers(backend.addresses)
        nodes = _describe(listed, session)
        known = sum(len(node.workers()) for node in nodes)
        expected = max((functions.get(session.lane.name, 0) for functions in listed.values()), default=0)
        is_starting = backend.mode is ServerMode.LOCAL and not known
        if (known >= expected and not is_starting) or (time.monotonic() > until and known):
            break
        if time.monotonic() > until and not is_starting:
            break
        backend.check_well()
        if backend.closing.wait(SETTLE_INTERVAL):
            raise ClusterBroken(f"this {backend.owner} was closed")
    if not nodes:
        served = {name: count for functions in listed.values() for name, count in functions.items()}
        raise ClusterBroken(explain_no_worker(session.lane, served.items(), [str(each) for each in backend.addresses]))
    return _targets(nodes, session, backend.id, one_of_each_node)


def _describe(listed: dict[Any, dict[str, int]], session: Session[Lane]) -> list[_Node]:
    """Return the nodes that serve our queue for our Python, as they describe themselves."""
    found: dict[str, _Node] = {}
    for address, functions in listed.items():
        alive = [name for name, workers in functions.items() if workers]
        for node_id in node_ids(alive, session.lane.key_id):
            found.setdefault(node_id, _Node(address, node_id))
    nodes = list(found.values())
    questions = [Question(node.address, node.id, {"op": "describe"}) for node in nodes]
    python = ".".join(map(str, session.lane.python))
    serving = []
    for node, answer in zip(nodes, ask_nodes(questions, session, timeout=ANSWER_SECONDS), strict=True):
        if answer and answer["ok"] and answer["python"] == python and session.lane.queue in answer["queues"]:
            node.described = answer
            serving.append(node)
    return serving


def _targets(nodes: Sequence[_Node], session: Session[Lane], client: str, one_of_each_node: bool) -> list[_Target]:
    shared = Counter(node.described["name"] for node in nodes)
    targets = []
    for node in nodes:
        name = node.described["name"]
        if shared[name] > 1:  # two nodes of one host
            name = f"{name}[{node.id}]"
        workers = node.workers()
        if one_of_each_node:
            workers = sorted(workers, key=lambda pair: pair[1]["busy"])[:1]
        for number, _ in workers:
            queue = f"on-{client[:8]}-{node.id}-{number}"
            lane = Lane(queue, session.lane.python, session.lane.key_id)
            called = name if one_of_each_node else f"{name}/{number}"
            targets.append(_Target(called, Question(node.address, node.id, {}), number, queue, lane))
    return targets


# ------------------------------------------------------------------------------------------------------------- leases


def _ask(targets: Sequence[_Target], session: Session[Lane], **request: Any) -> dict[str, dict[str, Any] | None]:
    """Ask each node of these workers for something about their lanes; return the answers by node."""
    lanes: dict[str, list[tuple[int, str]]] = {}
    addresses = {}
    for target in targets:
        lanes.setdefault(target.question.node, []).append((target.number, target.queue))
        addresses[target.question.node] = target.question.address
    questions = [Question(addresses[node], node, {**request, "lanes": pairs}) for node, pairs in lanes.items()]
    return dict(zip(lanes, ask_nodes(questions, session, timeout=ANSWER_SECONDS), strict=True))


def _lease(targets: Sequence[_Target], session: Session[Lane]) -> list[_Target]:
    """Have the workers serve their lanes; return those that do. The others are leaving, or have left."""
    answers = _ask(targets, session, op="serve", seconds=LEASE_SECONDS)
    return [target for target in targets if (answers[target.question.node] or {}).get("ok")]


def _give_back(backend: Backend, targets: Sequence[_Target], session: Session[Lane]) -> None:
    """Let go of everything."""
    for target in targets:
        if target.run is not None:
            target.run.cancel()
    if backend.is_closed:
        return  # the leases end by themselves
    try:
        _ask(targets, session, op="leave")
        for target in targets:
            for address in backend.addresses:
                _forget(address.endpoint, target.lane.name)
    except TransportError:
        pass  # a job server that is away has forgotten more than names


def _forget(address: Address, name: str) -> None:
    for _ in range(FORGET_TRIES):
        if drop_function(address, name, timeout=FORGET_SECONDS):
            return


# ------------------------------------------------------------------------------------------------------------ waiting


def _wait(
    backend: Backend, targets: Sequence[_Target], session: Session[Lane], deadline: float | None, timeout: float | None
) -> None:
    """Wait until each worker has an answer, has gone, or the time is over."""
    waiting = {target.future: target for target in targets if target.future is not None}
    renew = time.monotonic() + RENEW_SECONDS
    while waiting:
        now = time.monotonic()
        step = LOOK_SECONDS if deadline is None else max(0.0, min(LOOK_SECONDS, deadline - now))
        done, _ = wait(waiting, step, FIRST_COMPLETED)
        for future in [each for each in waiting if each in done]:
            target = waiting.pop(future)
            target.answer = _outcome(future)
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            for target in waiting.values():
                target.answer = RunTimeout(f"{target.name} has not answered after timeout={timeout:g} s")
            return
        if not done:
            _drop_gone(backend, waiting)
        if waiting and now >= renew:
            renew = now + RENEW_SECONDS
            _ask(list(waiting.values()), session, op="serve", seconds=LEASE_SECONDS)


def _drop_gone(backend: Backend, waiting: dict[Future[Any], _Target]) -> None:
    """Stop waiting for workers that no job server lists any more, twice in a row."""
    try:
        listed = listed_workers(backend.addresses)
    except TransportError:
        return  # what becomes of the runs, they say themselves
    for future, target in list(waiting.items()):
        is_there = any(functions.get(target.lane.name) for functions in listed.values())
        target.missed = 0 if is_there else target.missed + 1
        if target.missed >= 2:
            target.answer = WorkerLost(f"{target.name} has gone, and what it was asked with it")
            del waiting[future]


def _outcome(future: Future[Any]) -> Any:
    """Return the result of a future that is done, or its exception."""
    error = future.exception()
    return future.result() if error is None else error
