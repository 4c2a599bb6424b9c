"""What a worker sees: abilities, grabbing, sleeping, losing its connection."""

from __future__ import annotations

import pytest
from allowed_differences import expected
from packets import (
    CAN_DO,
    CAN_DO_TIMEOUT,
    CANT_DO,
    ERROR,
    GRAB_JOB,
    GRAB_JOB_ALL,
    GRAB_JOB_UNIQ,
    JOB_ASSIGN,
    JOB_ASSIGN_UNIQ,
    NO_JOB,
    NOOP,
    OPTION_REQ,
    OPTION_RES,
    PRE_SLEEP,
    RESET_ABILITIES,
    SUBMIT_JOB_BG,
    SUBMIT_JOB_HIGH,
    WORK_COMPLETE,
    WORK_DATA,
    WORK_EXCEPTION,
    WORK_FAIL,
    WORK_STATUS,
    WORK_WARNING,
    request,
)

NOT_FOUND = (ERROR, b"JOB_NOT_FOUND\0Job given in work result not found")
NOT_RAISED = (ERROR, b"JOB_NOT_FOUND\0An exception was received for a job that does not exist")
DOES_NOT_EXIST = (ERROR, b"JOB_NOT_FOUND\0Job does not exist on server")


def listed(connection, function):
    """Return total, running and workers of a function."""
    for line in connection.ask_lines(b"status"):
        name, *counts = line.split(b"\t")
        if name == function:
            return [int(count) for count in counts]
    return None


def wait_until_listed(connection, function, counts):
    while listed(connection, function) != counts:
        pass


# -- grabbing


def test_grab_job_gives_no_unique(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f, b"data", unique=b"u-" + f)
    worker.can_do(f)
    assert worker.ask(GRAB_JOB) == (JOB_ASSIGN, b"\0".join([handle, f, b"data"]))


@pytest.mark.parametrize("grab", [GRAB_JOB_UNIQ, GRAB_JOB_ALL])
def test_grab_job_uniq_and_all_give_the_unique(connect, f, grab):
    client, worker = connect(), connect()
    handle = client.submit(f, b"data", unique=b"u-" + f)
    worker.can_do(f)
    assert worker.ask(grab) == (JOB_ASSIGN_UNIQ, b"\0".join([handle, f, b"u-" + f, b"data"]))


@pytest.mark.parametrize("grab", [GRAB_JOB, GRAB_JOB_UNIQ, GRAB_JOB_ALL])
def test_without_a_job_the_answer_is_no_job(connect, f, grab):
    worker = connect()
    assert worker.ask(grab) == (NO_JOB, b"")
    worker.can_do(f)
    assert worker.ask(grab) == (NO_JOB, b"")


def test_many_jobs_may_be_held_and_finished_in_any_order(connect, f):
    client, worker = connect(), connect()
    handles = [client.submit(f, b"%d" % n) for n in range(5)]
    worker.can_do(f)
    worker.send_bytes(request(GRAB_JOB_UNIQ) * 7)
    commands = [packet.command for packet in worker.settle()]
    assert commands == [JOB_ASSIGN_UNIQ] * 5 + [NO_JOB] * 2
    assert listed(client, f) == [5, 5, 1]
    for handle in reversed(handles):
        worker.send(WORK_COMPLETE, handle, b"")
        client.expect(WORK_COMPLETE, handle, b"")
    assert listed(client, f) == [0, 0, 1]


def test_functions_of_a_worker_take_turns_and_priority_counts_inside_one(connect, f):
    client, worker = connect(), connect()
    names = [f + suffix for suffix in (b"A", b"B", b"C")]
    worker.can_do(*names)
    for name in names:
        for n in range(3):
            client.submit(name, name[-1:] + b"%d" % n)
    client.submit(names[0], b"A-high", command=SUBMIT_JOB_HIGH)
    order = [worker.grab()[3] for _ in range(10)]
    assert order == [b"C0", b"B0", b"A-high", b"C1", b"B1", b"A0", b"C2", b"B2", b"A1", b"A2"]


# -- abilities


def test_can_do_timeout_registers_the_function(connect, f):
    client, worker = connect(), connect()
    worker.send(CAN_DO_TIMEOUT, f, b"60")
    handle = client.submit(f)
    assert worker.must_grab() == handle


def test_cant_do_takes_a_function_away(connect, f):
    client, worker = connect(), connect()
    worker.can_do(f)
    worker.send(CANT_DO, f)
    client.submit(f)
    assert worker.grab() is None
    assert listed(client, f) == [1, 0, 0]


def test_reset_abilities_takes_all_functions_away(connect, f):
    client, worker = connect(), connect()
    worker.can_do(f, f + b"-other")
    worker.send(RESET_ABILITIES)
    client.submit(f)
    client.submit(f + b"-other")
    assert worker.grab() is None


def test_cant_do_of_an_unknown_function_is_ignored(connect, f):
    worker = connect()
    worker.send(CANT_DO, f)
    assert worker.settle() == []


def test_a_function_registered_twice_is_counted_twice(connect, f):
    worker = connect()
    worker.can_do(f, f)
    assert listed(worker, f) == [0, 0, 2]
    worker.send(CANT_DO, f)
    assert worker.settle() == []
    assert listed(worker, f) == [0, 0, 0]


@pytest.mark.parametrize("give_back", ["cant-do", "reset"])
def test_giving_up_a_function_requeues_its_running_job(connect, f, give_back):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    if give_back == "cant-do":
        worker.send(CANT_DO, f)
    else:
        worker.send(RESET_ABILITIES)
    assert worker.ask(WORK_COMPLETE, handle, b"late") == NOT_FOUND
    assert handle + b"\t1\t0\t0" in client.ask_lines(b"show jobs")
    worker.can_do(f)
    assert worker.must_grab() == handle
    worker.send(WORK_COMPLETE, handle, b"result")
    client.expect(WORK_COMPLETE, handle, b"result")


def test_cant_do_leaves_running_jobs_of_other_functions_alone(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f, f + b"-other")
    worker.must_grab()
    worker.send(CANT_DO, f + b"-other")
    worker.send(WORK_COMPLETE, handle, b"result")
    client.expect(WORK_COMPLETE, handle, b"result")


# -- sleeping


def test_a_sleeping_worker_gets_one_noop(connect, f):
    client, worker = connect(), connect()
    worker.can_do(f)
    worker.send(PRE_SLEEP)
    assert worker.settle() == []
    client.submit(f)
    client.submit(f)
    worker.expect(NOOP)
    assert worker.settle() == []


def test_pre_sleep_is_answered_at_once_if_a_job_waits(connect, f):
    client, worker = connect(), connect()
    client.submit(f)
    worker.can_do(f)
    worker.send(PRE_SLEEP)
    worker.expect(NOOP)
    worker.send(PRE_SLEEP)
    worker.expect(NOOP)
    assert worker.settle() == []


def test_an_awake_worker_gets_no_noop(connect, f):
    client, worker = connect(), connect()
    worker.can_do(f)
    client.submit(f)
    assert worker.settle() == []


def test_a_grab_waits_for_the_next_job_where_the_server_can_and_the_worker_asks_for_it(own_job_server, connections, f):
    server = own_job_server(workers_wake_one=True)
    client, worker = connections(server), connections(server)
    worker.can_do(f)
    answer = worker.ask(OPTION_REQ, b"waiting_grabs")
    wanted = (OPTION_RES, b"waiting_grabs")
    unknown = (ERROR, b"UNKNOWN_OPTION\0Server does not recognize given option")
    assert answer == expected(server.kind, "waiting-grabs", gearmand=unknown, ours=wanted)
    worker.send(GRAB_JOB_UNIQ)
    if answer == unknown:
        worker.expect(NO_JOB)
        return
    assert worker.settle() == []
    handle = client.submit(f, b"data", unique=b"u-" + f)
    worker.expect(JOB_ASSIGN_UNIQ, handle, f, b"u-" + f, b"data")
    worker.send(WORK_COMPLETE, handle, b"")
    worker.send(GRAB_JOB_UNIQ)
    assert worker.settle() == []
    assert worker.ask(PRE_SLEEP).command == NO_JOB


def test_grabbing_ends_the_sleep(connect, f):
    client, worker = connect(), connect()
    worker.can_do(f)
    worker.send(PRE_SLEEP)
    assert worker.ask(GRAB_JOB_UNIQ).command == NO_JOB
    client.submit(f)
    assert worker.settle() == []


def test_all_sleeping_workers_of_the_function_are_woken(connect, f):
    client, first, second, other = connect(), connect(), connect(), connect()
    first.can_do(f)
    second.can_do(f)
    other.can_do(f + b"-other")
    for worker in (first, second, other):
        worker.send(PRE_SLEEP)
        assert worker.settle() == []
    client.submit(f)
    first.expect(NOOP)
    second.expect(NOOP)
    assert other.settle() == []


def test_a_worker_may_sleep_while_it_holds_a_job(connect, f):
    client, worker = connect(), connect()
    client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    worker.send(PRE_SLEEP)
    assert worker.settle() == []
    client.submit(f)
    worker.expect(NOOP)


def test_a_function_registered_while_asleep_is_heard(connect, f):
    client, worker = connect(), connect()
    worker.send(PRE_SLEEP)
    worker.can_do(f)
    client.submit(f)
    worker.expect(NOOP)


def test_a_lost_worker_s_job_wakes_a_sleeper(connect, f):
    client, lost, sleeper = connect(), connect(), connect()
    handle = client.submit(f)
    lost.can_do(f)
    lost.must_grab()
    sleeper.can_do(f)
    sleeper.send(PRE_SLEEP)
    assert sleeper.settle() == []
    lost.close()
    sleeper.expect(NOOP)
    assert sleeper.must_grab() == handle


# -- ownership


@pytest.mark.parametrize(
    ("command", "args", "answer"),
    [
        (WORK_COMPLETE, (b"stolen",), NOT_FOUND),
        (WORK_FAIL, (), NOT_FOUND),
        (WORK_EXCEPTION, (b"stolen",), NOT_RAISED),
        (WORK_STATUS, (b"1", b"2"), NOT_FOUND),
        (WORK_DATA, (b"stolen",), DOES_NOT_EXIST),
        (WORK_WARNING, (b"stolen",), DOES_NOT_EXIST),
    ],
)
def test_only_the_worker_of_a_job_may_report_on_it(connect, f, command, args, answer):
    client, worker, thief = connect(), connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    thief.can_do(f)
    worker.must_grab()
    assert thief.ask(command, handle, *args) == answer
    assert thief.ask(command, b"H:nobody:1", *args) == answer
    worker.send(WORK_COMPLETE, handle, b"result")
    client.expect(WORK_COMPLETE, handle, b"result")


def test_a_job_is_finished_once(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_COMPLETE, handle, b"result")
    assert worker.ask(WORK_COMPLETE, handle, b"again") == NOT_FOUND
    assert [packet.command for packet in client.settle()] == [WORK_COMPLETE]


def test_a_queued_job_cannot_be_finished(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    assert worker.ask(WORK_COMPLETE, handle, b"result") == NOT_FOUND


def test_a_fail_with_a_trailing_nul(job_server, connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_FAIL, handle + b"\0")
    nul = expected(job_server.kind, "no-trailing-nul", gearmand=b"\0", ours=b"")
    assert client.read() == (WORK_FAIL, handle + nul)


# -- losing a worker


@pytest.mark.parametrize("command", [None, SUBMIT_JOB_BG], ids=["foreground", "background"])
@pytest.mark.parametrize("leave", ["close", "reset"])
def test_a_lost_worker_s_job_is_queued_again(connect, f, command, leave):
    client, lost, worker = connect(), connect(), connect()
    handle = client.submit(f, command=command) if command else client.submit(f)
    lost.can_do(f)
    assert lost.must_grab() == handle
    getattr(lost, leave)()
    wait_until_listed(client, f, [1, 0, 0])
    worker.can_do(f)
    assert worker.must_grab() == handle
    worker.send(WORK_COMPLETE, handle, b"result")
    assert worker.settle() == []
    assert [packet.command for packet in client.settle()] == ([] if command else [WORK_COMPLETE])


def test_requeued_jobs_go_to_the_tail_the_last_one_first(connect, f):
    client, lost, worker = connect(), connect(), connect()
    for n in range(4):
        client.submit(f, b"%d" % n)
    lost.can_do(f)
    for _ in range(3):
        lost.must_grab()
    lost.close()
    wait_until_listed(client, f, [4, 0, 0])
    worker.can_do(f)
    assert [worker.grab()[3] for _ in range(4)] == [b"3", b"2", b"1", b"0"]


def test_a_requeued_job_keeps_its_priority(connect, f):
    client, lost, worker = connect(), connect(), connect()
    high = client.submit(f, command=SUBMIT_JOB_HIGH)
    lost.can_do(f)
    assert lost.must_grab() == high
    normal = client.submit(f)
    lost.close()
    wait_until_listed(client, f, [2, 0, 0])
    worker.can_do(f)
    assert [worker.must_grab(), worker.must_grab()] == [high, normal]


def test_data_of_a_lost_worker_has_arrived_and_stays(connect, f):
    client, lost, worker = connect(), connect(), connect()
    handle = client.submit(f)
    lost.can_do(f)
    lost.must_grab()
    lost.send(WORK_DATA, handle, b"first attempt")
    lost.close()
    client.expect(WORK_DATA, handle, b"first attempt")
    wait_until_listed(client, f, [1, 0, 0])
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_COMPLETE, handle, b"second attempt")
    client.expect(WORK_COMPLETE, handle, b"second attempt")


def test_an_orphan_is_not_run_again_when_its_worker_is_lost(connect, f):
    client, lost, worker = connect(), connect(), connect()
    client.submit(f)
    lost.can_do(f)
    lost.must_grab()
    client.close()
    lost.close()
    worker.can_do(f)
    wait_until_listed(worker, f, [listed(worker, f)[0], 0, 1])
    assert worker.grab() is None
    wait_until_listed(worker, f, [0, 0, 1])


def test_the_retry_limit_counts_attempts(own_job_server, connections, f):
    server = own_job_server(job_retries=3)
    client = connections(server)
    handle = client.submit(f)
    for retries in (1, 2, 3):
        worker = connections(server)
        worker.can_do(f)
        assert worker.must_grab() == handle
        worker.close()
        if retries < 3:
            wait_until_listed(client, f, [1, 0, 0])
            assert handle + b"\t%d\t0\t0" % retries in client.ask_lines(b"show jobs")
    client.expect(WORK_FAIL)
    wait_until_listed(client, f, [0, 0, 0])


def test_a_retry_limit_of_zero_is_none(own_job_server, connections, f):
    server = own_job_server(job_retries=0)
    client = connections(server)
    handle = client.submit(f)
    for _ in range(8):
        worker = connections(server)
        worker.can_do(f)
        assert worker.must_grab() == handle
        worker.close()
        wait_until_listed(client, f, [1, 0, 0])


def test_a_job_wakes_one_sleeper_if_asked_to(own_job_server, connections, f):
    server = own_job_server(workers_wake_one=True)
    client, first, second = connections(server), connections(server), connections(server)
    for worker in (first, second):
        worker.can_do(f)
        worker.send(PRE_SLEEP)
        assert worker.settle() == []
    client.submit(f)
    woken = [packet.command for worker in (first, second) for packet in worker.settle()]
    assert woken == [NOOP]


def test_a_function_name_with_odd_characters_is_only_a_name(connect, f):
    client, worker = connect(), connect()
    name = f + b" with\ttab and \xff"
    handle = client.submit(name)
    worker.send(CAN_DO, name)
    assert worker.must_grab() == handle
