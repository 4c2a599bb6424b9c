"""A notebook's cell on a worker: run it, and tell what it printed and what its last line is worth.

What must not live here: anything that a node need not have (IPython). This is imported there.

Rule 1: names that a cell makes are there for the next cell on the same worker, as long as its process lives; tasks do
not see them.
Rule 2: nothing of a cell travels but text, so a result need not pickle.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import sys
import traceback
from dataclasses import dataclass
from types import ModuleType
from typing import Any

__all__ = ["CellOutcome", "run_cell"]

# What is kept of each text. Raised: more of a long output is seen; lowered: many workers say less at once.
KEPT_CHARS = 100_000

_NAMESPACE = "gearmap_cell"


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """What a cell did on one worker.

    Attributes
    ----------
    stdout, stderr
        What it printed.
    result
        The representation of its last line's value; empty if that is no expression, or None.
    error
        Type and message of what it raised, or an empty text.
    traceback
        The traceback, with lines of the cell.
    """

    stdout: str = ""
    stderr: str = ""
    result: str = ""
    error: str = ""
    traceback: str = ""


def run_cell(source: str, name: str) -> CellOutcome:
    """Run a cell's source in this process; `name` is what tracebacks call it."""
    out, err = io.StringIO(), io.StringIO()
    result = error = trace = ""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            result = _run(source, name)
        except BaseException as raised:  # SystemExit too: a cell ends itself, not the worker
            error = "".join(traceback.format_exception_only(type(raised), raised)).strip()
            trace = _shown(raised)
    return CellOutcome(_cut(out.getvalue()), _cut(err.getvalue()), _cut(result), error, trace)


def _run(source: str, name: str) -> str:
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    namespace = _namespace()
    exec(compile(tree, name, "exec"), namespace)
    if last is None:
        return ""
    assert isinstance(last, ast.Expr)
    value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    return "" if value is None else repr(value)


def _namespace() -> dict[str, Any]:
    module = sys.modules.get(_NAMESPACE)
    if module is None:
        module = sys.modules[_NAMESPACE] = ModuleType(_NAMESPACE)
    return module.__dict__


def _shown(raised: BaseException) -> str:
    """Return the traceback from the cell's own lines on."""
    at = raised.__traceback__
    while at is not None and at.tb_frame.f_code.co_filename == __file__:
        at = at.tb_next
    return "".join(traceback.format_exception(type(raised), raised, at))


def _cut(text: str) -> str:
    if len(text) <= KEPT_CHARS:
        return text
    half = KEPT_CHARS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
