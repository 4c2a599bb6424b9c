"""Tasks for executors of every kind: a process pool imports them, so nothing heavy is here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

state = "not initialized"


class Thing:
    """Can be weakly referenced."""

    def method(self) -> None:
        pass


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def make_thing(_: object) -> Thing:
    return Thing()


def sleep_and_return(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def fail(text: str = "failed") -> None:
    raise ValueError(text)


def touch(path: str) -> None:
    Path(path).touch()


def wait_for(path: str, deadline: float = 30.0) -> str:
    """Wait until there is such a file; it ends by itself."""
    until = time.monotonic() + deadline
    while not os.path.exists(path):
        if time.monotonic() > until:
            raise TimeoutError(path)
        time.sleep(0.005)
    return path


def span(seconds: float) -> tuple[float, float]:
    """When it began and ended; all processes of a machine have the same clock."""
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def initialize(value: str) -> None:
    global state
    state = value


def get_state(_: object = None) -> str:
    return state


def fail_to_initialize() -> None:
    raise ValueError("error in initializer")


def count_calls(_: object = None) -> tuple[int, int]:
    """The process, and how often it was called there."""
    global calls
    calls += 1
    return os.getpid(), calls


calls = 0
