"""A worker on one and on several job servers."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from transport_support import (  # noqa: F401
    DEADLINE,
    FakeServer,
    counting_proxy,
    echo,
    fake,
    free_port,
    loop,
    other_loop,
    packet,
    request,
    start_server,
)

from gearmap.transport import worker as worker_module
from gearmap.transport.admin import AdminSession, server_status, server_workers
from gearmap.transport.events import (
    Accepted,
    JobAssigned,
    JobLost,
    ServerDown,
    ServerUp,
    StatusListing,
    UniqueStatus,
    WorkComplete,
    WorkFailed,
)
from gearmap.transport.worker import WorkerLinks

# ruff: noqa: F811


def holder(held):
    return lambda worker, job: held.append(job)


def workers_of(address, function):
    return next((row.workers for row in server_status(address) if row.function == function), 0)


def test_the_worker_is_listed_with_its_name_and_functions(start_server, loop):
    server = start_server()
    worker = loop.worker([server.address], ["größe", "g"], "node-1/0")
    loop.until_event(worker, ServerUp)
    [row] = [row for row in server_workers(server.address) if row.functions]
    assert row.client_id == "node-1/0"
    assert set(row.functions) == {"größe", "g"}


def test_an_assigned_job_has_everything_that_was_submitted(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    held = []
    worker = loop.worker([server.address], on_job=holder(held))
    session.submit([request(1, b"a\0b")])
    loop.until(lambda: held)
    [accepted] = loop.until_event(session, Accepted)
    job = held[0]
    assert (job.server, job.handle) == (server.address, accepted.handle)
    assert (job.function, job.unique, job.data) == ("f", "unique-1", b"a\0b")
    assert worker.job is job


def test_a_worker_that_holds_a_job_is_due_early_enough_for_the_sleep_that_may_follow(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    held = []
    worker = loop.worker([server.address], on_job=holder(held))
    session.submit([request(1)])
    loop.until(lambda: held)
    now = time.monotonic() + 1000.0
    worker.tick(now)
    assert worker.deadline == now + worker_module.IDLE_GRAB  # without it no tick would follow when it falls asleep
    later = now + worker_module.IDLE_GRAB
    worker.tick(later)
    assert worker.deadline == later + worker_module.IDLE_GRAB  # and it is not due for ever after
    assert worker.job is held[0]


def test_only_one_job_is_held_over_all_servers(start_server, loop):
    servers = [start_server(), start_server()]
    held = []
    loop.worker([server.address for server in servers], on_job=holder(held))
    sessions = [loop.ready_session(server.address) for server in servers]
    for session in sessions:
        session.submit([request(1), request(2)])
    loop.until(lambda: held)
    loop.for_a_while(0.1)
    assert len(held) == 1


def test_with_one_server_the_completion_and_the_next_grab_are_one_send(loop, fake):
    worker = loop.worker([fake.address], on_job=echo)
    fake.greet(loop)
    loop.until_event(worker, ServerUp)
    grab = b"\0REQ\0\0\0\x1e\0\0\0\0"
    fake.receive_until(grab)
    fake.send(packet(31, b"H:1", b"f", b"u", b"data"))
    loop.until_event(worker, JobAssigned)
    assert fake.peer.recv(65536) == b"\0REQ\0\0\0\x0d\0\0\0\x08H:1\0data" + grab


def test_busy_workers_send_no_sleeps_and_no_extra_packets(start_server, counting_proxy, loop):
    server = start_server()
    proxy = counting_proxy(server.address)
    session = loop.ready_session(server.address)
    session.submit([request(index) for index in range(200)])
    loop.until_event(session, Accepted, 200)
    loop.worker([proxy.address], on_job=echo)
    loop.until_event(session, WorkComplete, 200)
    loop.until(lambda: proxy.counts["PRE_SLEEP"] == 1)
    assert proxy.counts["GRAB"] == 201
    assert proxy.counts["ASSIGN"] == proxy.counts["COMPLETE"] == 200
    assert proxy.counts["NOOP"] == 0
    assert proxy.counts["RESET"] == 0


def test_a_noop_from_another_server_while_a_job_is_held_starts_no_storm(start_server, counting_proxy, loop):
    servers = [start_server(), start_server()]
    proxies = [counting_proxy(server.address) for server in servers]
    held = []
    worker = loop.worker([proxy.address for proxy in proxies], on_job=holder(held))
    loop.until_event(worker, ServerUp, 2)
    loop.until(lambda: sum(proxy.counts["PRE_SLEEP"] for proxy in proxies) == 2)
    first, second = (loop.ready_session(server.address) for server in servers)
    first.submit([request("first")])
    loop.until(lambda: held)
    second.submit([request(index) for index in range(5)])
    loop.until(lambda: proxies[1].counts["NOOP"] == 1)
    loop.for_a_while(0.2)
    assert proxies[1].counts["PRE_SLEEP"] == 1
    assert proxies[1].counts["GRAB"] == 1
    assert proxies[1].counts["NOOP"] == 1
    worker.complete(held[0], b"")
    loop.until(lambda: len(held) == 2)
    assert held[1].server == proxies[1].address


def test_two_full_servers_are_drained_alike(start_server, loop):
    servers = [start_server(), start_server()]
    sessions = [loop.ready_session(server.address) for server in servers]
    for session in sessions:
        session.submit([request(index) for index in range(200)])
    for session in sessions:
        loop.until_event(session, Accepted, 200)
    done = Counter()

    def work(worker, job):
        if sum(done.values()) < 200:
            done[job.server] += 1
            echo(worker, job)

    workers = [loop.worker([server.address for server in servers], on_job=work) for _ in range(2)]
    for worker in workers:
        worker.pause()
    for worker in workers:
        loop.until_event(worker, ServerUp, 2)
    for worker in workers:
        worker.resume()
    loop.until(lambda: sum(done.values()) == 200)
    assert min(done.values()) >= 0.8 * max(done.values()), done


def test_a_server_that_gets_work_later_is_served_while_the_other_is_full(start_server, loop):
    servers = [start_server(), start_server()]
    full, late = (loop.ready_session(server.address) for server in servers)
    full.submit([request(index) for index in range(500)])
    loop.until_event(full, Accepted, 500)
    loop.worker([server.address for server in servers], on_job=echo)
    loop.until_event(full, WorkComplete, 50)
    late.submit([request("late")])
    loop.until_event(late, WorkComplete)
    assert len(loop.of(full, WorkComplete)) < 490


def test_a_killed_server_loses_only_its_own_job_and_the_worker_goes_on(start_server, loop):
    servers = [start_server(), start_server()]
    sessions = [loop.ready_session(server.address) for server in servers]
    held = []
    worker = loop.worker([server.address for server in servers], on_job=holder(held))
    sessions[0].submit([request(1)])
    loop.until(lambda: held)
    servers[0].kill()
    [lost] = loop.until_event(worker, JobLost)
    assert lost.job is held[0]
    assert loop.of(worker, ServerDown)[0].server == servers[0].address
    assert worker.job is None
    assert not worker.complete(held[0], b"too late")
    sessions[1].submit([request(2)])
    loop.until(lambda: len(held) == 2)
    assert worker.complete(held[1], b"fine")
    loop.until_event(sessions[1], WorkComplete)


def test_the_loss_of_another_server_leaves_the_held_job_alone(start_server, loop):
    servers = [start_server(), start_server()]
    session = loop.ready_session(servers[0].address)
    held = []
    worker = loop.worker([server.address for server in servers], on_job=holder(held))
    loop.until_event(worker, ServerUp, 2)
    session.submit([request(1)])
    loop.until(lambda: held)
    servers[1].kill()
    loop.until_event(worker, ServerDown)
    assert not loop.of(worker, JobLost)
    assert worker.complete(held[0], b"done")
    loop.until_event(session, WorkComplete)


def test_a_server_that_comes_back_is_found_again(start_server, loop):
    server = start_server()
    worker = loop.worker([server.address], on_job=echo, jitter=lambda: 0.0)
    loop.until_event(worker, ServerUp)
    server.kill()
    loop.until_event(worker, ServerDown)
    start_server(port=server.port)
    loop.until_event(worker, ServerUp, 2)
    session = loop.ready_session(server.address)
    session.submit([request(1)])
    loop.until_event(session, WorkComplete)


def test_reconnecting_backs_off_with_jitter_and_reports_the_server_down_once(loop):
    port = free_port()
    draws = []

    def jitter():
        draws.append(None)
        return 1.0

    worker = WorkerLinks([("127.0.0.1", port)], ["f"], "w", jitter=jitter)
    loop.poller.add(worker.links[0])
    now = 1000.0
    worker.start(now)
    delays, downs = [], []
    for _ in range(10):
        while worker.links[0].fileno() != -1:
            assert loop.poller.dispatch(DEADLINE)
        assert worker.deadline <= now  # what has just happened is to be taken, and the retry to be set
        downs += [event for event in worker.take_events() if isinstance(event, ServerDown)]
        worker.tick(now)
        assert worker.deadline == worker.links[0].deadline
        delays.append(round(worker.deadline - now, 3))
        now = worker.deadline
        worker.tick(now)
    worker.close()
    assert delays[:4] == [0.2, 0.4, 0.8, 1.6]
    assert max(delays) == 30.0
    assert len(draws) == 10
    assert len(downs) == 1


def test_a_server_that_hangs_is_given_up_for_the_others(start_server, loop, monkeypatch):
    monkeypatch.setattr(worker_module, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr(worker_module, "IDLE_GRAB", 0.1)
    servers = [start_server(), start_server()]
    session = loop.ready_session(servers[1].address)
    worker = loop.worker([server.address for server in servers], on_job=echo)
    loop.until_event(worker, ServerUp, 2)
    servers[0].freeze()
    [down] = loop.until_event(worker, ServerDown)
    assert "has not answered" in str(down.reason)
    session.submit([request(1)])
    loop.until_event(session, WorkComplete)


def test_a_sleeping_worker_asks_again_after_a_while(loop, fake, monkeypatch):
    monkeypatch.setattr(worker_module, "IDLE_GRAB", 0.1)
    worker = loop.worker([fake.address], on_job=echo)
    fake.greet(loop)
    loop.until_event(worker, ServerUp)
    fake.receive_until(b"\0REQ\0\0\0\x1e\0\0\0\0")
    fake.send(packet(10))
    loop.for_a_while(0.5)
    received = fake.receive_until(b"\0REQ\0\0\0\x04\0\0\0\0\0REQ\0\0\0\x1e\0\0\0\0")
    assert received.count(b"\x1e") == 1  # unanswered, so not repeated


def test_an_idle_worker_of_a_local_cluster_s_embedded_server_is_handed_its_jobs(start_server, counting_proxy, loop):
    server = start_server(workers_wake_one=True)
    proxy = counting_proxy(server.address)
    session = loop.ready_session(server.address)
    loop.until_event(loop.worker([proxy.address], on_job=echo), ServerUp)
    for number in range(1, 4):
        loop.for_a_while(0.05)
        session.submit([request(number)])
        loop.until_event(session, WorkComplete, number)
    if server.process.kind == "embedded":
        assert (proxy.counts["NOOP"], proxy.counts["NO_JOB"], proxy.counts["PRE_SLEEP"]) == (0, 0, 0)
    else:
        assert proxy.counts["NOOP"] == 3


def test_a_worker_that_was_suspended_while_it_slept_holds_no_job_up(start_server, loop, other_loop):
    server = start_server()
    suspended = other_loop
    suspended.until_event(suspended.worker([server.address]), ServerUp)
    suspended.for_a_while(0.05)
    session = loop.ready_session(server.address)
    loop.until_event(loop.worker([server.address], on_job=echo), ServerUp)
    loop.for_a_while(0.05)
    session.submit([request(number) for number in range(3)])
    loop.until_event(session, WorkComplete, 3)


def test_no_server_makes_a_worker_of_several_wait(start_server, counting_proxy, loop):
    proxies = [counting_proxy(start_server(workers_wake_one=True).address) for _ in range(2)]
    session = loop.ready_session(proxies[1].target)
    worker = loop.worker([proxy.address for proxy in proxies], on_job=echo)
    loop.until(lambda: all(proxy.counts["PRE_SLEEP"] for proxy in proxies))
    session.submit([request(1)])
    loop.until_event(session, WorkComplete)
    assert proxies[1].counts["NOOP"] == 1
    assert not any(link.grabs_wait for link in worker.links)


def test_a_grab_that_waits_is_renewed_now_and_then(start_server, counting_proxy, loop, monkeypatch):
    monkeypatch.setattr(worker_module, "IDLE_GRAB", 0.05)
    server = start_server(workers_wake_one=True)
    proxy = counting_proxy(server.address)
    session = loop.ready_session(server.address)
    loop.until_event(loop.worker([proxy.address], on_job=echo), ServerUp)
    loop.until(lambda: proxy.counts["GRAB"] > 3)
    session.submit([request(1)])
    loop.until_event(session, WorkComplete)


def test_a_worker_that_is_paused_while_its_grab_waits_takes_no_job_either(start_server, loop):
    server = start_server(workers_wake_one=True)
    session = loop.ready_session(server.address)
    worker = loop.worker([server.address], on_job=echo)
    loop.until_event(worker, ServerUp)
    loop.for_a_while(0.05)
    worker.pause()
    loop.for_a_while(0.05)
    session.submit([request(1)])
    loop.for_a_while(0.1)
    assert loop.of(worker, JobAssigned) == []
    worker.resume()
    loop.until_event(session, WorkComplete)


def test_a_paused_worker_takes_no_job_and_goes_on_when_resumed(start_server, counting_proxy, loop):
    server = start_server()
    proxy = counting_proxy(server.address)
    session = loop.ready_session(server.address)
    held = []
    worker = loop.worker([proxy.address], on_job=holder(held))
    session.submit([request(1), request(2)])
    loop.until(lambda: held)
    worker.pause()
    worker.complete(held[0], b"")
    loop.until_event(session, WorkComplete)
    loop.for_a_while(0.1)
    assert len(held) == 1
    assert proxy.counts["GRAB"] == 1
    worker.resume()
    loop.until(lambda: len(held) == 2)


def test_a_function_is_added_beside_a_held_job_without_requeueing_it(start_server, counting_proxy, loop):
    server = start_server()
    proxy = counting_proxy(server.address)
    session = loop.ready_session(server.address)
    held = []
    worker = loop.worker([proxy.address], on_job=holder(held))
    session.submit([request(1), request(2, function="g")])
    loop.until(lambda: held)
    worker.add_function("g")
    loop.until(lambda: workers_of(server.address, "g") == 1)
    worker.complete(held[0], b"")
    loop.until(lambda: len(held) == 2)
    assert held[1].function == "g"
    assert proxy.counts["RESET"] == 0
    loop.until_event(session, WorkComplete)


def test_a_function_added_to_a_sleeping_worker_finds_waiting_jobs(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    worker = loop.worker([server.address], on_job=echo)
    session.submit([request(1, function="g")])
    loop.until_event(session, Accepted)
    loop.until_event(worker, ServerUp)
    loop.for_a_while(0.05)
    worker.add_function("g")
    loop.until_event(session, WorkComplete)


def test_a_function_is_removed_only_once_the_held_job_is_done(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    held = []
    worker = loop.worker([server.address], ["f", "g"], on_job=holder(held))
    session.submit([request(1), request(2)])
    loop.until(lambda: held)
    worker.remove_function("f")
    loop.for_a_while(0.05)
    assert workers_of(server.address, "f") == 1
    worker.complete(held[0], b"")
    loop.until(lambda: workers_of(server.address, "f") == 0)
    assert workers_of(server.address, "g") == 1
    loop.until_event(session, WorkComplete)
    assert len(held) == 1


def test_an_idle_worker_stops_serving_a_function_at_once(start_server, loop):
    server = start_server()
    worker = loop.worker([server.address], ["f", "g"])
    loop.until(lambda: workers_of(server.address, "f") == 1)
    loop.for_a_while(0.05)
    worker.remove_function("f")
    loop.until(lambda: workers_of(server.address, "f") == 0)


def test_a_worker_that_leaves_is_woken_for_nothing_any_more(start_server, loop):
    server = start_server()
    leaving = loop.worker([server.address], ["f", "g"])
    loop.until(lambda: workers_of(server.address, "f") == workers_of(server.address, "g") == 1)
    loop.for_a_while(0.05)

    leaving.leave()

    loop.until(lambda: workers_of(server.address, "f") == workers_of(server.address, "g") == 0)
    session = loop.ready_session(server.address)
    session.submit([request(1)])
    loop.until_event(session, Accepted)
    loop.for_a_while(0.1)
    assert loop.of(leaving, JobAssigned) == []


def test_a_worker_that_leaves_with_a_job_serves_on_until_that_is_done(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    held = []
    worker = loop.worker([server.address], on_job=holder(held))
    session.submit([request(1), request(2)])
    loop.until(lambda: held)

    worker.leave()
    loop.for_a_while(0.05)
    assert workers_of(server.address, "f") == 1
    worker.complete(held[0], b"")

    loop.until(lambda: workers_of(server.address, "f") == 0)
    loop.until_event(session, WorkComplete)
    assert len(held) == 1


def test_functions_are_registered_in_another_order_at_every_connection(loop):
    orders = []
    for rotate in range(3):
        server = FakeServer()
        try:
            loop.worker([server.address], ["a", "b", "c"], rotate=rotate)
            server.accept()
            loop.step()
            greeting = server.receive_until(b"gearmap")
        finally:
            server.close()
        head = b"\0REQ\0\0\0\1\0\0\0\1"
        orders.append([part[:1] for part in greeting.split(head)[1:]])
    assert orders == [[b"a", b"b", b"c"], [b"b", b"c", b"a"], [b"c", b"a", b"b"]]


def test_the_worker_learns_that_nobody_waits_for_its_job(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    held = []
    worker = loop.worker([server.address], on_job=holder(held))
    session.submit([request(1)])
    loop.until(lambda: held)
    assert worker.ask_clients(held[0])
    assert loop.until_event(worker, UniqueStatus)[0] == UniqueStatus("unique-1", True, True, 0, 0, 1)
    session.close()

    def nobody_waits():
        seen = len(loop.of(worker, UniqueStatus))
        worker.ask_clients(held[0])
        return loop.until_event(worker, UniqueStatus, seen + 1)[-1].clients == 0

    loop.until(nobody_waits)


def test_a_cancelled_job_can_be_completed_and_the_worker_goes_on(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    held = []
    worker = loop.worker([server.address], on_job=holder(held))
    session.submit([request(1), request(2)])
    loop.until(lambda: held)
    with AdminSession(server.address) as admin:
        assert admin.cancel_job(held[0].handle)
    loop.until_event(session, WorkFailed)
    worker.complete(held[0], b"late")
    loop.until(lambda: len(held) == 2)


def test_a_closed_worker_gives_its_job_back(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    held = []
    worker = loop.worker([server.address], on_job=holder(held))
    session.submit([request(1)])
    loop.until(lambda: held)
    worker.close()
    loop.worker([server.address], on_job=echo)
    loop.until_event(session, WorkComplete)


def test_one_connection_may_watch_the_queue_while_workers_work(start_server, loop):
    server = start_server()
    session = loop.ready_session(server.address)
    worker = loop.worker([server.address], on_job=holder([]))
    loop.until_event(worker, ServerUp)
    session.submit([request(1)])
    loop.until_event(worker, JobAssigned)
    session.request_status()
    [listing] = loop.until_event(session, StatusListing)
    assert [(row.function, row.total, row.running, row.workers) for row in listing.rows] == [("f", 1, 1, 1)]


@pytest.mark.parametrize("answer", [packet(31, b"H:1", b"f", b"u", b"data"), packet(10), b"HTTP/1.1 400\r\n"])
def test_a_server_that_breaks_the_rules_is_left_and_tried_again(loop, fake, answer):
    worker = loop.worker([fake.address], jitter=lambda: 0.0)
    fake.greet(loop)
    loop.until_event(worker, ServerUp)
    fake.receive_until(b"\x1e\0\0\0\0")
    fake.send(packet(10) + answer)
    loop.until_event(worker, ServerDown)
    fake.peer.close()
    fake.greet(loop)
    loop.until_event(worker, ServerUp, 2)
