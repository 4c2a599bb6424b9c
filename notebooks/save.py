"""Run the notebooks of this folder and save them as they ran: `make notebooks`, or this file with paths.

Saved again without a change they stay the same, byte for byte: when and where they ran is left out, and outputs are not
exchanged that differ from the saved ones in numbers alone, such as seconds, or in whether a run was long enough to show
a card. They run in an empty folder.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent

# Seconds for a cell. Lower, and a busy machine ends a healthy notebook; higher, and one that hangs is noticed later.
CELL_TIMEOUT = 90

_NUMBER = re.compile(r"\d+(?:[.:]\d+)*")
_BAR = re.compile(r"\|[█▉▊▋▌▍▎▏ ]*\|")


def main(words: list[str]) -> None:
    """Save the notebooks that are named, or all."""
    for path in [Path(word) for word in words] or sorted(FOLDER.glob("*.ipynb")):
        before = nbformat.read(path, as_version=4)
        after = execute(path)
        for old, new in zip(before.cells, after.cells, strict=True):
            clean(old, new)
        after.metadata = before.metadata
        text = nbformat.writes(after) + "\n"
        is_changed = text != path.read_text(encoding="utf-8")
        if is_changed:
            path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {'saved' if is_changed else 'unchanged'}")


def execute(path: Path) -> Any:
    """Return the notebook as it is after a run in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = str(Path(folder) / ".ipython")
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources=resources).execute()
    return notebook


def clean(old: Any, new: Any) -> None:
    """Take out of a cell that has run what another run would give otherwise."""
    new.metadata.pop("execution", None)
    if new.cell_type != "code":
        return
    new.outputs = join_streams(new.outputs)
    if _shape(old.get("outputs", [])) == _shape(new.outputs):
        new.outputs = old.outputs


def join_streams(outputs: Any) -> list[Any]:
    """Return the outputs with what was printed in pieces in one, and of a progress bar only its last state."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return joined


def _shape(outputs: Any) -> str:
    """Return the outputs as text without numbers, and without cards of runs, which appear after half a second only."""
    texts = [{**output, "execution_count": None} for output in outputs if not _is_card(output)]
    return _NUMBER.sub("0", _BAR.sub("||", json.dumps(texts, sort_keys=True)))


def _is_card(output: Any) -> bool:
    return str(output.get("data", {}).get("text/plain", "")).startswith("gearmap ")


if __name__ == "__main__":
    main(sys.argv[1:])
