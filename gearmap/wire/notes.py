"""What a task warned of and logged, as lines of text beside what it printed.

What must not live here: how a task is listened to (`runtime.tasknotes`), and who is told (`runtime.retelling`).

Rule 1: one note is one line, a JSON list, so that a text that was cut in the middle costs the lines at the cut only.
Rule 2: reading is total. A line that is none is left out; the numbers of the others tell how many are missing.

A line is `[number, worker, kind, ...]`; the notes of a task are numbered from 1. One without a kind says that the
task had so many, of which the last were not kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Logged", "Note", "Warned", "note_line", "read_notes"]

# What is kept of one text. Raised: long messages are seen whole; lowered: more notes have room.
MAX_TEXT_CHARS = 2000


class Warned(NamedTuple):
    """A warning: its category as `module:name`, and where it was issued; `module` is "" if that is not known."""

    category: str
    message: str
    filename: str
    lineno: int
    module: str = ""


class Logged(NamedTuple):
    """A log record, formatted; `traceback` is that of an exception that was logged with it."""

    name: str
    level: int
    message: str
    pathname: str
    lineno: int
    function: str
    created: float
    traceback: str = ""


class Note(NamedTuple):
    """One note of a task; without content it only tells how many there were."""

    number: int
    worker: str
    content: Warned | Logged | None


_KINDS: dict[str, type[Warned] | type[Logged]] = {"warning": Warned, "log": Logged}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_TYPES: dict[type[Any], tuple[type[Any], ...]] = {
    Warned: (str, str, str, int, str),
    Logged: (str, int, str, str, int, str, float, str),
}


def note_line(number: int, worker: str, content: Warned | Logged | None = None) -> bytes:
    """Return a note as a line.

    >>> note_line(1, "a.0", Warned("builtins:UserWarning", "no", "x.py", 3))
    b'[1,"a.0","warning","builtins:UserWarning","no","x.py",3,""]\\n'
    """
    values: list[Any] = [number, worker]
    if content is not None:
        values += (_NAMES[type(content)], *(_short(value) for value in content))
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT_CHARS:
        half = MAX_TEXT_CHARS // 2
        return f"{value[:half]} ... {value[-half:]}"
    return value


def read_notes(text: str) -> Iterator[Note]:
    """Yield what stands in a text of lines.

    >>> [note.content.message for note in read_notes('[1,"a.0","warning","builtins:UserWarning","no","x.py",3,""]')]
    ['no']
    """
    for line in text.split("\n"):
        if line[:1] == "[":
            note = _read_line(line)
            if note is not None:
                yield note


def _read_line(line: str) -> Note | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if len(values) < 2 or type(values[0]) is not int or type(values[1]) is not str:
        return None
    number, worker, *rest = values
    if not rest:
        return Note(number, worker, None)
    kind = _KINDS.get(rest[0]) if type(rest[0]) is str else None
    if kind is None or tuple(map(type, rest[1:])) != _TYPES[kind]:
        return None
    return Note(number, worker, kind(*rest[1:]))
