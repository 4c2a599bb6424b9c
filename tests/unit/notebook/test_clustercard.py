"""The card of a cluster: what messages of the front end do, and what it leaves. The front end is a fake one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from gearmap.client import LocalCluster
from gearmap.notebook.clustercard import BusyKernel, ClusterCard


class Widget:
    model_id = "model"

    def __init__(self, **traits: Any) -> None:
        self.__dict__.update(traits)
        self.handler: Any = None

    def on_msg(self, handler: Any) -> None:
        self.handler = handler


class Handle:
    def __init__(self) -> None:
        self.bundles: list[dict[str, Any]] = []

    def display(self, bundle: dict[str, Any], *, raw: bool, display_id: bool) -> Handle:
        self.update(bundle, raw=raw)
        return self

    def update(self, bundle: dict[str, Any], *, raw: bool) -> None:
        assert raw
        self.bundles.append(bundle)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(0) as cluster:
        yield cluster


@pytest.fixture
def card(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> ClusterCard:
    card = ClusterCard(cluster, Widget, lambda: False)
    monkeypatch.setattr(card, "_look", lambda: None)  # no thread: the tests take its steps
    return card


def test_a_cell_gets_the_card_and_a_table_below_it(card: ClusterCard) -> None:
    handle = Handle()
    card.show(handle.display)
    (bundle,) = handle.bundles
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == "model"
    assert "as of" in bundle["text/html"]
    assert card.widget.state["line"] == "not started yet"


def test_when_the_cluster_is_closed_only_the_table_is_left(card: ClusterCard, cluster: LocalCluster) -> None:
    handles = Handle(), Handle()
    for handle in handles:
        card.show(handle.display)
    assert card._step() is False
    cluster.close()
    assert card._step() is True
    for handle in handles:
        assert list(handle.bundles[-1]) == ["text/plain", "text/html"]
        assert "(closed)" in handle.bundles[-1]["text/html"]


@pytest.mark.parametrize(
    "content", [None, 7, {}, {"op": "scale"}, {"op": "scale", "workers": 0}, {"op": "scale", "workers": True}]
)
def test_odd_messages_do_nothing(card: ClusterCard, content: Any) -> None:
    card.widget.handler(card.widget, content, [])
    assert card._wanted is None


def test_what_scaling_refuses_is_shown(card: ClusterCard) -> None:
    card.show(Handle().display)
    card.widget.handler(card.widget, {"op": "scale", "workers": 2}, [])
    card._step()
    assert "runs tasks in this process" in card.widget.state["note"]


def test_a_kernel_is_busy_until_its_loop_answers() -> None:
    async def ask() -> list[bool]:
        is_busy = BusyKernel()
        first = is_busy()
        blocked = is_busy()
        await asyncio.sleep(0)
        return [first, blocked, is_busy(), is_busy()]

    assert asyncio.run(ask()) == [True, True, False, True]
    assert BusyKernel()() is False  # no loop to ask
