"""What stands for `sys.stdout` in a child keeps what is written, with bounds."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.runtime.taskoutput import KEPT_CHARS, OUTPUT, OutputStream


def stream() -> OutputStream:
    return OutputStream("stdout", 1, [])


def test_what_is_printed_is_taken_once() -> None:
    marks: list[str] = []
    out = OutputStream("stdout", 1, marks)
    print("a", 1, sep="-", file=out)
    assert marks == [OUTPUT]
    assert out.take() == "a-1\n"
    assert out.take() == ""


def test_there_is_one_mark_until_it_is_taken_and_none_for_nothing() -> None:
    marks: list[str] = []
    out = OutputStream("stdout", 1, marks)
    out.write("")
    assert marks == []
    print("a", "b", file=out)
    out.take()
    print("c", file=out)
    assert marks == [OUTPUT] * 2


def test_of_too_much_the_beginning_and_the_end_are_kept() -> None:
    out = stream()
    for number in range(200_000):
        print(number, file=out)
    text = out.take()
    whole = "".join(f"{number}\n" for number in range(200_000))
    assert text.startswith(whole[: KEPT_CHARS // 2])
    assert text.endswith(whole[-KEPT_CHARS // 2 :])
    assert f"\n... {len(whole) - KEPT_CHARS} characters left out ...\n" in text


def test_memory_is_bounded_while_it_is_written() -> None:
    out = stream()
    text = "x" * 1_000_000
    for _ in range(100):
        out.write(text)
        assert sum(map(len, out._parts)) + len(out._head) <= 2 * KEPT_CHARS


@given(st.lists(st.integers(min_value=0, max_value=3 * KEPT_CHARS), max_size=6))
def test_nothing_is_left_out_uncounted(sizes: list[int]) -> None:
    out = stream()
    for size in sizes:
        out.write("x" * size)
    text = out.take()
    left_out = re.search(r"\n\.\.\. (\d+) characters left out \.\.\.\n", text)
    if sum(sizes) <= KEPT_CHARS:
        assert text == "x" * sum(sizes)
    else:
        assert left_out is not None
        assert len(text) - len(left_out[0]) + int(left_out[1]) == sum(sizes)


@pytest.mark.parametrize("wrong", [b"bytes", None, 1])
def test_only_text_can_be_written(wrong: Any) -> None:
    with pytest.raises(TypeError):
        stream().write(wrong)


def test_bytes_are_decoded_even_if_a_character_comes_in_two_parts() -> None:
    out = stream()
    for byte in "aé日".encode():
        assert out.buffer.write(bytes([byte])) == 1
    out.buffer.write(memoryview(b"\xff!"))
    assert out.take() == "aé日\ufffd!"


def test_it_passes_for_a_text_file() -> None:
    out: Any = stream()
    out.reconfigure(encoding="latin-1", line_buffering=True)
    out.flush()
    out.close()
    out.buffer.close()
    print("still open", file=out)
    out.writelines(["a", "b"])
    assert isinstance(out, io.TextIOBase)
    assert (out.closed, out.isatty(), out.readable(), out.writable()) == (False, False, False, True)
    assert (out.fileno(), out.buffer.fileno(), out.encoding, out.name) == (1, 1, "utf-8", "<stdout>")
    assert out.take() == "still open\nab"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_in_a_forked_copy_it_writes_to_the_descriptor() -> None:
    marks: list[str] = []
    read, write = os.pipe()
    try:
        out = OutputStream("stdout", write, marks)
        out.go_direct()
        print("é", "\ud800", file=out)
        assert os.read(read, 100) == "é \\ud800\n".encode()
        assert (marks, out.take()) == ([], "")
    finally:
        os.close(read)
        os.close(write)
