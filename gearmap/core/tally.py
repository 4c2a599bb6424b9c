"""What happened to the jobs of a run, counted for a report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Counts of one run.

    Attributes
    ----------
    jobs
        Jobs that were submitted.
    executions
        Executions of them that have given a sign; more than one of a job is the job server's doing.
    failures
        How often a task raised.
    losses
        Jobs that ended without an answer, by reason.
    not_run
        Jobs that a node gave back, in part at least, by reason.
    """

    jobs: int = 0
    executions: int = 0
    failures: int = 0
    losses: dict[str, int] = field(default_factory=dict)
    not_run: dict[str, int] = field(default_factory=dict)

    def lost(self, reason: str) -> None:
        """Count a lost job."""
        self.losses[reason] = self.losses.get(reason, 0) + 1

    def given_back(self, reason: str) -> None:
        """Count a job that was not run."""
        self.not_run[reason] = self.not_run.get(reason, 0) + 1

    def copy(self) -> Tally:
        """Return the counts as they are now."""
        return replace(self, losses=dict(self.losses), not_run=dict(self.not_run))
