"""A function is pickled once, unless anything that it captures may have changed."""

from __future__ import annotations

import functools
import gc
import json
import math
import sys
import types
from collections.abc import Callable

import cloudpickle
import pytest

from gearmap.errors import SerializationError
from gearmap.wire import functions
from gearmap.wire.functions import DIGEST_BYTES, FunctionCache, digest_payload
from gearmap.wire.serializer import FunctionCache as SerializerCache
from gearmap.wire.serializer import dump_function, loads


class Notebook:
    """A namespace that no import finds, and a cache that counts how often it pickles."""

    def __init__(self) -> None:
        self.space = {"__name__": "__main__", "math": math, "json_dumps": json.dumps}
        self.n_dumps = 0
        self.cache = FunctionCache(self._dump)

    def _dump(self, fn: Callable[..., object]) -> list[bytes]:
        self.n_dumps += 1
        return dump_function(fn)

    def run(self, cell: str) -> None:
        exec(compile(cell, "<cell>", "exec"), self.space)

    def call(self, *args: object) -> object:
        """What a worker would return for `f(*args)` now."""
        return loads(self.cache.payload(self.space["f"])[1])(*args)


def test_a_function_that_is_known_is_found_as_the_same_object_each_time():
    notebook = Notebook()
    notebook.run("step = 1\ndef f(x): return x + step")
    fn = notebook.space["f"]
    assert notebook.cache.find(fn) is None
    pickled = notebook.cache.payload(fn)
    assert notebook.cache.find(fn) is pickled
    notebook.run("step = 2")
    assert notebook.cache.find(fn) is None


@pytest.fixture
def notebook():
    return Notebook()


@pytest.mark.parametrize(
    "cell",
    [
        "f = lambda x: x + 1",
        "def f(x, y=2, *, z=(3, 'a', None)): return x",
        "k = 3\ndef f(x): return k * x",
        "def f(n): return n and f(n - 1)",
        "def g(x): return x\ndef f(x): return g(x)",
        "def f(x): return json_dumps(math.floor(x)) + str(len('ab'))",
        "def outer(k):\n    def inner(x): return x + k\n    return inner\nf = outer(2)",
        "def f(x):\n    def inner(): return k\n    return inner()\nk = 1.5",
        "def f(x: 'int') -> list[int]: return x",
        "import functools\n@functools.lru_cache\ndef g(x): return x\ndef f(x): return g(x)",
        "import re\npattern = re.compile('a+')\ndef f(x): return pattern.match(x)",
    ],
)
def test_a_function_that_captures_immutable_things_is_pickled_once(notebook, cell):
    notebook.run(cell)
    f = notebook.space["f"]

    first = notebook.cache.payload(f)
    second = notebook.cache.payload(f)

    assert notebook.n_dumps == 1
    assert second[0] == first[0]
    assert second[1] is first[1]
    assert len(first[0]) == DIGEST_BYTES


@pytest.mark.parametrize(
    "cell",
    [
        "data = [1]\ndef f(x): return data",
        "class A: pass\ndef f(x): return A",
        "def f(x, acc=[]): return acc",
        "def f(x, *, acc={}): return acc",
        "def f(x): return x\nf.seen = []",
        "data = [1]\ndef g(x): return data\ndef f(x): return g(x)",
        "data = ([1],)\ndef f(x): return data",
        "def outer(k):\n    def inner(x): return x + k\n    return inner\nf = outer([2])",
        "import functools\ndef g(x): return x\nf = functools.partial(g, 1)",
    ],
)
def test_a_function_that_captures_what_may_change_is_pickled_each_time(notebook, cell):
    notebook.run(cell)
    digests = {notebook.cache.payload(notebook.space["f"])[0] for _ in range(3)}
    assert notebook.n_dumps == 3
    assert len(digests) == 1  # the same content has the same digest all the same
    assert len(notebook.cache) == 0


@pytest.mark.parametrize(
    ("cell", "change", "before", "after"),
    [
        ("k = 3\ndef f(): return k", "k = 4", 3, 4),
        ("k = 3\ndef f():\n    return [k for _ in 'a'][0]", "k = 4", 3, 4),
        ("def g(): return 1\ndef f(): return g()", "def g(): return 2", 1, 2),
        ("k = 1\ndef g(): return k\ndef f(): return g()", "k = 2", 1, 2),
        ("def f(): return len('abc')", "len = lambda text: 0", 3, 0),
        ("def f(k=1): return k", "f.__defaults__ = (2,)", 1, 2),
        ("def f(*, k=1): return k", "f.__kwdefaults__['k'] = 2", 1, 2),
        ("def f(): return f.k\nf.k = 1", "f.k = 2", 1, 2),
        ("def f(): return 1", "def g(): return 2\nf.__code__ = g.__code__", 1, 2),
        ("k = 1\ndef f(): return k", "k = [2]", 1, [2]),
        (
            "def outer():\n    k = 1\n    def f(): return k\n    def bump():\n        nonlocal k\n        k = 2\n"
            "    return f, bump\nf, bump = outer()",
            "bump()",
            1,
            2,
        ),
        (
            "import functools\nk = 1\n@functools.lru_cache\ndef g(): return k\ndef f(): return g()",
            "k = 2",
            1,
            2,
        ),
    ],
)
def test_a_change_of_what_a_function_captures_is_noticed(notebook, cell, change, before, after):
    notebook.run(cell)
    assert notebook.call() == before
    notebook.run(change)
    assert notebook.call() == after


def test_an_equal_value_that_is_another_object_is_a_miss_but_keeps_the_digest(notebook):
    notebook.run("k = ''.join(['ab'] * 10)\ndef f(): return k")
    first = notebook.cache.payload(notebook.space["f"])[0]
    notebook.run("k = ''.join(['ab'] * 10)")
    assert notebook.cache.payload(notebook.space["f"])[0] == first
    assert notebook.n_dumps == 2


def test_importable_functions_are_always_hits(notebook):
    for fn in (json.dumps, len, math.floor, dict):
        for _ in range(3):
            assert loads(notebook.cache.payload(fn)[1]) is fn
    assert notebook.n_dumps == 4


def test_a_reloaded_module_ends_the_hits_of_its_old_functions(notebook, monkeypatch):
    module = types.ModuleType("gearmap_test_reloaded")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("def helper(): return 1", vars(module))
    notebook.space["helper"] = module.helper
    notebook.run("def f(): return helper()")
    assert notebook.call() == 1

    exec("def helper(): return 2", vars(module))  # as importlib.reload does; `f` still has the old one

    assert notebook.call() == 1
    assert notebook.n_dumps == 2


def test_an_import_since_is_noticed_because_submodules_travel_along(notebook, monkeypatch):
    package = types.ModuleType("gearmap_test_package")
    package.__path__ = []
    package.__package__ = package.__name__
    monkeypatch.setitem(sys.modules, package.__name__, package)
    notebook.space["gearmap_test_package"] = package
    notebook.run("def f(): return gearmap_test_package.sub.x")
    notebook.cache.payload(notebook.space["f"])

    submodule = types.ModuleType("gearmap_test_package.sub")
    monkeypatch.setitem(sys.modules, submodule.__name__, submodule)
    payload = notebook.cache.payload(notebook.space["f"])[1]

    assert notebook.n_dumps == 2
    assert b"gearmap_test_package.sub" in payload[0]


def test_registering_a_module_by_value_is_noticed(notebook, monkeypatch):
    module = types.ModuleType("gearmap_test_registered")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("def helper(): return 1", vars(module))
    notebook.cache.payload(module.helper)
    cloudpickle.register_pickle_by_value(module)
    try:
        notebook.cache.payload(module.helper)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert notebook.n_dumps == 2


def test_a_global_that_changes_while_the_function_is_pickled_leaves_no_entry():
    space = {"__name__": "__main__", "k": 1}
    exec("def f(): return k", space)

    def dump(fn):
        payload = dump_function(fn)
        space["k"] = 2
        return payload

    cache = FunctionCache(dump)
    cache.payload(space["f"])
    assert len(cache) == 0


def test_the_cache_forgets_functions_that_are_gone(notebook):
    notebook.run("f = lambda: 1")
    notebook.cache.payload(notebook.space["f"])
    assert len(notebook.cache) == 1
    del notebook.space["f"]
    gc.collect()
    assert len(notebook.cache) == 0


def test_the_cache_is_bounded(notebook, monkeypatch):
    monkeypatch.setattr(functions, "_MAX_FUNCTIONS", 3)
    lambdas = [functools.partial(eval, "lambda: None", {"__name__": "__main__"})() for _ in range(5)]
    for fn in lambdas:
        notebook.cache.payload(fn)
    assert len(notebook.cache) == 3
    notebook.cache.payload(lambdas[-1])
    assert notebook.n_dumps == 5
    notebook.cache.payload(lambdas[0])
    assert notebook.n_dumps == 6


def test_what_was_not_used_for_longest_is_forgotten_first(notebook, monkeypatch):
    monkeypatch.setattr(functions, "_MAX_FUNCTIONS", 2)
    first, second, third = (eval("lambda: None", {"__name__": "__main__"}) for _ in range(3))
    for fn in (first, second, first, third, first):
        notebook.cache.payload(fn)
    assert notebook.n_dumps == 3


def test_large_payloads_are_not_kept(notebook):
    notebook.run("text = 'x' * 2_000_000\ndef f(): return len(text)")
    assert notebook.call() == 2_000_000
    assert len(notebook.cache) == 0


def test_the_serializers_cache_needs_no_pickler_and_reports_what_does_not_pickle():
    cache = SerializerCache()
    digest, payload = cache.payload(json.dumps)
    assert digest == digest_payload(payload)
    generator = (item for item in "ab")
    with pytest.raises(SerializationError, match="generator"):
        cache.payload(lambda: generator)


def test_a_digest_tells_buffers_apart_and_not_only_their_sum():
    assert digest_payload([b"ab", b"c"]) != digest_payload([b"a", b"bc"])
    assert digest_payload([b"ab", b""]) != digest_payload([b"ab"])
    assert digest_payload([bytearray(b"ab")]) == digest_payload([memoryview(b"ab")])


def test_a_function_is_pickled_again_when_what_accompanies_it_has_changed():
    version = [1]

    def accompany(payload):
        seen = version[0]
        return [*payload, b"version %d" % seen], lambda: version[0] == seen

    cache = FunctionCache(dump_function, accompany)
    space = {"__name__": "__main__"}
    exec(compile("def f(): pass", "<cell>", "exec"), space)
    first = cache.payload(space["f"])
    assert cache.find(space["f"]) is first
    assert first[1][-1] == b"version 1"
    version[0] = 2
    assert cache.find(space["f"]) is None
    second = cache.payload(space["f"])
    assert second[1][-1] == b"version 2"
    assert second[0] != first[0]
