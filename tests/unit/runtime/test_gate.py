"""Which jobs a node lets in, and what it remembers of those that it has finished."""

from __future__ import annotations

import logging

import pytest

from gearmap.keyfile import new_secret
from gearmap.runtime.finished import MOST_ANSWER_BYTES, FinishedJobs
from gearmap.runtime.gate import Gate
from gearmap.runtime.keyring import Keyring
from gearmap.runtime.work import Work
from gearmap.transport.events import AssignedJob
from gearmap.wire import envelope, seal
from gearmap.wire.jobheader import JobHeader
from gearmap.wire.outcome import Outcome

SECRET = new_secret()
FUNCTION = f"gearmap1.default.py311.{seal.key_id(SECRET)}"
SESSION = b"s" * 16


def job(unique: str = "u" * 32, *, change: bytes = b"", secret: object = SECRET) -> AssignedJob:
    sealed = envelope.seal_message(
        kind=envelope.Kind.JOB,
        key=seal.job_key(seal.session_key(secret, SESSION), unique.encode()),
        session_id=SESSION,
        expiry=2**33,
        context=envelope.make_context(FUNCTION.encode(), unique.encode()),
        header=JobHeader(run="r", function_digest="").encode(),
        body=[b"body"],
    ).to_bytes()
    return AssignedJob(("127.0.0.1", 4730), "H:1", FUNCTION, unique, sealed + change)


@pytest.fixture
def gate() -> Gate:
    return Gate(Keyring([SECRET]))


def finish(gate: Gate, work: Work, outcomes: list[bytes]) -> None:
    for outcome in outcomes:
        work.commit(outcome)
    work.take_committed()
    gate.finished(work)


def test_what_opens_is_let_in_and_what_does_not_is_counted_and_told_once(gate, caplog):
    assert isinstance(gate.admit(job()), Work)
    with caplog.at_level(logging.WARNING):
        for change in (b"\0", b"more"):
            assert gate.admit(job(change=change)) == b""
        assert gate.admit(job(secret=new_secret())) == b""
    assert (gate.refused, gate.repeated) == (3, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "refused a job that does not open: 1 bytes after the end of a job"
    ]


def test_a_finished_job_gets_all_that_was_said_of_it_in_order(gate):
    work = gate.admit(job())
    sign = work.sign(Outcome(worker="w", node="n"))
    finish(gate, work, [b"first", b"second"])
    assert gate.admit(job()) == sign + b"firstsecond"
    assert gate.repeated == 1
    assert isinstance(gate.admit(job("v" * 32)), Work)


def test_a_finished_job_whose_outcome_was_long_fails(gate):
    work = gate.admit(job())
    finish(gate, work, [b"x" * (MOST_ANSWER_BYTES + 1)])
    assert gate.admit(job()) == b""
    assert (gate.refused, gate.repeated) == (0, 1)


def test_a_job_that_was_not_finished_is_let_in_again(gate):
    assert isinstance(gate.admit(job()), Work)
    assert isinstance(gate.admit(job()), Work)


def test_what_is_remembered_is_bounded_in_number_and_bytes():
    finished = FinishedJobs(most_jobs=3, most_bytes=10)
    for number in range(5):
        finished.note(b"%d" % number, [b"x"])
    assert [b"%d" % number in finished for number in range(5)] == [False, False, True, True, True]
    finished.note(b"large", [b"y" * 9])
    assert [each in finished for each in (b"3", b"4", b"large")] == [False, True, True]
    finished.note(b"large", None)
    finished.note(b"again", [b"z" * 9])
    assert finished.answer(b"again") == b"z" * 9
    assert finished.answer(b"large") == b""
