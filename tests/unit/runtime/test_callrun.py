"""Many single calls in one run: how they are grouped into blocks, claimed, cancelled, and what the run's end does."""

from __future__ import annotations

import concurrent.futures
import gc
import linecache
import sys
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

import pytest

from gearmap.core import events as ev
from gearmap.core.snapshot import ProgressSnapshot
from gearmap.errors import ClusterBroken, ServerUnavailable, WorkerLost
from gearmap.runtime import callrun
from gearmap.runtime.callrun import MAX_BLOCK_BYTES, MAX_BLOCK_CALLS, CallRun
from gearmap.runtime.chunkfuture import ChunkFuture
from gearmap.runtime.futures import Future, ResultBatch
from gearmap.runtime.givenup import GivenUp
from gearmap.runtime.run import Place
from gearmap.wire.outcome import describe_exception
from gearmap.wire.serializer import dumps

LIMIT = 10.0  # seconds after which a test that hangs fails

ONE = (b"one", [b"function"])
OTHER = (b"other", [b"function"])
HERE = Place("/here")


SNAPSHOT = ProgressSnapshot(
    total=None, done=0, failed=0, cancelled=0, running=0, queued=0, again=0, elapsed=0.0, workers=None
)


class FakeCallbacks:
    """Keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def post(self, call: Callable[[], object]) -> None:
        self.calls.append(call)


class FakeDriver:
    """Keeps the commands until it is told to work; or does not wait for that."""

    is_current = False
    is_alive = False  # nobody who waits for an answer gets one later

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.commands: list[Callable[[], None]] = []
        self.callbacks = FakeCallbacks()

    def post(self, command: Callable[[], None], consumer: object = None) -> None:
        self.commands.append(command)
        if self.at_once:
            self.work()

    def add(self, run: Any) -> None:
        pass

    def work(self) -> None:
        while self.commands:
            self.commands.pop(0)()


class FakeRun:
    """Takes down what it is given."""

    def __init__(self, answers: list[ServerUnavailable | None]) -> None:
        self.answers = answers  # to who asks for a job server, one after another
        self.seconds: float | None = None
        self.blocks: list[tuple[ev.Block, Any, Place]] = []
        self.told: list[ev.Input] = []
        self.feeder: Any = None

    def seconds_of(self, function: object) -> float | None:
        return self.seconds

    def add_block(self, block: ev.Block, kind: object, payload: Any, place: Place, function: object) -> None:
        self.blocks.append((block, payload, place))

    def tell(self, event: ev.Input) -> None:
        self.told.append(event)

    def reach(self) -> None:
        answer = self.answers.pop(0)
        if answer is None:
            self.feeder.reached()
        else:
            self.feeder.unreached(answer)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return [(block.first, block.size) for block, _, _ in self.blocks]


class Calls:
    """A run of single calls on fakes."""

    def __init__(self, seconds: float | None = None, *answers: ServerUnavailable | None) -> None:
        self.driver, self.run = FakeDriver(at_once=bool(answers)), FakeRun(list(answers))
        self.run.seconds = seconds
        self.calls = CallRun(self.driver, lambda consumer: self.run)  # type: ignore[arg-type, return-value]  # fakes
        if not answers:
            self.calls.reached()

    def submit(self, count: int, function: Any = ONE, call: Any = b"call", place: Place = HERE) -> list[Future[Any]]:
        return [self.calls.submit(function, call, place) for _ in range(count)]


def test_calls_of_unknown_length_are_blocks_of_their_own() -> None:
    it = Calls()
    futures = it.submit(3)
    it.driver.work()
    assert it.run.ranges == [(0, 1), (1, 1), (2, 1)]
    assert [future.task_index for future in futures] == [0, 1, 2]


def test_tiny_calls_travel_together_up_to_a_limit() -> None:
    it = Calls(seconds=1e-6)
    it.submit(MAX_BLOCK_CALLS + 2)
    it.driver.work()
    assert it.run.ranges == [(0, MAX_BLOCK_CALLS), (MAX_BLOCK_CALLS, 2)]


def test_long_calls_do_not_travel_together() -> None:
    it = Calls(seconds=1.0)
    it.submit(2)
    it.driver.work()
    assert it.run.ranges == [(0, 1), (1, 1)]


def test_a_block_holds_calls_of_one_function_and_place() -> None:
    it = Calls(seconds=1e-6)
    it.submit(2)
    it.submit(2, (bytes(bytearray(b"one")), [b"function"]))  # pickled once more, to the same
    it.submit(1, OTHER)
    it.submit(1, OTHER, place=Place("/there"))
    it.submit(1, OTHER, place=Place("/there"))
    it.driver.work()
    assert it.run.ranges == [(0, 4), (4, 1), (5, 1), (6, 1)]
    assert [place.cwd for _, _, place in it.run.blocks] == ["/here", "/here", "/there", "/there"]


def test_tiny_calls_of_functions_that_take_turns_travel_together_and_keep_their_index() -> None:
    # given
    it = Calls(seconds=1e-6)
    futures = [it.submit(1, function)[0] for function in (ONE, OTHER) * 3]
    # when
    it.driver.work()
    # then
    assert [(block.function, block.size) for block, _, _ in it.run.blocks] == [(b"one", 3), (b"other", 3)]
    assert [future.task_index for future in futures] == list(range(6))
    assert it.calls.claim(0, 6) == ()
    it.calls.delivered(0, 3, ResultBatch(dumps(["a", "c", "e"])), 0, "node/0")
    assert [future.result(0) for future in futures[::2]] == ["a", "c", "e"]
    it.calls.gave_up(3, GivenUp(task=3, kind=WorkerLost, reason="was lost", attempts=1, worker=None))
    assert str(futures[1].exception(0)) == "task 1 was lost"


def test_joined_calls_are_no_larger_than_a_block() -> None:
    it = Calls(seconds=1e-6)
    for _ in range(3):
        it.submit(1, call=bytes(MAX_BLOCK_BYTES // 2))
        it.submit(1, OTHER)
    it.driver.work()
    assert [(block.function, block.size) for block, _, _ in it.run.blocks] == [(b"one", 2), (b"other", 3), (b"one", 1)]


def test_calls_that_are_not_tiny_keep_their_order() -> None:
    it = Calls(seconds=1.0)
    for function in (ONE, OTHER) * 2:
        it.submit(1, function)
    it.driver.work()
    assert [block.function for block, _, _ in it.run.blocks] == [b"one", b"other"] * 2


def test_a_block_is_no_larger_than_its_limit_unless_one_call_is() -> None:
    # given
    it = Calls(seconds=1e-6)
    third = bytes(MAX_BLOCK_BYTES // 3)
    out_of_band = [b"stream", memoryview(bytes(2 * MAX_BLOCK_BYTES))]
    # when
    it.submit(4, call=third)
    it.submit(1, call=out_of_band)
    it.submit(1)
    it.driver.work()
    # then
    assert it.run.ranges == [(0, 3), (3, 1), (4, 1), (5, 1)]
    assert [payload for _, payload, _ in it.run.blocks] == [[third] * 3, [third], [out_of_band], [b"call"]]
    assert it.run.blocks[2][0].payload_bytes == 2 * MAX_BLOCK_BYTES + 6


def test_the_driver_is_woken_once_until_it_says_that_it_will_not_look_again() -> None:
    it = Calls()
    it.submit(3)
    assert len(it.driver.commands) == 1
    it.driver.work()
    assert not it.calls.feed(saturated=True)
    it.submit(1)
    assert it.driver.commands == []
    assert it.calls.feed(saturated=True)
    assert not it.calls.feed(saturated=False)
    it.submit(1)
    assert len(it.driver.commands) == 1


def test_claimed_futures_run_and_may_be_claimed_again() -> None:
    it = Calls()
    futures = it.submit(2)
    it.driver.work()
    assert it.calls.claim(0, 2) == it.calls.claim(0, 2) == ()
    assert [future.cancel() for future in futures] == [False, False]


@pytest.mark.parametrize("taken", [False, True], ids=["before the driver saw it", "after that"])
def test_who_waits_for_a_cancelled_future_is_told_and_the_task_is_not_sent(taken: bool) -> None:
    # given
    it = Calls()
    futures = it.submit(2)
    if taken:
        it.driver.work()
    # when
    assert futures[1].cancel()
    it.driver.work()
    # then
    assert concurrent.futures.wait([futures[1]], LIMIT).done == {futures[1]}
    assert it.run.told == [ev.CancelTask(1)]
    assert it.calls.claim(0, 2) == [1]


def test_a_future_that_is_cancelled_when_it_is_claimed_is_told_too() -> None:
    it = Calls()
    futures = it.submit(3)
    it.driver.work()
    assert futures[1].cancel()
    assert it.calls.claim(0, 3) == [1]
    assert concurrent.futures.wait([futures[1]], LIMIT).done == {futures[1]}
    it.driver.work()
    assert [futures[0].running(), futures[2].running()] == [True, True]


def test_results_go_to_their_futures() -> None:
    it = Calls()
    futures = it.submit(3)
    it.driver.work()
    it.calls.claim(0, 3)
    it.calls.delivered(1, 2, ResultBatch(dumps(["-", "b", "c"])), 1, "node/0")
    assert [future.result(0) for future in futures[1:]] == ["b", "c"]
    assert futures[0].running()


def test_the_end_of_the_run_settles_what_was_taken_and_what_was_not() -> None:
    # given
    it = Calls()
    futures = it.submit(2)
    it.driver.work()
    it.calls.claim(0, 1)
    futures += it.submit(2)
    futures[3].cancel()
    # when
    it.calls.broken(ClusterBroken("gone"))
    # then
    assert [type(future.exception(0)) for future in futures[:3]] == [ClusterBroken] * 3
    assert concurrent.futures.wait(futures, LIMIT).not_done == set()
    with pytest.raises(ClusterBroken):
        it.submit(1)


# -------------------------------------------------------------------------------------------- whether a server is there


def test_who_submits_first_learns_whether_there_is_a_job_server_and_the_others_do_not_ask() -> None:
    it = Calls(None, None)
    it.submit(2)
    assert it.run.answers == []


def test_a_submit_without_a_job_server_leaves_no_future_and_the_next_one_asks_again() -> None:
    it = Calls(None, ServerUnavailable("none"), None)
    with pytest.raises(ServerUnavailable, match="none"):
        it.submit(1)
    assert it.calls.pending == 0
    assert [future.task_index for future in it.submit(1)] == [0]


def test_after_the_last_server_was_lost_a_submit_asks() -> None:
    it = Calls(None, None, ServerUnavailable("gone"))
    it.submit(1)
    it.calls.unreached(None)
    with pytest.raises(ServerUnavailable, match="gone"):
        it.submit(1)


def test_the_error_that_ends_the_run_is_the_answer_to_who_waits() -> None:
    it = Calls(None, None)
    it.run.reach = lambda: it.calls.broken(ServerUnavailable("never"))  # type: ignore[method-assign]
    with pytest.raises(ServerUnavailable, match="never"):
        it.submit(1)
    assert it.calls.over


def test_nobody_waits_for_a_driver_that_has_ended() -> None:
    it = Calls()
    it.calls.unreached(None)
    with pytest.raises(ClusterBroken, match="closed"):
        it.submit(1)


# --------------------------------------------------------------------------------------------------- chunks and the end


def test_calls_that_are_submitted_as_a_chunk_are_one_block_alone() -> None:
    it = Calls(seconds=1e-6)
    it.submit(2)
    chunk = it.calls.submit_chunk(ONE, [b"columns"], 3, HERE)
    (last,) = it.submit(1)
    it.driver.work()
    assert it.run.ranges == [(0, 3), (3, 3)]  # the single calls before and after it travel together
    assert [block.alone for block, _, _ in it.run.blocks] == [False, True]
    assert it.run.blocks[1][1] == [b"columns"]
    assert (chunk.task_index, chunk.size, last.task_index) == (2, 3, 5)


def a_chunk(size: int) -> tuple[Calls, ChunkFuture]:
    """A chunk that was sent, after a single call."""
    it = Calls()
    it.submit(1)
    chunk = it.calls.submit_chunk(ONE, [b"columns"], size, HERE)
    it.driver.work()
    assert it.calls.claim(1, 1 + size) == ()
    return it, chunk


def test_a_chunk_is_there_when_all_of_its_tasks_are_and_its_results_are_in_order() -> None:
    it, chunk = a_chunk(4)
    it.calls.delivered(4, 1, ResultBatch(dumps(["d"])), 0, "node/0")
    assert it.calls.claim(1, 4) == ()  # the others again, after a loss
    assert chunk.running()
    it.calls.delivered(1, 3, ResultBatch(dumps(["-", "a", "b", "c"])), 1, "node/1")
    assert list(chunk.outcomes(0)) == ["a", "b", "c", "d"]


def test_a_failure_in_a_chunk_is_raised_in_its_place_and_names_its_task() -> None:
    it, chunk = a_chunk(4)
    it.calls.delivered(1, 2, ResultBatch(dumps(["a", "b"])), 0, "node/0")
    it.calls.gave_up(4, GivenUp(task=4, kind=WorkerLost, reason="gone", attempts=3, worker=None))
    it.calls.failed(3, describe_exception(KeyError("k"), 0), 1, "node/0")
    outcomes = chunk.outcomes(0)
    assert [next(outcomes), next(outcomes)] == ["a", "b"]
    with pytest.raises(KeyError) as caught:
        next(outcomes)
    assert "task 3" in " ".join([*getattr(caught.value, "__notes__", []), str(caught.value.__cause__)])


def test_a_chunk_that_waits_is_cancelled_as_a_whole() -> None:
    it = Calls()
    chunk = it.calls.submit_chunk(ONE, [b"columns"], 3, HERE)
    it.driver.work()
    assert chunk.cancel()
    assert list(it.calls.claim(0, 3)) == [0, 1, 2]
    it.driver.work()
    assert it.run.told == [ev.CancelTask(0), ev.CancelTask(1), ev.CancelTask(2)]
    assert it.calls.pending == 0


def test_a_chunk_breaks_with_its_run() -> None:
    it, chunk = a_chunk(3)
    it.calls.delivered(1, 1, ResultBatch(dumps(["a"])), 0, "node/0")
    it.calls.broken(ClusterBroken("gone"))
    with pytest.raises(ClusterBroken):
        next(chunk.outcomes(0))


def test_everything_that_waits_can_be_cancelled_and_what_was_sent_cannot() -> None:
    it = Calls()
    futures = it.submit(2)
    it.driver.work()
    it.calls.claim(0, 1)
    futures += it.submit(1)
    it.calls.cancel_waiting()
    assert [future.cancelled() for future in futures] == [False, True, True]


def test_a_run_that_is_to_finish_takes_what_was_submitted_and_tells_after_its_end() -> None:
    it = Calls()
    it.submit(1)
    told: list[str] = []
    it.calls.finish(lambda: told.append("finished"))
    it.driver.work()
    assert (it.run.ranges, it.run.told) == ([(0, 1)], [ev.InputEnded()])
    assert it.driver.callbacks.calls == []
    it.calls.ended(SNAPSHOT)
    for call in it.driver.callbacks.calls:
        call()
    assert told == ["finished"]


def test_a_run_without_tasks_and_one_that_is_over_finish_at_once() -> None:
    for it in (Calls(), Calls()):
        it.calls.finish(lambda: None)
        it.driver.work()
        assert len(it.driver.callbacks.calls) == 1
        it.calls.finish(lambda: None)
        it.driver.work()
        assert len(it.driver.callbacks.calls) == 2
        with pytest.raises(ClusterBroken):
            it.submit(1)


# ---------------------------------------------------------------------------------------- interrupts, and the collector


def is_interrupted(call: Callable[[], object], at: int) -> bool:
    """Make a call with Ctrl-C at the `at`-th line of `callrun` that it comes to; return whether it came so far."""
    lines = count()

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != callrun.__file__:
            return None
        # Python lets no signal in between a lock that is taken and the block that gives it back.
        line = linecache.getline(callrun.__file__, frame.f_lineno)
        if event == "line" and not line.lstrip().startswith("with ") and next(lines) == at:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("function", [ONE, OTHER], ids=["same function", "another"])
@pytest.mark.parametrize("is_chunk", [False, True], ids=["call", "chunk"])
@pytest.mark.parametrize("is_taken", [False, True], ids=["after others", "alone"])
def test_an_interrupted_submit_neither_shifts_nor_stops_the_calls_after_it(
    function: Any, is_chunk: bool, is_taken: bool
) -> None:
    for at in count():
        it = Calls(seconds=1e-6)
        it.submit(1)
        if is_taken:
            it.driver.work()
            it.calls.feed(saturated=False)  # nothing is under way: nobody looks for more by himself

        def submit(calls: CallRun = it.calls) -> object:
            if is_chunk:
                return calls.submit_chunk(function, dumps([["lost"]]), 1, HERE)
            return calls.submit(function, b"lost", HERE)

        interrupted = is_interrupted(submit, at)
        later = {b"1": it.submit(1, function, b"1")[0], b"2": it.submit(1, ONE, b"2")[0]}
        it.driver.work()

        sent = {call: block.first + n for block, calls, _ in it.run.blocks for n, call in enumerate(calls)}
        assert {call: future.number for call, future in later.items()} == {call: sent[call] for call in later}, at
        if not interrupted:
            break


def test_garbage_that_cancels_futures_locks_nobody_out() -> None:
    class Owner:
        """As a generator whose `finally` does it, in a circle of references."""

        def __init__(self, future: Future[Any]) -> None:
            self.future, self.itself = future, self

        def __del__(self) -> None:
            self.future.cancel()

    it = Calls()
    thresholds = gc.get_threshold()
    try:
        for step in range(2000):
            gc.set_threshold(2 + step % 37)
            (future,) = it.submit(1, (b"%d" % (step % 7), [b"function"]))
            Owner(future)
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()

    assert future.cancelled()
