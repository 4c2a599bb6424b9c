"""Tasks that go again: which, when, after what, and which have had their last chance.

What must not live here: which job goes to which server, and when (`engine`).

Rule 1: all tasks of an attempt share one history, so an attempt that ends parts its tasks by what they met.
Rule 2: a task that waits for its time is in no queue: nothing else waits for it.
Rule 3: where nobody knows which task took a worker with it, a node is asked to watch the chunk closely; where that
does not help, it is halved until one is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from gearmap.core import events as ev
from gearmap.core.attempts import Attempt, parted, ranges_of, without
from gearmap.core.board import DELAYED, FAILED, SENT, WAITING, TaskBoard
from gearmap.core.retry import (
    MAX_FETCHES,
    MAX_REFUSALS,
    History,
    RetryPolicy,
    Verdict,
    after_loss,
    after_refusal,
    decide,
    refusal_delay,
    retry_delay,
)

__all__ = ["Reruns"]

# Into how many chunks, for each worker and at most, what a worker gave back of one that took long is parted. Raised: a
# better balance of long tasks; lowered: fewer jobs, of which each may bring the arguments of all.
PARTS_PER_WORKER = 2
MAX_PARTS = 16

# Retries of one attempt's tasks that are due within so many seconds travel together. Raised: fewer jobs where many
# tasks fail; lowered: they start closer to their time.
GATHER_SECONDS = 0.1

# What its users are told of a task that was refused so often that it fails: how many attempts it had.
_REFUSED_AFTER = {ev.NotRunKind.CANNOT_LOAD: MAX_REFUSALS, ev.NotRunKind.NO_BLOB: MAX_FETCHES}

_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class _Rerun:
    """Tasks that go again, in a job of their own; those that were settled meanwhile are left out then."""

    ranges: list[ev.TaskRange]
    history: History


class Reruns:
    """The tasks of one run that go again.

    Parameters
    ----------
    board
        Of the run.
    policy
        Limits for failures and losses.
    fail_fast
        Whether the first task that fails for good ends the run.
    seed
        Of the run; spreads its retries over time.

    Attributes
    ----------
    again
        How many tasks were put back.
    """

    def __init__(self, board: TaskBoard, policy: RetryPolicy, *, fail_fast: bool, seed: int) -> None:
        self.again = 0
        self._board = board
        self._policy = policy
        self._fail_fast = fail_fast
        self._seed = seed
        self._lacking: dict[Hashable, dict[str, None]] = {}  # by function: workers that cannot load it, in order
        self._ready: deque[_Rerun] = deque()
        self._later: list[tuple[float, int, _Rerun]] = []  # a heap; the number keeps equal times in their order
        self._numbered = 0

    def __bool__(self) -> bool:
        """Whether something may go now."""
        return bool(self._ready)

    @property
    def due(self) -> float:
        """When `wake` must be called."""
        return self._later[0][0] if self._later else _NEVER

    def take(self) -> tuple[list[ev.TaskRange], History]:
        """Return the next tasks that go, maybe none any more, and what they have met."""
        rerun = self._ready.popleft()
        waiting = [part for start, stop in rerun.ranges for part in self._board.waiting_ranges(start, stop)]
        return waiting, rerun.history

    def wake(self, now: float) -> None:
        """Let the tasks whose time has come go."""
        while self._later and self._later[0][0] <= now:
            rerun = heappop(self._later)[2]
            for start, stop in rerun.ranges:
                for low, high in self._board.delayed_ranges(start, stop):
                    self._board.move(low, high, DELAYED, WAITING)
            self._ready.append(rerun)

    def clear(self) -> None:
        """Forget everything."""
        self._ready.clear()
        self._later.clear()

    # ------------------------------------------------------------------------------------------------ what tasks meet

    def task_failed(
        self, attempt: Attempt, failed: ev.TaskFailed, worker: str, now: float, out: list[ev.Instruction]
    ) -> None:
        """Take in a failure; it counts once for each attempt, whatever executions the job server adds."""
        task = attempt.task_at(failed.position)
        if task is None or task in attempt.failed or not self._board.is_open(task):
            return
        if not (failed.retry and self._retry(attempt, task, now)):
            out.append(ev.FailTask(task, failed.failure, attempt.history.attempts, worker))
            self._fail(task, out)

    def put_back(
        self,
        attempt: Attempt,
        report: ev.NotRunReport | None,
        worker: str | None,
        out: list[ev.Instruction],
        *,
        workers: int | None,
        is_loaded: bool,
        now: float,
    ) -> bool:
        """Let every open task of an attempt that has ended go again, or settle it.

        Parameters
        ----------
        workers
            How many there are, if that is known.
        is_loaded
            Whether any worker has run the attempt's function.

        Returns
        -------
        bool
            Whether the run can go on.
        """
        if report is not None and report.reason is ev.NotRunKind.TIMED_OUT:
            self._charge_slow_task(attempt, report, worker, now, out)
            report = None
        if attempt.failed:
            self._part_failed(attempt, now)
        rest = [part for start, stop in attempt.ranges for part in self._board.sent_ranges(start, stop)]
        if not rest:
            return True
        if report is not None and report.reason is ev.NotRunKind.DIED:
            self._put_first(self._after_death(attempt, rest, report, worker, out))
            return True
        if report is not None and report.reason is ev.NotRunKind.OVER_BUDGET:
            self._part_long(attempt, rest, workers)
            return True
        if report is not None and report.reason is ev.NotRunKind.INITIALIZER_FAILED:
            return self._after_initializer(attempt, rest, report, worker, out)
        kind = ev.NotRunKind.AGAIN if report is None else report.reason
        met = attempt.history
        if kind is ev.NotRunKind.CANNOT_LOAD and not is_loaded:
            met = self._with_all_lacking(attempt, worker or "")
        history = after_refusal(met, kind, worker or "", workers=workers, is_loaded=is_loaded)
        if history is not None:
            delay = refusal_delay(history) if kind in (ev.NotRunKind.NO_BLOB, ev.NotRunKind.EXPIRED) else 0.0
            if delay:
                self._put_later(now + delay, _Rerun(rest, history))
            else:
                self._put_first([_Rerun(rest, history)])
            return True
        assert report is not None  # nobody is refused for no reason
        return self._refused(rest, report, worker, out)

    def _retry(self, attempt: Attempt, task: int, now: float) -> bool:
        """Note that the task failed; return whether it goes again, with the end of its attempt or later."""
        failures = attempt.history.failures + 1
        if decide(self._policy, failures=failures) is Verdict.GIVE_UP:
            return False
        attempt.failed[task] = now + retry_delay(self._policy, failures, seed=self._seed, task=task)
        return True

    def _charge_slow_task(
        self, attempt: Attempt, report: ev.NotRunReport, worker: str | None, now: float, out: list[ev.Instruction]
    ) -> None:
        """Count a failure of the task that ran too long, if it is still to blame."""
        task = attempt.task_at(report.charged)
        if task is None or task in attempt.failed or not self._board.is_open(task):
            return
        policy, history = self._policy, attempt.history
        if policy.retry_timeouts and self._retry(attempt, task, now):
            return
        allowed = 1 + policy.retries + history.losses if policy.retry_timeouts else history.attempts
        out.append(
            ev.TimeOutTask(
                task,
                history.attempts,
                allowed,
                worker,
                report.detail,
                self._span(task),
                output=report.output,
                seconds=report.seconds,
            )
        )
        self._fail(task, out)

    def _part_failed(self, attempt: Attempt, now: float) -> None:
        """Take what failed out of an attempt that has ended, to go when it is due."""
        history = after_loss(attempt.history)
        history = replace(history, failures=history.failures + 1)
        tasks = sorted((due, task) for task, due in attempt.failed.items() if self._board.is_open(task))
        for due, group in _gathered(tasks):
            self._put_later(due, _Rerun(ranges_of(sorted(group)), history))
        self.wake(now)

    def _after_death(
        self,
        attempt: Attempt,
        rest: list[ev.TaskRange],
        report: ev.NotRunReport,
        worker: str | None,
        out: list[ev.Instruction],
    ) -> list[_Rerun]:
        """Charge the task that took its worker with it, and part it from the others; return what goes again."""
        known = after_loss(attempt.history)
        size = sum(stop - start for start, stop in rest)
        culprit = attempt.task_at(report.charged)
        if culprit is None and size > 1 and worker and not known.exact:  # of a lost host nobody would know more
            return [_Rerun(rest, replace(known, exact=True))]
        if culprit is None and size > 1:
            return [_Rerun(half, known) for half in parted(rest, size // 2)]
        if culprit is None:
            culprit = rest[0][0]
        elif culprit in attempt.failed or not self._board.is_open(culprit):
            return [_Rerun(rest, known)]
        others = without(rest, culprit)
        reruns = [_Rerun(others, known)] if others else []
        losses = known.losses + 1
        if decide(self._policy, losses=losses) is Verdict.RUN_AGAIN:
            avoid = (*known.avoid, worker) if worker else known.avoid
            return [*reruns, _Rerun([(culprit, culprit + 1)], replace(known, avoid=avoid, losses=losses))]
        # What killed a process when it was unpickled must not be unpickled by the client, to be told.
        span = None if report.loading else self._span(culprit)
        out.append(
            ev.LoseTask(culprit, losses, report.detail, worker, span, alone=attempt.size == 1, output=report.output)
        )
        self._fail(culprit, out)
        return reruns

    def _part_long(self, attempt: Attempt, rest: list[ev.TaskRange], workers: int | None) -> None:
        """Share out what is left of a chunk that took long; nothing went wrong, so nothing is counted."""
        size = sum(stop - start for start, stop in rest)
        n_parts = max(1, min(size, MAX_PARTS, PARTS_PER_WORKER * (workers or 1)))
        reruns = []
        for left in range(n_parts, 0, -1):
            part, rest = parted(rest, -(-sum(stop - start for start, stop in rest) // left))
            reruns.append(_Rerun(part, attempt.history))
        self._put_first(reruns, is_again=False)

    def _after_initializer(
        self,
        attempt: Attempt,
        rest: list[ev.TaskRange],
        report: ev.NotRunReport,
        worker: str | None,
        out: list[ev.Instruction],
    ) -> bool:
        """An initializer that raises would raise again; a process that ended in it may have been killed by others."""
        unready = attempt.history.unready + 1
        if report.failure is None and decide(self._policy, losses=unready) is Verdict.RUN_AGAIN:
            self._put_first([_Rerun(rest, replace(after_loss(attempt.history), unready=unready))])
            return True
        out.append(ev.BreakRun(report.reason, report.detail, report.failure, worker))
        return False

    def _with_all_lacking(self, attempt: Attempt, worker: str) -> History:
        """Return what an attempt has met, with every worker that could not load its function for any chunk.

        So it is known that nobody can as soon as each has said so once. Once a worker can, what the others say counts
        for the chunk that they refused, as before: a run may outlive its workers, and meet others of other names.
        """
        lacking = self._lacking.setdefault(attempt.function, dict.fromkeys(attempt.history.lacking))
        lacking[worker] = None
        return replace(attempt.history, lacking=tuple(lacking))

    def _refused(
        self, rest: list[ev.TaskRange], report: ev.NotRunReport, worker: str | None, out: list[ev.Instruction]
    ) -> bool:
        """Fail tasks that nobody can run with the report's failure; without one, the run cannot go on."""
        attempts = _REFUSED_AFTER.get(report.reason)
        if attempts is None or report.failure is None:
            out.append(ev.BreakRun(report.reason, report.detail))
            return False
        for start, stop in rest:
            for task in range(start, stop):
                out.append(ev.FailTask(task, report.failure, attempts, worker or ""))
                self._fail(task, out)
                if self._fail_fast:
                    return True  # the run ends with this one; the others are cancelled
        return True

    # ---------------------------------------------------------------------------------------------------------- books

    def _put_first(self, reruns: list[_Rerun], *, is_again: bool = True) -> None:
        for rerun in reversed(reruns):
            self._ready.appendleft(rerun)
            for start, stop in rerun.ranges:
                self._board.move(start, stop, SENT, WAITING)
                self.again += (stop - start) * is_again

    def _put_later(self, due: float, rerun: _Rerun) -> None:
        for start, stop in rerun.ranges:
            self._board.move(start, stop, SENT, DELAYED)
            self.again += stop - start
        heappush(self._later, (due, self._numbered, rerun))
        self._numbered += 1

    def _span(self, task: int) -> ev.Span:
        return next(self._board.spans(task, task + 1))

    def _fail(self, task: int, out: list[ev.Instruction]) -> None:
        out.extend(map(ev.DropBlock, self._board.settle(task, task + 1, FAILED)))


def _gathered(tasks: Iterable[tuple[float, int]]) -> list[tuple[float, list[int]]]:
    """Group tasks that are due at nearly the same time, given in the order of their times; all go at the last one.

    >>> _gathered([(1.0, 7), (1.05, 3), (1.2, 5)])
    [(1.05, [7, 3]), (1.2, [5])]
    """
    groups: list[tuple[float, list[int]]] = []
    began = -_NEVER
    for due, task in tasks:
        if due - began <= GATHER_SECONDS:
            group = groups.pop()[1]
            group.append(task)
            groups.append((due, group))
        else:
            groups.append((due, [task]))
            began = due
    return groups
