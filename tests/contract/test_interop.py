"""Programs of libgearman against both servers: `gearman` as client and as worker, and `gearadmin`."""

from __future__ import annotations

import subprocess

import pytest
from allowed_differences import expected
from packets import SUBMIT_JOB_BG, SUBMIT_JOB_HIGH, SUBMIT_JOB_LOW, WORK_COMPLETE, WORK_DATA, WORK_FAIL
from programs import ends_with_us, require_tool

DEADLINE = 30


@pytest.fixture
def gearman(job_server):
    """A function that runs `gearman` against the server and returns what it prints."""
    program = require_tool("gearman")

    def run(*args, data=b""):
        command = [program, "-h", job_server.host, "-p", str(job_server.port), *args]
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, timeout=DEADLINE, check=True).stdout

    return run


@pytest.fixture
def gearman_worker(job_server, connect):
    """A function that starts `gearman -w`, and returns once it is registered; ended after the test."""
    program = require_tool("gearman")
    processes = []

    def start(function, *args):
        command = [
            program,
            "-h",
            job_server.host,
            "-p",
            str(job_server.port),
            "-w",
            "-f",
            function.decode(),
            *args,
        ]
        processes.append(subprocess.Popen(ends_with_us(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        witness = connect()
        while not any(
            line.split(b"\t")[0] == function and line.split(b"\t")[3] == b"1" for line in witness.ask_lines(b"status")
        ):
            if processes[-1].poll() is not None:
                assert processes[-1].returncode == 0  # one that takes a single job may be done already
                break
        return processes[-1]

    yield start
    for process in processes:
        process.terminate()
        process.wait(DEADLINE)


@pytest.fixture
def gearadmin(job_server):
    """A function that runs `gearadmin` against the server and returns the lines that it prints."""
    program = require_tool("gearadmin")

    def run(*args):
        command = [program, "-h", job_server.host, "-p", str(job_server.port), *args]
        return subprocess.run(command, stdout=subprocess.PIPE, timeout=DEADLINE, check=True).stdout.splitlines()

    return run


# -- gearman on both sides


def test_a_foreground_job_between_two_gearman_programs(gearman, gearman_worker, f):
    gearman_worker(f, "--", "tr", "a-z", "A-Z")
    assert gearman("-f", f.decode(), data=b"shout") == b"SHOUT"


@pytest.mark.slow
def test_two_megabytes_there_and_back_between_two_gearman_programs(gearman, gearman_worker, f, tmp_path):
    # `gearman` writes all before it reads, so a plain `cat` would wait for it and it for `cat`.
    gearman_worker(f, "--", "sh", "-c", 'cat >"$1"; cat "$1"', "sh", str(tmp_path / "data"))
    data = bytes(range(256)) * (2 * 1024 * 1024 // 256)
    assert gearman("-f", f.decode(), data=data) == data


def test_one_job_per_line(gearman, gearman_worker, f):
    gearman_worker(f, "cat")
    assert gearman("-n", "-f", f.decode(), data=b"one\ntwo\nthree\n") == b"one\ntwo\nthree\n"


def test_a_unique_and_a_priority_are_no_obstacle(gearman, gearman_worker, f):
    gearman_worker(f, "cat")
    assert gearman("-u", "unique-" + f.decode(), "-I", "-f", f.decode(), data=b"high") == b"high"
    assert gearman("-u", "unique-" + f.decode(), "-L", "-f", f.decode(), data=b"low") == b"low"


def test_a_background_job_between_two_gearman_programs(gearman, gearman_worker, f, tmp_path):
    result = tmp_path / "result"
    gearman("-b", "-f", f.decode(), data=b"later")
    worker = gearman_worker(f, "-c", "1", "--", "tee", str(result))
    assert worker.wait(DEADLINE) == 0
    assert result.read_bytes() == b"later"


# -- gearman on one side


def test_the_gearman_client_gets_data_and_result_of_a_worker(job_server, connect, f):
    program = require_tool("gearman")
    worker = connect()
    worker.can_do(f)
    command = [program, "-h", job_server.host, "-p", str(job_server.port), "-f", f.decode(), "data"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        while (job := worker.grab()) is None:
            assert client.poll() is None
        handle, _, _, data = job
        assert data == b"data"
        worker.send(WORK_DATA, handle, b"part,")
        worker.send(WORK_COMPLETE, handle, b"end")
        assert client.communicate(timeout=DEADLINE)[0] == b"part,end"


def test_the_gearman_client_sees_a_failure(job_server, connect, f):
    program = require_tool("gearman")
    worker = connect()
    worker.can_do(f)
    command = [program, "-h", job_server.host, "-p", str(job_server.port), "-f", f.decode(), "data"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as client:
        while (job := worker.grab()) is None:
            assert client.poll() is None
        worker.send(WORK_FAIL, job[0])
        assert client.wait(DEADLINE) != 0


def test_the_gearman_worker_serves_a_plain_client(gearman_worker, connect, f):
    client = connect()
    gearman_worker(f, "--", "tr", "a-z", "A-Z")
    client.submit(f, b"shout")
    answer = b""
    while (packet := client.read()).command == WORK_DATA:
        answer += packet.body.partition(b"\0")[2]
    assert packet.command == WORK_COMPLETE
    assert answer + packet.body.partition(b"\0")[2] == b"SHOUT"


# -- gearadmin


def test_gearadmin_asks_for_version_and_process(job_server, gearadmin):
    (version,) = gearadmin("--server-version")
    assert b"1.1.20" in version
    (pid,) = gearadmin("--getpid")
    assert pid.split()[-1] == b"%d" % job_server.pid
    assert gearadmin("--server-verbose") != []


def test_gearadmin_lists_functions_jobs_and_workers(gearadmin, connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f, unique=b"u-" + f, command=SUBMIT_JOB_HIGH)
    client.submit(f, command=SUBMIT_JOB_BG)
    client.submit(f, command=SUBMIT_JOB_LOW)
    worker.can_do(f)
    assert f + b"\t3\t0\t1" in gearadmin("--status")
    assert f + b"\t1\t1\t1\t1" in gearadmin("--priority-status")
    assert handle in [line.split(b"\t")[0] for line in gearadmin("--show-jobs")]
    assert b"u-" + f in gearadmin("--show-unique-jobs")
    assert any(line.endswith(b" : " + f) for line in gearadmin("--workers"))


def test_gearadmin_cancels_a_job(gearadmin, connect, f):
    client, worker = connect(), connect()
    handle = client.submit(f)
    gearadmin("--cancel-job", handle.decode())
    client.expect(WORK_FAIL, handle)
    worker.can_do(f)
    assert worker.grab() is None


def test_gearadmin_creates_and_drops_a_function(job_server, gearadmin, connect, f):
    witness = connect()
    gearadmin("--create-function", f.decode())
    names = [line.split(b"\t")[0] for line in witness.ask_lines(b"status")]
    # gearadmin ends its line with a bare newline.
    name = expected(job_server.kind, "create-function-keeps-its-last-letter", gearmand=f[:-1], ours=f)
    assert (f in names) or (name in names)
    name = f if f in names else name
    gearadmin("--drop-function", name.decode())
    assert name not in [line.split(b"\t")[0] for line in witness.ask_lines(b"status")]
