"""What the widgets of all cards need: to be shown, and to hear clicks while the cell that shows them is busy."""

from __future__ import annotations

from typing import Any

__all__ = ["route_directly", "widget_view"]


def route_directly(widget: Any) -> None:
    """Have clicks delivered while the cell that shows the widget is busy.

    ipykernel 7.4 sends them to the shell that has published last on the widget's channel, which is the busy one; the
    front end names another. Where there is no such detour there is nothing to do.
    """
    comm = getattr(widget, "comm", None)
    if comm is not None and hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default


def widget_view(widget: Any) -> dict[str, Any]:
    """Return the part of a MIME bundle that shows a widget."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"application/vnd.jupyter.widget-view+json": view}
