"""The grab policy: one job over all servers, turns, remembered NOOPs, no storms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.errors import ProtocolError
from gearmap.transport.grabbing import GrabPolicy, Order, Phase

GRAB, SLEEP = Order.GRAB, Order.SLEEP


def policy_with(n_servers):
    """A policy whose servers are all up and all empty."""
    policy = GrabPolicy(n_servers)
    for server in range(n_servers):
        assert policy.came_up(server) == [(GRAB, server)]
        assert policy.no_job(server) == [(SLEEP, server)]
    return policy


def test_with_one_server_the_next_grab_follows_the_completion_without_sleeping():
    policy = GrabPolicy(1)
    policy.came_up(0)
    policy.assigned(0)
    assert policy.finished() == [(GRAB, 0)]


def serve_alone(policy, times):
    """Have jobs that come one by one; return what was sent after each."""
    sent = []
    for _ in range(times):
        assert policy.noop(0) == [(GRAB, 0)]
        policy.assigned(0)
        orders = policy.finished()
        if orders == [(GRAB, 0)]:
            orders += policy.no_job(0)
        assert policy.phase is Phase.IDLE
        sent.append([order for order, _ in orders])
    return sent


def test_where_jobs_come_one_by_one_no_other_is_asked_for_but_now_and_then():
    sent = serve_alone(policy_with(1), 40)
    asked = [number for number, orders in enumerate(sent) if orders == [GRAB, SLEEP]]
    assert asked == [0, 1, 2, 3, 16, 29]
    assert all(orders in ([GRAB, SLEEP], [SLEEP]) for orders in sent)


def test_a_queue_that_fills_is_noticed_soon():
    policy = policy_with(1)
    serve_alone(policy, 6)
    with_a_noop = 0
    for _ in range(100):
        if policy.phase is Phase.IDLE:
            assert policy.noop(0) == [(GRAB, 0)]  # PRE_SLEEP brought it: there is more
            with_a_noop += 1
        policy.assigned(0)
        policy.finished()
    assert with_a_noop <= 12
    policy.assigned(0)
    assert policy.finished() == [(GRAB, 0)]


def test_a_worker_that_asks_in_vain_without_a_job_in_between_has_learnt_nothing():
    policy = policy_with(1)
    for _ in range(20):
        assert policy.forget_emptiness() == [(GRAB, 0)]
        assert policy.no_job(0) == [(SLEEP, 0)]
    assert policy.noop(0) == [(GRAB, 0)]
    policy.assigned(0)
    assert policy.finished() == [(GRAB, 0)]


def test_no_job_is_followed_by_one_sleep_and_nothing_more():
    policy = GrabPolicy(1)
    policy.came_up(0)
    assert policy.no_job(0) == [(SLEEP, 0)]
    assert policy.phase is Phase.IDLE


def test_a_grab_that_was_taken_back_is_sent_again_unless_the_worker_is_paused():
    policy = GrabPolicy(1)
    policy.came_up(0)
    assert policy.withdrawn(0) == [(GRAB, 0)]
    policy.pause()
    assert policy.withdrawn(0) == []
    assert policy.phase is Phase.IDLE
    assert policy.resume() == [(GRAB, 0)]


def test_no_job_asks_the_next_server_in_turn():
    policy = GrabPolicy(2)
    policy.came_up(0)
    policy.came_up(1)
    assert policy.no_job(0) == [(SLEEP, 0), (GRAB, 1)]
    assert policy.no_job(1) == [(SLEEP, 1)]


def test_a_noop_while_a_job_is_held_is_remembered_and_served_first():
    policy = policy_with(3)
    assert policy.noop(0) == [(GRAB, 0)]
    policy.assigned(0)
    assert policy.noop(2) == []
    assert policy.noop(2) == []
    assert policy.finished() == [(GRAB, 2)]


def test_two_full_servers_are_asked_in_turn():
    policy = GrabPolicy(2)
    orders = policy.came_up(0)
    policy.came_up(1)
    asked = []
    for _ in range(10):
        [(order, server)] = orders
        assert order is GRAB
        asked.append(server)
        policy.assigned(server)
        orders = policy.finished()
    assert asked == [0, 1] * 5


def test_an_empty_server_costs_nothing_until_it_wakes_us():
    policy = policy_with(2)
    [(_, server)] = policy.noop(0)
    for _ in range(5):
        policy.assigned(server)
        assert policy.finished() == [(GRAB, 0)]


def test_a_noop_that_crosses_our_grab_is_not_answered():
    policy = policy_with(1)
    assert policy.forget_emptiness() == [(GRAB, 0)]
    assert policy.noop(0) == []
    assert policy.no_job(0) == [(SLEEP, 0)]


def test_a_sleeping_worker_asks_every_server_again():
    policy = policy_with(2)
    assert policy.forget_emptiness() == [(GRAB, 0)]
    assert policy.no_job(0) == [(SLEEP, 0), (GRAB, 1)]


def test_the_loss_of_the_asked_server_moves_on_to_the_next():
    policy = GrabPolicy(2)
    policy.came_up(0)
    policy.came_up(1)
    assert policy.went_down(0) == [(GRAB, 1)]


def test_the_loss_of_another_server_leaves_the_held_job_alone():
    policy = GrabPolicy(2)
    policy.came_up(0)
    policy.assigned(0)
    assert policy.went_down(1) == []
    assert policy.phase is Phase.HOLDING


def test_a_paused_worker_sends_nothing():
    policy = GrabPolicy(1)
    policy.came_up(0)
    policy.assigned(0)
    policy.pause()
    assert policy.finished() == []
    assert policy.noop(0) == []
    assert policy.forget_emptiness() == []
    assert policy.resume() == [(GRAB, 0)]


def test_the_answer_to_a_grab_sent_before_the_pause_does_not_make_the_worker_sleep():
    policy = GrabPolicy(1)
    policy.came_up(0)
    policy.pause()
    assert policy.no_job(0) == []
    assert policy.resume() == [(GRAB, 0)]


def test_a_job_that_nobody_asked_for_is_a_protocol_error():
    policy = policy_with(2)
    with pytest.raises(ProtocolError):
        policy.assigned(0)
    with pytest.raises(ProtocolError):
        policy.no_job(1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["up", "down", "noop", "answer", "finish", "pause", "resume", "probe"]),
            st.integers(0, 2),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whatever_happens_at_most_one_grab_or_job_is_out(steps):
    policy = GrabPolicy(3)
    up, grabbed, held = set(), set(), None
    for what, server, has_job in steps:
        orders = []
        if what == "up" and server not in up:
            up.add(server)
            orders = policy.came_up(server)
        elif what == "down" and server in up:
            up.discard(server)
            grabbed.discard(server)
            held = None if held == server else held
            orders = policy.went_down(server)
        elif what == "noop" and server in up:
            orders = policy.noop(server)
        elif what == "answer" and server in grabbed:
            grabbed.discard(server)
            if has_job:
                held = server
                policy.assigned(server)
            else:
                orders = policy.no_job(server)
        elif what == "finish" and held is not None:
            held = None
            orders = policy.finished()
        elif what == "pause":
            policy.pause()
        elif what == "resume":
            orders = policy.resume()
        elif what == "probe":
            orders = policy.forget_emptiness()
        for order, target in orders:
            assert target in up
            if order is GRAB:
                grabbed.add(target)
        assert len(grabbed) + (held is not None) <= 1
