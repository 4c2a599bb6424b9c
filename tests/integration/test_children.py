"""One child at the end of its pipe, without a job server: initializers, positions, and what is said of its end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest
from integration_support import DEADLINE, wait_until

from gearmap.runtime.child import DEFECT_EXIT, ChildSettings, encode_job
from gearmap.runtime.children import Child, Committed, Ended, Ready, Report, child_context
from gearmap.transport.poller import Poller
from gearmap.wire import envelope, seal
from gearmap.wire.jobheader import BlockHeader, BlockKind, JobHeader, encode_numbers
from gearmap.wire.outcome import DecodedOutcome, NotRunReason, Outcome, decode_outcome
from gearmap.wire.pieces import Piece
from gearmap.wire.serializer import dumps, loads

CONTEXT = envelope.make_context(b"function", b"unique")
JOB_KEY, OUTCOME_KEY, EXECUTION, SESSION = b"j" * 32, b"o" * 32, b"e" * 16, b"s" * 16


pytestmark = pytest.mark.usefixtures("functions_travel")


@pytest.fixture(autouse=True, scope="module")
def _starters() -> Iterator[None]:
    """What starts children runs as long as this module, and no longer."""
    context = child_context()
    if context.get_start_method() == "forkserver":
        forkserver.ensure_running()
    kept = context.RawArray("q", 1)  # the memory that children share with us, too
    yield
    del kept
    if context.get_start_method() == "forkserver":
        forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()


@dataclass
class Person:
    """Somebody who starts a child, gives it jobs and listens."""

    child: Child
    poller: Poller

    def __post_init__(self) -> None:
        self.reports: list[Report] = []
        self.child_pid = self.child.pid  # it is asked for after the end, too

    def listen(self, kind: type[Any]) -> Any:
        """Return the next report of a kind."""
        until = time.monotonic() + DEADLINE
        while True:
            self.reports += self.child.take_reports()
            for number, report in enumerate(self.reports):
                if isinstance(report, kind):
                    del self.reports[: number + 1]
                    return report
            assert time.monotonic() < until, f"no {kind.__name__}"
            self.poller.dispatch(0.1)

    def give(self, fn: Callable[[Any], Any], values: list[Any], **header: Any) -> None:
        """Hand the child a job: a function over values, and an initializer with its arguments if there is one."""
        payloads = [dumps(fn)]
        initializer = header.pop("initializer", None)
        if initializer is not None:
            payloads.append(dumps(initializer))
        block = BlockHeader(kind=BlockKind.COLUMNS, size=len(values), run=((0, len(values)),))
        told = JobHeader(
            run="r", function_digest="00", blocks=(block,), initializer=initializer is not None, **header
        ).encode()
        message = envelope.seal_message(
            kind=envelope.Kind.JOB,
            key=JOB_KEY,
            session_id=SESSION,
            expiry=2**40,
            context=CONTEXT,
            header=told,
            body=envelope.frame([*payloads, dumps([values]), (encode_numbers([(0, len(values))]),)]),
        ).to_bytes()
        head = encode_job(EXECUTION, JOB_KEY, OUTCOME_KEY, CONTEXT, "w/0", 0, 2**40, {}, len(message))
        self.child.send_job(head, message)

    def hear(self) -> tuple[DecodedOutcome, Committed]:
        """Return the next outcome, opened, and how it came."""
        report = self.listen(Committed)
        if isinstance(report.sealed, list):
            return decoded_pieces(report.sealed), report
        message = memoryview(report.sealed)
        prefix = envelope.parse_prefix(message)
        header, body = envelope.open_message(message, prefix, seal.Sealer(OUTCOME_KEY), CONTEXT)
        return decode_outcome(header, body), report

    def results(self) -> list[Any]:
        """Return the results up to the final outcome."""
        found: list[Any] = []
        while True:
            decoded, report = self.hear()
            assert not decoded.outcome.failures, decoded.outcome.failures[0].traceback
            for _, _, payload in decoded.results:
                found += loads(payload)
            if report.final:
                return found


def decoded_pieces(pieces: list[Piece]) -> DecodedOutcome:
    """Return what results that were not sealed say."""
    results = tuple((piece.first, piece.first + piece.n_tasks, (piece.stream,)) for piece in pieces)
    return DecodedOutcome(outcome=Outcome(), results=results)


@pytest.fixture
def person() -> Iterator[Person]:
    poller = Poller()
    child = Child(0, child_context(), ChildSettings())
    child.start()
    for pollable in (child, child.sentinel):
        poller.add(pollable)
    somebody = Person(child, poller)
    somebody.listen(Ready)
    yield somebody
    child.kill()
    child.wait(DEADLINE)
    for pollable in (child, child.sentinel):
        poller.remove(pollable)
    child.close()
    poller.close()


# -------------------------------------------------------------------------------------------------------- initializers


def remember(name: str, values: list[Any]) -> None:
    import builtins

    builtins.remembered = [*getattr(builtins, "remembered", []), (name, *values)]  # type: ignore[attr-defined]


def recall(_: Any) -> Any:
    import builtins

    return builtins.remembered  # type: ignore[attr-defined]


def test_an_initializer_runs_once_before_the_first_task_of_its_tenant(person: Person) -> None:
    for _ in range(3):
        person.give(recall, [1, 2], tenant="t", initializer=(remember, ("a", [1])))
        assert person.results() == [[("a", 1)]] * 2


def test_a_job_of_a_tenant_without_an_initializer_is_a_job_like_any_other(person: Person) -> None:
    person.give(abs, [-1], tenant="t")
    assert person.results() == [1]


def test_an_initializer_may_be_a_coroutine_function(person: Person) -> None:
    async def initialize() -> None:
        remember("async", [])

    person.give(recall, [0], tenant="t", initializer=(initialize, ()))
    assert person.results() == [[("async",)]]


@pytest.mark.parametrize("error", [ValueError("no licence"), SystemExit("no licence"), KeyboardInterrupt("no licence")])
def test_an_initializer_that_raises_gives_the_job_back_with_its_exception(person: Person, error: BaseException) -> None:
    def initialize() -> None:
        raise error

    person.give(abs, [-1], tenant="t", initializer=(initialize, ()))

    decoded, report = person.hear()
    assert (report.final, report.last) == (True, True)
    assert decoded.outcome.not_run is not None
    assert decoded.outcome.not_run.reason is NotRunReason.INITIALIZER_FAILED
    assert decoded.outcome.not_run.detail == f"{type(error).__name__}: no licence"
    (failure,) = decoded.outcome.failures
    assert "in initialize" in failure.traceback
    assert decoded.results == ()


def test_an_initializer_that_does_not_load_here_may_load_elsewhere(person: Person) -> None:
    class Missing:
        def __reduce__(self) -> Any:
            return __import__, ("no_such_package",)

    person.give(abs, [-1], tenant="t", initializer=(abs, (Missing(),)))

    decoded, report = person.hear()
    assert (report.final, report.last) == (True, False)
    assert decoded.outcome.not_run is not None
    assert decoded.outcome.not_run.reason is NotRunReason.CANNOT_LOAD
    assert "no_such_package" in decoded.outcome.not_run.detail
    person.give(abs, [-1], tenant="t", initializer=(remember, ("a", [])))
    assert person.results() == [1]


def test_a_death_in_an_initializer_is_at_no_task(person: Person) -> None:
    person.give(abs, [-1], tenant="t", initializer=(os._exit, (3,)))

    ended = person.listen(Ended)

    assert ended.position is None
    assert ended.detail.startswith("exit code 3")


def test_a_child_that_gearmap_itself_breaks_says_so_and_does_not_end_well(person: Person, tmp_path: Path) -> None:
    def point_stderr_to(path: str) -> None:
        from gearmap.runtime import child

        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), child._log)  # a copy of what was 2 at its start
        sys.stderr = None

    person.give(abs, [-1], tenant="t", initializer=(point_stderr_to, (str(tmp_path / "stderr"),)))
    assert person.results() == [1]

    person.child.send_job(encode_job(EXECUTION, JOB_KEY, OUTCOME_KEY, CONTEXT, "w/0", 0, 2**40, {}, 300), b"x" * 300)

    assert person.listen(Ended).detail.startswith(f"exit code {DEFECT_EXIT}")
    said = (tmp_path / "stderr").read_text()
    name = f"gearmap: child process {person.child_pid}"
    assert said.startswith(f"{name} ends with exit code {DEFECT_EXIT}: gearmap.errors.EnvelopeError: ")
    assert "Traceback (most recent call last)" in said


class ExitsWhenPickled:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("no")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_result_whose_pickling_wants_to_end_the_process_fails_its_task_only(
    person: Person, error: type[BaseException]
) -> None:
    person.give(lambda x: ExitsWhenPickled(error) if x == 1 else x, [0, 1, 2])

    results, failures, final = [], [], False
    while not final:
        decoded, report = person.hear()
        results += [(first, stop) for first, stop, _ in decoded.results]
        failures += decoded.outcome.failures
        final = report.final
    assert results == [(0, 1), (2, 3)]
    (failure,) = failures
    assert (failure.position, failure.type_name) == (1, "gearmap.errors.SerializationError")
    assert failure.message == f"cannot pickle the result, a ExitsWhenPickled: {error('no')!r}"


# ----------------------------------------------------------------------------------------------------------- positions


def test_what_short_tasks_of_a_child_gave_that_then_died_is_told_once_and_the_rest_is_not(person: Person) -> None:
    def task(x: int) -> int:
        time.sleep(0.002)
        if x == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return x * x

    person.give(task, list(range(6)))

    decoded, report = person.hear()
    assert not report.final
    assert [loads(payload) for _, _, payload in decoded.results] == [[0], [1], [4], [9]]
    assert [(start, stop) for start, stop, _ in decoded.results] == [(at, at + 1) for at in range(4)]
    assert person.listen(Ended).position == 4
    assert not person.reports


def test_a_child_tells_which_task_it_runs_and_when_it_runs_none(person: Person, tmp_path: Path) -> None:
    class Slow:
        def __init__(self, name: str) -> None:
            self.name = name

        def __reduce__(self) -> Any:
            return load, (self.name,)

    def load(name: str) -> str:
        (tmp_path / f"loads-{name}").touch()
        wait_for(tmp_path / f"loaded-{name}")
        return name

    def wait_for(path: Path) -> None:
        until = time.monotonic() + DEADLINE
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.005)

    def work(name: str) -> str:
        (tmp_path / f"runs-{name}").touch()
        wait_for(tmp_path / f"ran-{name}")
        return name

    child = person.child
    person.give(work, [Slow("a"), "b"])
    wait_until((tmp_path / "loads-a").exists, "it loads")
    assert (child.position, child.running) == (0, None)
    (tmp_path / "loaded-a").touch()
    wait_until((tmp_path / "runs-a").exists, "the first task runs")
    assert (child.position, child.running) == (0, 0)
    (tmp_path / "ran-a").touch()
    wait_until((tmp_path / "runs-b").exists, "the second task runs")
    assert (child.position, child.running) == (1, 1)
    (tmp_path / "ran-b").touch()
    assert person.results() == ["a", "b"]


def test_in_an_initializer_a_child_is_at_no_task(person: Person, tmp_path: Path) -> None:
    def initialize() -> None:
        (tmp_path / "begun").touch()
        until = time.monotonic() + DEADLINE
        while not (tmp_path / "go").exists() and time.monotonic() < until:
            time.sleep(0.005)

    person.give(abs, [-1], tenant="t", initializer=(initialize, ()))
    wait_until((tmp_path / "begun").exists, "the initializer runs")
    assert (person.child.position, person.child.running) == (None, None)
    (tmp_path / "go").touch()
    assert person.results() == [1]


def test_the_end_of_a_child_is_told_with_the_memory_that_was_seen(person: Person) -> None:
    person.child.saw_memory(3 * 2**30)
    person.child.kill()

    assert person.listen(Ended).detail.startswith("SIGKILL at 3.0 GB of ")
