"""From measured figures to one picture: a panel for each row, a bar for each contestant.

    python -m benchmarks.plots artifacts/benchmarks/20261123-103000.json benchmarks/figures.svg

Law of the file: nothing is left out and nothing is smoothed. A bar is the median of all turns, its line reaches from
the least to the most, and the best stands first.
"""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Picture

from benchmarks.report import Samples
from benchmarks.rows import OURS, ROWS, Row

__all__ = ["draw"]

# Told apart by people who see no colours, too: ours are also printed bold.
_OURS, _OTHERS, _SPREAD = "#0072b2", "#b8b8b8", "#333333"

# From this ratio of the longest bar to the shortest one on there are dots on a logarithmic scale: a bar begins at 0.
_LOGARITHMIC_FROM = 25.0

_COLUMNS = 2
_WIDTH, _BAR, _TITLE = 11.0, 0.22, 1.05  # inches
_TITLE_LETTERS = 66

# The same figures give the same file.
_STYLE = {"svg.hashsalt": "gearmap", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}


def draw(rows: dict[str, Samples], facts: dict[str, str], path: Path) -> None:
    """Draw what was measured of each row into an SVG file.

    Parameters
    ----------
    rows
        By the row's name: what each turn of each contestant gave.
    facts
        Of the machine.
    """
    panels = [(row, rows[row.name]) for row in ROWS if any(rows.get(row.name, {}).values())]
    if not panels:
        return
    lines = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    heights = [_TITLE + _BAR * max(len(samples) for _, samples in line) for line in lines]
    with matplotlib.rc_context(_STYLE):
        picture = Picture(figsize=(_WIDTH, sum(heights)), layout="constrained")
        FigureCanvasSVG(picture)
        picture.suptitle(_caption(facts), x=0.01, ha="left", fontsize=8, color=_SPREAD)
        grid = picture.add_gridspec(len(lines), _COLUMNS, height_ratios=heights)
        for number, line in enumerate(lines):
            for column, (row, samples) in enumerate(line):
                _draw_panel(picture.add_subplot(grid[number, column]), row, samples)
        picture.savefig(path, metadata={"Date": None})


def _draw_panel(axes: Any, row: Row, samples: Samples) -> None:
    figure = row.figures[0]
    turns = {name: [turn[figure.name] / figure.unit for turn in each] for name, each in samples.items() if each}
    more_is_better = _more_is_better(row)
    names = sorted(turns, key=lambda name: statistics.median(turns[name]), reverse=more_is_better)
    medians = [statistics.median(turns[name]) for name in names]
    spreads = [
        [middle - min(turns[name]) for name, middle in zip(names, medians, strict=True)],
        [max(turns[name]) - middle for name, middle in zip(names, medians, strict=True)],
    ]
    colours = [_OURS if name in OURS or name == "gearmap" else _OTHERS for name in names]
    places = range(len(names))
    if min(medians) > 0 and max(medians) > _LOGARITHMIC_FROM * min(medians):
        axes.set_xscale("log")
        axes.scatter(medians, places, color=colours, s=45, zorder=3)
    else:
        axes.barh(places, medians, color=colours, height=0.72)
    axes.errorbar(medians, places, xerr=spreads, fmt="none", ecolor=_SPREAD, elinewidth=1, zorder=4)
    for place, name, middle in zip(places, names, medians, strict=True):
        shown = f"{middle:,.{figure.digits}f}"
        axes.annotate(shown, (max(turns[name]), place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, names)
    for label, colour in zip(axes.get_yticklabels(), colours, strict=True):
        label.set_fontweight("bold" if colour == _OURS else "normal")
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(textwrap.fill(f"{row.name}: {row.title}", _TITLE_LETTERS), loc="left", fontsize=9)
    axes.set_xlabel(f"{figure.label} ({'more' if more_is_better else 'less'} is better)")


def _more_is_better(row: Row) -> bool:
    """Whether the figure that is drawn should be large, by what is asked of it or of the row."""
    goals = [goal for each in row.goals.values() for goal in each]
    of_figure = [goal for goal in goals if goal.figure == row.figures[0].name] or goals
    return any(goal.at_least is not None for goal in of_figure)


def _caption(facts: dict[str, str]) -> str:
    shown = ("Python", "cores", "gearmap", "gearmand")
    return "median and spread of all turns; " + ", ".join(f"{name} {facts[name]}" for name in shown if name in facts)


def main(arguments: Sequence[str]) -> int:
    """Draw a file of figures again; return the exit status."""
    if len(arguments) != 2:
        print("usage: python -m benchmarks.plots FIGURES.json PICTURE.svg", file=sys.stderr)
        return 2
    measured = json.loads(Path(arguments[0]).read_text())
    draw(measured["rows"], measured["facts"], Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
