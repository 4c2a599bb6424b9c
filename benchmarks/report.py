"""From measured figures to tables. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.peers import DISTRIBUTED
from benchmarks.rows import FASTEST, FASTEST_DISTRIBUTED, OURS, Figure, Goal, Row

__all__ = ["Samples", "table"]

# By contestant: what each of its turns gave.
Samples = dict[str, list[dict[str, float]]]


def table(row: Row, samples: Samples) -> str:
    """Return one row's table: median (least-most) of every figure, then the ratios of its goals.

    Ratios are taken turn by turn, between contestants that ran next to each other in time.
    """
    lines = [f"{row.name}: {row.title}"]
    header = ["contestant", *(figure.label for figure in row.figures), "ratio", "goal", ""]
    body = [line for name in (*row.contestants, *row.peers) if samples.get(name) for line in _lines(row, name, samples)]
    widths = [max(len(cells[column]) for cells in [header, *body]) for column in range(len(header))]
    for cells in [header, *body]:
        lines.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    return "\n".join(lines)


def _lines(row: Row, name: str, samples: Samples) -> list[list[str]]:
    """Return a contestant's cells: one line, and one more for each goal after the first."""
    cells = [name, *(_spread([turn[figure.name] for turn in samples[name]], figure) for figure in row.figures)]
    goals = [_goal_cells(goal, name, samples) for goal in row.goals.get(name, ())] or [["", "", ""]]
    empty = [""] * len(cells)
    return [(cells if number == 0 else empty) + goal for number, goal in enumerate(goals)]


def _goal_cells(goal: Goal, name: str, samples: Samples) -> list[str]:
    ratios = goal_ratios(goal, name, samples)
    if not ratios:
        return ["", str(goal), "not measured"]
    shown = _spread(ratios, Figure(name="", label=""))
    return [shown, str(goal), "met" if goal.is_met(statistics.median(ratios)) else "MISSED"]


def goal_ratios(goal: Goal, name: str, samples: Samples) -> list[float]:
    """Return the goal's ratio of each turn."""
    if not goal.against:
        return [goal.ratio(turn[goal.figure], 1.0) for turn in samples[name]]
    others = _others(goal, name, samples)
    return [
        goal.ratio(turn[goal.figure], goal.best(each[goal.figure] for each in bases))
        for turn, *bases in zip(samples[name], *(samples[other] for other in others), strict=False)
        if bases
    ]


def _others(goal: Goal, name: str, samples: Samples) -> list[str]:
    """Return whom the goal compares a contestant with, of those that were measured."""
    if goal.against == FASTEST:
        names = [other for other in samples if other not in OURS]
    elif goal.against == FASTEST_DISTRIBUTED:
        names = list(DISTRIBUTED)
    else:
        names = [goal.against]
    return [other for other in names if other != name and samples.get(other)]


def _spread(values: Sequence[float], figure: Figure) -> str:
    def show(value: float) -> str:
        return f"{value / figure.unit:.{figure.digits}f}"

    if len(values) == 1:
        return show(values[0])
    return f"{show(statistics.median(values))} ({show(min(values))}-{show(max(values))})"
