"""Source lines for frames that had none where the exception was raised: cells, consoles, doctests.

What must not live here: which frames are shown at all (`failure`).

A worker has no file for a notebook's cell, so its traceback names the place and shows no line. The process that ran the
cell has the source (in `linecache`, which `traceback` asks), so it puts the lines in when the traceback is shown;
nothing is sent for it but which columns to mark. Rejected: sending the source of every cell with its functions, for the
sake of those that fail.

Rule: only what was the file of a frame is read; a text that looks like a frame opens no file.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["FramePlace", "places_without_source", "with_source_lines"]

# Raised: deep tracebacks of many cells keep their marks; lowered: headers of failures are smaller.
_MAX_PLACES = 32

_FRAME = re.compile(r'^(?P<margin>[ |+-]*)File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)$')


class FramePlace(NamedTuple):
    """Where a frame was that has no source line.

    Attributes
    ----------
    end_line, start, end
        What was being evaluated: its last line, and its columns as the code object has them; 0, 0, 0 if not known.
    """

    file: str
    line: int
    name: str
    end_line: int = 0
    start: int = 0
    end: int = 0


def places_without_source(frames: Iterable[traceback.FrameSummary]) -> tuple[FramePlace, ...]:
    """Return the places of those frames that have no source line here, each once."""
    found: dict[FramePlace, None] = {}
    for frame in frames:
        if frame.line:
            continue
        marks = (getattr(frame, "end_lineno", None), getattr(frame, "colno", None), getattr(frame, "end_colno", None))
        known = tuple(0 if mark is None else mark for mark in marks) if None not in marks else ()
        found[FramePlace(frame.filename, frame.lineno or 0, frame.name, *known)] = None
        if len(found) == _MAX_PLACES:
            break
    return tuple(found)


def with_source_lines(text: str, places: Sequence[FramePlace] = ()) -> str:
    """Put in the source lines that this process knows, with the marks below them that Python would print.

    Parameters
    ----------
    text
        A traceback as Python prints it.
    places
        What `places_without_source` said of its frames where it was made.
    """
    by_frame: dict[tuple[str, int, str], set[FramePlace]] = {}
    for place in places:
        by_frame.setdefault(place[:3], set()).add(place)
    files = {place.file for place in places}
    lines = text.split("\n")
    shown: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        match = _FRAME.match(line)
        if match is None or following.startswith(match["margin"] + "  "):  # no frame, or one that has its line
            shown.append(line)
            continue
        frame = (match["file"], int(match["line"]), match["name"])
        known = by_frame.get(frame, set())
        # One line may stand for several calls, as in a recursion; then nobody knows which columns are meant.
        place = next(iter(known)) if len(known) == 1 else FramePlace(*frame)
        if place.file in files:
            shown += (match["margin"] + each for each in _formatted(place))
        else:
            shown.append(line)
    return "\n".join(shown)


def _formatted(place: FramePlace) -> list[str]:
    """A frame as Python prints it, from its left margin on; a cell by the name that its notebook shows."""
    marks: dict[str, Any] = {}
    if sys.version_info >= (3, 11) and place.end_line:
        marks = {"end_lineno": place.end_line, "colno": place.start, "end_colno": place.end}
    frame = traceback.FrameSummary(place.file, place.line, place.name, **marks)
    try:
        text = "".join(traceback.StackSummary.from_list([frame]).format())
    except Exception:  # the source is another than the one that ran, and shorter
        text = f'  File "{place.file}", line {place.line}, in {place.name}\n'
    first, *rest = (line[2:] for line in text.rstrip("\n").split("\n"))
    cell = _cell(place.file)
    return [first if cell is None else f"{cell}, line {place.line}, in {place.name}", *rest]


def _cell(file: str) -> str | None:
    """What IPython calls the cell that a frame's file stands for, like "Cell In[3]"; None without one."""
    interactive = sys.modules.get("IPython.core.getipython")
    try:
        shell = None if interactive is None else interactive.get_ipython()
        named = None if shell is None else shell.compile.format_code_name(file)
        return None if named is None else " ".join(named)
    except Exception:  # another version of IPython
        return None
