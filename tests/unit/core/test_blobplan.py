from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gearmap.core.blobplan import AskPiece, BlobPlan, Forget, Ready, Unavailable


def make_plan(limit_bytes=100, **options):
    return BlobPlan(limit_bytes, **{"piece_bytes": 10, "window": 2, "patience": 15.0, **options})


def fetch(plan, instructions, now=0.0):
    """Answer every question until there are no more; return the other instructions, in order."""
    others = []
    pending = list(instructions)
    while pending:
        each = pending.pop(0)
        if isinstance(each, AskPiece):
            pending += plan.arrived(each.blob, each.offset, now)
        else:
            others.append(each)
    return others


def test_a_blob_is_asked_for_in_pieces_of_which_few_are_under_way():
    plan = make_plan()
    assert plan.want("job", [("a", 25)], 0.0) == [AskPiece("a", 0, 10), AskPiece("a", 10, 10)]
    assert plan.arrived("a", 10, 0.0) == [AskPiece("a", 20, 5)]
    assert plan.arrived("a", 20, 0.0) == []
    assert plan.arrived("a", 0, 0.0) == [Ready("job")]


def test_what_is_here_is_not_asked_for_again():
    plan = make_plan()
    fetch(plan, plan.want("first", [("a", 25)], 0.0))
    assert plan.want("second", [("a", 25)], 1.0) == [Ready("second")]


def test_two_jobs_that_need_the_same_blob_fetch_it_once():
    plan = make_plan()
    asked = plan.want("first", [("a", 25)], 0.0)
    assert plan.want("second", [("a", 25)], 0.0) == []
    assert fetch(plan, asked) == [Ready("first"), Ready("second")]


def test_a_job_waits_for_all_of_its_blobs():
    plan = make_plan()
    asked = plan.want("job", [("a", 10), ("b", 10)], 0.0)
    assert asked == [AskPiece("a", 0, 10), AskPiece("b", 0, 10)]
    assert plan.arrived("b", 0, 0.0) == []
    assert plan.arrived("a", 0, 0.0) == [Ready("job")]


def test_a_large_transfer_does_not_stand_before_a_small_one():
    plan = make_plan(1000)
    plan.want("large", [("a", 500)], 0.0)
    asked = plan.want("small", [("b", 10)], 0.0)
    assert fetch(plan, asked) == [Ready("small")]


def test_the_least_recently_used_goes_when_there_is_too_much():
    plan = make_plan(60)
    for job, blob in enumerate("abc"):
        fetch(plan, plan.want(job, [(blob, 20)], 0.0))
        plan.release(job)
    plan.want("again", [("a", 20)], 0.0)
    plan.release("again")
    assert Forget("b") in plan.want("more", [("d", 20)], 0.0)
    assert plan.has("a")


def test_what_a_job_needs_stays_though_it_is_more_than_the_limit():
    plan = make_plan(10)
    fetch(plan, plan.want("one", [("a", 20)], 0.0))
    fetch(plan, plan.want("two", [("b", 20)], 0.0))
    assert plan.has("a")
    assert plan.has("b")
    assert plan.release("one") == [Forget("a")]
    assert plan.has("b")


def test_a_transfer_that_brings_nothing_is_given_up_in_time():
    plan = make_plan()
    plan.want("job", [("a", 30)], 0.0)
    plan.arrived("a", 0, 10.0)
    assert plan.deadline == 25.0
    assert plan.tick(24.9) == []
    assert plan.tick(25.0) == [Forget("a"), Unavailable("job", "the client sent nothing of it for 15 s")]
    assert plan.deadline is None


def test_what_cannot_be_had_is_told_to_all_who_wait_and_can_be_asked_for_again():
    plan = make_plan()
    plan.want("one", [("a", 10), ("b", 10)], 0.0)
    plan.want("two", [("a", 10)], 0.0)
    told = plan.failed("a", "gone")
    assert told == [Forget("a"), Forget("b"), Unavailable("one", "gone"), Unavailable("two", "gone")]
    assert plan.want("three", [("a", 10)], 1.0) == [AskPiece("a", 0, 10)]


def test_a_transfer_ends_with_the_last_who_waits_for_it():
    plan = make_plan()
    plan.want("one", [("a", 30)], 0.0)
    plan.want("two", [("a", 30)], 0.0)
    assert plan.release("one") == []
    assert plan.release("two") == [Forget("a")]
    assert plan.arrived("a", 0, 0.0) == []


def test_pieces_that_nobody_asked_for_are_no_news():
    plan = make_plan()
    plan.want("job", [("a", 30)], 0.0)
    assert plan.arrived("a", 20, 0.0) == []
    assert plan.arrived("z", 0, 0.0) == []
    assert plan.failed("z", "gone") == []


def test_of_many_small_blobs_the_least_recently_used_go_too_but_none_that_a_job_needs():
    plan = make_plan(1000, limit_blobs=2)
    for number in range(3):
        out = fetch(plan, plan.want(f"job {number}", [(f"blob {number}", 10)], 0.0))
        assert out == [Ready(f"job {number}")]
    assert plan.release("job 1") == [Forget("blob 1")]
    assert plan.release("job 0") == []
    assert plan.want("again", [("blob 0", 10)], 0.0) == [Ready("again")]
    assert fetch(plan, plan.want("job 3", [("blob 3", 10)], 0.0)) == [Ready("job 3")]
    assert plan.release("job 2") == [Forget("blob 2")]


def test_while_a_source_gives_one_blob_those_that_wait_for_their_turn_have_not_stalled():
    plan = make_plan()
    plan.want("job", [(("one", "a"), 100), (("one", "b"), 10)], 0.0)
    before = plan.deadline
    plan.arrived(("one", "a"), 0, 10.0)
    assert before is not None
    assert plan.deadline == before + 10.0


def test_what_a_client_gave_goes_with_it_unless_a_job_needs_it():
    plan = make_plan()
    for job, blob in enumerate([("one", "a"), ("one", "b"), ("two", "c")]):
        fetch(plan, plan.want(job, [(blob, 20)], 0.0))
    plan.release(0)
    plan.release(2)
    assert plan.source_gone("one") == [Forget(("one", "a"))]
    assert plan.has(("one", "b"))
    assert plan.has(("two", "c"))


steps = st.lists(
    st.tuples(
        st.sampled_from(["want", "piece", "release", "fail", "tick"]), st.integers(0, 5), st.sets(st.integers(0, 4))
    ),
    max_size=60,
)


@settings(deadline=None)
@given(steps, st.integers(0, 60))
def test_whatever_happens_each_waiter_gets_one_answer_and_keeps_what_it_has(script, limit_bytes):
    plan = make_plan(limit_bytes)
    now = 0.0
    open_pieces = []
    waiting, ready, needs = set(), set(), {}

    def obey(instructions):
        for each in instructions:
            match each:
                case AskPiece():
                    open_pieces.append((each.blob, each.offset))
                case Ready(waiter):
                    assert waiter in waiting
                    waiting.discard(waiter)
                    ready.add(waiter)
                case Unavailable(waiter):
                    assert waiter in waiting
                    waiting.discard(waiter)
                case Forget(blob):
                    open_pieces[:] = [piece for piece in open_pieces if piece[0] != blob]
                    assert not any(blob in needs[waiter] for waiter in ready)

    for number, (step, chosen, blobs) in enumerate(script):
        now += 1.0
        if step == "want":
            waiting.add(number)
            needs[number] = blobs
            obey(plan.want(number, [(blob, 7 + 9 * blob) for blob in sorted(blobs)], now))
        elif step == "piece" and open_pieces:
            obey(plan.arrived(*open_pieces.pop(chosen % len(open_pieces)), now))
        elif step == "release" and (waiting or ready):
            waiter = sorted(waiting | ready)[chosen % len(waiting | ready)]
            waiting.discard(waiter)
            ready.discard(waiter)
            obey(plan.release(waiter))
        elif step == "fail":
            waiting_for = {waiter for waiter in waiting if chosen in needs[waiter]}
            if not plan.has(chosen):
                obey(plan.failed(chosen, "gone"))
                assert not waiting_for & waiting
        elif step == "tick":
            now += 20.0 * (chosen == 0)
            obey(plan.tick(now))
        for waiter in ready:
            assert all(plan.has(blob) for blob in needs[waiter])
        if not waiting and not ready:
            assert plan.total_bytes <= limit_bytes
    while open_pieces:
        obey(plan.arrived(*open_pieces.pop(0), now))
    assert not waiting
