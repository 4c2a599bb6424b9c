"""What a client sees: submitting, results, coalescing, status, priorities, leaving."""

from __future__ import annotations

import pytest
from allowed_differences import expected
from packets import (
    CAN_DO,
    ECHO_REQ,
    ECHO_RES,
    ERROR,
    GET_STATUS,
    GET_STATUS_UNIQUE,
    JOB_CREATED,
    NOOP,
    OPTION_REQ,
    OPTION_RES,
    PRE_SLEEP,
    STATUS_RES,
    STATUS_RES_UNIQUE,
    SUBMIT_JOB,
    SUBMIT_JOB_BG,
    SUBMIT_JOB_HIGH,
    SUBMIT_JOB_HIGH_BG,
    SUBMIT_JOB_LOW,
    SUBMIT_JOB_LOW_BG,
    WORK_COMPLETE,
    WORK_DATA,
    WORK_EXCEPTION,
    WORK_FAIL,
    WORK_STATUS,
    WORK_WARNING,
    request,
)


def waiting_clients(connection, unique):
    packet = connection.ask(GET_STATUS_UNIQUE, unique)
    assert packet.command == STATUS_RES_UNIQUE
    return int(packet.args[5])


# -- results


def test_a_foreground_job_brings_its_result_to_the_client(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f, b"data")
    assert handle.startswith(b"H:")
    worker.can_do(f)
    assert worker.grab() == [handle, f, b"", b"data"]
    worker.send(WORK_COMPLETE, handle, b"result")
    client.expect(WORK_COMPLETE, handle, b"result")


def test_a_background_job_runs_and_its_client_hears_nothing(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f, command=SUBMIT_JOB_BG)
    worker.can_do(f)
    assert worker.must_grab() == handle
    worker.send(WORK_DATA, handle, b"part")
    worker.send(WORK_WARNING, handle, b"careful")
    worker.send(WORK_STATUS, handle, b"1", b"2")
    worker.send(WORK_COMPLETE, handle, b"result")
    assert worker.settle() == []
    assert client.settle() == []


def test_a_background_job_outlives_the_connection_that_submitted_it(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f, command=SUBMIT_JOB_BG)
    client.close()
    worker.can_do(f)
    assert worker.must_grab() == handle


def test_data_status_and_warnings_reach_the_client_in_order(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    worker.send_bytes(
        request(WORK_DATA, handle, b"\0nul\0")
        + request(WORK_DATA, handle, b"")
        + request(WORK_STATUS, handle, b"0.5", b"99999999999")
        + request(WORK_WARNING, handle, b"careful")
        + b"".join(request(WORK_DATA, handle, b"%d" % n) for n in range(1000))
        + request(WORK_COMPLETE, handle, b"")
    )
    assert client.read() == (WORK_DATA, handle + b"\0\0nul\0")
    client.expect(WORK_DATA, handle, b"")
    client.expect(WORK_STATUS, handle, b"0.5", b"99999999999")
    client.expect(WORK_WARNING, handle, b"careful")
    for n in range(1000):
        client.expect(WORK_DATA, handle, b"%d" % n)
    client.expect(WORK_COMPLETE, handle, b"")


def test_data_with_nuls_and_empty_data_arrive_unchanged(connect, f):
    client, worker = connect(), connect()
    worker.can_do(f)
    for data in (b"", b"\0", b"a\0b\0\0c"):
        handle = client.submit(f, data)
        assert worker.grab() == [handle, f, b"", data]
        worker.send(WORK_COMPLETE, handle, data)
        assert client.read() == (WORK_COMPLETE, handle + b"\0" + data)


def test_a_worker_s_fail_is_final(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_FAIL, handle)
    client.expect(WORK_FAIL, handle)
    assert worker.grab() is None


@pytest.mark.parametrize("size", [65_535, 65_536, 300_000, 2_000_000])
def test_large_arguments_and_results_pass_unchanged(connect, f, size):
    client, worker = connect(), connect()
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    worker.can_do(f)
    handle = client.submit(f, data, unique=b"large-" + f)
    assert worker.grab() == [handle, f, b"large-" + f, data]
    worker.send(WORK_DATA, handle, data)
    worker.send(WORK_COMPLETE, handle, data[::-1])
    assert client.read() == (WORK_DATA, handle + b"\0" + data)
    assert client.read() == (WORK_COMPLETE, handle + b"\0" + data[::-1])


# -- exceptions


def test_an_exception_becomes_a_fail_for_a_client_without_the_option(job_server, connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_EXCEPTION, handle, b"boom")
    nul = expected(job_server.kind, "no-trailing-nul", gearmand=b"\0", ours=b"")
    assert client.read() == (WORK_FAIL, handle + nul)


def test_an_exception_reaches_a_client_that_asked_for_exceptions(connect, f):
    client, worker = connect(), connect()
    assert client.ask(OPTION_REQ, b"exceptions") == (OPTION_RES, b"exceptions")
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_EXCEPTION, handle, b"boom\0boom")
    assert client.read() == (WORK_EXCEPTION, handle + b"\0boom\0boom")


def test_an_exception_ends_the_job(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_EXCEPTION, handle, b"boom")
    late = worker.ask(WORK_FAIL, handle)
    assert late == (ERROR, b"JOB_NOT_FOUND\0Job given in work result not found")
    assert [packet.command for packet in client.settle()] == [WORK_FAIL]


def test_an_unknown_option_is_an_error(connect):
    answer = connect().ask(OPTION_REQ, b"telepathy")
    assert answer == (ERROR, b"UNKNOWN_OPTION\0Server does not recognize given option")


# -- echo


@pytest.mark.parametrize("data", [b"", b"hello", b"\0\0", b"x" * 100_000])
def test_an_echo_comes_back(connect, data):
    assert connect().ask(ECHO_REQ, data) == (ECHO_RES, data)


# -- status


def test_status_of_a_handle_follows_the_job(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    assert client.ask(GET_STATUS, handle) == (STATUS_RES, handle + b"\x001\x000\x000\x000")
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_STATUS, handle, b"3", b"10")
    assert worker.settle() == []
    client.expect(WORK_STATUS, handle, b"3", b"10")
    assert client.ask(GET_STATUS, handle) == (STATUS_RES, handle + b"\x001\x001\x003\x0010")
    worker.send(WORK_COMPLETE, handle, b"")
    client.expect(WORK_COMPLETE)
    assert client.ask(GET_STATUS, handle) == (STATUS_RES, handle + b"\x000\x000\x000\x000")


def test_status_of_an_unknown_handle_is_all_zeros(connect):
    answer = connect().ask(GET_STATUS, b"H:nobody:1")
    assert answer == (STATUS_RES, b"H:nobody:1\x000\x000\x000\x000")


def test_progress_is_kept_as_32_bit_numbers(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    for told, kept in (
        ((b"0.5", b"99999999999"), b"0\x001410065407"),
        ((b"many", b"-3"), b"0\x004294967293"),
        ((b" 7x", b"+8"), b"7\x008"),
    ):
        worker.send(WORK_STATUS, handle, *told)
        client.expect(WORK_STATUS, handle, *told)
        assert client.ask(GET_STATUS, handle).body == handle + b"\x001\x001\x00" + kept


def test_status_of_a_unique_tells_how_many_clients_wait(connect, f):
    first, second, worker = connect(), connect(), connect()
    unique = b"unique-" + f
    assert worker.ask(GET_STATUS_UNIQUE, unique) == (STATUS_RES_UNIQUE, unique + b"\x000\x000\x000\x000\x000")
    handle = first.submit(f, unique=unique)
    second.submit(f, unique=unique)
    assert worker.ask(GET_STATUS_UNIQUE, unique).args[1:] == [b"1", b"0", b"0", b"0", b"2"]
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_STATUS, handle, b"1", b"4")
    assert worker.ask(GET_STATUS_UNIQUE, unique).args[1:] == [b"1", b"1", b"1", b"4", b"2"]


def test_the_worker_of_a_job_sees_its_clients_leave(connect, f):
    client, worker = connect(), connect()
    unique = b"unique-" + f
    handle = client.submit(f, unique=unique)
    worker.can_do(f)
    worker.must_grab()
    assert waiting_clients(worker, unique) == 1
    client.close()
    while waiting_clients(worker, unique):
        pass
    worker.send(WORK_DATA, handle, b"unheard")
    worker.send(WORK_COMPLETE, handle, b"unheard")
    assert worker.settle() == []


def test_a_background_job_has_no_waiting_clients(connect, f):
    client = connect()
    client.submit(f, unique=b"unique-" + f, command=SUBMIT_JOB_BG)
    assert client.ask(GET_STATUS_UNIQUE, b"unique-" + f).args[1:] == [b"1", b"0", b"0", b"0", b"0"]


def test_the_empty_unique_and_the_dash_have_no_status(connect, f):
    client = connect()
    client.submit(f, unique=b"")
    client.submit(f, unique=b"-")
    for unique in (b"", b"-"):
        assert client.ask(GET_STATUS_UNIQUE, unique).args[1:] == [b"0"] * 5


@pytest.mark.parametrize("command", [GET_STATUS, GET_STATUS_UNIQUE])
def test_a_status_question_of_64_bytes(job_server, connect, command):
    client = connect()
    client.send(command, b"x" * 64)
    if expected(job_server.kind, "long-status-questions", gearmand="closed", ours="unknown") == "closed":
        client.expect_closed()
    else:
        assert client.read().args[1:3] == [b"0", b"0"]


def test_a_status_question_of_63_bytes_is_answered(connect):
    client = connect()
    for command in (GET_STATUS, GET_STATUS_UNIQUE):
        assert client.ask(command, b"x" * 63).args[:2] == [b"x" * 63, b"0"]


# -- coalescing


def test_the_same_function_and_unique_make_one_job(connect, f):
    first, second, worker = connect(), connect(), connect()
    handle = first.submit(f, b"first", unique=b"u-" + f)
    assert second.submit(f, b"second", unique=b"u-" + f) == handle
    worker.can_do(f)
    assert worker.grab() == [handle, f, b"u-" + f, b"first"]
    assert worker.grab() is None
    worker.send(WORK_DATA, handle, b"part")
    worker.send(WORK_COMPLETE, handle, b"result")
    for client in (first, second):
        client.expect(WORK_DATA, handle, b"part")
        client.expect(WORK_COMPLETE, handle, b"result")


def test_a_client_that_submits_twice_is_answered_twice(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f, unique=b"u-" + f)
    assert client.submit(f, unique=b"u-" + f) == handle
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_COMPLETE, handle, b"result")
    client.expect(WORK_COMPLETE, handle, b"result")
    client.expect(WORK_COMPLETE, handle, b"result")
    assert client.settle() == []


def test_different_functions_never_share_a_job(connect, f):
    client = connect()
    assert client.submit(f, unique=b"u-" + f) != client.submit(f + b"-other", unique=b"u-" + f)


def test_jobs_with_an_empty_unique_are_never_the_same(connect, f):
    client = connect()
    assert client.submit(f, b"equal") != client.submit(f, b"equal")


def test_the_unique_dash_makes_equal_data_one_job(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f, b"equal", unique=b"-")
    assert client.submit(f, b"equal", unique=b"-") == handle
    assert client.submit(f, b"other", unique=b"-") != handle
    assert client.submit(f + b"-other", b"equal", unique=b"-") != handle
    worker.can_do(f)
    assert worker.grab() == [handle, f, b"-", b"equal"]


def test_a_client_that_joins_a_running_job_gets_the_rest(connect, f):
    first, second, worker = connect(), connect(), connect()
    handle = first.submit(f, unique=b"u-" + f)
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_DATA, handle, b"early")
    assert worker.settle() == []
    assert second.submit(f, unique=b"u-" + f) == handle
    worker.send(WORK_DATA, handle, b"late")
    worker.send(WORK_COMPLETE, handle, b"result")
    second.expect(WORK_DATA, handle, b"late")
    second.expect(WORK_COMPLETE, handle, b"result")


def test_one_of_two_clients_may_leave(connect, f):
    first, second, worker = connect(), connect(), connect()
    handle = first.submit(f, unique=b"u-" + f)
    second.submit(f, unique=b"u-" + f)
    first.close()
    while waiting_clients(second, b"u-" + f) == 2:
        pass
    worker.can_do(f)
    assert worker.must_grab() == handle
    worker.send(WORK_COMPLETE, handle, b"result")
    second.expect(WORK_COMPLETE, handle, b"result")


def test_a_finished_unique_may_be_used_again(connect, f):
    client, worker = connect(), connect()
    worker.can_do(f)
    handles = set()
    for _ in range(2):
        handle = client.submit(f, unique=b"u-" + f)
        handles.add(handle)
        assert worker.must_grab() == handle
        worker.send(WORK_COMPLETE, handle, b"result")
        client.expect(WORK_COMPLETE, handle, b"result")
    assert len(handles) == 2


def test_the_first_submission_s_priority_wins(connect, f):
    client, worker = connect(), connect()
    low = client.submit(f, unique=b"u-" + f, command=SUBMIT_JOB_LOW)
    normal = client.submit(f)
    assert client.submit(f, unique=b"u-" + f, command=SUBMIT_JOB_HIGH) == low
    worker.can_do(f)
    assert [worker.must_grab(), worker.must_grab()] == [normal, low]


def test_a_foreground_client_that_joins_a_background_job_gets_the_result(connect, f):
    background, foreground, worker = connect(), connect(), connect()
    handle = background.submit(f, unique=b"u-" + f, command=SUBMIT_JOB_BG)
    assert foreground.submit(f, unique=b"u-" + f) == handle
    assert waiting_clients(foreground, b"u-" + f) == 1
    worker.can_do(f)
    worker.must_grab()
    worker.send(WORK_COMPLETE, handle, b"result")
    foreground.expect(WORK_COMPLETE, handle, b"result")
    assert background.settle() == []


def test_a_background_job_that_a_foreground_client_joined_and_left(job_server, connect, f):
    background, foreground, worker = connect(), connect(), connect()
    background.submit(f, unique=b"u-" + f, command=SUBMIT_JOB_BG)
    foreground.submit(f, unique=b"u-" + f)
    foreground.close()
    while waiting_clients(background, b"u-" + f):
        pass
    worker.can_do(f)
    runs = worker.grab() is not None
    assert runs == expected(job_server.kind, "background-outlives-foreground", gearmand=False, ours=True)


def test_a_background_client_does_not_keep_a_foreground_job_alive(connect, f):
    foreground, background, worker = connect(), connect(), connect()
    handle = foreground.submit(f, unique=b"u-" + f)
    assert background.submit(f, unique=b"u-" + f, command=SUBMIT_JOB_BG) == handle
    foreground.close()
    while waiting_clients(background, b"u-" + f):
        pass
    worker.can_do(f)
    assert worker.grab() is None


# -- leaving


@pytest.mark.parametrize("leave", ["close", "reset", "half-close"])
def test_queued_jobs_are_dropped_when_their_client_goes(connect, f, leave):
    client, witness, worker = connect(), connect(), connect()
    client.submit(f, unique=b"u-" + f)
    if leave == "close":
        client.close()
    elif leave == "reset":
        client.reset()
    else:
        client.socket.shutdown(1)
        client.expect_closed()
    while waiting_clients(witness, b"u-" + f):
        pass
    worker.can_do(f)
    assert worker.grab() is None


def test_a_running_job_that_lost_its_client_can_be_joined_again(connect, f):
    first, second, worker = connect(), connect(), connect()
    handle = first.submit(f, unique=b"u-" + f)
    worker.can_do(f)
    worker.must_grab()
    first.close()
    while waiting_clients(worker, b"u-" + f):
        pass
    assert second.submit(f, unique=b"u-" + f) == handle
    worker.send(WORK_COMPLETE, handle, b"result")
    second.expect(WORK_COMPLETE, handle, b"result")


def test_the_unique_of_an_abandoned_queued_job_submitted_again(job_server, connect, f):
    first, second, worker = connect(), connect(), connect()
    first.submit(f, b"old", unique=b"u-" + f)
    first.close()
    while waiting_clients(second, b"u-" + f):
        pass
    second.submit(f, b"new", unique=b"u-" + f)
    worker.can_do(f)
    job = worker.grab()
    assert (job is not None) == expected(job_server.kind, "resubmitted-unique-runs", gearmand=False, ours=True)
    if job is not None:
        assert job[3] == b"new"


def test_an_abandoned_queued_job_in_the_listings(job_server, connect, f):
    client, witness = connect(), connect()
    client.submit(f, unique=b"u-" + f)
    client.close()
    while waiting_clients(witness, b"u-" + f):
        pass
    n_jobs = expected(job_server.kind, "abandoned-jobs-go-at-once", gearmand=1, ours=0)
    assert f + b"\t%d\t0\t0" % n_jobs in witness.ask_lines(b"status")


# -- priorities and order


def test_jobs_of_a_function_come_by_priority_then_by_age(connect, f):
    client, worker = connect(), connect()
    commands = (
        SUBMIT_JOB_LOW,
        SUBMIT_JOB,
        SUBMIT_JOB_HIGH,
        SUBMIT_JOB_LOW_BG,
        SUBMIT_JOB_BG,
        SUBMIT_JOB_HIGH_BG,
        SUBMIT_JOB_HIGH,
    )
    for n, command in enumerate(commands):
        client.submit(f, b"%d" % n, command=command)
    worker.can_do(f)
    assert [worker.grab()[3] for _ in commands] == [b"2", b"5", b"6", b"1", b"4", b"0", b"3"]


def test_pipelined_submissions_are_answered_in_order(connect, f):
    client, worker = connect(), connect()
    client.send_bytes(b"".join(request(SUBMIT_JOB, f, b"", b"%d" % n) for n in range(500)))
    handles = [client.expect(JOB_CREATED).body for _ in range(500)]
    assert len(set(handles)) == 500
    worker.can_do(f)
    assert [worker.grab()[0] for _ in range(500)] == handles


def test_one_connection_may_be_client_worker_and_administrator(connect, f):
    one = connect()
    one.can_do(f)
    handle = one.submit(f, b"own")
    one.send_bytes(b"version\r\n" + request(ECHO_REQ, b"after"))
    assert one.read_line().startswith(b"OK 1.1.20")
    one.expect(ECHO_RES, b"after")
    assert one.must_grab() == handle
    one.send(WORK_COMPLETE, handle, b"own result")
    one.expect(WORK_COMPLETE, handle, b"own result")


def test_a_sleeping_submitter_is_woken_before_it_learns_the_handle(connect, f):
    one = connect()
    one.send(CAN_DO, f)
    one.send(PRE_SLEEP)
    one.send(SUBMIT_JOB, f, b"", b"")
    assert [packet.command for packet in one.settle()] == [NOOP, JOB_CREATED]


# -- limits


def test_a_unique_of_63_bytes_is_kept_whole(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f, b"data", unique=b"u" * 63)
    worker.can_do(f)
    assert worker.grab() == [handle, f, b"u" * 63, b"data"]
    worker.send(WORK_COMPLETE, handle, b"")
    client.expect(WORK_COMPLETE)


def test_a_unique_of_64_bytes(job_server, connect, f):
    answer = connect().ask(SUBMIT_JOB, f, b"u" * 64, b"data")
    assert answer.command == expected(job_server.kind, "unique-of-64", gearmand=JOB_CREATED, ours=ERROR)


def test_a_unique_of_more_than_64_bytes_is_refused(connect, f):
    for n_bytes in (65, 200):
        answer = connect().ask(SUBMIT_JOB, f, b"u" * n_bytes, b"data")
        assert answer == (ERROR, b"ARGUMENT_TOO_LARGE\0Unique value too large")


def test_function_names_may_have_8000_bytes(connect, f):
    client, worker = connect(), connect()
    name = f.ljust(8000, b"n")
    handle = client.submit(name, b"data")
    worker.can_do(name)
    assert worker.grab() == [handle, name, b"", b"data"]


def test_a_longer_function_name_closes_the_connection(connect, f):
    client = connect()
    client.send(SUBMIT_JOB, f.ljust(8200, b"n"), b"", b"data")
    client.expect_closed()


def test_an_empty_function_name_is_a_name(connect):
    client, worker = connect(), connect()
    handle = client.submit(b"", b"data")
    worker.can_do(b"")
    assert worker.grab() == [handle, b"", b"", b"data"]
