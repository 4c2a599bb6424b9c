"""What the demo measures in a file of Python source.

Law of the file: the standard library only, no state; the same text gives the same metrics in every process.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["FileMetrics", "add_up", "measure_source"]

_FUNCTIONS = frozenset({ast.FunctionDef, ast.AsyncFunctionDef})
_NESTING = _FUNCTIONS | {
    ast.ClassDef,
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    getattr(ast, "TryStar", ast.Try),  # Python >= 3.11
    ast.Match,
}
# Values of a node's fields below which there is nothing to count: about two thirds of all.
_LEAVES = frozenset(
    {ast.Name, ast.Constant, ast.Load, ast.Store, ast.Del, ast.Pass, type(None), str, bytes, int, float, complex, bool}
)


@dataclass(frozen=True, slots=True)
class Peak:
    """The greatest value of something, and where it was found."""

    value: int = 0
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMetrics:
    """Metrics of one file, or of many added up.

    Attributes
    ----------
    files, unparsed
        How many files were read, and how many of them are not Python of this version.
    longest
        Lines of the longest function.
    deepest
        Compound statements inside each other, functions and classes included.
    calls
        How often each name is called.
    """

    files: int = 1
    unparsed: int = 0
    functions: int = 0
    classes: int = 0
    longest: Peak = Peak()
    deepest: Peak = Peak()
    calls: Counter[str] = field(default_factory=Counter)


def measure_source(source: bytes, place: str) -> FileMetrics:
    """Return the metrics of one file.

    >>> measured = measure_source(b"def f(x):\\n    if x:\\n        print(x)\\n", "f.py")
    >>> measured.functions, measured.deepest.value, measured.calls
    (1, 2, Counter({'print': 1}))
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return FileMetrics(unparsed=1)
    return _measure_tree(tree, place)


def _measure_tree(tree: ast.Module, place: str) -> FileMetrics:
    n_functions = n_classes = 0
    longest = deepest = Peak()
    calls: Counter[str] = Counter()
    # A stack of our own: generated code nests deeper than Python may recurse.
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        kind = type(node)
        if kind is ast.Call:
            calls[_called_name(node)] += 1
        elif kind in _NESTING:
            depth += 1
            if depth > deepest.value:
                deepest = Peak(depth, f"{place}:{_line(node)}")
            if kind in _FUNCTIONS:
                n_functions += 1
                lines = _n_lines(node)
                if lines > longest.value:
                    longest = Peak(lines, f"{getattr(node, 'name', '')} in {place}")
            elif kind is ast.ClassDef:
                n_classes += 1
        _push_parts(node, depth, waiting)
    del calls[""]
    return FileMetrics(functions=n_functions, classes=n_classes, longest=longest, deepest=deepest, calls=calls)


def _push_parts(node: ast.AST, depth: int, waiting: list[tuple[ast.AST, int]]) -> None:
    """Put on the stack what lies below a node, but for parts that have nothing to count."""
    for name in node._fields:
        value = getattr(node, name)
        if type(value) is list:
            if name == "orelse" and _is_elif(node, value):
                waiting.append((value[0], depth - 1))
                continue
            for part in value:
                if type(part) not in _LEAVES:
                    waiting.append((part, depth))
        elif type(value) not in _LEAVES:
            waiting.append((value, depth))


def _is_elif(node: ast.AST, orelse: list[ast.AST]) -> bool:
    """Whether an `else` holds nothing but an `if` in the same column: an `elif`, which nests no deeper."""
    if type(node) is not ast.If or len(orelse) != 1:
        return False
    only = orelse[0]
    return type(only) is ast.If and only.col_offset == node.col_offset


def _called_name(node: ast.AST) -> str:
    """Return the name that a call is written with; nothing for `f()()` and its like."""
    called = getattr(node, "func", None)
    if type(called) is ast.Name:
        return called.id
    return called.attr if type(called) is ast.Attribute else ""


def _line(node: ast.AST) -> int:
    line: int = getattr(node, "lineno", 0)
    return line


def _n_lines(node: ast.AST) -> int:
    end: int = getattr(node, "end_lineno", 0)
    return end - _line(node) + 1


def add_up(many: Iterable[FileMetrics]) -> FileMetrics:
    """Return the metrics of many files as one; of equal peaks the first stays."""
    files = unparsed = functions = classes = 0
    longest = deepest = Peak()
    calls: Counter[str] = Counter()
    for each in many:
        files += each.files
        unparsed += each.unparsed
        functions += each.functions
        classes += each.classes
        longest = max(longest, each.longest, key=lambda peak: peak.value)
        deepest = max(deepest, each.deepest, key=lambda peak: peak.value)
        calls.update(each.calls)
    return FileMetrics(
        files=files,
        unparsed=unparsed,
        functions=functions,
        classes=classes,
        longest=longest,
        deepest=deepest,
        calls=calls,
    )
