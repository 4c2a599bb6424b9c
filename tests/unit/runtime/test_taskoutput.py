"""What stands for `sys.stdout` in a child keeps what is written, with bounds."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.runtime.slate import HEAD_BYTES, SLATE_BYTES, TAIL_BYTES, Slate
from gearmap.runtime.taskoutput import OUTPUT, OutputStream
from gearmap.wire.printed import Printed

KEPT_BYTES = HEAD_BYTES + TAIL_BYTES


def stream(marks: list[str] | None = None, fd: int = 1) -> OutputStream:
    strip = Slate(bytearray(SLATE_BYTES)).strips["stdout"]
    return OutputStream("stdout", fd, strip, [] if marks is None else marks)


def taken(out: OutputStream) -> str:
    return Printed(0, "stdout", *out.take()).text


def test_what_is_printed_is_taken_once() -> None:
    marks: list[str] = []
    out = stream(marks)
    print("a", 1, sep="-", file=out)
    assert marks == [OUTPUT]
    assert taken(out) == "a-1\n"
    assert taken(out) == ""


def test_there_is_one_mark_until_it_is_taken_and_none_for_nothing() -> None:
    marks: list[str] = []
    out = stream(marks)
    out.write("")
    assert marks == []
    print("a", "b", file=out)
    taken(out)
    print("c", file=out)
    assert marks == [OUTPUT] * 2


def test_lines_and_what_was_flushed_survive_the_process() -> None:
    slate = Slate(bytearray(SLATE_BYTES))
    out = OutputStream("stdout", 1, slate.strips["stdout"], [])
    print("one", 1, file=out)
    print("two", end="", file=out)
    assert slate.strips["stdout"].read().data == b"one 1\n"
    out.flush()
    assert slate.strips["stdout"].read().data == b"one 1\ntwo"
    print("x" * 5000, end="", file=out)
    assert len(slate.strips["stdout"].read().data) == 5009
    assert taken(out) == "one 1\ntwo" + "x" * 5000


def test_threads_that_print_at_once_lose_nothing() -> None:
    out = stream()

    def task(name: str) -> None:
        for number in range(300):
            out.write(f"{name}{number}\n")

    threads = [threading.Thread(target=task, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(filter(None, taken(out).split("\n"))) == sorted(f"{name}{n}" for name in "abcd" for n in range(300))


def test_of_too_much_the_beginning_and_the_end_are_kept() -> None:
    out = stream()
    for number in range(200_000):
        print(number, file=out)
    text = taken(out)
    whole = "".join(f"{number}\n" for number in range(200_000))
    assert text.startswith(whole[: KEPT_BYTES // 2])
    assert text.endswith(whole[-KEPT_BYTES // 2 :])
    assert f"\n... {len(whole) - KEPT_BYTES} bytes left out ...\n" in text


def test_memory_is_bounded_while_it_is_written() -> None:
    out = stream()
    out.write("x" * 1_000_000)
    tracemalloc.start()
    try:
        for _ in range(20_000):
            out.write("1234567890" * 10)
        assert tracemalloc.get_traced_memory()[1] < KEPT_BYTES
    finally:
        tracemalloc.stop()


@given(st.lists(st.integers(min_value=0, max_value=3 * KEPT_BYTES), max_size=6))
def test_nothing_is_left_out_uncounted(sizes: list[int]) -> None:
    out = stream()
    for size in sizes:
        out.write("x" * size)
    text = taken(out)
    left_out = re.search(r"\n\.\.\. (\d+) bytes left out \.\.\.\n", text)
    if sum(sizes) <= KEPT_BYTES:
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
    assert taken(out) == "aé日\ufffd!"


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
    assert taken(out) == "still open\nab"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_in_a_forked_copy_it_writes_to_the_descriptor() -> None:
    marks: list[str] = []
    read, write = os.pipe()
    try:
        out = stream(marks, write)
        out.go_direct()
        print("é", "\ud800", file=out)
        assert os.read(read, 100) == "é \\ud800\n".encode()
        assert (marks, taken(out)) == ([], "")
    finally:
        os.close(read)
        os.close(write)


def test_a_bar_that_is_drawn_again_and_again_leaves_its_last_state() -> None:
    out = stream()
    print("before", file=out)
    for percent in range(0, 101, 5):
        out.write(f"\r{percent:3}%|####| {percent}/100")
        out.flush()
    out.write("\n")
    print("after", file=out)
    assert taken(out) == "before\n\r100%|####| 100/100\nafter\n"


def test_what_stood_on_the_line_before_a_bar_stays() -> None:
    out = stream()
    out.write("name: ")
    out.write("\r 5%|")
    assert taken(out) == "name: \r 5%|"


def test_of_bars_below_each_other_only_the_first_is_kept() -> None:
    out = stream()
    for outer in range(3):
        out.write(f"\r{outer}/2 outer")
        out.flush()
        for inner in range(3):
            for text in ("\n", f"\r{inner}/2 inner", "\x1b[A"):
                out.write(text)
                out.flush()
    out.write("\n")
    print("after", file=out)
    assert taken(out) == "\r2/2 outer\nafter\n"


def test_a_bar_that_follows_another_is_no_bar_below_it() -> None:
    out = stream()
    for bar in ("first", "second"):
        for percent in (0, 100):
            out.write(f"\r{percent}% {bar}")
        out.write("\n")
    assert taken(out) == "\r100% first\n\r100% second\n"


def test_the_end_of_a_bar_is_taken_with_it() -> None:
    out = stream()
    out.write("\r100% first")
    out.write("\n")
    assert taken(out) == "\r100% first\n"
    out.write("\r100% second")
    out.write("\n\n")
    out.write("\rand")
    assert taken(out) == "\r100% second\n\n\rand"


@pytest.mark.parametrize("leave", [True, False])
def test_nested_bars_of_tqdm_leave_what_a_terminal_would_show(leave: bool) -> None:
    tqdm = pytest.importorskip("tqdm").tqdm
    out = stream()
    for _ in tqdm(range(2), desc="outer", file=out, mininterval=0):
        for _ in tqdm(range(5), desc="inner", file=out, mininterval=0, leave=leave):
            pass
    lines = [line.rpartition("\r")[2] for line in taken(out).split("\n")]
    inner = ["inner: 100%"] * 2 if leave else []
    assert [line[:11] for line in lines] == [*inner, "outer: 100%", ""]
