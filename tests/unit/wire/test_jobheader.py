"""Headers of jobs, and what must not pass for one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearmap.errors import EnvelopeError
from gearmap.wire.jobheader import BlockHeader, BlockKind, JobHeader


@st.composite
def blocks(draw):
    size = draw(st.integers(1, 1000))
    edges = sorted(draw(st.sets(st.integers(0, size), max_size=8)))
    run = tuple(zip(edges[::2], edges[1::2], strict=False))
    return BlockHeader(kind=draw(st.sampled_from(BlockKind)), size=size, run=run)


headers = st.builds(
    JobHeader,
    tenant=st.text(min_size=1, max_size=5),
    initializer=st.booleans(),
    max_tasks_per_child=st.none() | st.integers(1, 2**60),
    log_level=st.none() | st.integers(0, 100),
    run=st.text(max_size=20),
    function_digest=st.binary(max_size=16).map(bytes.hex),
    foreground=st.booleans(),
    task_timeout=st.none() | st.floats(0, 1e9),
    retry_exceptions=st.booleans(),
    avoid=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    level=st.integers(0, 3),
    cwd=st.none() | st.text(max_size=20),
    sys_path=st.none() | st.lists(st.text(max_size=5), max_size=3).map(tuple),
    blobs=st.lists(st.tuples(st.text(max_size=5), st.integers(1, 2**60)), max_size=3).map(tuple),
    blob_source=st.text(min_size=1, max_size=5),
    blocks=st.lists(blocks(), max_size=4).map(tuple),
).map(lambda header: header if header.blobs else replace(header, blob_source=""))


@settings(max_examples=150)
@given(headers)
def test_any_header_survives_the_round_trip(header):
    assert JobHeader.decode(header.encode()) == header


def test_paths_that_are_not_unicode_survive():
    header = JobHeader(run="r", function_digest="", cwd="/data/caf\udce9")
    assert JobHeader.decode(header.encode()) == header


def test_the_header_of_a_small_job_is_small():
    whole = BlockHeader(kind=BlockKind.CALLS, size=1, run=((0, 1),))
    header = JobHeader(run="0" * 16, function_digest="0" * 32, blocks=(whole,))
    assert len(header.encode()) < 130


def test_tasks_are_counted_over_all_blocks():
    first = BlockHeader(kind=BlockKind.ROWS, size=10, run=((0, 2), (5, 10)))
    second = BlockHeader(kind=BlockKind.COLUMNS, size=3, run=())
    assert first.n_tasks == 7
    assert JobHeader(run="r", function_digest="", blocks=(first, second, first)).n_tasks == 14


def test_keys_of_a_newer_version_are_ignored():
    values = {**json.loads(JobHeader(run="r", function_digest="ab").encode()), "colour": ["blue"]}
    assert JobHeader.decode(json.dumps(values).encode()).run == "r"


@pytest.mark.parametrize(
    "values",
    [
        {"run": 1},
        {"run": None},
        {"function": "xyz"},
        {"function": 3},
        {"foreground": 1},
        {"task_timeout": "1"},
        {"task_timeout": -1},
        {"task_timeout": True},
        {"task_timeout": None},
        {"task_timeout": 10**400},
        {"retry_exceptions": ["OSError"]},
        {"avoid": "worker"},
        {"avoid": [1]},
        {"level": -1},
        {"level": 1.0},
        {"level": 2**70},
        {"cwd": 1},
        {"sys_path": [None]},
        {"sys_path": {}},
        {"tenant": 1},
        {"tenant": None},
        {"tenant": "t", "initializer": 1},
        {"initializer": True},
        {"initializer": True, "tenant": ""},
        {"log_level": -1},
        {"log_level": "INFO"},
        {"max_tasks_per_child": 0},
        {"max_tasks_per_child": -1},
        {"max_tasks_per_child": 1.5},
        {"max_tasks_per_child": None},
        {"blobs": [["a", 1]]},
        {"blobs": {}, "blob_source": "s"},
        {"blobs": [["a"]], "blob_source": "s"},
        {"blobs": [["a", 0]], "blob_source": "s"},
        {"blobs": [[1, 1]], "blob_source": "s"},
        {"blobs": [["a", 1.5]], "blob_source": "s"},
        {"blobs": [["a", 1]], "blob_source": 1},
        {"blocks": {}},
        {"blocks": [1]},
        {"blocks": [[]]},
        {"blocks": [["rows"]]},
        {"blocks": [["rows", 0]]},
        {"blocks": [["rows", -1]]},
        {"blocks": [["rows", "1"]]},
        {"blocks": [["pages", 1]]},
        {"blocks": [[["rows"], 1]]},
        {"blocks": [["rows", 3, 1]]},
        {"blocks": [["rows", 3, [1]]]},
        {"blocks": [["rows", 3, [[0, 4]]]]},
        {"blocks": [["rows", 3, [[2, 1]]]]},
        {"blocks": [["rows", 3, [[1, 1]]]]},
        {"blocks": [["rows", 3, [[0, 2], [1, 3]]]]},
        {"blocks": [["rows", 3, [[0, 1, 2]]]]},
        {"blocks": [["rows", 3, [[0, True]]]]},
    ],
)
def test_fields_of_the_wrong_type_are_refused(values):
    with pytest.raises(EnvelopeError):
        JobHeader.decode(json.dumps(values).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"null", b"{", b"\xff{}", b'{"level":NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(data):
    with pytest.raises(EnvelopeError, match="header"):
        JobHeader.decode(data)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("run", "function", "foreground", "task_timeout", "avoid", "level", "cwd", "sys_path", "blocks"),
                *("tenant", "initializer", "max_tasks_per_child", "blobs", "blob_source"),
            ]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=6,
        ),
    )
)
def test_any_json_gives_a_header_or_an_envelope_error(values):
    try:
        header = JobHeader.decode(json.dumps(values).encode())
    except EnvelopeError:
        return
    assert JobHeader.decode(header.encode()) == header


def test_who_gives_blobs_is_of_no_interest_without_any() -> None:
    header = JobHeader.decode(b'{"run": "r", "function": "", "blob_source": "gearmap1.blobs.x.y"}')
    assert header == JobHeader(run="r", function_digest="", foreground=False)
    assert JobHeader.decode(header.encode()) == header
