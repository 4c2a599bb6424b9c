"""What the runs of one client or executor share: job servers, key, pickled functions, and the driver.

What must not live here: options that a person types and what they get back (`client`, `executor`), what a run does
(`runtime`).

Law of the file: nothing is started before the first use, and everything that was started ends with `close`. A process
that was forked never touches what its parent started.
"""

from __future__ import annotations

import secrets
import sys
import threading
import uuid
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from gearmap.cluster import LocalProcesses
from gearmap.config import (
    Patience,
    RunOptions,
    ServerAddress,
    ServerMode,
    exception_classes,
)
from gearmap.core.engine import RunEngine
from gearmap.core.missing import NOTICE_SECONDS
from gearmap.core.names import Lane, TaskLane
from gearmap.core.retry import RetryPolicy
from gearmap.errors import ClusterBroken, TaskTimeout
from gearmap.runtime import child, task
from gearmap.runtime.blobs import ArgumentStore, BlobStore, can_share
from gearmap.runtime.callrun import MAX_BLOCK_CALLS, CallRun
from gearmap.runtime.consumer import Consumer
from gearmap.runtime.driver import Driver
from gearmap.runtime.folder import CurrentFolder
from gearmap.runtime.forking import watch_forks
from gearmap.runtime.inline import initialize_inline
from gearmap.runtime.landing import Landing
from gearmap.runtime.localcode import LocalCode
from gearmap.runtime.nodeline import check_asker
from gearmap.runtime.placed import ArgumentPlacer
from gearmap.runtime.run import Place, Run, RunSettings
from gearmap.runtime.sessions import Session, new_session, new_task_session, session_from_node, task_session_from_node
from gearmap.runtime.shipped import install
from gearmap.runtime.taskbook import record_of, reference_to
from gearmap.runtime.tenancy import Tenancy, make_tenancy
from gearmap.secret import Secret
from gearmap.wire.framing import Payload
from gearmap.wire.serializer import FunctionCache, dumps, with_prelude

__all__ = ["Backend", "LocalBackend", "NestedBackend"]

# How long a local cluster's own node may take before people are told that it has no workers yet. Raised: a busy machine
# gives no false alarm; lowered: a node that hangs is known sooner.
NODE_START_SECONDS = 30.0


class _Pickled:
    """Functions that were pickled, and how modules are chosen that travel with them."""

    def __init__(self, by_value: Any, by_reference: Any, place: Callable[[Payload], Payload] | None) -> None:
        self._code = LocalCode(by_value, by_reference)
        self.functions = FunctionCache(self.accompany, place)

    def accompany(self, payload: Payload) -> tuple[Payload, Callable[[], bool]]:
        """Send the user's own modules that something pickled needs along with it."""
        bundle, is_current = self._code.bundle(bytes(payload[0]))
        return payload if bundle is None else with_prelude(payload, install, bundle.data), is_current


class Backend:
    """Where the runs of one client or executor go; by itself: to job servers that are named, or inline.

    Parameters
    ----------
    mode
        SERVERS, LOCAL or INLINE.
    addresses
        The job servers, if they are known already.
    secret
        The key; None where no job server is asked.
    """

    def __init__(self, mode: ServerMode, addresses: Sequence[ServerAddress] = (), secret: Secret | None = None) -> None:
        self.mode = mode
        self.owner = "Client"  # what errors call the object that a person holds
        self.patience = Patience()
        self._addresses = tuple(addresses)
        self._secret = secret
        self._lock = threading.RLock()
        self._driver: Driver | None = None
        self.arguments: ArgumentPlacer | None = None
        self._close_source: Callable[[], None] = lambda: None
        self._place_buffers = self._buffer_placer()
        self._pickled = _Pickled((), (), self._place_buffers)
        self._pickled_otherwise: dict[tuple[Any, Any], _Pickled] = {}
        self._closed = False
        self.closing = threading.Event()
        self.exclusive = threading.Lock()  # for what one client does once at a time
        self._last_place: Place | None = None
        self._last_path: list[str] = []
        self._folder = CurrentFolder()
        self._id = secrets.token_hex(8)
        self._begun: dict[Hashable, tuple[RunOptions, ClusterBroken | None]] = {}
        watch_forks(self)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or cannot be used in this forked process."""
        return self._closed

    @property
    def where(self) -> str:
        """Where tasks run, and who said so."""
        if self.mode is ServerMode.INLINE:
            return "in this process"
        return f"{', '.join(map(str, self._addresses))} (from {self._addresses[0].origin})"

    @property
    def addresses(self) -> tuple[ServerAddress, ...]:
        """The job servers; of a local cluster, once the driver is ready."""
        return self._addresses

    @property
    def place_arguments(self) -> Callable[[Payload], Payload] | None:
        """What puts the large buffers of a call's arguments where its worker finds them, if there is such a place."""
        return None if self.arguments is None else self.arguments.place

    @property
    def id(self) -> str:
        """Letters and digits that no other backend has."""
        return self._id

    @property
    def is_nested(self) -> bool:
        """Whether it is that of a task."""
        return False

    def check_well(self) -> None:
        """Raise ClusterBroken if the cluster has lost its processes, as far as this one can tell."""
        problem = self._problem()
        if problem is not None:
            raise ClusterBroken(problem)

    def close(self) -> None:
        """Cancel what runs and leave the job servers. May be repeated."""
        self.closing.set()
        with self._lock:
            self._closed = True
            driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()
        self._close_source()
        self._stop()

    def ready_driver(self) -> Driver:
        """Return the driver; start it, and what it needs, if it does not run.

        Raises
        ------
        ClusterBroken
            If this was closed, belongs to the process that this one was forked from, or has lost its processes.
        """
        with self._lock:
            if self._closed:
                raise ClusterBroken(f"this {self.owner} is closed")
            self._check_usable()
            if self._driver is None or not self._driver.is_alive:
                self._start()
                landing = Landing() if can_share() else None
                driver = Driver(self._addresses, health=self._problem, patience=self.patience, landing=landing)
                driver.start()
                self._driver = driver
            elif (problem := self._problem()) is not None:
                raise ClusterBroken(problem)
            return self._driver

    def pickle_function(self, fn: Callable[..., Any], options: RunOptions) -> tuple[bytes, Any]:
        """Return digest and payload of a function, with the user's own modules that it needs.

        Raises
        ------
        SerializationError
            If it does not pickle.
        """
        record = record_of(fn)
        if record is not None and record.module != "__main__":
            return reference_to(record)
        cache = self._pickled_for(options).functions
        found = cache.find(fn)
        if found is None:
            with self._lock:
                found = cache.payload(fn)
        return found

    def task_name(self, fn: Callable[..., Any]) -> str | None:
        """Return the name of a named task that goes to workers that serve it; None for what any worker runs."""
        record = record_of(fn)
        return None if record is None else record.name

    def _pickled_for(self, options: RunOptions) -> _Pickled:
        if not options.by_value and not options.by_reference:
            return self._pickled
        chosen = (options.by_value, options.by_reference)
        with self._lock:
            if chosen not in self._pickled_otherwise:
                self._pickled_otherwise[chosen] = _Pickled(*chosen, self._place_buffers)
            return self._pickled_otherwise[chosen]

    def run_maker(
        self,
        driver: Driver,
        options: RunOptions,
        feeds: bytes | None,
        total: int | None,
        *,
        tenant: str | None = None,
        task: str | None = None,
    ) -> Callable[[Consumer], Run]:
        """Return what makes a run for its consumer, in the driver thread; what must be pickled for it is pickled now.

        Parameters
        ----------
        feeds
            The function whose tasks the consumer is asked for, or None for single calls.
        total
            How many tasks there will be, if that is known.
        tenant
            Who has children of its own that run the initializer; by default everybody with an equal one.
        task
            The named task that is called (`task_name`), or None.

        Raises
        ------
        SerializationError
            If an exception class of `retry_exceptions`, or the initializer, does not pickle.
        """
        retried = None
        if options.retries and options.retry_exceptions != (Exception,):
            retried = dumps(options.retry_exceptions, name="retry_exceptions")
        tenancy = None
        if options.initializer is not None:
            owner = tenant or self._id
            tenancy = make_tenancy(
                owner,
                options.initializer,
                options.initargs,
                self._pickled_for(options).accompany,
                is_sole=tenant is not None,
            )
        session: Session[Lane] | Session[TaskLane]
        session = self.open_session(options.queue) if task is None else self.open_task_session(task)
        return lambda consumer: self._make_run(driver, consumer, session, options, feeds, total, retried, tenancy)

    def make_call_run(self, options: RunOptions, *, tenant: str | None = None, task: str | None = None) -> CallRun:
        """Return a new run for single calls; see `run_maker`."""
        driver = self.ready_driver()
        maker = self.run_maker(driver, options, None, None, tenant=tenant, task=task)
        return CallRun(driver, maker, max_block=options.max_tasks_per_child or MAX_BLOCK_CALLS)

    def _make_run(
        self,
        driver: Driver,
        consumer: Consumer,
        session: Session[Lane] | Session[TaskLane],
        options: RunOptions,
        feeds: bytes | None,
        total: int | None,
        retried: Payload | None,
        tenancy: Tenancy | None,
    ) -> Run:
        settings = RunSettings(
            run_id=uuid.uuid4().hex,
            lane=session.lane,
            depth=session.depth,
            session_id=session.id,
            session_key=session.key,
            priority=options.priority,
            feeds=feeds,
            task_timeout=options.task_timeout,
            retry_exceptions=retried,
            tenancy=tenancy,
            max_tasks_per_child=options.max_tasks_per_child,
            log_level=options.log_number,
            patience=self._patience(options.queue),
            landing=driver.landing,
        )
        engine = RunEngine(
            policy=_policy(options),
            chunksize=options.chunksize,
            max_workers=options.max_workers,
            fail_fast=feeds is not None and not options.return_exceptions,
            total=total,
            max_chunksize=options.max_tasks_per_child,
            seed=int.from_bytes(session.id, "little"),
            beat_timeout=self.patience.beat_timeout,
        )
        return Run(settings, engine, consumer, driver.make_links())

    def begin_inline(self, options: RunOptions, *, tenant: str = "") -> None:
        """Before a task in this process: call the initializer, once for each tenant and options that name it.

        Raises
        ------
        ClusterBroken
            If it raises, now or before.
        """
        if options.initializer is None:
            return
        key = (tenant, options.key)
        with self._lock:
            if key not in self._begun:
                self._begun[key] = options, initialize_inline(options)
            _, error = self._begun[key]
        if error is not None:
            raise error

    def place(self) -> Place:
        """Where tasks run: at the folder where the node was started."""
        return Place()

    def _after_fork_in_child(self) -> None:
        """Connect anew on the next use."""
        self._lock = threading.RLock()
        self._driver = None
        self.closing, self.exclusive = threading.Event(), threading.Lock()
        # What the parent gives or shares goes with the parent.
        self._place_buffers = self._buffer_placer()
        self._pickled = _Pickled((), (), self._place_buffers)
        self._pickled_otherwise = {}

    def _callers_place(self) -> Place:
        """The caller's folder, with its search path."""
        cwd = self._folder.path()
        place = self._last_place
        if place is None or place.cwd != cwd or self._last_path != sys.path:
            self._last_path = list(sys.path)
            place = self._last_place = Place(cwd, tuple(path or cwd for path in self._last_path))
        return place

    # ------------------------------------------------------------- what a local cluster, or a task's backend, overrides

    def open_session(self, queue: str) -> Session[Lane]:
        """Return a fresh session for a run of a queue."""
        assert self._secret is not None
        return new_session(self._secret, queue)

    def open_task_session(self, name: str) -> Session[TaskLane]:
        """Return a fresh session for a run of a named task."""
        assert self._secret is not None
        return new_task_session(self._secret, name)

    def _buffer_placer(self) -> Callable[[Payload], Payload] | None:
        """Return what puts the large buffers of functions where all nodes find them, if there is such a place.

        Those of arguments go into `arguments`.
        """
        if self.mode is not ServerMode.SERVERS or self._secret is None:
            return None
        from gearmap.runtime.blobsource import BlobSource, GivenArguments  # a local cluster starts without

        source = BlobSource([each.endpoint for each in self._addresses], self._secret, self.patience)
        self._close_source = source.close
        self.arguments = GivenArguments(source)
        return source.place

    def _check_usable(self) -> None:
        """Raise if this process cannot use it."""

    def _start(self) -> None:
        """Start what must run before the driver connects."""

    def _stop(self) -> None:
        """Stop what was started."""

    def _problem(self) -> str | None:
        """Return what is wrong with the cluster, as far as this process can tell."""
        return None

    def _patience(self, queue: str) -> float:
        """Return how long a queue may be without workers before a person is told (seconds)."""
        return NOTICE_SECONDS


class LocalBackend(Backend):
    """Runs go to a cluster of their own on this machine.

    Parameters
    ----------
    workers
        How many tasks run at once, None for one for each usable CPU.
    server
        Which job server; see `LocalCluster`.
    """

    def __init__(self, workers: int | None = None, *, server: str = "auto", memory_limit: int | None = None) -> None:
        super().__init__(ServerMode.LOCAL)
        self.processes = LocalProcesses(workers, server, memory_limit)

    def scale(self, workers: int) -> None:
        """Have so many workers from now on."""
        with self._lock:
            self._check_usable()
            self.processes.scale(workers)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or belongs to the process that this one was forked from."""
        return self._closed or self.processes.is_foreign

    @property
    def where(self) -> str:
        """Where tasks run."""
        return self.processes.describe()

    def place(self) -> Place:
        """Where tasks run: in the caller's folder, with its search path."""
        return self._callers_place()

    def task_name(self, fn: Callable[..., Any]) -> str | None:
        """Its workers find named tasks where the caller does, so any of them runs them."""
        return None

    def _after_fork_in_child(self) -> None:
        """Stay away from the parent's processes; what was not started yet can be started here."""
        super()._after_fork_in_child()
        self.processes.let_go()

    def _buffer_placer(self) -> Callable[[Payload], Payload] | None:
        if not can_share():
            return None
        self.arguments = ArgumentStore()
        return BlobStore().place

    def _check_usable(self) -> None:
        if self.processes.is_foreign:
            raise ClusterBroken(
                f"this {self.owner} belongs to the process that this one was forked from; make a new one here"
            )

    def _start(self) -> None:
        self.processes.stop()
        self._addresses = (self.processes.start(),)
        self._secret = self.processes.secret

    def _stop(self) -> None:
        self.processes.stop()

    def _problem(self) -> str | None:
        return self.processes.problem()

    def _patience(self, queue: str) -> float:
        # The node is ours: while it lives its workers are on their way, and `_problem` says when it does not.
        return NODE_START_SECONDS if queue == "default" else super()._patience(queue)


class NestedBackend(Backend):
    """Runs of a task go to the job servers of the node that runs it, one nesting level deeper.

    It ends with the job that the task is part of: what runs then, nobody waits for.
    """

    def __init__(self) -> None:
        servers = child.settings.servers
        super().__init__(ServerMode.SERVERS, [ServerAddress.at(each, "this task's node") for each in servers])

    def place(self) -> Place:
        """Where tasks run: where this one does, if that was its client's folder."""
        header = task.running_header()
        return Place() if header is None or header.cwd is None else self._callers_place()

    def open_session(self, queue: str) -> Session[Lane]:
        return session_from_node(queue)

    def open_task_session(self, name: str) -> Session[TaskLane]:
        return task_session_from_node(name)

    def task_name(self, fn: Callable[..., Any]) -> str | None:
        """On a local cluster any worker runs a named task, as it does for its client."""
        return None if child.settings.is_local else super().task_name(fn)

    def _patience(self, queue: str) -> float:
        return NODE_START_SECONDS  # the node is opening the level

    @property
    def is_nested(self) -> bool:
        """It is."""
        return True

    def _check_usable(self) -> None:
        check_asker()

    def _start(self) -> None:
        task.at_end_of_job(self.close)


def _policy(options: RunOptions) -> RetryPolicy:
    return RetryPolicy(
        retries=options.retries,
        retry_timeouts=issubclass(TaskTimeout, exception_classes(options.retry_exceptions)),
        max_worker_losses=options.max_worker_losses,
        retry_delay=options.retry_delay,
    )
