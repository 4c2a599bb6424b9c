"""Tasks that are coroutine functions are run to their end, wherever tasks are run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["awaited"]


def awaited(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn`, or for a coroutine function one that runs it to its end."""
    if not inspect.iscoroutinefunction(fn):
        return fn

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        import asyncio  # only who needs it pays for it

        return asyncio.run(fn(*args, **kwargs))

    return run
