"""What happens to our objects in a process that was forked from ours.

Law of the file: the forked process has one thread and copies of everything, locks that nobody will ever release
included. Whoever is told of the fork closes what is shared with the parent and replaces its locks; it takes no lock,
starts nothing and says nothing to anybody outside of the process.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Forkable", "watch_forks"]


class Forkable(Protocol):
    """Something that a forked process must not share with its parent."""

    def _after_fork_in_child(self) -> None:
        """Let go of what belongs to the parent. Called once in each forked process, before any code of users."""


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch_forks(thing: Forkable) -> None:
    """Tell `thing` in each process that is forked from now on, as long as it lives."""
    _watched.add(thing)


def _tell_all() -> None:
    for thing in list(_watched):
        thing._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell_all)
