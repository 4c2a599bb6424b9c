"""`%gearmap` and `%%gearmap` in a real IPython shell, on clusters that run."""

from __future__ import annotations

import re

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import gearmap


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))  # it would keep a thread and files
    shell.run_line_magic("load_ext", "gearmap")
    yield shell
    shell.run_line_magic("unload_ext", "gearmap")
    InteractiveShell.clear_instance()


@pytest.fixture(scope="module", params=["gearmand", "embedded"])
def cluster(request):
    with gearmap.LocalCluster(2, server=request.param) as cluster:
        cluster.wait_for_workers(2, timeout=30)
        yield cluster


def test_a_cell_runs_on_every_worker_and_its_output_is_grouped(shell, cluster, capsys):
    shell.run_cell_magic("gearmap", "", "import os\nprint('hello')\n6 * 7")
    shell.run_cell_magic("gearmap", "", "os.getpid()")

    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\[\S+/0, \S+/1\]", printed[0])
    assert printed[1:3] == ["hello", "42"]
    pids = [line for line in printed[3:] if line.isdigit()]
    assert len(set(pids)) == 2


def test_a_cell_may_run_on_one_worker_or_on_one_of_each_node(shell, cluster, capsys):
    shell.run_cell_magic("gearmap", "--one", "import os; print('one', os.getpid())")
    shell.run_cell_magic("gearmap", "--nodes", "import os; print('two', os.getpid())")
    printed = capsys.readouterr().out
    assert len(re.findall(r"^one \d+$", printed, re.MULTILINE)) == 1
    assert len(re.findall(r"^two \d+$", printed, re.MULTILINE)) == 1


def test_a_cell_that_raises_shows_its_lines_and_what_others_did(shell, cluster, capsys):
    with pytest.raises(gearmap.RemoteError, match=r"failed on 2 of 2 workers; first on \S+/\d: ZeroDivisionError"):
        shell.run_cell_magic("gearmap", "", "print('so far')\n1 / 0")
    said = capsys.readouterr()
    assert "so far" in said.out
    assert "1 / 0" in said.err


def test_a_line_shows_the_cluster_connects_and_scales(shell, cluster):
    status = shell.run_line_magic("gearmap", "")
    assert len(status.workers) == 2
    address = str(cluster._backend.addresses[0])
    connected = shell.run_line_magic("gearmap", f"connect {address}")
    try:
        assert connected.servers[0].address == address
        with pytest.raises(gearmap.ConfigurationError, match="only a local cluster can be scaled"):
            shell.run_line_magic("gearmap", "scale 3")
    finally:
        gearmap.current_client().close()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sttus", "invalid choice: 'sttus'"),
        ("connect", "arguments are required"),
        ("scale many", "invalid int value"),
    ],
)
def test_a_wrong_line_is_refused_with_its_usage(shell, line, says):
    with pytest.raises(gearmap.ConfigurationError, match=f"{says}.*usage: %gearmap"):
        shell.run_line_magic("gearmap", line)


def test_a_wrong_option_of_a_cell_is_refused_with_its_usage(shell):
    with pytest.raises(gearmap.ConfigurationError, match=r"usage: %%gearmap \[-q QUEUE\]"):
        shell.run_cell_magic("gearmap", "--all", "1")
