"""What tasks warned of, as lines of text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.wire.notes import MAX_TEXT_CHARS, Logged, Note, Warned, note_line, read_notes

WARNED = Warned("numpy.exceptions:RankWarning", 'é "quoted"\nin lines', "<cell>", 3, "__main__")
LOGGED = Logged("a.b", 30, "message", "a.py", 7, "f", 1.5, "Traceback ...")


@pytest.mark.parametrize("content", [WARNED, LOGGED, None])
def test_a_note_is_one_line_and_comes_back_as_it_was(content: Warned | Logged | None) -> None:
    line = note_line(4, "host/1", content)
    assert line.count(b"\n") == 1
    assert list(read_notes(line.decode())) == [Note(4, "host/1", content)]


def test_what_a_cut_left_of_a_line_is_left_out() -> None:
    whole = note_line(1, "w", WARNED).decode() + note_line(2, "w", WARNED).decode()
    cut = whole[:20] + "\n... 17 bytes left out ...\n" + whole[25:]
    assert [note.number for note in read_notes(cut)] == [2]


@pytest.mark.parametrize(
    "line",
    ["[]", "[1]", '["1","w"]', '[1,"w","what",1]', '[1,"w","warning","a"]', '[1,"w",[],1]', "[1", "[" * 100_000, "{}"],
)
def test_what_is_no_note_is_left_out(line: str) -> None:
    assert list(read_notes(line)) == []


@given(st.text())
def test_reading_never_fails(text: str) -> None:
    list(read_notes(text))
    list(read_notes("[1," + text))


def test_of_a_long_message_beginning_and_end_are_kept() -> None:
    long = Warned("builtins:UserWarning", "a" * 10_000 + "b" * 10_000, "x.py", 1)
    (note,) = read_notes(note_line(1, "w", long).decode())
    assert isinstance(note.content, Warned)
    assert note.content.message[0] == "a"
    assert note.content.message[-1] == "b"
    assert len(note.content.message) < MAX_TEXT_CHARS + 10
