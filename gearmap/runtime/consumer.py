"""Whom a run works for: what it is told, and who has tasks for it.

Law of the file: everything here is called in the driver thread. It must not block, and no user code may run in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gearmap.core.snapshot import ProgressSnapshot
from gearmap.errors import GearmapError, ServerUnavailable
from gearmap.runtime.futures import ResultBatch
from gearmap.runtime.givenup import GivenUp

__all__ = ["Consumer", "Feeder"]


class Consumer(Protocol):
    """Whoever wants a run's results. Called in the driver thread, must not block."""

    def claim(self, first: int, stop: int) -> Sequence[int]:
        """The tasks are about to be sent; return those that were cancelled meanwhile."""

    def delivered(self, first: int, size: int, batch: ResultBatch, offset: int, worker: str) -> None:
        """Results for the tasks `first .. first + size`."""

    def failed(self, task: int, failure: Any, attempts: int, worker: str) -> None:
        """The task raised, for good."""

    def gave_up(self, task: int, reason: GivenUp) -> None:
        """The task took too many workers with it, or ran too long."""

    def broken(self, error: GearmapError) -> None:
        """The run cannot go on."""

    def wanted(self, size: int) -> None:
        """Another block of `size` tasks is wanted."""

    def progressed(self, snapshot: ProgressSnapshot) -> None:
        """Counts have changed, or time has passed."""

    def noticed(self, text: str) -> None:
        """Something that a person should know, once."""

    def printed(self, task: int, stream: str, text: str) -> bool:
        """A task that runs has written lines to "stdout" or "stderr"; return whether they will be shown."""

    def ended(self, snapshot: ProgressSnapshot) -> None:
        """Nothing will come any more."""


class Feeder(Protocol):
    """Whoever has blocks for a run at any time, without being asked. Called in the driver thread."""

    @property
    def has_more(self) -> bool:
        """Whether there is something to add."""

    def feed(self, *, saturated: bool) -> bool:
        """Add what there is to the run; return whether there was anything.

        While the run is `saturated` with tasks nobody needs to wake the driver for more: it asks again by itself.
        """

    def reached(self) -> None:
        """A job server is connected."""

    def unreached(self, error: ServerUnavailable | None) -> None:
        """No job server is connected; `error` says so to who has asked (`Run.reach`), if it has turned out just now."""
