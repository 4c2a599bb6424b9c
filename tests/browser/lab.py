"""A JupyterLab server of its own, and notebooks in it as a person sees them: in a browser.

What a page does is asked of JupyterLab's own application object and not guessed from its looks: an indicator that says
"idle" is also there before there is a kernel, and a key pressed then is lost.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import nbformat

REPOSITORY = Path(__file__).resolve().parents[2]
SCREENSHOTS = REPOSITORY / "artifacts" / "browser"

# Everything that a test waits for comes within this time, on a machine that is busy with other things too (seconds).
DEADLINE = 60.0

_WIDGET = "window.jupyterapp?.shell?.currentWidget"
_IS_READY = f"""path => {{
    const widget = {_WIDGET}, context = widget?.sessionContext;
    return widget?.context?.path === path && context?.isReady
        && context.session?.kernel?.connectionStatus === 'connected' && context.session.kernel.status === 'idle'
}}"""
_RUN = f"""index => {{
    const notebook = {_WIDGET}.content;
    notebook.activeCellIndex = index;
    notebook.deselectAll();
    notebook.mode = 'command';
    notebook.widgets[index].model.sharedModel.execution_count = null;
    window.jupyterapp.commands.execute('notebook:run-cell');
}}"""
_IS_DONE = f"index => {_WIDGET}.content.widgets[index].model.executionCount !== null"
_OUTPUTS = f"index => {_WIDGET}.content.widgets[index].model.outputs.toJSON()"


class Lab:
    """JupyterLab on a free port of 127.0.0.1, with every folder of its own below `home`."""

    def __init__(self, home: Path) -> None:
        self.root = home / "notebooks"
        self.data = home / "data"
        self._home = home
        self._token = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start the server and wait until it answers."""
        for folder in (self.root, self.data):
            folder.mkdir(parents=True)
        self.set("docmanager-extension/plugin", autosave=False)
        self.set("apputils-extension/notification", fetchNews="false")  # or it asks whether to, above everything
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        options = [
            *("--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
            *(f"--IdentityProvider.token={self._token}", f"--ServerApp.root_dir={self.root}"),
            *("--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
            "--LabApp.expose_app_in_browser=True",
        ]
        with (self._home / "lab.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyter", "lab", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                env=self._environment(),
                start_new_session=True,
            )
        eventually(self._answers, f"JupyterLab answers; see {self._home / 'lab.log'}")

    def _environment(self) -> dict[str, str]:
        folders = {
            "HOME": "home",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }
        own = {name: str(self._home / folder) for name, folder in folders.items()}
        return {**os.environ, **own, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(REPOSITORY)}

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._home / "lab.log").read_text()[-3000:]
        try:
            self.ask("GET", "status")
        except OSError:
            return False
        return True

    def set(self, plugin: str, **values: Any) -> None:
        """Change settings of a plugin of JupyterLab, for pages that are opened from now on."""
        path = self._home / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    def ask(self, method: str, path: str) -> Any:
        """Ask the server's REST interface, and return what its answer means."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}", method=method, headers={"Authorization": f"token {self._token}"}
        )
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def kernel_of(self, path: str) -> str:
        """Return the id of the kernel that a notebook runs in."""
        sessions = [each for each in self.ask("GET", "sessions") if each["path"] == path]
        return str(sessions[0]["kernel"]["id"])

    def address_of(self, path: str) -> str:
        """Return the address of a notebook."""
        return f"{self.url}/doc/tree/{quote(path)}?token={self._token}&reset"

    def end_kernels(self) -> None:
        """End all kernels; each may end what it has started."""
        for session in self.ask("GET", "sessions"):
            self.ask("DELETE", f"sessions/{session['id']}")

    def close(self) -> None:
        """End the server, after its kernels."""
        if self._process is None:
            return
        try:
            self.end_kernels()
        except (OSError, urllib.error.HTTPError):
            pass  # it has died before: the test that noticed says so
        self._process.terminate()
        try:
            self._process.wait(20.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class NotebookPage:
    """A notebook in a page of the browser. Cells are counted from 0, and all of them are code."""

    def __init__(self, lab: Lab, page: Any, path: str) -> None:
        self.lab = lab
        self.page = page
        self.path = path
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.frames: list[bytes] = []  # what the kernel has sent, newest last
        page.on("websocket", self._listen)

    def _listen(self, socket: Any) -> None:
        socket.on(
            "framereceived", lambda frame: self.frames.append(frame if isinstance(frame, bytes) else frame.encode())
        )

    def open(self) -> None:
        """Show it, and wait until its kernel can be used."""
        self.page.goto(self.lab.address_of(self.path), wait_until="domcontentloaded")
        self.page.wait_for_function(_IS_READY, arg=self.path)
        self.panel.locator(".jp-Cell").first.wait_for()

    def start(self, index: int) -> None:
        """Run a cell and do not wait for its end."""
        self.page.evaluate(_RUN, index)

    def wait_done(self, index: int) -> None:
        """Wait until a cell that was started has its number."""
        self.page.wait_for_function(_IS_DONE, arg=index)

    def run(self, *indices: int) -> None:
        """Run cells, one after another."""
        for index in indices:
            self.start(index)
            self.wait_done(index)

    def is_done(self, index: int) -> bool:
        """Whether a cell that was started has its number."""
        return bool(self.page.evaluate(_IS_DONE, index))

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """Return the outputs of a cell as they would be saved."""
        found: list[dict[str, Any]] = self.page.evaluate(_OUTPUTS, index)
        return found

    def text(self, index: int) -> str:
        """Return what a cell printed and what its value is, as text."""
        parts = []
        for output in self.outputs(index):
            value = output.get("text") or output.get("data", {}).get("text/plain") or ""
            parts.append("".join(value))
            parts.append("\n".join(output.get("traceback", [])))
        return re.sub(r"\x1b\[[0-9;]*m", "", "".join(parts))

    def area(self, index: int) -> Any:
        """Return where the outputs of a cell are shown."""
        return self.panel.locator(".jp-Notebook .jp-Cell").nth(index).locator(".jp-Cell-outputArea")

    def interrupt(self) -> None:
        """Interrupt the kernel over REST, as any front end does."""
        self.lab.ask("POST", f"kernels/{self.lab.kernel_of(self.path)}/interrupt")

    def command(self, name: str, **arguments: Any) -> None:
        """Carry out a command of JupyterLab, as its menus do."""
        self.page.evaluate("([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments])

    def saved(self) -> Any:
        """Save the notebook and return it as it is in its file."""
        self.command("docmanager:save")
        return nbformat.read(self.lab.root / self.path, as_version=4)  # type: ignore[no-untyped-call]

    def screenshot(self, name: str) -> Path:
        """Keep a picture of the page among the artifacts."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path


def write_notebook(path: Path, cells: tuple[str, ...], kernel: str = "python3") -> None:
    """Write a notebook of code cells that has not run."""
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, id=f"cell-{n:02d}") for n, source in enumerate(cells)],
        metadata={"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
    )
    nbformat.write(made, path)


def leaves_the_machine(address: str) -> bool:
    """Whether a request to the address would leave this machine."""
    parts = urlsplit(address)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition that nothing can notify of holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE} s: {what}"
        time.sleep(0.02)
