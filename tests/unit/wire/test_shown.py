"""What tasks displayed, as lines of text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.wire.printed import Output
from gearmap.wire.shown import Bundle, bundle_line, read_bundles


def test_an_output_comes_back_with_all_that_can_travel() -> None:
    data = {"text/plain": "a\nb é", "image/png": "AP8=", "application/json": {"x": [1]}, "x/odd": {1, 2}}
    line = bundle_line(Bundle(data, {"image/png": {"width": 3}, "odd": math.nan}))
    assert line.count(b"\n") == 1
    (bundle,) = Output(shown=line.decode()).outputs
    assert bundle == {"text/plain": "a\nb é", "image/png": "AP8=", "application/json": {"x": [1]}}
    assert bundle.metadata == {"image/png": {"width": 3}}
    assert bundle._repr_mimebundle_() == (dict(bundle), bundle.metadata)


def test_an_output_without_text_is_named_by_what_it_is() -> None:
    assert Bundle({"image/png": "AP8="}).text == "<image/png>"


@pytest.mark.parametrize(
    "line", ["", "[]", "1", "{}", '{"data": []}', '{"data": {}}', '{"data": {"a": 1}, "metadata": 1}']
)
def test_what_is_no_output_is_left_out(line: str) -> None:
    assert read_bundles(line) == []


@given(st.text())
def test_reading_never_fails(text: str) -> None:
    read_bundles(text)
