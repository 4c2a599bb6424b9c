"""What does not pickle is named, with the way to it and what to do."""

from __future__ import annotations

import functools
import sqlite3
import sys
import threading
from contextlib import closing

import pytest

from gearmap.errors import SerializationError
from gearmap.wire import explain
from gearmap.wire.serializer import dumps, explain_unpicklable

LOCK = threading.Lock()


def define(source, name="fn", **names):
    """What a cell of `__main__` that sees `names` defines as `name`."""
    space = {"__name__": "__main__", **names}
    exec(compile(source, "<cell>", "exec"), space)
    return space[name]


def test_a_global_of_the_function_is_named():
    with closing(sqlite3.connect(":memory:")) as db:
        fn = define("def fn(x): return db.execute(x)", db=db)
        assert explain_unpicklable(fn) == (
            "cannot pickle fn: its global 'db' is a sqlite3.Connection; open it inside the function"
        )


def test_a_way_through_a_container_ends_at_the_open_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("")
    with path.open() as file:
        argument = {"handles": [1, 2, file]}
        assert explain_unpicklable(argument, "argument 0 of task 17") == (
            f"cannot pickle argument 0 of task 17: ['handles'][2] is an open file (TextIOWrapper {str(path)!r}); "
            "open it inside the function"
        )


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("def fn(): return lock", "its global 'lock'"),
        ("def fn():\n    def inner(): return lock\n    return inner", "its global 'lock'"),
        ("def helper(): return lock\ndef fn(): return helper()", "its global 'helper', its global 'lock'"),
        ("def outer(kept):\n    return lambda: kept\nfn = outer(lock)", "its closure variable 'kept'"),
        ("def fn(a, b=lock): pass", "the default of its argument 'b'"),
        ("def fn(*, c=lock): pass", "the default of its argument 'c'"),
        ("def fn(): pass\nfn.kept = lock", "its attribute 'kept'"),
        ("config = {'a': [lock]}\ndef fn(): return config", "['a'][0] of its global 'config'"),
        ("class A:\n    kept = lock\ndef fn(): return A", "its global 'A', its class attribute 'kept'"),
        ("class A:\n    def m(self): return lock\nfn = A", "its method 'm', its global 'lock'"),
        (
            "class A:\n    @staticmethod\n    def m(): return lock\nfn = A",
            "its method 'm', its global 'lock'",
        ),
        (
            "class A:\n    @property\n    def m(self): return lock\nfn = A",
            "its property 'm', its global 'lock'",
        ),
        (
            "class A:\n    kept = lock\nclass B(A): pass\nfn = B",
            "its base class 'A', its class attribute 'kept'",
        ),
        ("class A: pass\na = A()\na.kept = lock\nfn = lambda: a", ".kept of its global 'a'"),
        ("class A: pass\nfn = A()\nfn.kept = [{1: lock}]", ".kept[0][1]"),
        ("class A:\n    __slots__ = ('s',)\nfn = A()\nfn.s = lock", ".s"),
        ("class A:\n    def m(self): pass\na = A()\na.kept = lock\nfn = a.m", ".kept of its object"),
        ("import functools\nfn = functools.partial(print, 1, lock)", "its argument 1"),
        ("import functools\nfn = functools.partial(print, sep=lock)", "its argument 'sep'"),
        ("import functools\n@functools.lru_cache\ndef fn(): return lock", "its global 'lock'"),
        ("import collections\nfn = collections.deque([1, lock])", "[1]"),
        ("import collections\nfn = collections.OrderedDict(a=lock)", "['a']"),
        ("import collections\nfn = collections.namedtuple('P', 'x y')(1, lock)", ".y"),
        (
            "class E(Exception): pass\nfn = E('x', lock)",
            "what it is rebuilt from (<unlocked _t...x7f0000000000>)",
        ),
        ("fn = {(1, lock)}", "[1] of its element (1, <unlocked _t...x7f0000000000>)"),
        ("fn = [0] * 5000 + [lock]", "[5000]"),
    ],
)
def test_the_way_to_the_culprit_is_named(source, place):
    text = explain_unpicklable(define(source, lock=LOCK))
    start, _, rest = text.partition(" is a lock (_thread.lock); ")
    assert rest
    got = start.removeprefix("cannot pickle fn: ")
    if "0000" in place:  # an address
        assert got.startswith(place[: place.index("<")])
    else:
        assert got == place


def make_generator():
    yield


async def make_coroutine():
    pass


def _closing_coroutine():
    coroutine = make_coroutine()
    coroutine.close()
    return coroutine


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (threading.RLock, "a lock"),
        (threading.Event, "a lock (threading.Event)"),
        (threading.local, "thread-local data"),
        (make_generator, "it is a generator; make it a list"),
        (_closing_coroutine, "it is a coroutine; pass the function"),
        (sys._getframe, "a stack frame"),
        (lambda: functools.reduce(lambda inner, _: [inner], range(50), LOCK), "[0][0][0]"),
    ],
)
def test_each_kind_has_its_words_and_advice(make, words):
    assert words in explain_unpicklable(make())


def test_what_opens_something_gets_its_advice_by_its_name():
    class DatabaseSession:
        def __reduce__(self):
            return self.__reduce__  # not what pickle expects

    text = explain_unpicklable([DatabaseSession()])
    assert "[0] is a " in text
    assert "DatabaseSession" in text
    assert text.endswith("open it inside the function")


@pytest.mark.parametrize("hook", ["__reduce__", "__getstate__", "__reduce_ex__"])
def test_an_error_of_the_objects_own_pickling_is_named(hook):
    arguments = "self, protocol" if hook == "__reduce_ex__" else "self"
    cls = define(f"class Fn:\n    def {hook}({arguments}): raise ValueError('no\\nway')", "Fn")
    assert explain_unpicklable({"a": cls()}) == (
        "cannot pickle fn: ['a'] is a Fn whose pickling raised ValueError: no way"
    )


def test_deep_nesting_is_called_that():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    try:
        with pytest.raises(SerializationError, match="nested too deeply; flatten it"):
            dumps(nested, name="argument 'x'")
    finally:
        while nested:  # freeing it at once would recurse as deeply
            nested = nested.pop()  # type: ignore[assignment]


def test_parts_that_refer_to_each_other_end_at_the_culprit():
    fn = define(
        "class A:\n    def m(self): return B\nclass B:\n    def m(self): return A, lock\ndef fn(): return A",
        lock=LOCK,
    )
    assert "its global 'lock' is a lock" in explain_unpicklable(fn)


def test_the_culprit_is_an_error_and_the_reason_its_cause():
    with pytest.raises(SerializationError, match="cannot pickle the result: it is a lock") as caught:
        dumps(LOCK, name="the result")
    assert isinstance(caught.value.__cause__, TypeError)
    assert isinstance(caught.value, TypeError)


def test_a_value_that_pickles_after_all_is_said_to_do_so():
    assert "each try afterwards succeeded" in explain_unpicklable(1)


def test_an_object_that_raises_whatever_it_is_asked_is_reported_all_the_same():
    class Hostile:
        fileno = 1

        @property
        def name(self):
            raise ZeroDivisionError

        @property
        def __class__(self):
            raise ZeroDivisionError

        def __reduce_ex__(self, protocol):
            raise ZeroDivisionError("no")

    assert "no" in explain_unpicklable([Hostile()])


def test_the_work_is_bounded():
    n_tries = 0

    def why_not(value):
        nonlocal n_tries
        n_tries += 1
        return TypeError("never")

    text = explain.explain([list(range(1000)) for _ in range(1000)], "fn", why_not=why_not)

    assert text.startswith("cannot pickle fn: ")
    assert n_tries < 3 * explain._MAX_PROBES
