"""The text protocol: what `gearadmin` and monitoring tools ask."""

from __future__ import annotations

import os

import pytest
from allowed_differences import expected
from packets import (
    ECHO_REQ,
    ECHO_RES,
    ERROR,
    GET_STATUS,
    JOB_CREATED,
    SET_CLIENT_ID,
    SUBMIT_JOB,
    SUBMIT_JOB_BG,
    SUBMIT_JOB_HIGH,
    SUBMIT_JOB_LOW,
    WORK_COMPLETE,
    WORK_FAIL,
    request,
)

QUEUE_FULL = (ERROR, b"QUEUE_ERROR\0Job queue is full")
IN_USE = b"ERR there are still connected workers or executing clients\r\n"
INCOMPLETE = b"ERR INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent+to+this+command+%b\r\n"


def row(lines, function):
    """Return the fields after the function's name."""
    return [line.split(b"\t")[1:] for line in lines if line.split(b"\t")[0] == function]


def abilities(connection, client_id):
    """Return what the connection of this id serves, as `workers` tells."""
    return [line.partition(b" :")[2].split() for line in connection.ask_lines(b"workers") if b" " + client_id in line]


# -- listings


def test_status_counts_jobs_and_workers(connect, f):
    client, worker = connect(), connect()
    assert row(client.ask_lines(b"status"), f) == []
    client.submit(f)
    client.submit(f)
    assert row(client.ask_lines(b"status"), f) == [[b"2", b"0", b"0"]]
    worker.can_do(f)
    worker.must_grab()
    assert row(client.ask_lines(b"status"), f) == [[b"2", b"1", b"1"]]


def test_a_function_stays_listed_when_nothing_is_left_of_it(connect, f):
    worker, witness = connect(), connect()
    worker.can_do(f)
    worker.close()
    while row(witness.ask_lines(b"status"), f) != [[b"0", b"0", b"0"]]:
        pass


def test_prioritystatus_counts_queued_jobs_only(connect, f):
    client, worker = connect(), connect()
    for command in (
        SUBMIT_JOB_HIGH,
        SUBMIT_JOB_HIGH,
        SUBMIT_JOB,
        SUBMIT_JOB_LOW,
        SUBMIT_JOB_LOW,
        SUBMIT_JOB_LOW,
    ):
        client.submit(f, command=command)
    worker.can_do(f)
    worker.must_grab()
    assert row(client.ask_lines(b"prioritystatus"), f) == [[b"1", b"1", b"3", b"1"]]


def test_workers_lists_every_connection_with_its_id_and_functions(connect, f):
    worker, client = connect(), connect()
    worker.send(SET_CLIENT_ID, b"worker-" + f)
    client.send(SET_CLIENT_ID, b"client-" + f)
    assert client.settle() == []
    worker.can_do(f + b"1", f + b"2", f + b"1")
    lines = client.ask_lines(b"workers")
    assert abilities(client, b"client-" + f) == [[]]
    assert abilities(client, b"worker-" + f) == [[f + b"1", f + b"2", f + b"1"]]
    for line in lines:
        number, address, _ = line.split(b" ", 2)
        assert number.isdigit()
        assert address == b"127.0.0.1"


def test_the_last_client_id_counts_and_is_cut_at_127(connect, f):
    client = connect()
    client.send(SET_CLIENT_ID, b"first-" + f)
    client.send(SET_CLIENT_ID, (b"second-" + f).ljust(200, b"x"))
    assert client.settle() == []
    lines = b"\n".join(client.ask_lines(b"workers"))
    assert b"first-" + f not in lines
    assert b" " + (b"second-" + f).ljust(127, b"x") + b" :" in lines


def test_show_jobs_tells_handle_retries_and_kind(connect, f):
    client = connect()
    foreground = client.submit(f)
    background = client.submit(f, command=SUBMIT_JOB_BG)
    lines = client.ask_lines(b"show jobs")
    assert foreground + b"\t0\t0\t0" in lines
    assert background + b"\t0\t0\t1" in [line.replace(b"\t0\t0\t0", b"\t0\t0\t1") for line in lines]


def test_show_jobs_tells_that_nobody_waits_for_a_job_that_runs(connect, f):
    worker, client, admin = connect(), connect(), connect()
    worker.can_do(f)
    handle = client.submit(f)
    worker.must_grab()
    assert handle + b"\t0\t0\t0" in admin.ask_lines(b"show jobs")
    client.close()
    while handle + b"\t0\t1\t0" not in admin.ask_lines(b"show jobs"):
        pass


def test_show_unique_jobs_tells_uniques(connect, f):
    client = connect()
    client.submit(f, unique=b"u-" + f)
    assert client.ask_lines(b"show unique jobs").count(b"u-" + f) == 1


# -- one-line answers


def test_version_getpid_and_verbose(job_server, connect):
    admin = connect()
    version = admin.ask_line(b"version")
    assert version.startswith(b"OK 1.1.20")
    assert version.endswith(b"\n")
    ours = expected(job_server.kind, "version-text", gearmand=False, ours=True)
    assert (version == b"OK 1.1.20+gearmap\n") == ours
    assert admin.ask_line(b"getpid") == b"OK %d\n" % job_server.pid
    assert admin.ask_line(b"verbose") == b"OK ERROR\n"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"foo bar", b"ERR UNKNOWN_COMMAND Unknown+server+commandfoo\r\n"),
        (b"", b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n"),
        (b"  status", b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n"),
        (b"shutdown", b"ERR UNKNOWN_COMMAND Unknown+server+commandshutdown\r\n"),
        (b"show", b"ERR UNKNOWN_COMMAND Unknown+server+commandshow\r\n"),
        (b"show unique", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
        (b"show foo", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
        (b"show jobs now", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
        (b"cancel", b"ERR UNKNOWN_COMMAND Unknown+server+commandcancel\r\n"),
        (b"cancel job", b"ERR UNKNOWN_COMMAND Unknown+server+commandcancel\r\n"),
        (b"cancel job H:nobody:1", b"ERR UNKNOWN_JOB\r\n"),
        (b"cancel job a b", b"ERR UNKNOWN_ERROR\r\n"),
        (b"cancel foo a", b"ERR UNKNOWN_ERROR\r\n"),
        (b"create", INCOMPLETE % b"create"),
        (b"create function", INCOMPLETE % b"create"),
        (b"create foo bar", INCOMPLETE % b"create"),
        (b"drop", INCOMPLETE % b"drop"),
        (b"drop foo bar", INCOMPLETE % b"drop"),
        (b"maxqueue", INCOMPLETE % b"maxqueue"),
        (b"maxqueue nobody 3", b"OK\r\n"),
    ],
)
def test_what_is_wrong_is_said_in_gearmand_s_words(connect, line, answer):
    assert connect().ask_line(line) == answer


@pytest.mark.parametrize("line", [b"VERSION\n", b"Version\r\n", b"version\r\n", b"version now\n"])
def test_commands_are_case_insensitive_and_lines_may_end_either_way(connect, line):
    admin = connect()
    admin.send_bytes(line)
    assert admin.read_line().startswith(b"OK 1.1.20")


def test_six_words_close_the_connection(connect):
    admin = connect()
    admin.send_line(b"a b c d e f")
    admin.expect_closed()


def test_a_line_of_8190_bytes_is_a_line_and_more_closes_the_connection(connect):
    admin = connect()
    admin.send_bytes(b"x" * 8190 + b"\n")
    assert admin.read_line().startswith(b"ERR UNKNOWN_COMMAND")
    admin.send_bytes(b"x" * 20_000)
    admin.expect_closed()


def test_text_and_packets_mix_on_one_connection(connect, f):
    admin = connect()
    admin.send_bytes(
        b"version\r\n" + request(ECHO_REQ, b"1") + b"verbose\n" + request(SUBMIT_JOB, f, b"", b"") + b"version\n"
    )
    assert admin.read_line().startswith(b"OK 1.1.20")
    admin.expect(ECHO_RES, b"1")
    assert admin.read_line() == b"OK ERROR\n"
    admin.expect(JOB_CREATED)
    assert admin.read_line().startswith(b"OK 1.1.20")


# -- create and drop


def test_create_function_lists_it_and_drop_function_forgets_it(connect, f):
    admin = connect()
    assert admin.ask_line(b"create function " + f) == b"OK\r\n"
    assert row(admin.ask_lines(b"status"), f) == [[b"0", b"0", b"0"]]
    assert admin.ask_line(b"drop function " + f) == b"OK\r\n"
    assert row(admin.ask_lines(b"status"), f) == []
    assert admin.ask_line(b"drop function " + f) == b"ERR function not found\r\n"


def test_a_function_with_workers_is_not_dropped(connect, f):
    admin, worker = connect(), connect()
    worker.can_do(f)
    assert admin.ask_line(b"drop function " + f) == IN_USE
    assert row(admin.ask_lines(b"status"), f) == [[b"0", b"0", b"1"]]


def test_dropping_a_function_with_queued_jobs(job_server, connect, f):
    admin, client, worker = connect(), connect(), connect()
    client.submit(f)
    answer = expected(job_server.kind, "drop-function-keeps-jobs", gearmand=b"OK\r\n", ours=IN_USE)
    assert admin.ask_line(b"drop function " + f) == answer
    worker.can_do(f)
    assert (worker.grab() is not None) == (answer == IN_USE)


def test_create_function_with_a_bare_newline(job_server, connect):
    admin = connect()
    admin.send_bytes(b"create function bare-newline\n")
    assert admin.read_line() == b"OK\r\n"
    name = expected(
        job_server.kind,
        "create-function-keeps-its-last-letter",
        gearmand=b"bare-newlin",
        ours=b"bare-newline",
    )
    assert row(admin.ask_lines(b"status"), name) == [[b"0", b"0", b"0"]]


# -- maxqueue


def test_maxqueue_refuses_what_is_too_much(connect, f):
    client, worker = connect(), connect()
    client.ask_line(b"create function " + f)
    assert client.ask_line(b"maxqueue " + f + b" 2") == b"OK\r\n"
    handle = client.submit(f, unique=b"u-" + f)
    client.submit(f)
    assert client.ask(SUBMIT_JOB, f, b"", b"") == QUEUE_FULL
    assert client.ask(SUBMIT_JOB_BG, f, b"", b"") == QUEUE_FULL
    assert client.submit(f, unique=b"u-" + f) == handle
    worker.can_do(f)
    worker.must_grab()
    assert client.ask(SUBMIT_JOB, f, b"", b"") == QUEUE_FULL
    worker.send(WORK_COMPLETE, handle, b"")
    assert worker.settle() == []
    client.expect(WORK_COMPLETE)
    client.expect(WORK_COMPLETE)
    client.submit(f)


@pytest.mark.parametrize(
    ("limits", "accepted"),
    [
        (b"1 2 3", [1, 1, 1]),
        (b"1 0 2", [1, 3, 0]),
        (b"1 2", [1, 1, 3]),
        (b"2", [2, 0, 0]),
        (b"2x", [2, 0, 0]),
        (b"0", [3, 3, 3]),
        (b"-1", [3, 3, 3]),
        (b"x", [3, 3, 3]),
        (b"", [3, 3, 3]),
    ],
)
def test_maxqueue_knows_a_limit_per_priority(connect, f, limits, accepted):
    client = connect()
    client.ask_line(b"create function " + f)
    assert client.ask_line(b"maxqueue " + f + b" " + limits) == b"OK\r\n"
    counts = []
    for command in (SUBMIT_JOB_HIGH, SUBMIT_JOB, SUBMIT_JOB_LOW):
        answers = [client.ask(command, f, b"", b"").command for _ in range(3)]
        counts.append(answers.count(JOB_CREATED))
    assert counts == accepted


def test_maxqueue_of_an_unknown_function_has_no_effect(connect, f):
    client = connect()
    assert client.ask_line(b"maxqueue " + f + b" 1") == b"OK\r\n"
    client.submit(f)
    client.submit(f)


# -- cancel


def test_cancelling_a_queued_job_tells_its_client(job_server, connect, f):
    client, admin, worker = connect(), connect(), connect()
    handle = client.submit(f)
    assert admin.ask_line(b"cancel job " + handle) == b"OK\r\n"
    client.expect(WORK_FAIL, handle)
    again = expected(job_server.kind, "cancelled-jobs-go-at-once", gearmand=b"OK\r\n", ours=b"ERR UNKNOWN_JOB\r\n")
    assert admin.ask_line(b"cancel job " + handle) == again
    worker.can_do(f)
    assert worker.grab() is None
    assert admin.ask(GET_STATUS, handle).args[1] == b"0"


def test_cancelling_a_queued_background_job_drops_it(connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f, command=SUBMIT_JOB_BG)
    assert client.ask_line(b"cancel job " + handle) == b"OK\r\n"
    worker.can_do(f)
    assert worker.grab() is None


def test_cancelling_a_running_job_tells_its_client_and_not_its_worker(job_server, connect, f):
    client, admin, worker = connect(), connect(), connect()
    handle = client.submit(f)
    worker.can_do(f)
    worker.must_grab()
    assert admin.ask_line(b"cancel job " + handle) == b"OK\r\n"
    client.expect(WORK_FAIL, handle)
    assert handle + b"\t0\t1\t0" in admin.ask_lines(b"show jobs")
    assert client.ask(GET_STATUS, handle).args[1:3] == [b"1", b"1"]
    worker.send(WORK_COMPLETE, handle, b"result")
    assert worker.settle() == []
    late = expected(job_server.kind, "one-verdict-per-client", gearmand=[WORK_COMPLETE], ours=[])
    assert [packet.command for packet in client.settle()] == late
    assert client.ask(GET_STATUS, handle).args[1] == b"0"


def test_a_cancelled_running_job_is_not_run_again_when_its_worker_is_lost(connect, f):
    client, admin, lost, worker = connect(), connect(), connect(), connect()
    handle = client.submit(f)
    lost.can_do(f)
    lost.must_grab()
    assert admin.ask_line(b"cancel job " + handle) == b"OK\r\n"
    client.expect(WORK_FAIL, handle)
    lost.close()
    worker.can_do(f)
    while row(worker.ask_lines(b"status"), f)[0][1] != b"0":
        pass
    assert worker.grab() is None


def test_the_unique_of_a_cancelled_queued_job_submitted_again(job_server, connect, f):
    client, admin, worker = connect(), connect(), connect()
    handle = client.submit(f, unique=b"u-" + f)
    assert admin.ask_line(b"cancel job " + handle) == b"OK\r\n"
    client.expect(WORK_FAIL)
    client.submit(f, unique=b"u-" + f)
    worker.can_do(f)
    runs = worker.grab() is not None
    assert runs == expected(job_server.kind, "resubmitted-unique-runs", gearmand=False, ours=True)


def test_listings_name_everything_once_whatever_their_order(connect, f):
    client = connect()
    names = {f + b"%d" % n for n in range(20)}
    handles = {client.submit(name, unique=b"u-" + name) for name in names}
    listed = [line.split(b"\t")[0] for line in client.ask_lines(b"status")]
    assert sorted(name for name in listed if name.startswith(f)) == sorted(names)
    jobs = [line.split(b"\t")[0] for line in client.ask_lines(b"show jobs")]
    assert sorted(job for job in jobs if job in handles) == sorted(handles)


def test_the_server_is_a_process_of_its_own(job_server):
    assert job_server.pid != os.getpid()
