"""Shared objects: what stands for them in a pickle, and that nothing else about them changes."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref

import cloudpickle
import pytest

from gearmap.errors import ConfigurationError, SerializationError
from gearmap.runtime.sealedmemory import SHARED_BYTES
from gearmap.runtime.sharing import share
from gearmap.wire import shared
from gearmap.wire.serializer import dumps, loads

BUILTINS = {
    "list": [1, "two", {"three": 3}],
    "tuple": (1, 2, 3),
    "dict": {"a": [1], 2: "b"},
    "set": {1, 2, 3},
    "frozenset": frozenset({1, 2}),
    "str": "text " * 10,
    "bytes": b"data" * 10,
    "bytearray": bytearray(b"data" * 10),
}


class Thing:
    def __init__(self, value):
        self.value = value


class Slotted:
    __slots__ = ("value",)


def snapshots_in(payload):
    """How many shared objects a payload stands for."""
    return len(set(re.findall(rb"[0-9a-f]{32}", bytes(payload[0]))))


@pytest.mark.parametrize("value", BUILTINS.values(), ids=BUILTINS)
def test_a_builtin_is_equal_to_itself_shared_and_arrives_as_what_it_was(value):
    made = share(value)
    assert made == value
    assert isinstance(made, type(value))
    assert repr(made) == repr(value)
    payload = dumps({"deep": [made]})
    assert snapshots_in(payload) == 1
    arrived = loads(payload)["deep"][0]
    assert arrived == value
    assert type(arrived) is type(value)


@pytest.mark.parametrize("value", BUILTINS.values(), ids=BUILTINS)
def test_a_copy_of_a_shared_builtin_is_an_ordinary_one(value):
    for made in (copy.copy(share(value)), copy.deepcopy(share(value)), pickle.loads(pickle.dumps(share(value)))):
        assert made == value
        assert type(made) is type(value)


def test_an_object_is_shared_as_itself_and_at_any_depth():
    thing = Thing([1, 2])
    assert share(thing) is thing
    payload = dumps([(thing, {"again": thing})])
    assert snapshots_in(payload) == 1
    ((first, rest),) = loads(payload)
    assert first is rest["again"]
    assert first.value == [1, 2]


def test_functions_that_capture_something_shared_pickle_it_so():
    thing, table = share(Thing(5)), share(list(range(1000)))
    payload = dumps(lambda: (thing.value, table[7]))
    assert snapshots_in(payload) == 2
    assert loads(payload)() == (5, 7)


def test_it_is_a_snapshot_until_it_is_shared_again():
    thing = share(Thing(1))
    thing.value = 2
    assert loads(dumps(thing)).value == 1
    share(thing)
    assert loads(dumps(thing)).value == 2
    table = share([1])
    table.append(2)
    assert loads(dumps(table)) == [1]
    assert loads(dumps(share(table))) == [1, 2]


def test_others_of_the_type_are_pickled_as_ever():
    share(Thing(1))
    kept = share(Thing(2))
    assert snapshots_in(dumps(Thing(3))) == 0
    assert loads(dumps([Thing(3), kept]))[0].value == 3


def test_nothing_is_kept_of_an_object_that_has_gone():
    thing = share(Thing(bytes(2 * SHARED_BYTES)))
    marked, snapshot = shared._marked[id(thing)]
    assert marked() is thing
    gone = weakref.ref(snapshot)
    key = id(thing)
    del thing, snapshot
    gc.collect()
    assert key not in shared._marked
    assert gone() is None
    assert not any(reference() is None for reference, _ in shared._frozen.values())


def test_the_memory_of_a_snapshot_has_a_name_and_that_of_others_has_none():
    big = share(bytes(SHARED_BYTES))
    first, second = ([memoryview(part) for part in dumps(big)[1:]] for _ in range(2))
    names = [shared.frozen_name(part.cast("B")) for part in first]
    assert names == [shared.frozen_name(part.cast("B")) for part in second]
    assert None not in names
    assert shared.frozen_name(memoryview(bytearray(SHARED_BYTES))) is None


@pytest.mark.parametrize("value", [None, 1, 2.5, True, range(3)])
def test_what_is_small_stays_what_it_is(value):
    assert share(value) is value


@pytest.mark.parametrize("value", [test_what_is_small_stays_what_it_is, Thing, pytest, len, Slotted()])
def test_what_cannot_be_shared_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"share\(\)"):
        share(value)


def test_what_does_not_pickle_is_refused_at_once():
    with pytest.raises(SerializationError, match="what is shared"):
        share([1, (number for number in range(3))])


def test_arrays_frames_and_tables():
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(10**6)
    assert share(array) is array
    payload = dumps([array, array[:5]])
    assert snapshots_in(payload) == 1
    whole, part = loads(payload)
    assert (whole[999], part.tolist()) == (999, [0, 1, 2, 3, 4])


def test_data_frames():
    pandas = pytest.importorskip("pandas")
    frame = share(pandas.DataFrame({"number": range(1000), "text": [str(each) for each in range(1000)]}))
    payload = dumps({"frame": frame})
    assert snapshots_in(payload) == 1
    assert loads(payload)["frame"].equals(frame)


def test_arrow_tables():
    pyarrow = pytest.importorskip("pyarrow")
    table = share(pyarrow.table({"number": list(range(1000))}))
    payload = dumps([table])
    assert snapshots_in(payload) == 1
    assert loads(payload)[0].equals(table)


def test_classes_by_value_and_shared_objects_go_together():
    class Local:
        pass

    table = share({"a": 1})
    thing = Thing(table)
    share(thing)
    local = Local()
    local.thing, local.table = thing, table
    arrived = loads(dumps(local))
    assert (arrived.thing.value, arrived.table) == ({"a": 1}, {"a": 1})
    assert cloudpickle.loads(cloudpickle.dumps(table)) == {"a": 1}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_other_picklers_take_what_a_shared_list_is_now_and_know_nothing_of_us(protocol: int) -> None:
    items = share([1, 2])
    items.append(3)
    pickled = pickle.dumps(items, protocol)
    assert pickle.loads(pickled) == [1, 2, 3]
    assert b"gearmap" not in pickled


@pytest.mark.parametrize("content", [b"x" * SHARED_BYTES, [b"x" * SHARED_BYTES]])
def test_what_is_shared_may_be_garbage_together_with_its_pickle(content) -> None:
    thing = share(Thing(content))
    thing.again, thing.pickle = thing, dumps(thing)
    alive = weakref.ref(thing)
    del thing
    gc.collect()
    assert alive() is None
