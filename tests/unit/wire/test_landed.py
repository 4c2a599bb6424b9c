"""Payloads some of whose buffers come another way: names are read as they were written, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.errors import EnvelopeError
from gearmap.wire.landed import LANDED_MARK, NAME_BYTES, Landed, read_landed, with_landed
from gearmap.wire.serializer import dumps

NAMES = st.binary(min_size=NAME_BYTES, max_size=NAME_BYTES)


@given(st.lists(st.binary(min_size=1), min_size=1, max_size=8), st.data())
def test_what_is_named_is_read_and_the_rest_keeps_its_order(payload, data):
    places = data.draw(st.sets(st.integers(0, len(payload) - 1), min_size=1))
    landed = {at: Landed(data.draw(NAMES), len(payload[at])) for at in places}
    sent = with_landed(payload, landed)
    assert read_landed(sent) == landed
    assert sent[1:] == [buffer for at, buffer in enumerate(payload) if at not in places]


@given(st.binary(), st.integers(0, 4))
def test_any_table_is_read_or_refused(table, n_buffers):
    try:
        landed = read_landed([LANDED_MARK + table, *[b"x"] * n_buffers])
    except EnvelopeError:
        return
    assert landed
    assert max(landed) < len(landed) + n_buffers


def test_a_pickle_is_no_table():
    assert read_landed(dumps([1, 2])) is None
    assert read_landed([]) is None


@pytest.mark.parametrize(
    "landed",
    [{5: Landed(bytes(NAME_BYTES), 1)}, {0: Landed(bytes(NAME_BYTES), 0)}],
    ids=["a place that is not there", "nothing"],
)
def test_impossible_buffers_are_refused(landed):
    with pytest.raises(EnvelopeError):
        read_landed(with_landed([b"a", b"b"], landed))


def test_a_buffer_that_is_named_twice_is_refused():
    table, *rest = with_landed([b"a", b"b"], {1: Landed(bytes(NAME_BYTES), 1)})
    with pytest.raises(EnvelopeError):
        read_landed([table + table[1:], *rest])
