"""Source lines of frames that had none where they were."""

from __future__ import annotations

import linecache
import sys
import traceback

import pytest

from gearmap.wire.failure import describe_exception, rebuild_exception
from gearmap.wire.outcome import Outcome, decode_outcome, encode_outcome
from gearmap.wire.sourcelines import FramePlace, places_without_source, with_source_lines

CELL = "<cell 7 of a notebook>"
SOURCE = """\
def outer(x):
    return inner(x)

def inner(x):
    return (x + 1) / (x - 3)

def again(x):
    return again(x + 1)

def chained(x):
    try:
        outer(x)
    except ZeroDivisionError as error:
        raise KeyError("x") from error
"""


@pytest.fixture
def cell():
    """The functions of a cell whose source only linecache knows, and a way to make it known."""
    functions = {}
    exec(compile(SOURCE, CELL, "exec"), functions)
    functions["show"] = lambda: linecache.cache.update({CELL: (len(SOURCE), None, SOURCE.splitlines(True), CELL)})
    yield functions
    linecache.cache.pop(CELL, None)


def caught(fn, *args):
    try:
        fn(*args)
    except Exception as error:
        return error.with_traceback(error.__traceback__.tb_next)


def sent(failure):
    """The failure as it comes out of an outcome."""
    header, body = encode_outcome(Outcome(failures=(failure,)))
    return decode_outcome(header, b"".join(bytes(buffer) for buffer in body)).outcome.failures[0]


def local_text(fn, *args):
    return "".join(traceback.format_exception(caught(fn, *args)))


def test_a_cells_frames_get_their_lines_where_the_traceback_is_shown(cell):
    failure = sent(describe_exception(caught(cell["outer"], 3), 0))
    assert "return inner(x)" not in failure.traceback
    cell["show"]()
    assert failure.readable_traceback() == local_text(cell["outer"], 3)
    assert "    return inner(x)\n" in failure.readable_traceback()


def test_causes_get_their_lines_and_marks_too(cell):
    failure = sent(describe_exception(caught(cell["chained"], 3), 0))
    cell["show"]()
    assert failure.readable_traceback() == local_text(cell["chained"], 3)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no exception groups")
def test_members_of_a_group_get_their_lines_within_its_margin(cell):
    def group():
        raise ExceptionGroup("several", [caught(cell["outer"], 3), ValueError(2)])  # noqa: F821

    failure = sent(describe_exception(caught(group), 0))
    cell["show"]()
    assert "    |     return inner(x)\n" in failure.readable_traceback()
    assert failure.readable_traceback() == local_text(group)


def test_repeated_frames_stay_counted(cell):
    failure = sent(describe_exception(caught(cell["again"], 0), 0))
    cell["show"]()
    text = failure.readable_traceback()
    assert text.count("    return again(x + 1)\n") == 3
    assert "more times]" in text


def test_the_remote_traceback_of_the_exception_has_the_lines(cell):
    failure = sent(describe_exception(caught(cell["outer"], 3), 0))
    cell["show"]()
    error = rebuild_exception(failure)
    assert "return (x + 1) / (x - 3)" in "\n".join([*getattr(error, "__notes__", ()), str(error.__cause__)])


def test_an_unknown_file_stays_a_place_without_a_line(cell):
    failure = sent(describe_exception(caught(cell["outer"], 3), 0))
    assert failure.readable_traceback() == failure.traceback


def test_a_text_that_looks_like_a_frame_opens_no_file(tmp_path):
    secret = tmp_path / "secret.py"
    secret.write_text("the secret\n")
    text = f'ValueError: \n  File "{secret}", line 1, in f\nend\n'
    assert with_source_lines(text) == text


def test_marks_that_do_not_fit_the_source_leave_the_line(cell):
    cell["show"]()
    text = f'  File "{CELL}", line 2, in outer\n'
    assert "return inner(x)" in with_source_lines(text, [FramePlace(CELL, 2, "outer", 2, 900, 950)])


def test_a_line_that_several_calls_share_is_not_marked(cell):
    cell["show"]()
    text = f'  File "{CELL}", line 5, in inner\n'
    places = [FramePlace(CELL, 5, "inner", 5, 12, 17), FramePlace(CELL, 5, "inner", 5, 22, 27)]
    assert with_source_lines(text, places) == text + "    return (x + 1) / (x - 3)\n"


def test_frames_that_have_their_lines_cost_nothing_in_the_outcome():
    error = caught(int, "x") or ValueError()
    assert places_without_source(traceback.extract_tb(error.__traceback__)) == ()
    header, _ = encode_outcome(Outcome(failures=(describe_exception(error, 0),)))
    assert b"places" not in header
