"""What is shown of tasks that run, and what of it is left for their end."""

from __future__ import annotations

from typing import Any

from test_outcome_reader import CONTEXT, SESSION_ID, SESSION_KEY, UNIQUE, Writer

from gearmap.core import events as ev
from gearmap.core.engine import RunEngine
from gearmap.runtime.liveoutput import BURST_BYTES, BYTES_PER_SECOND, LiveOutput
from gearmap.runtime.outcomes import OutcomeReader
from gearmap.wire.outcome import NotRun, NotRunReason, Printed
from gearmap.wire.printed import LIVE, LIVE_HEARD, Output

FIRST, SECOND = b"1" * 16, b"2" * 16


class Screen:
    """A consumer that shows, unless it is full."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, str, str]] = []
        self.is_full = False

    def printed(self, task: int, stream: str, text: str) -> bool:
        if not self.is_full:
            self.shown.append((task, stream, text))
        return not self.is_full


class Rig:
    """A run of one attempt of four tasks, and what its node says."""

    def __init__(self) -> None:
        self.engine = RunEngine(chunksize=4)
        self.engine.handle(ev.ServerUp(0), 0.0)
        self.engine.handle(ev.AddBlock(ev.Block(0, 0, 4, b"f", 1)), 0.0)
        self.attempt = 1
        self.screen = Screen()
        consumer: Any = self.screen
        self.live = LiveOutput(self.engine, consumer)
        self.reader = OutcomeReader(0, b"f", SESSION_ID, SESSION_KEY, UNIQUE, CONTEXT)
        self.now = 0.0

    def hears(self, data: bytes) -> list[Any]:
        opened = self.reader.read(self.attempt, data)
        self.live.show(self.attempt, self.reader, self.now)
        for event, _ in opened:
            self.engine.handle(event, self.now)
        return opened


def live(data: bytes, at: int = 0, position: int = 1, stream: str = LIVE + "stdout") -> Any:
    return {"printed": (Printed(position, stream, data, at),)}


def test_what_comes_live_is_shown_and_the_rest_is_left_for_the_end() -> None:
    rig, child, node = Rig(), Writer(FIRST), Writer(FIRST, is_node=True)
    rig.hears(node.says(beat=1, **live(b"one\n")))
    rig.hears(node.says(beat=1, **live(b"two\n", at=4)))
    ((_, (batch,)),) = rig.hears(child.says(1, ("result",), printed=(Printed(1, "stdout", b"one\ntwo\nthree\n"),)))
    assert rig.screen.shown == [(1, "stdout", "one\n"), (1, "stdout", "two\n")]
    assert batch.outputs[0] == Output("one\ntwo\nthree\n")
    assert batch.outputs[0].unseen == Output("three\n")


def test_what_the_node_has_read_is_counted_apart() -> None:
    rig, child, node = Rig(), Writer(FIRST), Writer(FIRST, is_node=True)
    rig.hears(node.says(beat=1, **live(b"from C\n", stream=LIVE_HEARD + "stdout")))
    rig.hears(node.says(beat=1, **live(b"from Python\n")))
    rig.hears(node.says(printed=(Printed(1, "stdout", b"from C\nmore\n"),)))
    ((_, (batch,)),) = rig.hears(child.says(1, ("result",), printed=(Printed(1, "stdout", b"from Python\n"),)))
    assert batch.outputs[0].unseen == Output("more\n")


def test_what_a_node_has_sent_in_parts_is_one_stream() -> None:
    rig, child, node = Rig(), Writer(FIRST), Writer(FIRST, is_node=True)
    rig.hears(node.says(beat=1, **live(b"one\n", stream=LIVE_HEARD + "stdout")))
    rig.hears(node.says(printed=(Printed(1, "stdout", b"one\n"),)))
    rig.hears(node.says(beat=1, **live(b"two\n", at=4, stream=LIVE_HEARD + "stdout")))
    rig.hears(node.says(printed=(Printed(1, "stdout", b"two\nthree\n"),)))
    ((_, (batch,)),) = rig.hears(child.says(1, ("result",)))
    assert [text for _, _, text in rig.screen.shown] == ["one\n", "two\n"]
    assert batch.outputs[0] == Output("one\ntwo\nthree\n")
    assert batch.outputs[0].unseen == Output("three\n")


def test_what_was_not_shown_in_between_is_said_to_be_missing() -> None:
    rig, node = Rig(), Writer(FIRST, is_node=True)
    rig.hears(node.says(beat=1, **live(b"one\n")))
    rig.hears(node.says(beat=1, **live(b"nine\n", at=104)))
    assert rig.screen.shown[1:] == [(1, "stdout", "... 100 bytes left out ...\nnine\n")]


def test_the_newest_execution_alone_is_shown() -> None:
    rig, first, second = Rig(), Writer(FIRST, is_node=True), Writer(SECOND, is_node=True)
    rig.hears(first.says(beat=1, **live(b"first\n")))
    rig.hears(second.says(beat=1, **live(b"second\n")))
    rig.hears(first.says(beat=1, **live(b"late\n", at=6)))
    assert [text for _, _, text in rig.screen.shown] == ["first\n", "second\n"]


def test_what_was_shown_of_one_execution_is_shown_again_of_another() -> None:
    rig, node, child = Rig(), Writer(FIRST, is_node=True), Writer(SECOND)
    rig.hears(node.says(beat=1, **live(b"one\n")))
    ((_, (batch,)),) = rig.hears(child.says(1, ("result",), printed=(Printed(1, "stdout", b"one\n"),)))
    assert batch.outputs[0].unseen == Output("one\n")


def test_nothing_is_shown_of_a_settled_task_or_of_none() -> None:
    rig, child, node = Rig(), Writer(FIRST), Writer(FIRST, is_node=True)
    rig.hears(child.says(1, ("result",)))
    rig.hears(node.says(beat=1, **live(b"too late\n")) + node.says(**live(b"of none\n", position=99)))
    rig.hears(node.says(**live(b"unknown\n", stream=LIVE + "stdlog")))
    assert rig.screen.shown == []


def test_a_flood_is_shown_as_far_as_it_is_allowed_and_all_of_it_is_there_in_the_end() -> None:
    rig, child, node = Rig(), Writer(FIRST), Writer(FIRST, is_node=True)
    piece = b"x" * 8191 + b"\n"
    for number in range(100):
        rig.hears(node.says(beat=1, **live(piece, at=number * len(piece))))
    assert sum(len(text) for _, _, text in rig.screen.shown) == BURST_BYTES
    rig.now += 2 * len(piece) / BYTES_PER_SECOND
    rig.hears(node.says(beat=1, **live(b"later\n", at=100 * len(piece))))
    assert rig.screen.shown[-1][2].endswith(" bytes left out ...\nlater\n")
    rig.screen.is_full = True
    rig.hears(node.says(beat=1, **live(b"unseen\n", at=100 * len(piece) + 6)))
    said = Printed(1, "stdout", b"x" * 10 + b"later\nunseen\n", 10, 100 * len(piece) - 10)
    ((_, (batch,)),) = rig.hears(child.says(1, ("result",), printed=(said,)))
    assert batch.outputs[0].unseen == Output("unseen\n")


def test_of_a_task_that_died_only_what_was_not_shown_is_left() -> None:
    rig, node = Rig(), Writer(FIRST, is_node=True)
    rig.hears(node.says(beat=1, **live(b"before\n")))
    died = NotRun(reason=NotRunReason.CHILD_DIED)
    said = (Printed(1, "stdout", b"before\nlast words\n"),)
    ((event, _),) = rig.hears(node.says(not_run=died, beat=1, printed=said, final=True))
    assert event.not_run.output == Output("before\nlast words\n")
    assert event.not_run.output.unseen == Output("last words\n")
