"""Which client is the current one: the innermost `with` or `connect()` that is not closed.

Law of the file: a stack under a lock, nothing else. It knows nothing of how clients are made.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gearmap.client import Client
    from gearmap.runtime.mapfuture import MapFuture

__all__ = ["current", "enter", "forget", "last", "leave", "remember"]

_lock = threading.Lock()
_stack: list[Client] = []
_maps: list[MapFuture[Any]] = []  # none or one


def enter(client: Client) -> None:
    """Make a client the current one."""
    with _lock:
        if client in _stack:
            _stack.remove(client)
        _stack.append(client)


def leave(client: Client) -> None:
    """Let a client be current no more; the one before it is again."""
    with _lock:
        if client in _stack:
            _stack.remove(client)


def current() -> Client | None:
    """Return the current client, or None."""
    with _lock:
        # A local cluster of the process that this one was forked from counts as closed.
        return next((client for client in reversed(_stack) if not client.is_closed), None)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def remember(run: MapFuture[Any]) -> MapFuture[Any] | None:
    """Make a map the last one; return the one before, which is let go."""
    with _lock:
        before = _maps[-1] if _maps else None
        _maps[:] = [run]
    return before  # it must not go under the lock: its results may have finalizers that ask for the last map


def last() -> MapFuture[Any] | None:
    """Return the last map of this process, or None."""
    with _lock:
        return _maps[-1] if _maps else None


def forget() -> None:
    """Let the last map go."""
    with _lock:
        before = _maps[:]
        _maps.clear()
    del before  # not under the lock, as above
