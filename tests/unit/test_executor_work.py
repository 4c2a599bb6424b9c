"""What an executor does while something comes in between, in the same thread."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from gearmap import executor as module
from gearmap.config import RunOptions, ServerMode
from gearmap.executor import _Work


class FakeRun:
    """Takes calls down."""

    over = is_broken_for_good = has_driver = False

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def submit(self, function: Any, call: Any, place: Any) -> str:
        self.calls.append(call)
        return "future"


class FakeBackend:
    """Makes runs, and lets a test do something meanwhile."""

    mode = ServerMode.SERVERS
    place_arguments = None

    def __init__(self) -> None:
        self.runs: list[FakeRun] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def pickle_function(self, fn: Any, options: RunOptions) -> tuple[bytes, bytes]:
        return b"digest", b"function"

    def place(self) -> None: ...

    def make_call_run(self, options: RunOptions, *, tenant: str) -> FakeRun:
        run = FakeRun()
        self.runs.append(run)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return run


class Rubbish:
    """In a cycle, so that only the garbage collector finds it; it calls somebody then."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.itself = self

    def __del__(self) -> None:
        self.call()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    monkeypatch.setattr(module, "_pending", set())  # nothing of this is waited for when the interpreter ends
    return FakeBackend()


def collect_while_submitting(backend: FakeBackend, work: _Work, call: Callable[[], object]) -> None:
    """Have the garbage collector call something while `work` holds its lock."""
    called = []
    backend.meanwhile = gc.collect
    Rubbish(lambda: called.append(call()))
    work.submit(abs, (-1,), {})
    assert called


def test_what_the_garbage_collector_submits_meanwhile_goes_to_the_same_run(backend: FakeBackend) -> None:
    work = _Work(backend, RunOptions(), is_owner=False)  # type: ignore[arg-type]  # a fake
    collect_while_submitting(backend, work, lambda: work.submit(abs, (-2,), {}))
    assert [len(run.calls) for run in backend.runs] == [0, 2]


def test_a_shutdown_by_the_garbage_collector_meanwhile_is_heeded(backend: FakeBackend) -> None:
    work = _Work(backend, RunOptions(), is_owner=False)  # type: ignore[arg-type]  # a fake
    with pytest.raises(RuntimeError, match="after shutdown"):
        collect_while_submitting(backend, work, lambda: work.shut(cancel=False))


def test_another_executor_of_the_same_client_may_be_collected_meanwhile(backend: FakeBackend) -> None:
    work = _Work(backend, RunOptions(), is_owner=False)  # type: ignore[arg-type]  # a fake
    other = _Work(backend, RunOptions(), is_owner=False)  # type: ignore[arg-type]  # a fake
    other.submit(abs, (-3,), {})
    collect_while_submitting(backend, work, other.finish)
    assert (other.is_shut, work.is_shut) == (True, False)
