"""What is said of a function that is large, and what is refused."""

from __future__ import annotations

import functools

import pytest

from gearmap.errors import SerializationError
from gearmap.runtime import travelling
from gearmap.runtime.placed import PlacedPayload
from gearmap.runtime.sharing import share
from gearmap.runtime.travelling import MAX_JOB_BYTES, check_job, heavy_notice
from gearmap.wire.serializer import dumps

TEXT = "0123456789" * 10


@pytest.fixture(autouse=True)
def _few_bytes_are_many(monkeypatch):
    monkeypatch.setattr(travelling, "HEAVY_BYTES", 200_000)


@pytest.fixture
def table():
    return [{number: TEXT + str(number)} for number in range(5000)]


def notice_of(fn):
    return heavy_notice(fn, dumps(fn))


def test_the_variable_that_makes_a_function_large_is_named_with_its_size(table):
    def look(number):
        return table[number]

    said = notice_of(look)
    assert said == "look captures 'table' (list, 1 MB pickled): it travels with every job; load it where tasks run"


def test_nothing_is_said_of_what_is_small_or_shared(table):
    shared = share(table)
    assert notice_of(lambda number: number) is None
    # As where it is kept elsewhere: only what travels counts.
    fn = lambda number: shared[number]  # noqa: E731
    assert heavy_notice(fn, dumps(fn)[:1]) is None


def test_what_a_function_within_captures_is_found(table):
    def inner(number):
        return table[number]

    def outer(number):
        return inner(number)

    assert "captures 'table' (list" in notice_of(outer)
    assert "captures 'table' (list" in notice_of(functools.partial(outer, 1)).replace("partial", "outer")
    assert "captures 'more' (list" in notice_of(functools.partial(len, more=table))


def test_a_method_is_large_by_its_object(table):
    class Model:
        def __init__(self):
            self.table = table

        def look(self, number):
            return self.table[number]

    assert notice_of(Model().look).startswith("look is a method of a large object (Model, 1 MB pickled)")


def test_many_small_things_are_not_blamed_on_one():
    scope = {f"v{number}": [TEXT + str(number) + str(at) for at in range(400)] for number in range(20)}
    exec(f"def fn(): return [{', '.join(scope)}]", scope)
    assert notice_of(scope["fn"]).startswith("fn is 1 MB pickled and travels with every job")


def test_what_no_job_server_takes_is_refused_before_it_is_sent():
    half = memoryview(bytearray(2**20)).cast("B")
    many = [half] * (MAX_JOB_BYTES // 2**20)
    check_job([b"f"], many[:-1], "the arguments")
    with pytest.raises(SerializationError, match=r"cannot send the arguments: 2\.0 GB with the function"):
        check_job([b"f" * 2**20], many, "the arguments")


def test_what_does_not_travel_is_no_reason_to_refuse():
    class Placed(PlacedPayload):
        shared_bytes = 10 * MAX_JOB_BYTES

    check_job([b"f"], Placed([b"stream"]), "the arguments")
