"""Which client is the current one: the innermost `with` or `connect()`.

Law of the file: a stack under a lock, nothing else. It knows nothing of how clients are made.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gearmap.client import Client

__all__ = ["current", "enter", "leave"]

_lock = threading.Lock()
_stack: list[Client] = []


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
        return _stack[-1] if _stack else None
