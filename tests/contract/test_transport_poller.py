"""The poller and the waker over real sockets."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from gearmap.transport.poller import Poller, Waker


class End:
    """One end of a socket pair, as a pollable that notes its calls."""

    def __init__(self, sock):
        self.sock = sock
        self.wants_write = False
        self.calls = []
        self.epoch = 0
        self.then = None

    def fileno(self):
        return self.sock.fileno()

    def on_readable(self):
        self.calls.append("read")
        self.sock.recv(100)
        if self.then is not None:
            self.then()

    def on_writable(self):
        self.calls.append("write")
        self.wants_write = False


@pytest.fixture
def poller():
    poller = Poller()
    yield poller
    poller.close()


@pytest.fixture
def ends():
    opened = []

    def pair():
        left, right = socket.socketpair()
        opened.extend((left, right))
        return End(left), right

    yield pair
    for each in opened:
        each.close()


def test_readable_and_writable_ends_are_called(poller, ends):
    end, other = ends()
    poller.add(end)
    assert poller.dispatch(0) == []
    end.wants_write = True
    poller.update(end)
    other.send(b"x")
    assert poller.poll(1.0) == [(end, True, True)]
    assert len(poller.dispatch(1.0)) == 1
    assert end.calls == ["read", "write"]
    assert poller.dispatch(0) == []


def test_a_removed_pollable_is_not_called_even_in_the_same_round(poller, ends):
    first, first_other = ends()
    second, second_other = ends()
    for end, remove in ((first, second), (second, first)):
        end.then = lambda remove=remove: poller.remove(remove)
        poller.add(end)
    first_other.send(b"x")
    second_other.send(b"x")
    poller.dispatch(1.0)
    assert len(first.calls) + len(second.calls) == 1


def test_a_socket_with_the_number_of_a_closed_one_is_watched_all_the_same(poller, ends):
    end, _ = ends()
    poller.add(end)
    number = end.fileno()
    end.sock.close()
    left, right = socket.socketpair()
    with left, right:
        assert number in (left.fileno(), right.fileno())
        end.sock, other = (left, right) if left.fileno() == number else (right, left)
        end.epoch += 1
        poller.update(end)
        other.send(b"x")
        assert len(poller.dispatch(1.0)) == 1


def test_a_pollable_that_was_closed_and_never_removed_makes_room(poller, ends):
    old, _ = ends()
    poller.add(old)
    number = old.fileno()
    keep, old.sock = old.sock, None
    keep.close()
    old.fileno = lambda: -1
    left, right = socket.socketpair()
    with left, right:
        end, other = (End(left), right) if left.fileno() == number else (End(right), left)
        poller.add(end)
        poller.remove(old)
        other.send(b"x")
        assert len(poller.dispatch(1.0)) == 1
        assert end.calls == ["read"]


def test_a_pollable_without_a_descriptor_waits_for_one(poller, ends):
    end, other = ends()
    sock, end.fileno = end.sock, lambda: -1
    poller.add(end)
    other.send(b"x")
    assert poller.dispatch(0) == []
    del end.fileno
    poller.update(end)
    assert len(poller.dispatch(1.0)) == 1
    assert sock is end.sock


def test_a_pollable_that_reports_its_changes_needs_no_update(poller, ends):
    end, _ = ends()
    reports = []
    end.watched_by = reports.append
    poller.add(end)
    end.wants_write = True
    reports[0](end)
    assert len(poller.dispatch(1.0)) == 1
    assert end.calls == ["write"]


def test_who_does_not_want_to_be_read_is_not_until_the_other_side_goes(poller, ends):
    end, other = ends()
    end.wants_read = False
    poller.add(end)
    other.send(b"x")
    assert poller.dispatch(0) == []
    end.wants_read = True
    poller.update(end)
    assert poller.dispatch(1.0) == [end]
    end.wants_read = False
    poller.update(end)
    other.close()
    assert poller.dispatch(1.0) == [end]
    assert end.calls == ["read", "read"]


def test_a_waker_ends_a_poll_from_another_thread_and_wakes_count_once(poller):
    waker = Waker()
    poller.add(waker)
    thread = threading.Thread(target=lambda: [waker.wake() for _ in range(10_000)])
    started = time.monotonic()
    thread.start()
    assert poller.dispatch(10.0) == [waker]
    thread.join()
    assert time.monotonic() - started < 5.0
    poller.dispatch(0)
    assert poller.dispatch(0) == []
    waker.wake()
    assert poller.dispatch(10.0) == [waker]
    poller.remove(waker)
    waker.close()
    waker.wake()
