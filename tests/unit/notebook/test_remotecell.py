"""A cell of a notebook, run as on a worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from gearmap.notebook.remotecell import CellOutcome, run_cell


@pytest.fixture(autouse=True)
def fresh_namespace() -> Iterator[None]:
    yield
    sys.modules.pop("gearmap_cell", None)


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("", CellOutcome()),
        ("x = 3", CellOutcome()),
        ("x = 3\nx * 2", CellOutcome(result="6")),
        ("None", CellOutcome()),
        ("print('a')\n'b'", CellOutcome(stdout="a\n", result="'b'")),
        ("import sys; print('a', file=sys.stderr)", CellOutcome(stderr="a\n")),
        ("for x in (1, 2):\n    print(x)", CellOutcome(stdout="1\n2\n")),
    ],
)
def test_a_cell_gives_what_it_printed_and_what_its_last_line_is_worth(source: str, outcome: CellOutcome) -> None:
    assert run_cell(source, "<cell>") == outcome


def test_names_are_there_for_the_next_cell() -> None:
    run_cell("def double(x):\n    return 2 * x", "<cell 1>")
    assert run_cell("double(21)", "<cell 2>").result == "42"


def test_an_error_is_told_with_the_lines_of_the_cell_and_none_of_ours() -> None:
    outcome = run_cell("print('before')\ndef f():\n    return 1 / 0\nf()", "<cell>")
    assert outcome.stdout == "before\n"
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert "return 1 / 0" in outcome.traceback
    assert "remotecell" not in outcome.traceback


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("x = (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Odd:\n    def __repr__(self):\n        raise OSError('no')\nOdd()", "OSError: no"),
    ],
)
def test_whatever_a_cell_raises_is_its_outcome(source: str, error: str) -> None:
    assert error in run_cell(source, "<cell>").error


def test_a_long_output_keeps_its_beginning_and_its_end() -> None:
    text = run_cell("print('a' * 10**6 + 'z')", "<cell>").stdout
    assert len(text) < 110_000
    assert text.startswith("aaa")
    assert text.endswith("z\n")
    assert "characters left out" in text
