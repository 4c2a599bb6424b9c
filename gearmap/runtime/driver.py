"""The driver: the one thread that owns a client's sessions.

Rule 1: other threads only leave commands (`post`) and wake the driver; they never touch a run or a socket.
Rule 2: everything waits in one place, `Poller.dispatch`, and can be woken there.
Rule 3: an exception that comes out of one run, or out of who it works for, ends that run with an error that asks for a
report, and no other. Only one that comes from elsewhere in here ends them all.
"""

from __future__ import annotations

import contextvars
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from gearmap.config import Patience, ServerAddress
from gearmap.core.leaving import shares_session
from gearmap.errors import ClusterBroken
from gearmap.runtime.callbacks import CallbackThread
from gearmap.runtime.consumer import Consumer
from gearmap.runtime.forking import watch_forks
from gearmap.runtime.joblink import JobLink
from gearmap.runtime.landing import Landing
from gearmap.runtime.run import Run
from gearmap.runtime.serverlink import ServerLink
from gearmap.runtime.sharedlink import SharedLink
from gearmap.transport.poller import Poller, Waker

__all__ = ["Driver"]

logger = logging.getLogger(__name__)

# How often the health of a cluster of our own is looked at while runs wait (seconds).
HEALTH_INTERVAL = 0.5


class Driver:
    """Runs the engines of one client's runs.

    Parameters
    ----------
    addresses
        The job servers of every run.
    health
        Returns what is wrong with the cluster, or None; asked now and then while runs wait.
    patience
        How long job servers may be silent.
    landing
        Where children of this machine hand the memory of large results over, if there is such a place.

    Attributes
    ----------
    callbacks
        Where users' callbacks are called.
    """

    def __init__(
        self,
        addresses: Sequence[ServerAddress],
        *,
        health: Callable[[], str | None] = lambda: None,
        patience: Patience | None = None,
        landing: Landing | None = None,
    ) -> None:
        self._addresses = tuple(addresses)
        self._patience = patience or Patience()
        self._health = health
        self.landing = landing
        self._commands: deque[tuple[Callable[[], None], Consumer | None]] = deque()
        self._poller = Poller()
        self._waker = Waker()
        self._runs: list[Run] = []
        self._shared: list[SharedLink] = []  # one for each job server, while there are runs that share them
        self._closing = False
        self._next_health = 0.0
        self.callbacks = CallbackThread()
        # A context of its own: what the thread logs or shows is not mixed up with the cell that happens to run.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._main,), name="gearmap-driver", daemon=True)

    # ------------------------------------------------------------------------------------- surface (any thread)

    def start(self) -> None:
        """Start the thread."""
        self._poller.add(self._waker)
        if self.landing is not None:
            self.landing.start()
            self._poller.add(self.landing)
        watch_forks(self)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether runs can be added."""
        return self._thread.is_alive() and not self._closing

    @property
    def is_current(self) -> bool:
        """Whether this is the driver's own thread."""
        return threading.get_ident() == self._thread.ident

    def post(self, command: Callable[[], None], consumer: Consumer | None = None) -> None:
        """Let the driver thread call `command` soon. If it raises, the run of `consumer` ends."""
        self._commands.append((command, consumer))
        self._waker.wake()

    def close(self, timeout: float = 5.0) -> None:
        """Cancel every run, close every session, end both threads; callbacks that are due are called before."""
        self._closing = True
        self._waker.wake()
        if not self.is_current and self._thread.is_alive():
            self._thread.join(timeout)
            self.callbacks.join(timeout)

    # --------------------------------------------------------------------------------------- for commands (driver)

    def make_links(self) -> Sequence[JobLink]:
        """Return the connections of a new run, not yet opened: its own, or shares of those that others have."""
        if not shares_session(sum(not run.closed and type(run.links[0]) is ServerLink for run in self._runs)):
            return self._new_session()
        if not self._shared:
            self._shared = [SharedLink(link) for link in self._new_session()]
        return [shared.share() for shared in self._shared]

    def _new_session(self) -> list[ServerLink]:
        return [
            ServerLink(number, address, self._poller, jitter=random.random, send_timeout=self._patience.send_timeout)
            for number, address in enumerate(self._addresses)
        ]

    def add(self, run: Run) -> None:
        """Take on a run and open its session."""
        self._runs.append(run)
        now = time.monotonic()
        for link in run.links:
            link.open(now)

    # ------------------------------------------------------------------------------------------------------ the thread

    def _main(self) -> None:
        try:
            while not self._closing:
                self._poller.dispatch(self._timeout())
                self._work()
        except Exception as error:
            logger.exception("the driver thread failed", extra={"action": "driver_failed"})
            problem = ClusterBroken(f"gearmap's driver thread failed, please report this: {error!r}")
            for run in self._runs:
                run.abort(problem)
        finally:
            self._closing = True
            self._end()

    def _work(self) -> None:
        """One round. Every run is stepped; a step without news is cheap."""
        while self._commands:
            self._carry_out(*self._commands.popleft())
        now = time.monotonic()
        for shared in self._shared:
            shared.pump(now)
        has_closed = False
        for run in self._runs:
            try:
                run.step(now)
            except Exception as error:
                _give_up(run, error)
            has_closed = has_closed or run.closed
        if has_closed:
            self._runs = [run for run in self._runs if not run.closed]
            self._close_unused()
        if self._runs and now >= self._next_health:
            self._next_health = now + HEALTH_INTERVAL
            self._check_health()
            if self.landing is not None:
                self.landing.tidy()

    def _carry_out(self, command: Callable[[], None], consumer: Consumer | None) -> None:
        try:
            command()
        except Exception as error:
            runs = [run for run in self._runs if run.consumer is consumer]
            for run in runs:
                _give_up(run, error)
            if not runs:
                logger.exception("a command for the driver failed", extra={"action": "command_failed"})
                if consumer is not None:
                    consumer.broken(_report(error))

    def _close_unused(self) -> None:
        if self._shared and not any(shared.is_used for shared in self._shared):
            for shared in self._shared:
                shared.close()
            self._shared = []

    def _check_health(self) -> None:
        problem = self._health()
        if problem is not None:
            for run in self._runs:
                _fail(run, problem)

    def _timeout(self) -> float | None:
        if self._commands:
            return 0.0
        due = min((shared.deadline for shared in self._shared), default=float("inf"))
        for run in self._runs:
            if run.due < due:
                due = run.due
            if run.waits and self._next_health < due:
                due = self._next_health
        return None if due == float("inf") else max(0.0, due - time.monotonic())

    def _end(self) -> None:
        while self._commands:
            self._carry_out(*self._commands.popleft())
        for run in self._runs:
            if not run.closed:
                _fail(run, "the client was closed before the run had ended")
        self._runs.clear()
        self._close_unused()
        self.callbacks.close()
        if self.landing is not None:
            self._poller.remove(self.landing)
            self.landing.close()
        self._poller.remove(self._waker)
        self._waker.close()
        self._poller.close()

    def _after_fork_in_child(self) -> None:
        """Nobody runs this driver here. The session sockets are closed already: each connection sees to its own."""
        self._closing = True
        if self.landing is not None:
            self.landing.close()
        self._waker.close()
        self._poller.close()


def _fail(run: Run, problem: str) -> None:
    try:
        run.fail(ClusterBroken(problem))
    except Exception as error:
        _give_up(run, error)


def _give_up(run: Run, error: Exception) -> None:
    """End a run out of which an exception came."""
    logger.error("a run failed, the others go on", exc_info=error, extra={"action": "run_failed"})
    run.abort(_report(error))


def _report(error: Exception) -> ClusterBroken:
    problem = ClusterBroken(f"gearmap itself failed in this run, please report this: {error!r}")
    problem.__cause__ = error
    return problem
