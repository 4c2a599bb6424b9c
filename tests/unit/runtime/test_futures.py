"""Futures: what holds for those of `concurrent.futures` holds for ours, and who asks is who unpickles."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from gearmap.errors import SerializationError
from gearmap.runtime.futures import Future, PendingFailure, ResultBatch, begin, settle
from gearmap.wire.outcome import describe_exception
from gearmap.wire.printed import Output
from gearmap.wire.serializer import dumps

Make = Callable[[], concurrent.futures.Future[Any]]

LIMIT = 10.0  # seconds after which a test that hangs fails

either = pytest.mark.parametrize(
    "make", [concurrent.futures.Future, lambda: Future(0)], ids=["concurrent.futures", "gearmap"]
)


def begun(make: Make) -> concurrent.futures.Future[Any]:
    future = make()
    assert future.set_running_or_notify_cancel()
    return future


def failure(error: BaseException, notes: tuple[str, ...] = ()) -> PendingFailure:
    try:
        raise error
    except BaseException as raised:
        return PendingFailure(describe_exception(raised, 0), notes)


def batch(*values: Any) -> ResultBatch:
    return ResultBatch(dumps(list(values)))


class Share(NamedTuple):
    """One result of a batch."""

    batch: ResultBatch
    offset: int


def share(*values: Any, offset: int = 0) -> Any:
    return Share(batch(*values), offset)


def settled(value: Any) -> Future[Any]:
    """A future that the driver has settled with a share of a batch or a failure."""
    future: Future[Any] = Future(3)
    future.set_running_or_notify_cancel()
    if isinstance(value, BaseException):
        future.set_exception(value)
    elif isinstance(value, Share):
        take(future, value)
    else:
        future.set_result(value)
    return future


def take(future: Future[Any], value: Share) -> None:
    settle([future], future._lock, value.batch, value.offset, "node/0")


def elsewhere(work: Callable[[], Any]) -> int:
    """Do something in another thread and wait for it; return the thread's id."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert thread.ident is not None
    return thread.ident


class Where:
    """Knows in which thread it was unpickled."""

    def __init__(self, thread: int = 0) -> None:
        self.thread = thread

    def __reduce__(self) -> Any:
        return Where._here, ()

    @staticmethod
    def _here() -> Where:
        return Where(threading.get_ident())


class WhereError(Exception):
    def __init__(self, thread: int = 0) -> None:
        super().__init__()
        self.thread = thread

    def __reduce__(self) -> Any:
        return WhereError._here, ()

    @staticmethod
    def _here() -> WhereError:
        return WhereError(threading.get_ident())


class Unreadable:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


# ----------------------------------------------------------------------------------- the same as in concurrent.futures


@either
def test_a_result_and_an_exception_are_there_for_all_who_ask(make: Make) -> None:
    good, bad = begun(make), begun(make)
    good.set_result(42)
    bad.set_exception(error := KeyError("k"))
    for _ in range(2):
        assert (good.result(0), good.exception(0), good.done()) == (42, None, True)
        assert bad.exception(0) is error
        with pytest.raises(KeyError) as caught:
            bad.result(0)
        assert caught.value is error


@either
@pytest.mark.parametrize("ask", ["result", "exception"])
def test_asking_too_early_times_out_and_the_future_goes_on(make: Make, ask: str) -> None:
    future = begun(make)
    with pytest.raises(concurrent.futures.TimeoutError):
        getattr(future, ask)(0)
    assert future.running()
    future.set_result(1)
    assert future.result(0) == 1


@either
def test_who_waits_is_woken_by_the_result(make: Make) -> None:
    future = begun(make)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(future.result(LIMIT)))
    thread.start()
    future.set_result("done")
    thread.join(LIMIT)
    assert found == ["done"]


@either
def test_a_waiting_future_is_cancelled_and_a_running_or_settled_one_is_not(make: Make) -> None:
    waiting, running, done = make(), begun(make), begun(make)
    done.set_result(1)
    assert [waiting.cancel(), running.cancel(), done.cancel()] == [True, False, False]
    assert [waiting.cancelled(), running.cancelled(), done.cancelled()] == [True, False, False]
    assert waiting.cancel()
    for ask in (waiting.result, waiting.exception):
        with pytest.raises(concurrent.futures.CancelledError):
            ask(0)
    assert not waiting.set_running_or_notify_cancel()


@either
def test_a_settled_future_cannot_be_settled_again(make: Make) -> None:
    future = begun(make)
    future.set_result(1)
    with pytest.raises(concurrent.futures.InvalidStateError):
        future.set_result(2)
    with pytest.raises(concurrent.futures.InvalidStateError):
        future.set_exception(ValueError())


@either
def test_callbacks_are_called_once_in_order_with_the_future_and_at_once_if_it_is_settled(make: Make) -> None:
    future = begun(make)
    called: list[tuple[int, Any]] = []
    future.add_done_callback(lambda done: called.append((1, done)))
    future.add_done_callback(lambda done: called.append((2, done)))
    assert called == []
    future.set_result(None)
    future.add_done_callback(lambda done: called.append((3, done)))
    assert called == [(1, future), (2, future), (3, future)]


@either
def test_a_cancelled_future_calls_its_callbacks(make: Make) -> None:
    future = make()
    called: list[Any] = []
    future.add_done_callback(called.append)
    future.cancel()
    assert called == [future]


@either
def test_a_callback_that_raises_disturbs_nobody(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    future = begun(make)
    called: list[Any] = []
    future.add_done_callback(lambda done: called[1])
    future.add_done_callback(called.append)
    future.set_result(1)
    assert called == [future]
    assert "exception calling callback" in caplog.text


@either
def test_wait_for_all_and_for_the_first(make: Make) -> None:
    one, other = begun(make), begun(make)
    one.set_result(1)
    done, pending = concurrent.futures.wait([one, other], timeout=0)
    assert (done, pending) == ({one}, {other})
    done, _ = concurrent.futures.wait([one, other], LIMIT, concurrent.futures.FIRST_COMPLETED)
    assert done == {one}
    elsewhere(lambda: other.set_result(2))
    assert concurrent.futures.wait([one, other], LIMIT).not_done == set()


@either
def test_the_first_exception_ends_the_wait(make: Make) -> None:
    good, bad, open_one = begun(make), begun(make), begun(make)
    good.set_result(1)
    bad.set_exception(ValueError())
    done, pending = concurrent.futures.wait([good, bad, open_one], LIMIT, concurrent.futures.FIRST_EXCEPTION)
    assert (done, pending) == ({good, bad}, {open_one})


@either
def test_the_first_exception_that_comes_later_ends_the_wait_too(make: Make) -> None:
    bad, open_one = begun(make), begun(make)
    found: list[Any] = []
    waiter = threading.Thread(
        target=lambda: found.append(
            concurrent.futures.wait([bad, open_one], LIMIT, concurrent.futures.FIRST_EXCEPTION).done
        )
    )
    waiter.start()
    bad.set_exception(ValueError())
    waiter.join(LIMIT)
    assert found == [{bad}]


@either
def test_futures_come_as_they_are_completed(make: Make) -> None:
    futures = [begun(make) for _ in range(3)]
    futures[2].set_result("c")
    completed = concurrent.futures.as_completed(futures, timeout=LIMIT)
    assert next(completed) is futures[2]
    futures[0].set_exception(ValueError())
    assert next(completed) is futures[0]
    futures[1].cancel()  # it runs: nothing happens
    futures[1].set_result("b")
    assert [future.result(0) for future in completed] == ["b"]


@either
def test_asyncio_wraps_it(make: Make) -> None:
    async def main() -> list[Any]:
        futures = [begun(make) for _ in range(2)]
        wrapped = [asyncio.wrap_future(future) for future in futures]
        elsewhere(lambda: futures[0].set_result(1))
        elsewhere(lambda: futures[1].set_exception(KeyError("k")))
        return await asyncio.wait_for(asyncio.gather(*wrapped, return_exceptions=True), LIMIT)

    one, error = asyncio.run(main())
    assert one == 1
    assert isinstance(error, KeyError)


# ------------------------------------------------------------------------------------------------ awaiting one of ours


def wait_in_loop(future: Future[Any]) -> Any:
    async def ask() -> Any:
        return await future

    async def main() -> Any:
        return await asyncio.wait_for(ask(), LIMIT)

    return asyncio.run(main())


def test_a_future_can_be_awaited_before_and_after_it_is_settled() -> None:
    async def main() -> list[Any]:
        future: Future[Any] = Future(0)
        future.set_running_or_notify_cancel()

        async def ask() -> Any:
            return await future

        waiting = [asyncio.ensure_future(ask()) for _ in range(2)]
        await asyncio.sleep(0)
        elsewhere(lambda: take(future, share("x")))
        return [*await asyncio.gather(*waiting), await future]

    assert asyncio.run(asyncio.wait_for(main(), LIMIT)) == ["x", "x", "x"]


def test_awaiting_raises_the_tasks_own_exception() -> None:
    with pytest.raises(KeyError, match="k"):
        wait_in_loop(settled(failure(KeyError("k"))))


def test_awaiting_a_cancelled_future_raises_what_asyncio_raises() -> None:
    future: Future[Any] = Future(0)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        wait_in_loop(future)


def test_who_stops_awaiting_does_not_cancel_the_task() -> None:
    async def main() -> bool:
        future: Future[Any] = Future(0)

        async def ask() -> Any:
            return await future

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ask(), 0.001)
        return future.cancelled()

    assert asyncio.run(main()) is False


def test_awaiting_a_result_that_cannot_be_unpickled_raises_and_does_not_hang() -> None:
    with pytest.raises(SerializationError, match="cannot be unpickled here: ValueError: invalid literal"):
        wait_in_loop(settled(share(Unreadable())))


def test_a_wrapped_result_that_cannot_be_unpickled_raises_and_does_not_hang() -> None:
    async def main() -> Any:
        return await asyncio.wait_for(asyncio.wrap_future(settled(share(Unreadable()))), LIMIT)

    with pytest.raises(SerializationError):
        asyncio.run(main())


# -------------------------------------------------------------------------------------------------- who asks unpickles


def test_a_result_is_unpickled_by_the_thread_that_asks_for_it() -> None:
    # given
    payload = dumps([Where()])
    future: Future[Any] = Future(0)
    future.set_running_or_notify_cancel()
    heard: list[bool] = []
    future.add_done_callback(lambda done: heard.append(done.done()))
    # when
    driver = elsewhere(lambda: take(future, Share(ResultBatch(payload), 0)))
    assert concurrent.futures.wait([future], LIMIT).done == {future}
    # then
    assert heard == [True]
    assert future.result(0).thread == threading.get_ident() != driver


def test_an_exception_is_rebuilt_by_the_thread_that_asks_for_it() -> None:
    pending = failure(WhereError())
    future: Future[Any] = Future(0)
    future.set_running_or_notify_cancel()
    driver = elsewhere(lambda: future.set_exception(pending))
    error = future.exception(0)
    assert isinstance(error, WhereError)
    assert error.thread == threading.get_ident() != driver


def test_a_batch_is_unpickled_once_whoever_and_however_many_ask() -> None:
    # given
    shared = batch(Where(), Where())
    futures = [settled(Share(shared, offset)) for offset in (0, 1)]
    barrier = threading.Barrier(4)
    found: list[Any] = []

    def ask() -> None:
        barrier.wait(LIMIT)
        found.append([future.result(0) for future in futures])

    # when
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    # then
    assert len({id(value) for values in found for value in values}) == 2
    assert all(values[0] is not values[1] for values in found)
    assert len({value.thread for values in found for value in values}) == 1


class Meeting:
    """Unpickled by two threads at a time, it lets them meet."""

    barrier: threading.Barrier
    met: bool

    def __reduce__(self) -> Any:
        return Meeting._meet, ()

    @staticmethod
    def _meet() -> None:
        try:
            Meeting.barrier.wait(0.02)
        except threading.BrokenBarrierError:
            return
        Meeting.met = True


def test_two_threads_do_not_unpickle_a_batch_at_the_same_time() -> None:
    Meeting.barrier, Meeting.met = threading.Barrier(2), False
    future = settled(share(Meeting()))
    threads = [threading.Thread(target=lambda: future.result(0)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not Meeting.met


def test_each_future_takes_its_own_share() -> None:
    shared = batch("a", "b", "c")
    assert [settled(Share(shared, offset)).result(0) for offset in (2, 0, 1)] == ["c", "a", "b"]


def test_a_task_that_returns_an_exception_has_not_failed() -> None:
    future = settled(share(ValueError("a value")))
    assert future.exception(0) is None
    assert isinstance(future.result(0), ValueError)


@pytest.mark.parametrize("value", [None, False, 0, [], ()])
def test_an_empty_result_is_a_result(value: Any) -> None:
    assert settled(share(value)).result(0) == value


def test_a_result_that_cannot_be_unpickled_says_so_each_time_with_the_cause() -> None:
    future = settled(share(Unreadable()))
    for _ in range(2):
        with pytest.raises(SerializationError, match="a result came back, but cannot be unpickled here") as caught:
            future.result(0)
        assert isinstance(caught.value.__cause__, ValueError)
        assert future.exception(0) is caught.value


def test_the_exception_is_the_tasks_own_the_same_each_time_with_traceback_and_notes() -> None:
    future = settled(failure(KeyError("k"), ("(task 3; on node/0)",)))
    error = future.exception(0)
    with pytest.raises(KeyError) as caught:
        future.result(0)
    assert caught.value is error is future.exception(0)
    shown = [*getattr(error, "__notes__", []), str(error.__cause__)]
    assert any("(task 3; on node/0)" in text for text in shown)
    assert any("(most recent call last)" in text for text in shown)


def test_the_stand_in_for_an_exception_is_in_nobodys_way() -> None:
    future = settled(failure(KeyError("k")))
    with pytest.raises(KeyError) as caught:
        future.result(0)
    assert caught.value.__context__ is None
    assert not isinstance(caught.value.__cause__, PendingFailure)


def test_an_exception_does_not_keep_its_future_alive() -> None:
    future = settled(failure(KeyError("k")))
    with pytest.raises(KeyError) as caught:
        future.result(0)
    gone = weakref.ref(future)
    del future
    gc.collect()
    assert gone() is None
    assert caught.value.args == ("k",)


@pytest.mark.parametrize(
    ("value", "shown", "hidden"),
    [(share(1), "state=finished", "ResultBatch"), (failure(KeyError("k")), "raised KeyError", "PendingFailure")],
)
def test_a_printed_future_shows_nothing_of_how_it_is_made(value: Any, shown: str, hidden: str) -> None:
    text = repr(settled(value))
    assert shown in text
    assert hidden not in text


def test_printing_a_future_unpickles_nothing() -> None:
    assert "finished" in repr(settled(share(Unreadable())))
    assert "pending" in repr(Future(0))


# ------------------------------------------------------------------------------------- many futures that share a lock


def several(count: int) -> tuple[list[Future[Any]], threading.RLock]:
    lock = threading.RLock()
    return [Future(index, None, lock) for index in range(count)], lock


def watch(future: Future[Any]) -> list[Any]:
    """Have something of its own made for a future; return what it is told."""
    told: list[Any] = []
    future.add_done_callback(told.append)
    return told


def test_futures_that_begin_together_run_and_those_that_were_cancelled_are_told() -> None:
    futures, lock = several(4)
    watch(futures[1])
    futures[2].cancel()
    assert begin(futures, lock) == [futures[2]]
    assert [future.running() for future in futures] == [True, True, False, True]
    assert concurrent.futures.wait([futures[2]], LIMIT).done == {futures[2]}


def test_futures_that_run_may_begin_again() -> None:
    futures, lock = several(2)
    watch(futures[1])
    assert begin(futures, lock) == begin(futures, lock) == []
    assert all(future.running() for future in futures)


def test_futures_that_are_settled_together_have_each_its_own_result() -> None:
    # given
    futures, lock = several(3)
    told = watch(futures[1])
    begin(futures, lock)
    # when
    settle([futures[0], None, futures[1], futures[2]], lock, batch("-", "a", "b", "c", "d"), 1, "node/1")
    # then
    assert [future.result(0) for future in futures] == ["a", "c", "d"]
    assert [(future.worker, future.attempts, future.done()) for future in futures] == [("node/1", 1, True)] * 3
    assert told == [futures[1]]


def test_whoever_waits_in_whatever_way_is_woken_when_futures_are_settled_together() -> None:
    # given
    futures, lock = several(200)
    begin(futures, lock)
    found: list[Any] = []
    ways: list[Callable[[], Any]] = [
        lambda: [future.result(LIMIT) for future in futures],
        lambda: [future.exception(LIMIT) for future in reversed(futures)].count(None),
        lambda: len(concurrent.futures.wait(futures, LIMIT).done),
        lambda: len(list(concurrent.futures.as_completed(futures, LIMIT))),
        lambda: len(concurrent.futures.wait(futures, LIMIT, concurrent.futures.FIRST_COMPLETED).done) > 0,
    ]
    threads = [threading.Thread(target=lambda way=way: found.append(way())) for way in ways]
    # when
    for thread in threads:
        thread.start()
    for first in range(0, 200, 10):
        settle(futures[first : first + 10], lock, batch(*range(first, first + 10)), 0, "node/0")
    for thread in threads:
        thread.join(LIMIT)
    # then
    assert all(answer in found for answer in (list(range(200)), 200, True))
    assert found.count(200) == 3


def test_waiting_for_futures_of_two_runs_in_any_order_locks_nobody_out() -> None:
    """`concurrent.futures.wait` holds the conditions of all futures at once: a shared one could not be ordered."""
    one, lock = several(2)
    conditions = [future._condition for future in one]
    with conditions[0]:
        assert elsewhere(lambda: conditions[1].acquire() and conditions[1].release())
    assert lock.acquire(timeout=0)


def test_a_future_that_nobody_watches_makes_nothing_for_it() -> None:
    (future,), lock = several(1)
    begin([future], lock)
    settle([future], lock, batch("x"), 0, "node/0")
    assert (future.done(), future.running(), future.cancelled(), future.result(0)) == (True, False, False, "x")
    assert future._watch is None
    assert vars(future) == {}


# ---------------------------------------------------------------------------------------------------------- cancelling


class Owner:
    """Settles futures in one thread and has their callbacks called later, by `call`."""

    def __init__(self) -> None:
        self.told: list[Future[Any]] = []
        self.calls: list[Callable[[], None]] = []
        self.thread = threading.get_ident()

    def cancelled(self, future: Future[Any]) -> None:
        self.told.append(future)

    def call_elsewhere(self, call: Callable[[], None]) -> bool:
        if threading.get_ident() == self.thread:
            self.calls.append(call)
            return True
        return False


def test_cancelling_tells_the_run_once_which_task() -> None:
    owner = Owner()
    future: Future[Any] = Future(7, owner)
    assert future.cancel()
    assert future.cancel()
    assert owner.told == [future]


def test_a_task_that_was_sent_is_not_cancelled_and_nobody_is_told() -> None:
    owner = Owner()
    future: Future[Any] = Future(7, owner)
    future.set_running_or_notify_cancel()
    assert not future.cancel()
    assert owner.told == []


# ----------------------------------------------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("end", ["result", "exception"])
def test_who_settles_a_future_does_not_call_its_callbacks(end: str) -> None:
    owner = Owner()
    future: Future[Any] = Future(0, owner)
    called: list[Any] = []
    future.add_done_callback(called.append)
    future.set_running_or_notify_cancel()
    if end == "result":
        future.set_result(share(1))
    else:
        future.set_exception(failure(KeyError("k")))
    assert (called, len(owner.calls)) == ([], 1)
    owner.calls[0]()
    assert called == [future]


def test_a_future_without_callbacks_asks_for_no_thread() -> None:
    owner = Owner()
    watched: Future[Any] = Future(0, owner)
    watched.set_running_or_notify_cancel()
    watched.set_result(share(1))
    assert owner.calls == []


def test_who_cancels_calls_the_callbacks_in_the_own_thread() -> None:
    future: Future[Any] = Future(0, Owner())
    called: list[int] = []
    future.add_done_callback(lambda done: called.append(threading.get_ident()))
    assert elsewhere(future.cancel) == called[0]


# ------------------------------------------------------------------------------------------------- what a future knows


def test_a_future_tells_how_long_its_task_took() -> None:
    results = ResultBatch(dumps(["a", "b"]), 0.25)
    future = settled(Share(results, 0))
    assert future.duration == 0.25
    assert future.result(0) == "a"
    assert future.duration == 0.25


@pytest.mark.parametrize("future", [Future(0), settled(failure(KeyError("k"))), settled(share(1))])
def test_where_nobody_knows_how_long_a_task_took_there_is_no_duration(future: Future[Any]) -> None:
    assert future.duration is None


def test_a_result_lives_no_longer_than_its_own_future() -> None:
    shared = batch({"a"}, {"b"})
    futures = [settled(Share(shared, offset)) for offset in (0, 1)]
    first = weakref.ref(futures[0].result(0))
    assert first() == {"a"}
    assert futures[0].result(0) is first()
    del futures[0]
    gc.collect()
    assert first() is None
    assert futures[0].result(0) == {"b"}


def test_a_future_knows_its_task() -> None:
    future: Future[Any] = Future(7)
    assert (future.task_index, future.attempts, future.worker) == (7, 0, None)


def test_what_a_task_printed_is_there_before_and_after_its_result_is_taken() -> None:
    lock = threading.Lock()
    futures: list[Future[Any]] = [Future(at, lock=lock) for at in range(2)]
    assert [future.stdout for future in futures] == ["", ""]
    assert begin(futures, lock) == []
    printed = batch("a", "b")
    printed.outputs = {1: Output("text", "error")}
    settle(futures, lock, printed, 0, "w")
    for _ in range(2):
        assert [(future.stdout, future.stderr) for future in futures] == [("", ""), ("text", "error")]
        assert [future.result() for future in futures] == ["a", "b"]


def test_what_a_task_printed_before_it_failed_is_there() -> None:
    raised = failure(ValueError("no"))
    raised.failure = replace(raised.failure, output=Output("so far"))  # type: ignore[type-var]
    future: Future[Any] = Future(0)
    future.set_running_or_notify_cancel()
    future.set_exception(raised)
    for _ in range(2):
        assert future.stdout == "so far"
        assert isinstance(future.exception(), ValueError)


# ------------------------------------------------------------------------------------- futures that users have ended

ENDINGS: list[Callable[[Future[Any]], object]] = [
    lambda future: future.set_result("theirs"),
    lambda future: future.set_exception(LookupError("theirs")),
    lambda future: future.cancel() and future.set_running_or_notify_cancel(),
]


@pytest.mark.parametrize("end", ENDINGS)
def test_what_a_user_has_ended_does_not_begin_and_the_others_do(end: Callable[[Future[Any]], object]) -> None:
    lock = threading.RLock()
    futures: list[Future[Any]] = [Future(number, None, lock) for number in range(3)]
    end(futures[1])
    assert begin(futures, lock) == [futures[1]]
    assert (futures[0].running(), futures[2].running()) == (True, True)


@pytest.mark.parametrize("end", ENDINGS[:2])
def test_what_a_user_has_ended_stays_as_it_is_and_the_others_are_settled(end: Callable[[Future[Any]], object]) -> None:
    lock = threading.RLock()
    futures: list[Future[Any]] = [Future(number, None, lock) for number in range(3)]
    assert begin(futures, lock) == []
    end(futures[1])
    before = repr(futures[1].exception()), futures[1]._result
    settle(futures, lock, batch("a", "b", "c"), 0, "worker")
    futures[1].put_exception(failure(ValueError()))
    assert [futures[0].result(0), futures[2].result(0)] == ["a", "c"]
    assert (repr(futures[1].exception()), futures[1]._result) == before


def test_who_says_that_a_future_runs_disturbs_nobody() -> None:
    lock = threading.RLock()
    future: Future[Any] = Future(0, None, lock)
    future.set_running_or_notify_cancel()
    assert begin([future], lock) == []
    settle([future], lock, batch("a"), 0, "worker")
    assert future.result(0) == "a"
