"""A task that says how far it is moves the progress of its run."""

from __future__ import annotations

import os
import time

import pytest
from integration_support import in_background, wait_until

import gearmap
from gearmap import mapping

LIMIT = 60.0

pytestmark = pytest.mark.usefixtures("functions_travel")


class Watcher:
    """A sink that keeps how much of running tasks was told."""

    def __init__(self):
        self.partial = []

    def update(self, snapshot):
        self.partial.append(snapshot.partial)

    def notice(self, text): ...

    def failed(self, row): ...

    def printed(self, task, stream, text): ...

    def finish(self, snapshot, note):
        self.partial.append(snapshot.partial)


@pytest.fixture
def watcher(monkeypatch):
    watcher = Watcher()
    monkeypatch.setattr(mapping, "_sink", lambda *args, **kwargs: watcher)
    return watcher


def wait_for(gate):
    until = time.monotonic() + LIMIT
    while not os.path.exists(gate) and time.monotonic() < until:
        time.sleep(0.01)


def reports(gate):
    gearmap.report_progress(3, 4)
    wait_for(gate)


def draws_a_bar(gate):
    from tqdm.auto import tqdm

    with tqdm(total=8, mininterval=0) as bar:
        bar.update(2)
        wait_for(gate)
        bar.update(6)


@pytest.mark.parametrize(("task", "partial"), [(reports, 0.75), (draws_a_bar, 0.25)])
def test_a_running_task_counts_in_part(cluster, watcher, tmp_path, task, partial):
    gate = tmp_path / "go on"
    result = in_background(lambda: cluster.map(task, [str(gate)]))
    wait_until(lambda: partial in watcher.partial, "its progress is seen")
    gate.touch()
    assert result() == [None]
    assert watcher.partial[-1] == 0.0
    bars = gearmap.last().output(0).stderr.split("\r")
    assert [bar for bar in bars if "%" in bar and "100%" not in bar] == []
