"""An attacker who reaches the job server, knows everything but the key, and speaks raw Gearman packets.

Each forgery is refused, told of in the log, and counted; the node, its children and the client go on, and an honest map
has right results meanwhile.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration_support import DEADLINE, in_background, lane_of, wait_until
from programs import KINDS, require_kind

import gearmap
from gearmap.core.names import control_name
from gearmap.jobserver.process import ServerProcess
from gearmap.keyfile import load_key, new_secret
from gearmap.runtime.controlrequest import open_answer, seal_request
from gearmap.wire import envelope, layout, seal

CAN_DO, PRE_SLEEP, SUBMIT_JOB, SUBMIT_JOB_BG, GRAB_JOB_UNIQ = 1, 4, 7, 18, 30
NO_JOB, JOB_ASSIGN_UNIQ, WORK_COMPLETE, WORK_FAIL, WORK_DATA, JOB_CREATED = 10, 31, 13, 14, 28, 8

PREFIX = layout.PREFIX_BYTES


class Attacker:
    """Raw packets; a deadline on everything."""

    def __init__(self, server: ServerProcess, lane: str) -> None:
        self.lane = lane.encode()
        self._socket = socket.create_connection((server.host, server.port), DEADLINE)
        self._buffer = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, command: int, *args: bytes) -> None:
        body = b"\0".join(args)
        self._socket.sendall(b"\0REQ" + struct.pack(">II", command, len(body)) + body)

    def read(self) -> tuple[int, bytes]:
        header = self._take(12)
        return struct.unpack_from(">I", header, 4)[0], self._take(struct.unpack_from(">I", header, 8)[0])

    def _take(self, n_bytes: int) -> bytes:
        while len(self._buffer) < n_bytes:
            data = self._socket.recv(1 << 20)
            assert data, "the server closed the connection"
            self._buffer += data
        taken, self._buffer = self._buffer[:n_bytes], self._buffer[n_bytes:]
        return taken

    def submit(self, data: bytes, *, unique: bytes | None = None, lane: bytes | None = None) -> tuple[int, bytes]:
        """Submit a job to honest workers; return the terminal packet's command and data."""
        self.send(SUBMIT_JOB, lane or self.lane, unique or new_unique(), data)
        while True:
            command, body = self.read()
            if command in (WORK_COMPLETE, WORK_FAIL):
                return command, body.partition(b"\0")[2]
            assert command in (JOB_CREATED, WORK_DATA, 12), (command, body)

    def steal(self) -> tuple[bytes, bytes, bytes]:
        """Take the next honest job from the queue: handle, unique, sealed data."""
        self.send(CAN_DO, self.lane)
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            self.send(GRAB_JOB_UNIQ)
            command, body = self.read()
            if command == JOB_ASSIGN_UNIQ:
                handle, _, unique, data = body.split(b"\0", 3)
                return handle, unique, data
            assert command == NO_JOB, command
            time.sleep(0.005)
        raise AssertionError("there was no honest job")


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, start_server: Callable[..., ServerProcess]) -> ServerProcess:
    require_kind(request.param)
    return start_server(request.param)


@pytest.fixture
def attack(server: ServerProcess, key_file: Path) -> Iterator[Callable[[], Attacker]]:
    """A function that makes an attacker."""
    made: list[Attacker] = []

    def make() -> Attacker:
        made.append(Attacker(server, lane_of(key_file)))
        return made[-1]

    yield make
    for attacker in made:
        attacker.close()


def counts(client: gearmap.Client) -> tuple[int, int]:
    """Jobs that all nodes have refused, and those that came again."""
    nodes = client.status().nodes
    assert all(node.seen is not None for node in nodes)
    return sum(node.jobs_refused for node in nodes), sum(node.jobs_repeated for node in nodes)


def new_unique() -> bytes:
    return secrets.token_hex(16).encode()


def double(number: int) -> int:
    return 2 * number


class Captured:
    """A call whose job an attacker holds, and so its bytes."""

    def __init__(self, attack: Callable[[], Attacker], call: Callable[[], Any]) -> None:
        self._thief = attack()
        self._waits = in_background(call)
        self.handle, self.unique, self.sealed = self._thief.steal()

    def answer(self, command: int, data: bytes) -> None:
        """Answer in a worker's place."""
        self._thief.send(command, self.handle, data)

    def fail(self) -> None:
        """Give up in a worker's place: the client sends the task anew, and nobody has a job of this unique."""
        self._thief.send(WORK_FAIL, self.handle)

    def release(self) -> Any:
        """Let go, so that the job server gives the job to an honest worker; return the call's result."""
        self._thief.close()
        return self._waits()


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x40
    return bytes(changed)


def forgeries(sealed: bytes, other: bytes) -> dict[str, bytes]:
    """What may be made of two sealed jobs without the key."""
    prefix = envelope.parse_prefix(sealed)
    body_at = PREFIX + prefix.header_bytes
    announced = layout.PREFIX.pack(
        layout.MAGIC, layout.WIRE_VERSION, 1, prefix.session_id, bytes(16), 0, prefix.expiry, 2**32 - 1, 2**62
    )
    return {
        "nothing": b"",
        "no envelope": b"cos\nsystem\n(S'false'\ntR.",
        "random": os.urandom(len(sealed)),
        "another magic": b"PK" + sealed[2:],
        "another version": sealed[:2] + b"\x07" + sealed[3:],
        "an outcome": sealed[:3] + b"\x02" + sealed[4:],
        "a session of nobody": sealed[:4] + bytes(16) + sealed[20:],
        "another expiry": flipped(sealed, 47),
        "the prefix alone": sealed[:PREFIX],
        "half of it": sealed[: len(sealed) // 2],
        "all but a byte": sealed[:-1],
        "a byte more": sealed + b"\0",
        "a message more": sealed + other,
        "a header that was changed": flipped(sealed, PREFIX + 3),
        "a tag that was changed": flipped(sealed, body_at - 1),
        "a body that was changed": flipped(sealed, body_at + 1),
        "the last byte changed": flipped(sealed, -1),
        "the header of another": sealed[:PREFIX] + other[PREFIX:body_at] + sealed[body_at:],
        "another job": other,
        "lengths of exabytes": announced + os.urandom(200),
        "a bomb of JSON": announced[:40] + b"[" * 100_000,
    }


def test_every_forged_job_is_refused_and_an_honest_map_is_right(server, start_node, connect, attack, capfd):
    client = connect(server)
    # Nobody serves yet: the attacker gets the honest jobs as they are.
    one = Captured(attack, lambda: client.submit(double, 1).result(DEADLINE))
    two = Captured(attack, lambda: client.submit(double, 2).result(DEADLINE))
    one.fail()
    start_node(server)
    attacker = attack()
    honest = in_background(lambda: client.map(double, range(2000), chunksize=20, progress=False))
    forged = forgeries(one.sealed, two.sealed)
    for what, data in forged.items():
        assert attacker.submit(data, unique=one.unique) == (WORK_FAIL, b""), what
    assert attacker.submit(one.sealed) == (WORK_FAIL, b""), "under another unique"
    assert honest() == [2 * number for number in range(2000)]
    assert counts(client) == (len(forged) + 1, 0)
    said = capfd.readouterr().err
    assert said.count("refused a job that does not open") == 1
    assert "Traceback" not in said
    assert f"refused {len(forged) + 1:,} jobs that do not open" in str(client.status())
    assert (one.release(), two.release()) == (2, 4)


def test_a_forged_body_costs_no_child_its_process(server, start_node, connect, attack):
    client = connect(server)
    payload = os.urandom(3_000_000)  # several pieces, and more than the pipe holds at once
    stolen = Captured(attack, lambda: client.submit(len, payload).result(DEADLINE))
    stolen.fail()
    node = start_node(server, workers=1)
    children = {client.submit(os.getpid).result(DEADLINE) for _ in range(3)}
    assert len(children) == 1
    attacker = attack()
    body_at = PREFIX + envelope.parse_prefix(stolen.sealed).header_bytes
    for at in (body_at, len(stolen.sealed) // 2, len(stolen.sealed) - 1):
        assert attacker.submit(flipped(stolen.sealed, at), unique=stolen.unique) == (WORK_FAIL, b"")
        # The child reads on from where the next job begins.
        assert client.submit(os.getpid).result(DEADLINE) in children
    assert counts(client) == (3, 0)
    assert node.process.poll() is None
    assert stolen.release() == len(payload)


def test_a_job_for_another_queue_does_not_open_there(server, start_node, connect, attack, key_file):
    client = connect(server)
    stolen = Captured(attack, lambda: client.submit(double, 1).result(DEADLINE))
    start_node(server, queue="other", name="elsewhere")
    start_node(server)
    lane = lane_of(key_file, "other").encode()
    assert attack().submit(stolen.sealed, unique=stolen.unique, lane=lane) == (WORK_FAIL, b"")
    assert counts(client) == (1, 0)
    assert stolen.release() == 2


def test_jobs_sealed_with_another_key_are_refused(server, start_node, connect, attack):
    client = connect(server)
    start_node(server)
    attacker = attack()
    unique, session_id = new_unique(), os.urandom(16)
    sealed = envelope.seal_message(
        kind=envelope.Kind.JOB,
        key=seal.job_key(seal.session_key(new_secret(), session_id), unique),
        session_id=session_id,
        expiry=int(time.time()) + 60,
        context=envelope.make_context(attacker.lane, unique),
        header=b"{}",
    ).to_bytes()
    assert attacker.submit(sealed, unique=unique) == (WORK_FAIL, b"")
    assert client.map(double, range(10)) == [2 * number for number in range(10)]
    assert counts(client) == (1, 0)


def test_a_finished_job_that_is_sent_again_gets_its_kept_outcome_and_does_not_run_again(
    server, start_node, connect, attack, tmp_path
):
    client = connect(server)
    runs = tmp_path / "runs"

    def leave_a_line() -> str:
        with open(runs, "a") as file:
            file.write("ran\n")
        return "done"

    stolen = Captured(attack, lambda: client.submit(leave_a_line).result(DEADLINE))
    start_node(server, workers=1)
    assert stolen.release() == "done"
    answers = {attack().submit(stolen.sealed, unique=stolen.unique) for _ in range(3)}
    ((command, answer),) = answers
    assert command == WORK_COMPLETE
    assert envelope.parse_prefix(answer).kind in (envelope.Kind.OUTCOME, envelope.Kind.NODE)
    assert runs.read_text() == "ran\n"
    assert counts(client) == (0, 3)


def test_a_request_to_a_node_that_is_sent_again_is_not_carried_out_again(server, start_node, connect, attack, key_file):
    client = connect(server)
    start_node(server)
    (node,) = client.status().nodes
    secret = load_key(key_file, "a test")
    session_id = os.urandom(16)
    key = seal.session_key(secret, session_id)
    lane = control_name(node.node_id, seal.key_id(secret))

    def answers(request: dict[str, Any]) -> list[bytes]:
        """Ask, and let an attacker who has heard it ask again."""
        unique = new_unique().decode()
        sealed = seal_request(
            request, session_key=key, session_id=session_id, function=lane, unique=unique, now=time.time()
        )
        told = [attack().submit(sealed, unique=unique.encode(), lane=lane.encode()) for _ in range(2)]
        assert [command for command, _ in told] == [WORK_COMPLETE] * 2
        for _, data in told:
            open_answer(data, session_key=key, function=lane, unique=unique)
        return [data for _, data in told]

    first, second = answers({"op": "stop", "execution": "00" * 16})
    assert first == second
    first, second = answers({"op": "describe"})
    assert first != second


FORGED_OUTCOMES = {
    "nothing": lambda sealed: b"",
    "no envelope": lambda sealed: b"cos\nsystem\n(S'false'\ntR.",
    "the job itself": lambda sealed: sealed,
    "the job as an outcome": lambda sealed: sealed[:3] + b"\x02" + sealed[4:],
    "the job as a node's message": lambda sealed: sealed[:3] + b"\x03" + sealed[4:],
    "random": lambda sealed: sealed[:PREFIX] + os.urandom(len(sealed) - PREFIX),
    "a prefix of exabytes": lambda sealed: layout.PREFIX.pack(
        layout.MAGIC, 1, 2, sealed[4:20], os.urandom(16), 0, 2**40, 2**32 - 1, 2**62
    ),
}


@pytest.mark.parametrize(
    ("command", "name"),
    [*((WORK_COMPLETE, name) for name in FORGED_OUTCOMES), (WORK_DATA, "the job itself"), (WORK_DATA, "random")],
)
def test_a_forged_outcome_settles_nothing_and_the_task_runs(server, start_node, connect, attack, name, command):
    client = connect(server)
    run = client.map_async(double, [21], progress=False)
    stolen = Captured(attack, lambda: run.result(DEADLINE))
    stolen.answer(command, FORGED_OUTCOMES[name](stolen.sealed))
    start_node(server)
    assert stolen.release() == [42]
    assert "an outcome could not be opened" in run.report()
    assert client.map(double, range(100), progress=False) == [2 * number for number in range(100)]


def test_the_honest_outcome_of_another_job_settles_nothing(server, start_node, connect, attack):
    client = connect(server)
    one = Captured(attack, lambda: client.submit(double, 1).result(DEADLINE))
    two = Captured(attack, lambda: client.submit(double, 2).result(DEADLINE))
    start_node(server)
    assert one.release() == 2
    command, answer = attack().submit(one.sealed, unique=one.unique)
    assert command == WORK_COMPLETE
    two.answer(WORK_COMPLETE, answer)
    assert two.release() == 4


def test_a_flood_of_forgeries_fills_no_log_and_stops_nobody(server, start_node, connect, attack, capfd):
    client = connect(server)
    start_node(server)
    stop = threading.Event()
    sent = [0]

    def flood() -> None:
        attacker = attack()
        while not stop.is_set():
            assert attacker.submit(os.urandom(500)) == (WORK_FAIL, b"")
            sent[0] += 1

    flooding = in_background(flood)
    try:
        for _ in range(5):
            assert client.map(double, range(500), progress=False) == [2 * number for number in range(500)]
        wait_until(lambda: sent[0] >= 200, "the flood is one")
    finally:
        stop.set()
        flooding()
    assert counts(client)[0] == sent[0]
    said = capfd.readouterr().err
    assert 1 <= said.count("refused a job") <= 3
