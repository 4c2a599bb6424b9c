"""JupyterLab, a browser, and a cluster that the tests can look at from outside.

The server lives as long as the tests of this folder. The browser lives for one file of tests, because Playwright keeps
an event loop running in the thread that has started it, and other tests want to run their own.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Any

import pytest
from lab import DEADLINE, Lab, NotebookPage, eventually, leaves_the_machine, write_notebook
from programs import missing

import gearmap
from gearmap.jobserver.process import start_job_server
from gearmap.keyfile import make_key

CHROMIUM_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running JupyterLab."""
    if find_spec("jupyterlab") is None:
        missing("jupyterlab")
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser without a window."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing("chromium")
    if find_spec("playwright") is None:
        missing("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"),
            executable_path=chromium,
            headless=True,
            args=CHROMIUM_OPTIONS,
            viewport={"width": 1200, "height": 900},
        )
        context.set_default_timeout(1000 * DEADLINE)
        yield context
        context.close()


@pytest.fixture
def open_notebook(lab: Lab, browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., NotebookPage]]:
    """A function that opens a notebook of the given cells, or a file of the lab. No request may leave the machine."""
    asked: list[str] = []
    pages: list[Any] = []

    def open_cells(*cells: str, path: str | None = None, kernel: str = "python3") -> NotebookPage:
        if path is None:
            path = f"{request.node.originalname}-{len(pages)}.ipynb"
            write_notebook(lab.root / path, cells, kernel)
        page = browser.new_page()
        pages.append(page)
        page.on("request", lambda each: asked.append(each.url))
        page.on("websocket", lambda each: asked.append(each.url))
        notebook = NotebookPage(lab, page, path)
        notebook.open()
        return notebook

    yield open_cells
    for page in pages:
        page.close()
    lab.end_kernels()
    assert asked
    assert [each for each in asked if leaves_the_machine(each)] == []


class Cluster:
    """A cluster that outlives the kernels of tests, and a client of the tests' own to look at it."""

    def __init__(self, client: gearmap.Client, address: str, key_file: Path) -> None:
        self.client = client
        self.connect = f"import gearmap\nclient = gearmap.connect({address!r}, key={str(key_file)!r})"

    def jobs(self) -> tuple[int, int]:
        """Return how many jobs run, and how many wait, as the job server counts them."""
        queues = self.client.status().queues
        return sum(each.running for each in queues), sum(each.queued for each in queues)

    def wait_until_busy(self) -> None:
        """Wait until both workers have a job, and one has been finished meanwhile."""
        before = self._finished()
        eventually(lambda: self._finished() > before and self.jobs()[0] == 2, "two jobs run")

    def wait_until_idle(self) -> None:
        """Wait until the job server has no job."""
        eventually(lambda: self.jobs() == (0, 0), "nothing runs, nothing waits")

    def _finished(self) -> int:
        return sum(worker.jobs_done for worker in self.client.status().workers)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A job server, and a node with two workers."""
    key_file = tmp_path_factory.mktemp("key") / "cluster.key"
    make_key(key_file)
    with start_job_server("embedded") as server:
        address = f"{server.host}:{server.port}"
        words = ("worker", "-s", address, "--key", str(key_file), "-w", "2", "--name", "browser")
        node = Popen([sys.executable, "-m", "gearmap", *words], stdin=DEVNULL, stdout=DEVNULL, start_new_session=True)
        try:
            with gearmap.Client(address, key=key_file) as client:
                client.wait_for_workers(2, timeout=DEADLINE)
                yield Cluster(client, address, key_file)
        finally:
            node.terminate()
            try:
                node.wait(20.0)
            except TimeoutExpired:
                node.kill()
                node.wait()
