"""What a run asks of its connection to one job server, whether that is its own or shared.

Law of the file: no code, so that a run does not know which of them it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from gearmap.config import ServerAddress
from gearmap.errors import TransportError
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.transport.events import JobRequest

__all__ = ["JobLink", "StopMaker"]

StopMaker: TypeAlias = Callable[[Mapping[bytes, str]], Sequence[JobRequest]]
"""Returns the requests that stop executions, given the node of each."""


class JobLink(Protocol):
    """One job server, as one run has it.

    Attributes
    ----------
    was_up
        Whether it has ever been connected for this run.
    failures
        How often connecting has failed since it was.
    """

    number: int
    address: ServerAddress
    was_up: bool
    failures: int

    @property
    def deadline(self) -> float | None:
        """When `step` must be called, if nothing else happens."""

    @property
    def is_up(self) -> bool:
        """Whether the job server is connected and has answered."""

    def open(self, now: float) -> None:
        """Begin to connect."""

    def hurry(self, now: float) -> None:
        """Try again at once, if this only waits to."""

    def step(self, now: float) -> Sequence[Any]:
        """Return what has happened."""

    def submit(self, requests: Sequence[JobRequest]) -> None:
        """Send jobs."""

    def request_status(self) -> None:
        """Ask for the workers' numbers."""

    def query_unique(self, unique: str) -> None:
        """Ask what became of a job."""

    def leave(self, sent: Mapping[int, OutcomeReader], stop: StopMaker) -> None:
        """The run has ended: nobody waits for its jobs any more.

        `sent` are the readers of attempts that job servers may still have, `stop` is for those that run.
        """

    def failure(self) -> TransportError:
        """Return why there is no connection."""
