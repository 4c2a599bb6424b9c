"""What only the embedded server promises: timeouts, isolation of errors, memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from packets import ECHO_REQ, ECHO_RES, SUBMIT_JOB_BG, RawConnection, request

import gearmap.jobserver
from gearmap.jobserver.process import start_job_server

ROOT = str(Path(gearmap.jobserver.__file__).parents[2])

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from gearmap.jobserver import machine, shell
from gearmap.jobserver.records import ServerOptions
from gearmap.jobserver.sockets import listen

def answer_line(table, line, **_):
    if line == b"boom":
        raise RuntimeError("a defect")
    return b"OK\\n"

machine.answer_line = answer_line
listener = listen("127.0.0.1", 0)
port = listener.getsockname()[1]
limits = shell.Limits(header_timeout=0.2, body_timeout=0.4, sweep_delay=0.05)
shell.serve(listener, ServerOptions(), limits=limits, lifeline=0, on_ready=lambda: print(json.dumps(port), flush=True))
"""


@pytest.fixture
def strict_server():
    """Port of a server with short timeouts and a defect, and its process."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, ROOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        yield json.loads(process.stdout.readline()), process
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "half",
    [
        b"\0RE",
        request(ECHO_REQ, b"hello")[:-1],
        b"stat",
        b"\0REQ" + struct.pack(">II", SUBMIT_JOB_BG, 10_000_000) + b"f\0u\0begun",
    ],
    ids=["header", "body", "line", "large body"],
)
def test_a_half_packet_is_closed_after_a_while_and_a_quiet_connection_is_not(strict_server, half):
    port, _ = strict_server
    with RawConnection("127.0.0.1", port) as quiet, RawConnection("127.0.0.1", port) as stuck:
        stuck.send_bytes(half)
        stuck.expect_closed()
        assert quiet.ask(ECHO_REQ, b"x") == (ECHO_RES, b"x")


def test_a_defect_in_a_handler_closes_only_the_connection_that_met_it(strict_server):
    port, process = strict_server
    with RawConnection("127.0.0.1", port) as unlucky, RawConnection("127.0.0.1", port) as other:
        unlucky.send_line(b"boom")
        unlucky.expect_closed()
        assert other.ask(ECHO_REQ, b"x") == (ECHO_RES, b"x")
        assert process.poll() is None


def test_a_queued_job_costs_less_than_a_kilobyte():
    with start_job_server("embedded") as server, RawConnection(server.host, server.port) as client:
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        n_jobs = 20_000
        for _ in range(10):
            client.send_bytes(request(SUBMIT_JOB_BG, b"f", b"", bytes(100)) * (n_jobs // 10))
            for _ in range(n_jobs // 10):
                client.read()
        assert (process.memory_info().rss - before) / n_jobs < 1024
