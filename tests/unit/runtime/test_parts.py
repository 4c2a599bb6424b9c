"""Several buffers as one body."""

from __future__ import annotations

from array import array

import pytest

from gearmap.runtime.parts import Parts


@pytest.mark.parametrize(
    "buffers",
    [[], [b""], [b"abc"], [b"ab", bytearray(b"cde"), memoryview(b"f")], [memoryview(b"abcdef")[1:3], b"x"]],
)
def test_a_body_has_the_length_and_the_bytes_of_its_parts(buffers: list[bytes]) -> None:
    body = Parts(buffers)
    assert len(body) == len(b"".join(buffers))
    assert b"".join(body) == b"".join(buffers)


def test_nothing_is_copied() -> None:
    buffer = bytearray(b"before")
    (part,) = Parts([buffer])
    assert part is buffer


def test_an_empty_body_is_one() -> None:
    assert (len(Parts([])), list(Parts([]))) == (0, [])


def test_the_length_is_in_bytes_whatever_a_view_counts() -> None:
    view = memoryview(array("q", [1, 2, 3]))
    assert len(Parts([view])) == view.nbytes
