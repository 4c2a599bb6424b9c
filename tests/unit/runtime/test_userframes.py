"""What is left of a traceback where a user's line meets gearmap's functions."""

from __future__ import annotations

import concurrent.futures
import sys
import traceback
import types
from collections.abc import Callable, Iterator

import pytest

import gearmap
from gearmap.errors import ConfigurationError
from gearmap.runtime.userframes import own_frames_hidden, raised_anew
from gearmap.wire.failure import describe_exception, rebuild_exception

SOURCE = """
def outer(call, *args):
    with own_frames_hidden:
        return middle(call, *args)

def middle(call, *args):
    with own_frames_hidden:
        return inner(call, *args)

def inner(call, *args):
    return call(*args)

def fails(error):
    raise error
"""

# The function whose block it is has its entry already when Python 3.10 asks.
LEFT = [] if sys.version_info >= (3, 11) else ["outer"]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Functions that stand for gearmap's own."""
    monkeypatch.delenv("GEARMAP_TRACEBACK", raising=False)
    module = {"own_frames_hidden": own_frames_hidden}
    file = gearmap.__file__.replace("__init__.py", "made_for_a_test.py")
    exec(compile(SOURCE, file, "exec"), module)
    return types.SimpleNamespace(**module)


def names(call: Callable[..., object], *args: object) -> list[str]:
    """Call, and return the functions in the traceback of the error, below the caller."""
    try:
        call(*args)
    except BaseException as error:
        return [frame.name for frame in traceback.extract_tb(error.__traceback__)[1:]]
    raise AssertionError("nothing was raised")


def error_of_a_task() -> BaseException:
    return rebuild_exception(describe_exception(ValueError("x"), 0))


def users_generator() -> Iterator[int]:
    yield 1 // 0


@pytest.mark.parametrize(
    "make", [ConfigurationError, concurrent.futures.CancelledError, KeyboardInterrupt, error_of_a_task]
)
def test_what_is_raised_for_the_user_is_raised_by_the_users_line(
    make: Callable[[], BaseException], own: types.SimpleNamespace
) -> None:
    assert names(own.outer, own.fails, make()) == LEFT


def test_the_users_own_frames_stay_below_gearmaps(own: types.SimpleNamespace) -> None:
    assert names(own.outer, next, users_generator()) == [*LEFT, "users_generator"]


def test_a_fault_of_gearmap_keeps_every_frame(own: types.SimpleNamespace) -> None:
    assert names(own.outer, own.fails, TypeError("a bug"))[-3:] == ["middle", "inner", "fails"]


def test_nothing_is_dropped_if_everything_is_asked_for(
    own: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAP_TRACEBACK", "full")
    assert names(own.outer, own.fails, ConfigurationError()) == ["outer", "middle", "inner", "fails"]


def test_an_error_that_was_shown_before_is_shown_without_who_asked_then(own: types.SimpleNamespace) -> None:
    error = error_of_a_task()
    for _ in range(2):
        assert names(own.outer, lambda: own.fails(raised_anew(error)))[len(LEFT) :] == ["<lambda>", "fails"]


def test_a_class_that_refuses_attributes_is_no_obstacle(own: types.SimpleNamespace) -> None:
    class Frozen(ConfigurationError):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    assert names(own.outer, own.fails, Frozen()) == LEFT


def test_a_result_passes_through(own: types.SimpleNamespace) -> None:
    assert own.outer(abs, -1) == 1
