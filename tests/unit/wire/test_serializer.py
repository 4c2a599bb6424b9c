"""Values to payloads and back in one process."""

from __future__ import annotations

import datetime
import functools
import gc
import io
import pickle
import sys
import types
import warnings
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearmap.errors import SerializationError
from gearmap.wire import serializer
from gearmap.wire.serializer import (
    OUT_OF_BAND_BYTES,
    Elsewhere,
    dump_call,
    dump_function,
    dumps,
    loads,
    missing_module,
    with_elsewhere,
)

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(max_size=5), children, max_size=4)
        | st.tuples(children, children)
    ),
    max_leaves=10,
)


@pytest.fixture
def module_of_main(monkeypatch):
    """Run source as if typed into `__main__`; what it defines is taken away afterwards."""
    main = sys.modules["__main__"]
    before = dict(vars(main))

    def define(source):
        exec(compile(source, "<cell>", "exec"), vars(main))
        return main

    yield define
    for name in set(vars(main)) - set(before):
        delattr(main, name)


@settings(max_examples=100)
@given(plain_values)
def test_plain_values_survive_the_round_trip(value):
    assert loads(dumps(value)) == value


def test_large_contiguous_buffers_travel_beside_the_stream():
    large, small = pickle.PickleBuffer(bytearray(OUT_OF_BAND_BYTES)), pickle.PickleBuffer(bytearray(10))
    payload = dumps([large, small])
    assert len(payload) == 2
    assert loads(payload) == [bytes(OUT_OF_BAND_BYTES), bytes(10)]


def test_payloads_of_views_may_be_garbage():
    # Before Python 3.13 the garbage collector crashed on views of views, which a `PickleBuffer` of a view makes.
    views = [memoryview(bytearray(OUT_OF_BAND_BYTES)), memoryview(bytearray(4 * OUT_OF_BAND_BYTES)).cast("i")]
    for payload in (
        dumps([pickle.PickleBuffer(view) for view in views]),
        dumps([pickle.PickleBuffer(view) for view in views], snapshot=True),
        with_elsewhere(views[0], [views[1], Elsewhere(bytes, (3,))]),
        with_elsewhere(Elsewhere(bytes, (3,)), views),
    ):
        for part in payload:
            assert type(memoryview(part).obj) is not memoryview
        cycle: list[Any] = [*views, *payload]
        cycle.append(cycle)
        del cycle, payload
        gc.collect()


def test_views_of_any_layout_survive_the_round_trip():
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(10_000).reshape(100, 100)
    for each in (array, array.T):
        (loaded,) = loads(dumps([pickle.PickleBuffer(memoryview(each))]))
        assert bytes(loaded) == array.tobytes()


def test_arrays_are_not_copied_unless_a_snapshot_is_asked_for():
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(OUT_OF_BAND_BYTES)
    views, copies = dumps(array), dumps(array, snapshot=True)

    array[0] = 7

    assert loads(views)[0] == 7
    assert loads(copies)[0] == 0
    assert loads(copies).flags.writeable


def test_a_pickled_function_keeps_the_arrays_that_it_captured_as_they_were():
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(OUT_OF_BAND_BYTES)
    payload = dump_function(lambda: array[0])
    array[0] = 7
    assert loads(payload)() == 0


@settings(max_examples=100)
@given(st.lists(plain_values, max_size=3).map(tuple), st.dictionaries(st.text(max_size=5), plain_values, max_size=2))
def test_the_arguments_of_a_call_survive_the_round_trip(args, kwargs):
    call = dump_call(args, kwargs)
    assert loads([call] if isinstance(call, bytes) else call) == (args, kwargs)


def test_the_arguments_of_a_call_are_one_stream_unless_they_have_large_buffers():
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(OUT_OF_BAND_BYTES)
    plain, small, large = dump_call((1, "a"), {}), dump_call(([1],), {"b": 2}), dump_call((array,), {})
    array[0] = 7
    assert [type(plain), type(small), len(large)] == [bytes, bytes, 2]
    assert loads(large)[0][0][0] == 0


def test_an_argument_of_a_class_of_main_travels_by_value(module_of_main):
    main = module_of_main("class Number(int): pass")
    for call in (dump_call((main.Number(3),), {}), dump_call((1,), {"n": main.Number(3)})):
        assert b"Number" in call
        assert cloudpickle.__name__.encode() in call


def test_an_argument_that_does_not_pickle_is_named():
    with pytest.raises(SerializationError, match="the arguments"):
        dump_call((1, lambda: sys.stdout, object().__reduce_ex__, io.StringIO, (x for x in ())), {})


def test_arrays_of_any_layout_survive_the_round_trip():
    numpy = pytest.importorskip("numpy")
    base = numpy.arange(24_000.0).reshape(100, 240)
    for array in (
        base,
        base.T,
        base[::2, ::3],
        base[:0],
        numpy.array(3.0),
        numpy.array([{"a": 1}], dtype=object),
    ):
        numpy.testing.assert_array_equal(loads(dumps(array)), array)
    read_only = base.copy()
    read_only.flags.writeable = False
    assert not loads([bytearray(buffer) for buffer in dumps(read_only)]).flags.writeable


def test_a_class_of_main_goes_by_value_even_though_pickle_could_name_it(module_of_main):
    main = module_of_main("class Thing:\n    x = 3\n")
    thing = main.Thing()
    assert b"__main__" in pickle.dumps(thing)

    payload = dumps([thing])

    assert b"_make_skeleton_class" in payload[0]


@pytest.mark.parametrize("value", ["__main__", {"__main__": 1}, [b"in __main__ itself"]])
def test_data_that_looks_like_the_name_of_main_is_just_data(value):
    assert loads(dumps(value)) == value


def test_a_module_registered_by_value_is_not_named_in_the_pickle(monkeypatch):
    module = types.ModuleType("gearmap_test_by_value")
    exec("class Thing:\n    pass\ndef helper():\n    return Thing\n", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    by_reference = [dumps(module.Thing()), dumps(module.helper)]

    cloudpickle.register_pickle_by_value(module)
    try:
        by_value = [dumps(module.Thing()), dumps(module.helper)]
    finally:
        cloudpickle.unregister_pickle_by_value(module)

    monkeypatch.delitem(sys.modules, module.__name__)
    for payload in by_reference:
        with pytest.raises(SerializationError):
            loads(payload)
    for payload in by_value:
        assert loads(payload) is not None


def test_importable_functions_and_classes_go_by_name():
    for thing in (datetime.date, functools.reduce, len, pytest.fixture):
        payload = dumps(thing)
        assert loads(payload) is thing
        assert len(payload[0]) < 100


def test_an_importable_lru_cache_wrapper_goes_by_name(monkeypatch):
    module = types.ModuleType("gearmap_test_cached")
    exec("import functools\n@functools.cache\ndef load(x):\n    return [x]\n", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert loads(dumps([module.load, lambda: 1]))[0] is module.load


def test_many_objects_of_importable_classes_take_the_plain_pickler(monkeypatch):
    monkeypatch.setattr(serializer, "_Pickler", None)  # would fail if it were used
    dates = [datetime.date(2020, 1, day) for day in range(1, 29)]
    assert loads(dumps(dates)) == dates


def test_an_open_file_is_not_sent_as_a_copy_of_its_content(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("text")
    with path.open() as file, pytest.raises(SerializationError, match="open it inside the function"):
        dumps([file])


def test_a_standard_stream_goes_by_name(monkeypatch):
    with io.TextIOWrapper(io.BytesIO()) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert loads(dumps([sys.stderr, lambda: 1]))[0] is stream


def test_a_missing_module_is_named_when_loading_fails(monkeypatch):
    module = types.ModuleType("gearmap_test_gone")
    exec("def helper():\n    pass\n", vars(module))
    monkeypatch.setitem(sys.modules, "gearmap_test_gone", module)
    payload = dumps(module.helper)
    monkeypatch.delitem(sys.modules, "gearmap_test_gone")

    with pytest.raises(SerializationError, match="No module named 'gearmap_test_gone'") as caught:
        loads(payload)

    assert missing_module(caught.value) == "gearmap_test_gone"
    assert missing_module(SerializationError("another reason")) is None


@pytest.mark.parametrize("payload", [[], [b""], [b"garbage"], [b"\x80\x05."], [pickle.dumps(1)[:-1]]])
def test_what_is_no_pickle_gives_a_serialization_error(payload):
    with pytest.raises(SerializationError, match="cannot unpickle"):
        loads(payload)


def test_running_out_of_memory_while_loading_stays_what_it_is():
    class Huge:
        def __reduce__(self):
            return (_out_of_memory, ())

    with pytest.raises(MemoryError):
        loads(dumps(Huge()))


def _out_of_memory():
    raise MemoryError("too large")


def test_a_prelude_is_called_before_the_payload_loads_and_changes_nothing_of_it():
    shared = ["twice"]
    value = {"a": shared, "b": shared, "big": bytearray(b"x" * serializer.OUT_OF_BAND_BYTES)}
    payload = serializer.with_prelude(serializer.dumps(value), warnings.warn, "called first")
    with pytest.warns(UserWarning, match="called first"):
        loaded = serializer.loads(payload)
    assert loaded == value
    assert loaded["a"] is loaded["b"]


class TestByReference:
    @pytest.mark.parametrize("value", [1, "__main__", [b"__main__", {"a": ("__main__",)}], len, int, range(3), None])
    def test_what_others_can_import_and_plain_values_go(self, value):
        assert loads(dumps(value, by_reference=True)) == value

    def test_large_buffers_go_beside(self):
        stream, buffer = dumps(pickle.PickleBuffer(bytearray(5000)), by_reference=True)
        assert len(stream) < 100
        assert len(buffer) == 5000

    def test_functions_and_classes_that_only_this_process_has_do_not_go(self, monkeypatch):
        main = types.ModuleType("__main__")
        exec("class Here: ...\ndef here(): ...", main.__dict__)
        monkeypatch.setitem(sys.modules, "__main__", main)
        for value in (main.Here, main.Here(), main.here, [1, main.here]):
            with pytest.raises(SerializationError, match=r"the value cannot go to .*: (H|h)ere is of __main__"):
                dumps(value, by_reference=True)
            assert loads(dumps(value)) is not None
        with pytest.raises(SerializationError, match="cannot go to a named task"):
            dumps(lambda: None, by_reference=True)
