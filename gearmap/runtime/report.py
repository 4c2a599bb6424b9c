"""What is said of a map in a bug report.

Law of the file: no payloads, no arguments, no keys. Whoever pastes a report shows function names, options and counts.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gearmap.config import RunOptions
from gearmap.core.snapshot import ProgressSnapshot
from gearmap.core.tally import Tally

__all__ = ["RunNotes", "write_report"]

# What is an argument of the user's, or a text of his own.
_PRIVATE = ("initargs", "desc")

# Workers that are named. Raised: longer reports; lowered: fewer of a large cluster's workers are seen.
_MAX_WORKERS = 20


@dataclass(slots=True)
class RunNotes:
    """What is noted of one run of a map.

    `first_result` and `elapsed` are seconds from its beginning; `by_worker` are results of each worker.
    """

    where: str
    run_id: str = ""
    outcome: str = "running"
    elapsed: float = 0.0
    first_result: float | None = None
    by_worker: dict[str, int] = field(default_factory=dict)
    tally: Tally | None = None
    last: ProgressSnapshot | None = None

    def arrived(self, worker: str, size: int, elapsed: float) -> None:
        """Take in that a worker's results have come."""
        if self.first_result is None:
            self.first_result = elapsed
        self.by_worker[worker] = self.by_worker.get(worker, 0) + size


def write_report(*, function: str, options: RunOptions, counts: str, runs: Sequence[RunNotes]) -> str:
    """Return the report of a map and its runs, newest last."""
    # The package is loaded if this is; it stands above us in the layers.
    version = getattr(sys.modules.get("gearmap"), "__version__", "?")
    python = f"Python {platform.python_version()} on {sys.platform} ({platform.machine()})"
    lines = [
        f"map of {function}: {counts}",
        f"gearmap {version}, {python}",
        f"options: {_options(options) or 'all as by default'}",
    ]
    for number, run in enumerate(runs, 1):
        lines += ["", *_run_lines(number, run)]
    return "\n".join(lines)


def _options(options: RunOptions) -> str:
    defaults = RunOptions()
    changed = [
        (each.name, getattr(options, each.name))
        for each in fields(options)
        if each.name not in _PRIVATE and getattr(options, each.name) != getattr(defaults, each.name)
    ]
    return ", ".join(f"{name}={_short(value)}" for name, value in changed)


def _short(value: Any) -> str:
    """Return a number or word as it is, of all else the name."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _run_lines(number: int, run: RunNotes) -> list[str]:
    first = "no result" if run.first_result is None else f"first result after {run.first_result:.2f} s"
    lines = [
        f"run {number}{f' ({run.run_id})' if run.run_id else ''}: {run.outcome}",
        f"  where: {run.where}",
        f"  time: {run.elapsed:.2f} s, {first}",
    ]
    last, tally = run.last, run.tally
    if last is not None:
        again = f", {last.again} run again" if last.again else ""
        earlier = f" ({last.earlier} before this run)" if last.earlier else ""
        lines.append(
            f"  tasks: {last.done} done{earlier}, {last.failed} failed, {last.cancelled} not run, "
            f"{last.running + last.queued} under way{again}; {last.rate:.0f} a second"
        )
    if tally is not None:
        lines += [
            f"  jobs: {tally.jobs} submitted, {tally.executions} executions seen, {tally.failures} failures of tasks",
            f"  lost: {_counts(tally.losses)}",
            f"  not run by a node: {_counts(tally.not_run)}",
        ]
    lines.append(f"  workers: {_workers(run)}")
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} x{count}" for reason, count in sorted(counts.items())) or "none"


def _workers(run: RunNotes) -> str:
    known = "" if run.last is None or run.last.workers is None else f"{run.last.workers} at last; "
    shown = sorted(run.by_worker.items(), key=lambda pair: -pair[1])
    names = [f"{name} {count}" for name, count in shown[:_MAX_WORKERS]]
    if len(shown) > _MAX_WORKERS:
        names.append(f"and {len(shown) - _MAX_WORKERS} more")
    return f"{known}results by worker: {', '.join(names) or 'none'}"
