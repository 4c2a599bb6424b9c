"""Bodies that go ahead of their outcomes."""

from __future__ import annotations

import struct

import pytest

from gearmap.errors import EnvelopeError
from gearmap.wire.ahead import Ahead, closing_header, is_part, part_header


def test_parts_fill_one_buffer_in_order() -> None:
    body = bytes(range(10))
    ahead = Ahead(part_header(10, 0))
    for start, stop in ((0, 4), (4, 8), (8, 10)):
        ahead.place(part_header(10, start), stop - start)[:] = body[start:stop]
    header, whole = ahead.close(closing_header(10, b"the header"))
    assert (header, bytes(whole)) == (b"the header", body)


@pytest.mark.parametrize(
    ("total", "offset", "n_bytes"),
    [(10, 0, 4), (10, 5, 4), (10, 3, 4), (11, 4, 4), (10, 4, 7), (10, 4, 0), (10, 2**63, 4)],
    ids=["doubled", "a gap", "overlapping", "another length", "too long", "empty", "far away"],
)
def test_a_part_that_does_not_follow_is_refused(total: int, offset: int, n_bytes: int) -> None:
    ahead = Ahead(part_header(10, 0))
    ahead.place(part_header(10, 0), 4)
    with pytest.raises(EnvelopeError, match="after 4 bytes"):
        ahead.place(part_header(total, offset), n_bytes)


@pytest.mark.parametrize("n_bytes", [2**50, 2**63, 2**64 - 1])
def test_more_than_any_memory_is_refused(n_bytes: int) -> None:
    with pytest.raises(EnvelopeError, match="more than fit"):
        Ahead(part_header(n_bytes, 0))


@pytest.mark.parametrize("header", [b"", b"\3", part_header(4, 0)[:-1], part_header(4, 0) + b"x", b"\1" + bytes(16)])
def test_what_is_no_part_is_refused(header: bytes) -> None:
    with pytest.raises(EnvelopeError, match="not that of a part"):
        Ahead(header)


@pytest.mark.parametrize(
    "header",
    [b"{}", b"\1" + bytes(40), b"\4", part_header(4, 0), closing_header(5, b"{}")],
    ids=["json", "results", "cut off", "a part", "another length"],
)
def test_only_the_outcome_that_the_parts_are_of_ends_them(header: bytes) -> None:
    ahead = Ahead(part_header(4, 0))
    ahead.place(part_header(4, 0), 4)
    with pytest.raises(EnvelopeError):
        ahead.close(header)


def test_an_outcome_before_its_last_part_is_refused() -> None:
    ahead = Ahead(part_header(4, 0))
    ahead.place(part_header(4, 0), 3)
    with pytest.raises(EnvelopeError, match="after 3 of 4"):
        ahead.close(closing_header(4, b"{}"))


def test_headers_are_told_apart_by_their_first_byte() -> None:
    assert is_part(part_header(1, 0))
    assert not is_part(closing_header(1, b""))
    assert not is_part(b"{}")
    assert part_header(2, 1) == b"\3" + struct.pack("<QQ", 2, 1)
