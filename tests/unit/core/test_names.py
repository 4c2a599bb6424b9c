"""Function names, and what is said when nobody serves one."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearmap.core.names import WIRE_VERSION, Lane, TaskLane, control_name, explain_no_worker, is_task_name, node_ids

KEY, OTHER_KEY = "1f3a77c0", "77c01f3a"
HERE = Lane("gpu", (3, 11), KEY)

queues = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64) | st.just("node")
keys = st.text("0123456789abcdef", min_size=8, max_size=8)
lanes = st.builds(
    Lane,
    queue=queues,
    python=st.tuples(st.integers(3, 9), st.integers(0, 99)),
    key_id=keys,
    level=st.integers(0, 5),
    version=st.integers(1, 12),
)


@given(lanes)
def test_a_lane_reads_back_from_its_name(lane: Lane) -> None:
    assert Lane.parse(lane.name) == lane


@given(lanes, lanes)
def test_different_lanes_have_different_names(one: Lane, other: Lane) -> None:
    assert (one.name == other.name) == (one == other)


@given(lanes)
def test_a_name_fits_into_gearman_and_its_text_protocol(lane: Lane) -> None:
    assert lane.name.isascii()
    assert lane.name.isprintable()
    assert not set(lane.name) & set(" \t,;")
    assert len(lane.name) < 128


@given(st.text() | st.from_regex(r"gearmap\d?\.[a-z]+(~\d)?\.py\d+\.[0-9a-f]*"))
def test_any_text_is_a_lane_or_none(text: str) -> None:
    lane = Lane.parse(text)
    assert lane is None or isinstance(lane, Lane)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "reverse",
        "gearmap1.gpu.py311",
        "gearmap1.gpu.py311.1f3a77c",
        "gearmap1.gpu.py311.1F3A77C0",
        "gearmap1.gpu.py311.1f3a77c0 ",
        "gearmap1.gpu.py311.1f3a77c0\n",
        "xgearmap1.gpu.py311.1f3a77c0",
        "gearmap.gpu.py311.1f3a77c0",
        "gearmap1.g.pu.py311.1f3a77c0",
        "gearmap1.gpu~.py311.1f3a77c0",
        "gearmap1.gpu.py3.1f3a77c0",
        "gearmap1.node.4711-0a1b2c3d.1f3a77c0",
    ],
)
def test_a_name_of_somebody_else_is_no_lane(name: str) -> None:
    assert Lane.parse(name) is None


def test_the_nodes_of_one_key_are_found_by_their_control_names() -> None:
    functions = [
        control_name("a-1", KEY),
        control_name("b-2", OTHER_KEY),
        HERE.name,
        "reverse",
        f"gearmap{WIRE_VERSION}.node..{KEY}",
        control_name("c-3", KEY),
    ]
    assert node_ids(functions, KEY) == ["a-1", "c-3"]
    assert node_ids([], KEY) == []


@given(lanes)
def test_no_lane_is_taken_for_a_node_even_of_a_queue_that_is_called_node(lane: Lane) -> None:
    assert node_ids([lane.name], lane.key_id) == []


# ---------------------------------------------------------------------------------------------------- explain_no_worker

START = "start one: gearmap worker -s head:4730 -q gpu"


def explain(*served: tuple[str, int], lane: Lane = HERE) -> str:
    return explain_no_worker(lane, served, ["head:4730"])


def test_with_no_one_at_all_it_says_what_is_looked_for_and_how_to_start_one() -> None:
    text = explain()
    assert text == f"no worker serves queue 'gpu' for Python 3.11 with your key ({KEY}) on head:4730; {START}"


def test_every_server_is_named_and_stands_in_the_command() -> None:
    text = explain_no_worker(Lane("default", (3, 11), KEY), (), ["a:1", "b:2"])
    assert text.endswith("on a:1, b:2; start one: gearmap worker -s a:1 -s b:2")


def test_the_default_queue_needs_no_option() -> None:
    assert explain(lane=Lane("default", (3, 11), KEY)).endswith("start one: gearmap worker -s head:4730")


def test_workers_of_other_pythons_are_counted_for_each() -> None:
    text = explain(("gearmap1.gpu.py312." + KEY, 12), ("gearmap1.gpu.py310." + KEY, 3))
    assert ": 3 serve it with Python 3.10, 12 serve it with Python 3.12; start one" in text


def test_workers_with_another_key_are_counted_for_each_and_their_key_is_named() -> None:
    text = explain(("gearmap1.gpu.py311." + OTHER_KEY, 2), ("gearmap1.gpu.py312.aaaaaaaa", 1))
    assert f": 2 have another key ({OTHER_KEY}), 1 have another key (aaaaaaaa); start one" in text
    assert "Python 3.12" not in text


def test_other_queues_are_named_if_their_workers_could_run_it() -> None:
    text = explain(
        ("gearmap1.default.py311." + KEY, 8),
        ("gearmap1.big.py311." + KEY, 1),
        ("gearmap1.other.py312." + KEY, 5),
        ("gearmap1.another.py311." + OTHER_KEY, 5),
    )
    assert ": 1 serve 'big', 8 serve 'default'; start one" in text
    assert "other" not in text


@pytest.mark.parametrize(
    "served",
    [
        ("gearmap1.gpu.py312." + KEY, 0),
        ("gearmap1.gpu~1.py311." + KEY, 4),
        ("gearmap1.gpu~1.py312." + KEY, 4),
        ("reverse", 9),
        (control_name("a-1", KEY), 1),
        (HERE.name, 0),
    ],
)
def test_who_could_not_help_is_not_mentioned(served: tuple[str, int]) -> None:
    assert explain(served) == explain()


@given(lanes, st.lists(st.tuples(lanes.map(lambda lane: lane.name) | st.text(), st.integers(0, 50))))
def test_it_is_one_line_that_ends_in_a_command_whatever_is_served(lane: Lane, served: list[tuple[str, int]]) -> None:
    text = explain_no_worker(lane, served, ["head:4730"])
    assert "\n" not in text
    assert "; start one: gearmap worker -s head:4730" in text
    assert lane.key_id in text


# --------------------------------------------------------------------------------------------------------- named tasks

task_names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7D), min_size=1, max_size=200)
task_lanes = st.builds(TaskLane, task=task_names, key_id=keys, level=st.integers(0, 5), version=st.integers(1, 12))


@given(task_lanes)
def test_a_task_lane_reads_back_from_its_name_and_is_no_lane_nor_node(lane: TaskLane) -> None:
    assert TaskLane.parse(lane.name) == lane
    assert Lane.parse(lane.name) is None
    assert node_ids([lane.name], lane.key_id) == []
    assert is_task_name(lane.task)
    assert lane.name.isascii()
    assert not any(each.isspace() for each in lane.name)


@given(lanes)
def test_a_lane_is_no_task_lane(lane: Lane) -> None:
    assert TaskLane.parse(lane.name) is None


@pytest.mark.parametrize("name", ["", " ", "a b", "a~1", "a\n", "a\0", "ä", "x" * 201])
def test_names_that_cannot_travel_are_no_task_names(name: str) -> None:
    assert not is_task_name(name)


def test_a_task_that_nobody_serves_is_told_with_what_is_nearly_so_and_what_has_another_key() -> None:
    served = [
        (TaskLane("shop.send_mail", KEY).name, 2),
        (TaskLane("shop.sendmail", OTHER_KEY).name, 3),
        (TaskLane("shop.sendmails", KEY).name, 0),  # gearmand remembers it; nobody serves it
        (HERE.name, 4),
    ]
    assert explain_no_worker(TaskLane("shop.sendmail", KEY), served, ["head:4730", "other"]) == (
        "no worker serves task 'shop.sendmail' with your key (1f3a77c0) on head:4730, other, 3 have another key "
        "(77c01f3a); did you mean 'shop.send_mail'? start one: gearmap worker -s head:4730 -s other --tasks MODULE"
    )
