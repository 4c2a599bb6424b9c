"""Memory that is handed from one process to another: what was not announced, or has not come, is not used."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from gearmap.errors import EnvelopeError
from gearmap.runtime.handover import MAX_HANDED_OVER, Handover, landing_address
from gearmap.runtime.landing import MAX_KEPT, MAX_WAIT_SECONDS, Landing
from gearmap.runtime.sealedmemory import SHARED_BYTES, can_share, make_sealed
from gearmap.wire.landed import Landed, with_landed
from gearmap.wire.serializer import dumps, loads

numpy = pytest.importorskip("numpy")

pytestmark = pytest.mark.skipif(not can_share(), reason="processes cannot hand memory over here")

SESSION, OTHER = b"s" * 16, b"o" * 16


def array_of(value, n_bytes=SHARED_BYTES):
    return numpy.full(n_bytes, value, dtype=numpy.uint8)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def ship(landing, value, session=SESSION):
    """Hand a value over as a child does; return what it sends."""
    return Handover(landing.name, session).ship(dumps(value))


def send(landing, name, *descriptors_sent):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.connect(landing_address(landing.name))
        if descriptors_sent:
            socket.send_fds(line, [SESSION + name], descriptors_sent)
        else:
            line.send(SESSION + name)


@pytest.fixture
def landing():
    made = Landing()
    made.start()
    made.begin(SESSION)
    yield made
    made.close()


def test_large_buffers_do_not_travel_and_come_whole(landing):
    before = descriptors()
    value = [array_of(1), array_of(2, 5000), bytes(SHARED_BYTES), array_of(3)]
    sent = ship(landing, value)
    assert sum(memoryview(part).nbytes for part in sent) < SHARED_BYTES
    first, small, raw, last = loads(landing.take(SESSION, sent))
    assert [int(each.max()) for each in (first, small, last)] == [1, 2, 3]
    assert raw == value[2]
    first[0] = 9
    assert descriptors() == before  # arrays that are there need none


def test_small_payloads_and_children_without_a_landing_send_everything(landing):
    small, large = dumps([1, 2]), dumps(array_of(1))
    assert Handover(landing.name, SESSION).ship(small) is small
    assert Handover("", SESSION).ship(large) is large


def test_nobody_who_listens_is_no_reason_to_lose_a_result(landing):
    name = landing.name
    landing.close()
    payload = dumps(array_of(1))
    assert Handover(name, SESSION).ship(payload) is payload


def test_clients_of_other_users_get_results_as_ever(landing):
    payload = dumps(array_of(1))
    _, _, token = landing.name.partition("-")
    assert Handover(f"{os.geteuid() + 1}-{token}", SESSION).ship(payload) is payload


def test_what_a_client_has_no_room_for_is_sent(landing):
    """Nobody takes it in: the queue of the socket is full then, and the child waits for a moment only."""
    sent = []
    for _ in range(3000):
        payload = ship(landing, array_of(5))
        sent.append(payload)
        if len(payload) == 2 and memoryview(payload[1]).nbytes == SHARED_BYTES:
            break
    else:
        raise AssertionError("it was never full")
    assert all(int(loads(landing.take(SESSION, payload))[0]) == 5 for payload in sent)


def test_so_many_buffers_of_one_payload_are_handed_over_and_no_more(landing):
    drain = threading.Thread(target=lambda: [landing._receive(None) for _ in iter(lambda: len(landing) < 16, False)])
    drain.start()
    sent = ship(landing, [array_of(value) for value in range(MAX_HANDED_OVER + 2)])
    drain.join()
    assert len(landing) == MAX_HANDED_OVER
    assert [int(each[0]) for each in loads(landing.take(SESSION, sent))] == list(range(MAX_HANDED_OVER + 2))


def test_what_was_announced_and_has_not_come_is_an_error_and_no_more_is_taken(landing):
    payload = with_landed(dumps(array_of(1)), {1: Landed(b"n" * 16, SHARED_BYTES)})
    with pytest.raises(EnvelopeError):
        landing.take(SESSION, payload)
    assert landing.name == ""


def test_memory_that_can_be_changed_is_not_mapped(landing):
    descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, SHARED_BYTES)
    send(landing, b"n" * 16, descriptor)
    os.close(descriptor)
    with pytest.raises(EnvelopeError):
        landing.take(SESSION, with_landed([b"", b""], {1: Landed(b"n" * 16, SHARED_BYTES)}))


def test_memory_of_another_length_is_not_mapped(landing):
    before = descriptors()
    descriptor = make_sealed(memoryview(bytes(5000)))
    send(landing, b"n" * 16, descriptor)
    os.close(descriptor)
    with pytest.raises(EnvelopeError):
        landing.take(SESSION, with_landed([b"", b""], {1: Landed(b"n" * 16, SHARED_BYTES)}))
    assert descriptors() == before


def test_what_nobody_asked_for_is_closed_at_once(landing):
    before = descriptors()
    ship(landing, array_of(1), session=OTHER)
    descriptor = make_sealed(memoryview(b"x"))
    send(landing, b"too short", descriptor)
    send(landing, b"n" * 16, descriptor, descriptor)
    send(landing, b"n" * 16)
    os.close(descriptor)
    landing.on_readable()
    assert (len(landing), descriptors()) == (0, before)


def test_one_run_does_not_get_what_was_handed_to_another(landing):
    landing.begin(OTHER)
    sent = ship(landing, array_of(1))
    landing.on_readable()
    with pytest.raises(EnvelopeError):
        landing.take(OTHER, sent)


def test_what_has_come_goes_with_its_run(landing):
    before = descriptors()
    ship(landing, [array_of(1), array_of(2)])
    landing.on_readable()
    assert descriptors() == before + 2
    landing.end(SESSION)
    assert (len(landing), descriptors()) == (0, before)


def test_a_full_landing_is_not_watched_until_there_is_room(landing):
    changes = []
    landing.watched_by(changes.append)
    sent = []
    while len(landing) < MAX_KEPT:
        sent.append(ship(landing, array_of(1)))
        landing.on_readable()
    assert (landing.fileno(), len(changes)) == (-1, 1)
    landing.take(SESSION, sent[0])
    assert (landing.fileno() >= 0, len(changes)) == (True, 2)


def test_what_no_outcome_names_is_let_go_after_a_time(landing):
    ship(landing, array_of(1))
    landing.on_readable()
    landing.tidy()
    assert len(landing) == 1
    landing._kept[SESSION] = {
        name: (descriptor, came - 2 * MAX_WAIT_SECONDS) for name, (descriptor, came) in landing._kept[SESSION].items()
    }
    landing.tidy()
    assert len(landing) == 0
