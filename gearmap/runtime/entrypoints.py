"""Python's functions that change the process, wrapped so that a call of one is known.

What must not live here: what is done about it (`childstate`, `upkeep`).

Rule 1: a task that calls none of them pays nothing, and one that does some 0.1 us: looking at what they change after
each tiny task would cost more than the task.
Rule 2: whoever looks finds the function that was there: name, signature, docstring, and it pickles by its name.
Rule 3: this is done once, in a child, before any code of users. Who kept the original has it: what gearmap's own
modules took at their import, and a function that was pickled as a task or an argument of one.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

__all__ = ["watch_entry_points"]


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


def _sets_locale(category: Any, new: Any = None, *rest: Any, **kwargs: Any) -> bool:
    return new is not None or bool(kwargs)


def _closes_standard(fd: Any) -> bool:
    return isinstance(fd, int) and fd < 3


_WATCHED: tuple[tuple[str, str, Callable[..., bool]], ...] = (
    ("signal", "signal", _always),
    ("signal", "alarm", _always),
    ("signal", "setitimer", _always),
    ("locale", "setlocale", _sets_locale),
    ("os", "umask", _always),
    ("os", "dup2", _always),
    ("os", "close", _closes_standard),
    ("os", "closerange", _always),
    ("sys", "setrecursionlimit", _always),
    ("sys", "setswitchinterval", _always),
    ("socket", "setdefaulttimeout", _always),
    ("gc", "enable", _always),
    ("gc", "disable", _always),
)


def watch_entry_points(changed: Callable[[], object], filters_changed: Callable[[], object]) -> None:
    """Have `changed` called before a function changes the process, `filters_changed` when warning filters do."""
    for module_name, name, matters in _WATCHED:
        module = importlib.import_module(module_name)
        if hasattr(module, name):
            setattr(module, name, _watched(getattr(module, name), module_name, matters, changed))
    warnings: Any = importlib.import_module("warnings")
    if hasattr(warnings, "_filters_mutated"):  # every function of the module that changes them calls it
        warnings._filters_mutated = _watched(warnings._filters_mutated, "warnings", _always, filters_changed)


def _watched(
    function: Callable[..., Any], module_name: str, matters: Callable[..., bool], tell: Callable[[], object]
) -> Callable[..., Any]:
    if matters is _always:

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            tell()
            return function(*args, **kwargs)
    else:

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                if matters(*args, **kwargs):
                    tell()
            except TypeError:
                pass  # the function itself says what is wrong with its arguments
            return function(*args, **kwargs)

    watched.__module__ = module_name  # built-in ones name another, where pickle would find the original
    return watched
