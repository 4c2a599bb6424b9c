"""What waits to be sent: order, joining, laziness."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearmap.errors import TransportError
from gearmap.transport.outgoing import LOW_WATER_BYTES, SendQueue


class Lazy:
    def __init__(self, chunks, length=None):
        self.chunks = chunks
        self.length = sum(map(len, chunks)) if length is None else length
        self.pulled = 0

    def __len__(self):
        return self.length

    def __iter__(self):
        for chunk in self.chunks:
            self.pulled += 1
            yield chunk


def drain(queue, step):
    sent = bytearray()
    while queue:
        room = step
        for buffer in queue.gather():
            sent += buffer[:room]
            room -= min(room, len(buffer))
        if room == step:
            break
        queue.advance(step - room)
    return bytes(sent)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 100, 40_000, 1_200_000]), st.sampled_from(["bytes", "view", "lazy"]))),
    st.sampled_from([9_999, 70_000, 3_000_000]),
)
def test_everything_leaves_in_order_whatever_the_socket_takes(items, step):
    queue, expected = SendQueue(), b""
    for index, (size, kind) in enumerate(items):
        body = bytes([65 + index % 26]) * size
        head = b"head%d" % index
        expected += head + body
        lazy = Lazy([body[: size // 2], b"", body[size // 2 :]])
        queue.put(head, {"bytes": body, "view": memoryview(body), "lazy": lazy}[kind])
    assert drain(queue, step) == expected
    assert not queue


def test_many_small_commands_are_one_buffer():
    queue = SendQueue()
    for _ in range(1000):
        queue.put(b"x" * 20)
    assert [len(buffer) for buffer in queue.gather()] == [20_000]


def test_large_data_is_not_copied():
    body = bytearray(5_000_000)
    queue = SendQueue()
    queue.put(b"head", body)
    queue.put(b"tail")
    view = queue.gather()[1]
    assert isinstance(view, memoryview)
    assert view.obj is body


def test_a_lazy_body_is_asked_only_for_what_the_socket_has_room_for():
    body = Lazy([b"x" * 400_000] * 20)
    queue = SendQueue()
    assert LOW_WATER_BYTES == 1024 * 1024
    queue.put(b"head", body)
    queue.gather()
    queue.gather()
    assert body.pulled == 3  # 1.2 MB wait, which is above the mark
    queue.advance(800_000)
    queue.gather()
    assert body.pulled == 5


@pytest.mark.parametrize("length", [9, 11])
def test_a_lazy_body_of_another_length_than_it_said_is_an_error(length):
    queue = SendQueue()
    queue.put(b"head", Lazy([b"x" * 5, b"x" * 5], length))
    with pytest.raises(TransportError, match="was not as long as it said"):
        drain(queue, 100)


def test_what_a_lazy_body_raises_is_reported_as_its_failure():
    class Broken(Lazy):
        def __iter__(self):
            yield b"x"
            raise ZeroDivisionError("seal")

    queue = SendQueue()
    queue.put(b"head", Broken([], length=10))
    with pytest.raises(TransportError, match="could not be made") as caught:
        drain(queue, 100)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_memoryviews_of_wide_items_are_counted_in_bytes():
    import array

    queue = SendQueue()
    queue.put(b"", memoryview(array.array("d", [0.0] * 10)))
    assert sum(len(buffer) for buffer in queue.gather()) == 80


def test_a_few_small_commands_are_taken_as_one_and_what_was_not_sent_goes_first():
    queue = SendQueue()
    queue.put(b"one")
    queue.put(b"two", b"data")
    assert queue.take_small() == b"onetwodata"
    assert not queue
    queue.put_back(b"data")
    queue.put(b"three")
    assert queue.take_small() is None
    assert b"".join(queue.gather()) == b"datathree"


@pytest.mark.parametrize("body", [memoryview(b"x"), bytes(LOW_WATER_BYTES)], ids=["a view", "much"])
def test_what_is_not_small_is_not_taken_as_one(body):
    queue = SendQueue()
    queue.put(b"small")
    queue.put(b"head", body)
    assert queue.take_small() is None
    assert b"".join(queue.gather()) == b"smallhead" + bytes(body)


def test_what_waits_is_counted_until_it_is_sent():
    queue = SendQueue()
    assert queue.n_bytes == 0
    queue.put(b"head", Lazy([bytes(LOW_WATER_BYTES)] * 3))
    queue.put(b"small", b"body")
    queue.put(b"large", bytes(10**5))
    total = 4 + 3 * LOW_WATER_BYTES + 9 + 5 + 10**5
    assert queue.n_bytes == total
    queue.advance(len(queue.gather()[0]))
    assert queue.n_bytes == total - 4
    while queue:
        queue.advance(sum(map(len, queue.gather())))
    assert queue.n_bytes == 0
