"""From a planned chunk to a sealed job: what its header and its body say."""

from __future__ import annotations

from gearmap.core import events as ev
from gearmap.core.names import Lane
from gearmap.runtime.jobwriter import JobWriter, Place
from gearmap.runtime.placed import GivenBlob, GivenPayload
from gearmap.secret import Secret
from gearmap.wire import seal
from gearmap.wire.jobheader import BlockHeader, BlockKind, JobHeader

DIGEST = b"f" * 16


def writer() -> JobWriter:
    session_id = bytes(16)
    made = JobWriter(
        run_id="run",
        lane=Lane("default", (3, 11), "00000000"),
        session_id=session_id,
        session_key=seal.session_key(Secret(bytes(32)), session_id),
    )
    made.add_function(DIGEST, [b"function"])
    return made


def content(made: JobWriter, *spans: ev.Span) -> tuple[tuple[BlockHeader, ...], list[object]]:
    header, body = made._content(ev.Submit(1, 0, spans))
    return JobHeader.decode(header).blocks, body


def test_parts_of_one_block_carry_its_arguments_once() -> None:
    made = writer()
    block, other = ev.Block(0, 0, 10, DIGEST), ev.Block(1, 10, 4, DIGEST)
    made.add_block(0, BlockKind.COLUMNS, [b"ten"], Place(), DIGEST)
    made.add_block(1, BlockKind.COLUMNS, [b"four"], Place(), DIGEST)
    blocks, body = content(made, ev.Span(block, 0, 2), ev.Span(block, 5, 6), ev.Span(other, 0, 4))
    assert [(each.size, each.run) for each in blocks] == [(10, ((0, 2), (5, 6))), (4, ((0, 4),))]
    assert body == [[b"function"], [b"ten"], [b"four"]]


def test_single_calls_of_one_chunk_are_one_block() -> None:
    made = writer()
    block, other = ev.Block(0, 0, 3, DIGEST), ev.Block(3, 3, 1, DIGEST)
    made.add_block(0, BlockKind.CALLS, [[b"a"], [b"b"], [b"c"]], Place(), DIGEST)
    made.add_block(3, BlockKind.CALLS, [[b"d"]], Place(), DIGEST)
    blocks, body = content(made, ev.Span(block, 0, 1), ev.Span(block, 2, 3), ev.Span(other, 0, 1))
    assert [(each.kind, each.size, each.run) for each in blocks] == [(BlockKind.CALLS, 3, ((0, 3),))]
    assert body == [[b"function"], [b"a"], [b"c"], [b"d"]]


def test_a_function_goes_with_the_last_of_its_blocks_and_comes_back_with_the_next() -> None:
    made = writer()
    blocks = [ev.Block(number, number, 1, DIGEST) for number in range(3)]
    for number in (0, 1):
        made.add_block(number, BlockKind.COLUMNS, [b"one"], Place(), DIGEST)
    for number in (0, 0, 7):
        made.drop_block(number)
    assert content(made, ev.Span(blocks[1], 0, 1))[1] == [[b"function"], [b"one"]]

    made.drop_block(1)
    assert not made._functions

    made.add_function(DIGEST, [b"again"])
    made.add_block(2, BlockKind.COLUMNS, [b"two"], Place(), DIGEST)
    assert content(made, ev.Span(blocks[2], 0, 1))[1] == [[b"again"], [b"two"]]


def test_a_header_names_the_blobs_of_all_that_travels_once() -> None:
    made = writer()
    shared, other = GivenBlob(memoryview(bytes(3)), "aa", "source"), GivenBlob(memoryview(bytes(4)), "bb", "source")
    made.add_function(b"g" * 16, GivenPayload([b"function"], [shared], None, []))
    made.add_block(0, BlockKind.COLUMNS, GivenPayload([b"two"], [shared, other], None, []), Place(), b"g" * 16)
    header, body = made._content(ev.Submit(1, 0, (ev.Span(ev.Block(0, 0, 2, b"g" * 16), 0, 2),)))
    read = JobHeader.decode(header)
    assert (read.blobs, read.blob_source) == ((("aa", 3), ("bb", 4)), "source")
    assert body == [[b"function"], [b"two"]]
