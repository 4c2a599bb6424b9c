"""Exceptions as text and payload, and back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import pickle
import sys
import threading
import traceback
from types import SimpleNamespace

import pytest

from gearmap.errors import RemoteError, RemoteTraceback, TaskTimeout
from gearmap.wire import failure as failure_module
from gearmap.wire.failure import (
    MAX_MESSAGE_CHARS,
    MAX_TRACEBACK_CHARS,
    TaskFailure,
    comes_from_task,
    describe_call,
    describe_exception,
    rebuild_exception,
)
from gearmap.wire.outcome import Outcome, decode_outcome, encode_outcome
from gearmap.wire.serializer import dumps

HAS_NOTES = sys.version_info >= (3, 11)


def raised(make, *, cause=None):
    """The exception as a worker has it, with a traceback."""
    try:
        raise make() from cause
    except BaseException as error:
        return error


def round_trip(error, notes=()):
    return rebuild_exception(describe_exception(error, 0), notes=notes)


class NeedsTwo(Exception):
    """Pickle alone cannot rebuild it: its args are not its arguments."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.a = a


class HoldsALock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class BadText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class ExitingText(Exception):
    def __str__(self):
        raise SystemExit(3)

    def __reduce__(self):
        raise SystemExit(4)


class NeedsTwoToDecode(UnicodeDecodeError):
    def __init__(self, what):
        super().__init__("utf-8", what, 0, 1, "bad")


class FailsToLoad(Exception):
    def __reduce__(self):
        return (int, ("x",))


class RefusesAttributes(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(name)


class BecomesAString(Exception):
    def __reduce__(self):
        return (str, ("not an exception",))


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


def remote(error):
    """The remote traceback of an exception: its last note, or its cause where it has none."""
    return error.__notes__[-1] + "\n" if error.__cause__ is None else error.__cause__.text


@pytest.mark.skipif(not HAS_NOTES, reason="exceptions have no notes before Python 3.11")
def test_the_tasks_own_exception_comes_back_with_the_remote_traceback_as_its_last_note():
    error = round_trip(raised(lambda: KeyError("missing")), notes=["task 17"])
    assert type(error) is KeyError
    assert error.args == ("missing",)
    assert error.__cause__ is None
    task, text = error.__notes__
    assert task == "task 17"
    assert text.startswith("\nRemote traceback (most recent call last):\n  File")
    assert "in raised" in text
    assert text.endswith("KeyError: 'missing'")


def test_where_notes_are_not_shown_the_remote_traceback_is_the_cause(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(version_info=(8, 13, 2, "")))
    error = round_trip(raised(lambda: KeyError("missing")))
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in raised" in error.__cause__.text
    assert error.__cause__.text.endswith("KeyError: 'missing'\n")


def test_an_exception_that_is_pickled_again_keeps_its_notes():
    error = round_trip(raised(lambda: ValueError("x")), notes=["task 17"])
    again = pickle.loads(pickle.dumps(error))
    assert getattr(again, "__notes__", None) == getattr(error, "__notes__", None)


@pytest.mark.skipif(not HAS_NOTES, reason="exceptions have no notes before Python 3.11")
def test_an_exception_that_goes_through_a_second_task_tells_of_both_once():
    inner = round_trip(raised(lambda: ValueError("x")), notes=["task 1 of the inner map"])
    inner.__traceback__ = None

    def outer_task():
        raise inner

    outer = round_trip(raised(outer_task), notes=["task 2 of the outer map"])
    text = "".join(traceback.format_exception(outer))
    assert [text.count(note) for note in ("task 1 of", "task 2 of", "Remote traceback")] == [1, 1, 2]


def test_only_what_was_rebuilt_comes_from_a_task():
    assert comes_from_task(round_trip(raised(lambda: ValueError("x"))))
    assert comes_from_task(round_trip(raised(lambda: RefusesAttributes(3))))
    assert not comes_from_task(raised(lambda: ValueError("x")))


def test_attributes_of_the_exception_come_back():
    original = raised(lambda: OSError(2, "gone", "x.txt"))
    original.extra = [1]
    error = round_trip(original)
    assert (type(error), error.filename, error.extra) == (FileNotFoundError, "x.txt", [1])


def test_an_exception_comes_back_without_its_constructor_being_called():
    error = round_trip(raised(lambda: NeedsTwo(1, 2)))
    assert (type(error), str(error), error.a) == (NeedsTwo, "1 and 2", 1)

    error = round_trip(raised(lambda: Frozen(3)))
    assert (type(error), error.code) == (Frozen, 3)

    error = round_trip(raised(lambda: NeedsTwoToDecode(b"\xff")))
    assert (type(error), error.object, error.reason) == (NeedsTwoToDecode, b"\xff", "bad")


def test_our_own_errors_come_back_with_what_they_know():
    error = round_trip(raised(lambda: TaskTimeout("slow", task_index=3, attempts=2, worker="w")))
    assert isinstance(error, TaskTimeout)
    assert (error.task_index, error.attempts, error.worker) == (3, 2, "w")


def test_a_description_says_what_was_raised_and_where():
    described = describe_exception(raised(lambda: NeedsTwo(1, 2)), 17)
    assert described.position == 17
    assert described.type_name == f"{__name__}.NeedsTwo"
    assert described.message == "1 and 2"
    assert describe_exception(ValueError("x"), 0).type_name == "ValueError"


def test_chained_exceptions_are_in_the_traceback():
    text = describe_exception(raised(lambda: ValueError("outer"), cause=raised(lambda: KeyError("inner"))), 0).traceback
    assert "KeyError: 'inner'" in text
    assert "direct cause" in text
    assert "ValueError: outer" in text


def test_own_frames_at_the_outside_are_left_out(monkeypatch):
    monkeypatch.setattr(failure_module, "_PACKAGE_DIR", "/lib/gearmap/")
    space = {}
    exec(compile("def call(fn):\n    return fn()", "/lib/gearmap/runtime/child.py", "exec"), space)
    exec(compile("def fn():\n    call(broken)\ndef broken():\n    1 / 0", "<cell 1>", "exec"), space)
    call, fn = space["call"], space["fn"]
    try:
        call(fn)
    except ZeroDivisionError as error:
        error.__traceback__ = error.__traceback__.tb_next  # this test's own frame, which a worker does not have
        text = describe_exception(error, 0).traceback

    frames = [line.split('"')[1] for line in text.splitlines() if line.startswith("  File")]
    assert frames == ["<cell 1>", "/lib/gearmap/runtime/child.py", "<cell 1>"]


@pytest.mark.skipif(not HAS_NOTES, reason="exceptions have no notes before Python 3.11")
def test_notes_of_the_task_stay_and_ours_follow():
    original = raised(lambda: ValueError("x"))
    original.add_note("theirs")
    error = round_trip(original, notes=["task 17 of 1000", "worker a"])
    assert error.__notes__[:-1] == ["theirs", "task 17 of 1000", "worker a"]
    assert "task 17" not in remote(error)
    assert "theirs" not in remote(error)


def test_notes_end_the_traceback_where_exceptions_have_none(monkeypatch):
    monkeypatch.setattr(failure_module, "_add_note", lambda error, note: False)
    error = round_trip(raised(lambda: ValueError("x")), notes=["task 17 of 1000", "worker a"])
    assert error.__cause__.text.endswith("ValueError: x\ntask 17 of 1000\nworker a\n")


@pytest.mark.skipif(not HAS_NOTES, reason="exceptions have no notes before Python 3.11")
def test_an_exception_that_takes_no_notes_has_them_in_its_traceback():
    error = round_trip(raised(lambda: RefusesAttributes(3)), notes=["task 17"])
    assert type(error) is RefusesAttributes
    assert error.__cause__.text.endswith("task 17\n")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: FailsToLoad("x"), "could not be rebuilt: cannot unpickle: ValueError"),
        (lambda: HoldsALock("held"), "could not be pickled"),
        (lambda: BecomesAString("x"), "it became a str"),
    ],
)
def test_what_cannot_be_rebuilt_becomes_a_remote_error_with_its_text(make, reason):
    original = raised(make)
    error = round_trip(original, notes=["task 17"])
    assert type(error) is RemoteError
    assert str(error).startswith(f"{__name__}.{type(original).__name__}: {original}")
    assert reason in str(error)
    assert "raceback (most recent call last)" in remote(error)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SystemExit(3),
        lambda: KeyboardInterrupt(),
        lambda: GeneratorExit(),
        lambda: StopIteration(1),
        lambda: StopAsyncIteration(),
        lambda: asyncio.CancelledError(),
        lambda: concurrent.futures.CancelledError(),
    ],
)
def test_what_would_mean_something_else_here_is_not_raised_as_itself(make):
    original = raised(make)
    error = round_trip(original)
    assert type(error) is RemoteError
    assert type(original).__name__ in str(error)
    assert "has failed" in str(error)


def test_exceptions_that_misbehave_are_described_all_the_same():
    bad = describe_exception(raised(BadText), 1)
    assert "cannot be shown" in bad.message
    assert "BadText" in bad.traceback

    exiting = describe_exception(raised(ExitingText), 2)
    assert exiting.exception is None
    assert "ExitingText" in exiting.type_name


def test_an_exception_that_breaks_its_own_traceback_is_described(monkeypatch):
    class Strange(Exception):
        @property
        def __cause__(self):
            raise ZeroDivisionError

    described = describe_exception(raised(lambda: Strange("text")), 0)
    assert described.message == "text"
    assert "Strange" in described.traceback


def test_endless_recursion_is_described_shortly():
    def endless(n):
        return endless(n + 1)

    with pytest.raises(RecursionError) as caught:
        endless(0)
    described = describe_exception(caught.value, 0)
    assert "Previous line repeated" in described.traceback
    assert len(described.traceback) < 5000
    assert type(rebuild_exception(described)) is RecursionError


def test_long_texts_keep_their_start_and_their_end():
    described = describe_exception(raised(lambda: ValueError("start" + "x" * 200_000 + "end")), 0)
    for text, limit in ((described.message, MAX_MESSAGE_CHARS), (described.traceback, MAX_TRACEBACK_CHARS)):
        assert len(text) < limit + 100
        assert "characters left out" in text
        assert text.endswith(("end", "end\n"))
    assert described.message.startswith("start")


@pytest.mark.skipif(not HAS_NOTES, reason="there are no exception groups before Python 3.11")
def test_exception_groups_come_back_with_their_members():
    from builtins import ExceptionGroup

    error = round_trip(raised(lambda: ExceptionGroup("all", [ValueError("a"), KeyError("b")])))
    assert [type(member) for member in error.exceptions] == [ValueError, KeyError]
    assert "ValueError: a" in remote(error)


def test_a_payload_that_is_no_exception_is_not_raised():
    forged = TaskFailure(position=0, type_name="E", message="m", traceback="t", exception=dumps([1]))
    assert "it became a list" in str(rebuild_exception(forged))


class Rude:
    def __repr__(self):
        raise ValueError("no")


def test_a_call_is_described_on_one_line_whatever_its_arguments_do():
    assert describe_call(divmod, (7, 2), {}) == "divmod(7, 2)"
    assert describe_call(lambda: 0, (), {"alpha": "a\nb"}) == "<lambda>(alpha='a\\nb')"
    assert describe_call(functools.partial(max), ([1] * 100,), {}) == "partial([1, 1, 1, 1, 1, 1, ...])"
    described = describe_call(divmod, (Rude(), "x" * 10_000), {})
    assert "Rude" in described
    assert len(described) < 400


def test_the_call_travels_with_the_failure():
    failure = describe_exception(ValueError("x"), 3, call="score(17)")
    header, body = encode_outcome(Outcome(failures=(failure,)))

    (decoded,) = decode_outcome(header, b"".join(map(bytes, body))).outcome.failures

    assert decoded.call == "score(17)"
