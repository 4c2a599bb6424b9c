"""Large buffers of arguments that are shared instead of sent."""

from __future__ import annotations

import gc

import pytest

from gearmap.errors import SerializationError
from gearmap.runtime.arguments import ArgumentSource, pickle_block
from gearmap.runtime.blobs import BLOB_BYTES, MAX_ARGUMENTS, ArgumentStore, can_share
from gearmap.runtime.placed import content_bytes
from gearmap.wire.serializer import dump_call, dumps, loads

numpy = pytest.importorskip("numpy")

pytestmark = pytest.mark.skipif(not can_share(), reason="processes cannot open each other's memory here")


def array_of(value, *, n_bytes=BLOB_BYTES):
    return numpy.full(n_bytes, value, dtype=numpy.uint8)


@pytest.fixture
def store():
    return ArgumentStore()


def test_the_large_arrays_of_a_call_do_not_travel_and_are_as_they_were(store):
    large, small = array_of(3), array_of(4, n_bytes=5000)
    call = dump_call((large,), {"small": small}, store.place)
    large[:] = small[:] = 9
    assert sum(map(len, call)) < 8192
    (loaded,), others = loads(call)
    assert (loaded.max(), others["small"].max()) == (3, 4)
    assert loaded.flags.writeable
    assert others["small"].flags.writeable


def test_a_call_whose_only_buffer_is_shared_keeps_it(store):
    call = dump_call((array_of(3),), {}, store.place)
    gc.collect()
    assert len(store) == 1
    assert loads(call)[0][0][-1] == 3


def test_a_call_without_large_arrays_stays_as_it_was(store):
    assert dump_call((1, "two"), {}, store.place) == dump_call((1, "two"), {})
    array = array_of(1, n_bytes=5000)
    call = dump_call((array,), {}, store.place)
    array[:] = 2
    assert loads(call)[0][0][0] == 1
    assert len(store) == 0


def test_a_block_of_a_map_holds_views_of_its_small_arrays(store):
    small, large = array_of(1, n_bytes=5000), array_of(2)
    source = ArgumentSource([[small, large]])
    value, size = source.take(0, 2)
    payload = pickle_block(source, value, 0, size, store)
    small[:] = 7
    ((first, second),) = loads(payload)
    assert (first[0], second[0]) == (7, 2)


def test_an_argument_that_does_not_pickle_is_named_with_a_store_too(store):
    source = ArgumentSource([[1, (each for each in ())]])
    value, size = source.take(0, 2)
    with pytest.raises(SerializationError, match="argument 0 of task 1"):
        pickle_block(source, value, 0, size, store)


@pytest.mark.parametrize(
    "value", [bytes(BLOB_BYTES), "x" * BLOB_BYTES, ["word"] * BLOB_BYTES], ids=["bytes", "str", "list"]
)
def test_a_large_stream_does_not_travel(store, value):
    call = dump_call((value,), {}, store.place)
    source = ArgumentSource([[value]])
    taken, size = source.take(0, 1)
    block = pickle_block(source, taken, 0, size, store)
    assert max(sum(map(len, call)), sum(map(len, block))) < 4096
    assert (loads(call), loads(block), loads(block.inline())) == (((value,), {}), ([value],), ([value],))


def test_a_large_stream_and_large_arrays_of_one_call_both_stay(store):
    call = dump_call((bytes(BLOB_BYTES), array_of(3)), {}, store.place)
    assert sum(map(len, call)) < 4096
    (raw, array), _ = loads(call)
    assert (raw, array[-1]) == (bytes(BLOB_BYTES), 3)


def test_equal_arrays_are_kept_once_while_they_are_needed(store):
    payloads = [store.place(dumps(array_of(1))) for _ in range(3)]
    assert len(store) == 1
    assert [loads(each)[5] for each in payloads] == [1, 1, 1]
    payloads.clear()
    gc.collect()
    assert len(store) == 0


@pytest.mark.parametrize("at", [0, 4095, 4096, 300_000, -1])
def test_arrays_that_differ_anywhere_are_two(store, at):
    array = array_of(1)
    before = store.place(dumps(array))
    array[at] = 2
    after = store.place(dumps(array))
    assert (loads(before)[at], loads(after)[at], len(store)) == (1, 2, 2)


def test_the_length_of_a_payload_counts_what_is_shared(store):
    payload = dumps([array_of(1), array_of(2, n_bytes=5000)])
    placed = store.place(payload)
    assert BLOB_BYTES + 5000 < content_bytes(placed) < BLOB_BYTES + 8192
    assert content_bytes(payload) == sum(memoryview(part).nbytes for part in payload)


def test_beyond_so_many_arrays_they_travel(store):
    payloads = [store.place(dumps(array_of(value % 256, n_bytes=BLOB_BYTES + value))) for value in range(MAX_ARGUMENTS)]
    assert len(store) == MAX_ARGUMENTS
    (*_, travels) = store.place(dumps(array_of(5, n_bytes=BLOB_BYTES + 1000)))
    assert len(travels) == BLOB_BYTES + 1000
    payloads.clear()


def test_beyond_so_much_memory_they_travel(store):
    store._most_bytes = 2 * BLOB_BYTES
    payloads = [store.place(dumps(array_of(value))) for value in range(3)]
    assert len(store) == 2
    assert [int(loads(payload)[9]) for payload in payloads] == [0, 1, 2]


def test_a_payload_can_be_made_to_travel(store):
    payload = store.place(dumps([array_of(1), array_of(2, n_bytes=5000)]))
    inline = payload.inline()
    del payload
    gc.collect()
    assert len(store) == 0
    assert [int(each[0]) for each in loads(inline)] == [1, 2]
