"""What a task displays, and the figures that it leaves open, are kept for its outcome.

What must not live here: whose they are (`upkeep`), and where they are shown (`retelling`).

Rule 1: a task that displays nothing pays nothing, and nothing is imported for it. IPython's functions are replaced, and
those of pyplot that make figures watched, when a task itself imports them.
Rule 2: memory is bounded: so many outputs and bytes of a task, and the others are counted.
Rule 3: whatever goes wrong with an output, nothing is raised into the task.
"""

from __future__ import annotations

import base64
import builtins
import functools
import io
import os
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from gearmap.runtime.taskoutput import OUTPUT
from gearmap.wire.shown import Bundle, bundle_line

__all__ = ["TaskDisplay"]

# Of one task. Raised: more of a task that shows much is seen; lowered: smaller outcomes.
MAX_OUTPUTS = 20
MAX_BYTES = 2 * 1024 * 1024

# Backends of matplotlib whose figures nobody sees unless they are saved.
_SILENT_BACKENDS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


class TaskDisplay:
    """Takes what tasks display.

    Parameters
    ----------
    marks
        Gets `OUTPUT` when there is something to collect.
    """

    stream = "shown"

    def __init__(self, marks: list[str]) -> None:
        self._marks = marks
        self._lock = threading.RLock()
        self._lines: list[bytes] = []
        self._ids: dict[str, int] = {}  # where the outputs are that may be changed
        self._n_bytes = 0
        self._n_missing = 0
        self._formatter: Any = None
        self._is_direct = False
        self.has_some = False

    def listen(self) -> None:
        """Begin; once, at the start of the process."""
        if "inline" in os.environ.get("MPLBACKEND", "inline"):  # a notebook's, which is of no use here
            os.environ["MPLBACKEND"] = "agg"
        then = {"IPython.core.display_functions": self._watch_ipython, "matplotlib.pyplot": self._watch_pyplot}
        sys.meta_path.insert(0, _AfterImport(then))  # type: ignore[arg-type]  # finders need no more than find_spec
        vars(builtins).setdefault("display", self._display)  # as IPython does

    def go_direct(self) -> None:
        """From now on this is a forked copy, where nobody collects."""
        self._lock = threading.RLock()
        self._is_direct = True

    def take(self) -> bytes:
        """Return what was displayed since the last call, and the figures that are open; they are closed."""
        self._take_figures()
        with self._lock:
            if self._n_missing:
                more = Bundle({"text/plain": f"... and {self._n_missing} more outputs left out"})
                self._lines.append(bundle_line(more))
            data = b"".join(self._lines)
            self._lines.clear()
            self._ids.clear()
            self._n_bytes = self._n_missing = 0
            self.has_some = False
        return data

    # ----------------------------------------------------------------------------------------------- what tasks call

    def _display(
        self,
        *objects: Any,
        include: Any = None,
        exclude: Any = None,
        metadata: Any = None,
        transient: Any = None,
        display_id: Any = None,
        raw: bool = False,
        clear: bool = False,
        **options: Any,
    ) -> Any:
        """Stands for `IPython.display.display`."""
        if self._is_direct:
            here = sys.stdout
            here.write(" ".join(map(str, objects)) + "\n")  # as without a shell
            return None
        if display_id is True:
            display_id = os.urandom(16).hex()
        told = {**(transient or {}), **({"display_id": display_id} if display_id else {})}
        for each in objects:
            data, about = (each, {}) if raw else self._formatted(each, include, exclude)
            if data:  # else it has displayed itself
                self._publish(data, {**about, **(metadata or {})}, transient=told, **options)
        functions: Any = sys.modules.get("IPython.core.display_functions")
        return functions.DisplayHandle(display_id) if display_id and functions else None

    def _publish(self, data: Any, metadata: Any = None, *, transient: Any = None, **options: Any) -> None:
        """Stands for `IPython.display.publish_display_data`."""
        try:
            line = bundle_line(Bundle({mime: _text(value) for mime, value in dict(data).items()}, metadata))
        except Exception as error:
            line = bundle_line(Bundle({"text/plain": f"<an output that cannot be told: {type(error).__name__}>"}))
        name = str((transient or {}).get("display_id", ""))
        with self._lock:
            if name in self._ids and options.get("update"):
                at = self._ids[name]
                if self._n_bytes - len(self._lines[at]) + len(line) <= MAX_BYTES:
                    self._n_bytes += len(line) - len(self._lines[at])
                    self._lines[at] = line
                return
            self._mark()
            if len(self._lines) >= MAX_OUTPUTS or self._n_bytes + len(line) > MAX_BYTES:
                self._n_missing += 1
                return
            if name:
                self._ids[name] = len(self._lines)
            self._n_bytes += len(line)
            self._lines.append(line)

    def _mark(self) -> None:
        if not self.has_some:
            self.has_some = True
            self._marks.append(OUTPUT)

    def _formatted(self, thing: Any, include: Any, exclude: Any) -> tuple[Any, Any]:
        """Return the forms of an object, as IPython would."""
        try:
            if self._formatter is None:
                from IPython.core.formatters import DisplayFormatter

                made = DisplayFormatter()
                made.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", _png)
                self._formatter = made
            data, about = self._formatter.format(thing, include=include, exclude=exclude)
        except Exception:  # IPython is not here, or the object's own methods raise
            return {"text/plain": repr(thing)}, {}
        return data, about

    # ------------------------------------------------------------------------------------------------------- figures

    def _take_figures(self) -> None:
        pyplot: Any = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or self._is_direct:
            return
        try:
            if pyplot.get_backend().lower() in _SILENT_BACKENDS:
                for number in pyplot.get_fignums():
                    figure = pyplot.figure(number)
                    self._publish({"image/png": _png(figure), "text/plain": repr(figure)})
                pyplot.close("all")
        except Exception as error:
            self._publish({"text/plain": f"<a figure that cannot be drawn: {type(error).__name__}: {error}>"})

    def _watch_ipython(self, module: Any) -> None:
        for name, method in (("display", self._display), ("publish_display_data", self._publish)):
            setattr(module, name, _standing_for(getattr(module, name), method))

    def _watch_pyplot(self, module: Any) -> None:
        make = module.figure

        @functools.wraps(make)
        def figure(*args: Any, **kwargs: Any) -> Any:
            self._mark()
            return make(*args, **kwargs)

        @functools.wraps(module.show)
        def show(*args: Any, **kwargs: Any) -> None:
            if module.get_backend().lower() in _SILENT_BACKENDS and not self._is_direct:
                self._take_figures()  # instead of a warning that there is no window
            else:
                shows(*args, **kwargs)

        shows = module.show
        module.figure, module.show = figure, show


class _AfterImport:
    """Calls a function with a module when that has been imported; stands first in `sys.meta_path`."""

    def __init__(self, then: dict[str, Callable[[Any], None]]) -> None:
        self._then = then

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Answer the import system: what others find, with one thing more to do."""
        then = self._then.get(name)
        if then is None:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                then(module)

            loader.exec_module = exec_module
        return spec


def _standing_for(function: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call


def _text(value: Any) -> Any:
    """Return bytes as front ends expect them, all else as it is."""
    return base64.b64encode(value).decode() if isinstance(value, bytes | bytearray | memoryview) else value


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()
