"""What a task displayed, as lines of text beside what it printed.

What must not live here: how it is caught (`runtime.taskdisplay`), and where it is shown (`runtime.retelling`).

Law of the file: one line is one output, a JSON object. Reading is total: a line that is none is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["Bundle", "bundle_line", "read_bundles"]


class Bundle(dict[str, Any]):
    """One output: its forms by their MIME types, of which a front end shows the best; binary ones in base64.

    A cell that ends with one shows it.

    Attributes
    ----------
    metadata
        What a front end should know beyond them.
    """

    def __init__(self, data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__(data)
        self.metadata = dict(metadata or {})

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return dict(self), self.metadata

    @property
    def text(self) -> str:
        """For people who see text only."""
        return str(self.get("text/plain", f"<{', '.join(self)}>"))


def bundle_line(bundle: Bundle) -> bytes:
    r"""Return an output as a line; what is no text or JSON is left out.

    >>> bundle_line(Bundle({"text/plain": "a", "image/png": "Yg==", "x/y": object()}))
    b'{"data":{"text/plain":"a","image/png":"Yg=="},"metadata":{}}\n'
    """
    data = {str(mime): plain for mime, value in bundle.items() if (plain := _plain(value)) is not None}
    metadata = {str(name): plain for name, value in bundle.metadata.items() if (plain := _plain(value)) is not None}
    return json.dumps({"data": data, "metadata": metadata}, separators=(",", ":")).encode() + b"\n"


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except Exception:  # of whatever is in it
        return None


def read_bundles(text: str) -> list[Bundle]:
    """Return what stands in a text of lines.

    >>> read_bundles('{"data": {"text/plain": "a"}}')[0].text
    'a'
    """
    return [bundle for line in text.split("\n") if (bundle := _read_line(line)) is not None]


def _read_line(line: str) -> Bundle | None:
    try:
        value = json.loads(line) if line else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    data, metadata = value.get("data"), value.get("metadata", {})
    return Bundle(data, metadata) if isinstance(data, dict) and isinstance(metadata, dict) and data else None
