"""What a node answers tasks that want to use the cluster, and when it lets go of their levels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gearmap.core.levels import LOOK_INTERVAL
from gearmap.core.names import Lane
from gearmap.runtime.keyring import Keyring
from gearmap.runtime.nesting import LEAVE_INTERVAL, NestingDesk
from gearmap.runtime.nodesettings import NodeSettings
from gearmap.secret import Secret
from gearmap.wire import seal
from gearmap.wire.jobheader import JobHeader

SECRET = Secret(bytes(range(32)))
PYTHON = (3, 11)
ONE, TWO = b"1" * 16, b"2" * 16


class Host:
    """Somebody who has workers, of whom some are busy."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.is_idle = True

    def open_level(self, level: int, now: float) -> None:
        self.calls.append(f"open {level}")

    def leave_level(self, level: int) -> bool:
        self.calls.append(f"leave {level}")
        return self.is_idle


@pytest.fixture
def host() -> Host:
    return Host()


def desk_of(host: Host, *queues: str) -> NestingDesk:
    settings = NodeSettings(
        servers=(("127.0.0.1", 4730),),
        keys=Keyring([SECRET]),
        workers=2,
        queues=queues or ("default",),
        name="host",
        node_id="1-2",
        python=PYTHON,
        grace=30.0,
    )
    return NestingDesk(settings, host)


def work(execution: bytes = ONE, *, level: int = 0, queue: str = "default") -> Any:
    lane = Lane(queue, PYTHON, seal.key_id(SECRET), level)
    header = JobHeader(run="run", function_digest="ff", level=level)
    return SimpleNamespace(execution_id=execution, header=header, job=SimpleNamespace(function=lane.name))


def ask(desk: NestingDesk, asker: Any, queue: str = "default", now: float = 0.0) -> dict[str, Any]:
    is_good, answer = desk.answer(["session", asker.execution_id.hex(), queue], asker, now)
    assert is_good, answer
    assert isinstance(answer, dict)
    return answer


def lane_of(answer: dict[str, Any]) -> tuple[str, int]:
    lane = Lane.parse(answer["lane"])
    assert lane is not None
    return lane.queue, lane.level


def test_a_task_gets_a_session_of_its_own_and_never_the_secret(host: Host) -> None:
    desk = desk_of(host)
    one, two = ask(desk, work()), ask(desk, work())
    assert one["id"] != two["id"]
    assert bytes.fromhex(one["key"]) == seal.session_key(SECRET, bytes.fromhex(one["id"]))
    assert SECRET.reveal().hex() not in str(one)


def test_the_next_level_is_opened_once_before_the_answer(host: Host) -> None:
    desk = desk_of(host)
    assert lane_of(ask(desk, work())) == ("default", 1)
    assert lane_of(ask(desk, work(TWO))) == ("default", 1)
    assert lane_of(ask(desk, work(TWO, level=1))) == ("default", 2)
    assert host.calls == ["open 1", "open 2"]


def test_a_task_at_the_last_level_is_refused(host: Host) -> None:
    desk = desk_of(host)
    asker = work(level=3)
    is_good, text = desk.answer(["session", ONE.hex(), "default"], asker, 0.0)
    assert not is_good
    assert text.startswith("tasks can be nested 3 deep")
    assert host.calls == []


def test_only_the_execution_that_runs_now_is_answered(host: Host) -> None:
    desk = desk_of(host)
    refusal = (False, "the task that this belongs to has ended")
    assert desk.answer(["session", TWO.hex(), "default"], work(ONE), 0.0) == refusal
    assert desk.answer(["session", ONE.hex(), "default"], None, 0.0) == refusal


@pytest.mark.parametrize("question", [["secret"], ["session"], ["session", "x", "y"]])
def test_another_question_is_refused(host: Host, question: list[str]) -> None:
    is_good, _ = desk_of(host).answer([question[0], ONE.hex(), *question[1:]], work(), 0.0)
    assert not is_good


def test_a_queue_that_the_node_does_not_serve_is_that_of_other_nodes(host: Host) -> None:
    answer = ask(desk_of(host), work(), "gpu")
    assert lane_of(answer) == ("gpu", 0)
    assert answer["depth"] == 1, "or tasks of two queues could call each other for ever"
    assert host.calls == []


def test_a_task_that_names_no_queue_stays_in_its_own(host: Host) -> None:
    assert lane_of(ask(desk_of(host, "gpu"), work(queue="gpu"))) == ("gpu", 1)
    assert lane_of(ask(desk_of(host, "gpu", "default"), work(queue="gpu"))) == ("default", 1)


def test_a_level_is_left_when_nobody_runs_who_asked_for_it(host: Host) -> None:
    desk = desk_of(host)
    ask(desk, work())
    desk.look({ONE}, LOOK_INTERVAL)
    assert host.calls == ["open 1"]
    desk.look(set(), 2 * LOOK_INTERVAL)
    assert host.calls == ["open 1", "leave 1"]
    assert desk.deadline is None


def test_workers_that_are_busy_yet_are_asked_again_until_they_have_left(host: Host) -> None:
    desk = desk_of(host)
    host.is_idle = False
    ask(desk, work())
    desk.look(set(), LOOK_INTERVAL)
    assert desk.deadline == LOOK_INTERVAL + LEAVE_INTERVAL
    host.is_idle = True
    desk.look(set(), LOOK_INTERVAL + LEAVE_INTERVAL)
    assert host.calls == ["open 1", "leave 1", "leave 1"]
    assert desk.deadline is None


def test_a_level_that_is_asked_for_while_its_workers_leave_is_opened_again(host: Host) -> None:
    desk = desk_of(host)
    host.is_idle = False
    ask(desk, work())
    desk.look(set(), LOOK_INTERVAL)
    ask(desk, work(TWO), now=LOOK_INTERVAL)
    desk.look({TWO}, LOOK_INTERVAL + LEAVE_INTERVAL)
    assert host.calls == ["open 1", "leave 1", "open 1"]
