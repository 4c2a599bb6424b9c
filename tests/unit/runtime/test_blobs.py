"""Large buffers that are shared instead of sent: what loads is what was there, and nothing is kept for longer."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from gearmap.errors import SerializationError
from gearmap.runtime.blobs import BLOB_BYTES, MAX_BLOBS, BlobStore, can_share, open_blob
from gearmap.wire.serializer import FunctionCache, dumps, loads

numpy = pytest.importorskip("numpy")

pytestmark = pytest.mark.skipif(not can_share(), reason="processes cannot open each other's memory here")


def array_of(value, *, n_bytes=BLOB_BYTES):
    return numpy.full(n_bytes, value, dtype=numpy.uint8)


def address_of(store):
    (blob,) = store._blobs.values()
    return blob.address


@pytest.fixture
def store():
    return BlobStore()


def test_a_large_array_does_not_travel(store):
    array = array_of(3)
    payload = store.place(dumps({"array": array, "other": 5}))
    assert sum(map(len, payload)) < 2048
    loaded = loads(payload)
    assert loaded["other"] == 5
    assert numpy.array_equal(loaded["array"], array)


def test_small_and_large_arrays_of_one_value_keep_their_places(store):
    arrays = [array_of(1, n_bytes=5000), array_of(2), array_of(3, n_bytes=10), array_of(4), array_of(5, n_bytes=6000)]
    loaded = loads(store.place(dumps(arrays)))
    assert all(map(numpy.array_equal, loaded, arrays))
    assert [one.flags.writeable for one in loaded] == [True] * 5


def test_a_payload_without_large_arrays_is_copied_and_stays_as_it_was(store):
    array = array_of(1, n_bytes=5000)
    payload = store.place(dumps(array))
    array[:] = 2
    assert loads(payload)[0] == 1
    assert len(store) == 0


def test_what_is_shared_is_what_the_arrays_held_then(store):
    array = array_of(1)
    before = store.place(dumps(array))
    array[-1] = 2
    after = store.place(dumps(array))
    assert (loads(before)[-1], loads(after)[-1]) == (1, 2)


def test_equal_arrays_are_kept_once_and_give_equal_payloads(store):
    first, second = store.place(dumps(array_of(1))), store.place(dumps(array_of(1)))
    assert len(store) == 1
    assert first == second


def test_writing_changes_only_what_the_writer_has_loaded(store):
    payload = store.place(dumps(array_of(1)))
    one, other = loads(payload), loads(payload)
    one[0] = 9
    assert (other[0], loads(payload)[0]) == (1, 1)


def test_a_read_only_array_stays_read_only(store):
    array = array_of(1)
    array.flags.writeable = False
    assert not loads(store.place(dumps(array))).flags.writeable


def test_nobody_can_change_what_is_shared(store):
    payload = store.place(dumps(array_of(1)))
    pid, descriptor, *_ = address_of(store)
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    with pytest.raises(PermissionError):
        os.truncate(f"/proc/{pid}/fd/{descriptor}", 0)
    assert loads(payload)[0] == 1


def test_the_memory_goes_with_the_payload_and_stays_for_who_has_mapped_it(store):
    payload = store.place(dumps(array_of(7)))
    address = address_of(store)
    loaded = loads(payload)
    del payload
    gc.collect()
    assert len(store) == 0
    with pytest.raises(SerializationError, match="array"):
        open_blob(*address)
    assert int(loaded.min()) == int(loaded.max()) == 7


def test_another_file_under_the_number_of_one_that_has_gone_is_not_taken_for_it(store, tmp_path):
    path = tmp_path / "other"
    path.write_bytes(bytes(BLOB_BYTES))
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        for device, inode in ((status.st_dev, status.st_ino), (status.st_dev, status.st_ino + 1)):
            with pytest.raises(SerializationError, match="let go by its client"):
                open_blob(os.getpid(), file.fileno(), device, inode, BLOB_BYTES)


def test_beyond_so_many_arrays_they_travel(store):
    arrays = [array_of(value) for value in range(MAX_BLOBS + 2)]
    payload = store.place(dumps(arrays))
    assert len(store) == MAX_BLOBS
    assert len(payload) == 3
    arrays[-1][:] = 0
    assert [one[0] for one in loads(payload)] == list(range(MAX_BLOBS + 2))


def test_where_the_system_has_no_room_arrays_travel(store, monkeypatch):
    def fail(name, flags):
        raise OSError("no room")

    monkeypatch.setattr(os, "memfd_create", fail)
    array = array_of(1)
    payload = store.place(dumps(array))
    array[:] = 2
    assert loads(payload)[0] == 1


def test_a_copy_that_is_written_to_meanwhile_is_found_under_what_it_holds(store):
    array = array_of(0, n_bytes=8 * BLOB_BYTES)
    done = threading.Event()

    def scribble():
        while not done.is_set():
            array[:] = array[0] + 1

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        payload = store.place(dumps(array))
    finally:
        done.set()
        thread.join()
    held = loads(payload)
    again = store.place(dumps(held))
    assert len(store) == 1
    assert again == payload


def test_functions_with_what_they_capture_are_placed(store):
    captured = array_of(4)
    cache = FunctionCache(place=store.place)
    digest, payload = cache.payload(lambda: captured)
    captured[:] = 5
    assert sum(map(len, payload)) < 4096
    assert loads(payload)()[0] == 4
    assert cache.payload(lambda: captured)[0] != digest
