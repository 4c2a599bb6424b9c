"""The named tasks of this process: which function runs under which name.

What must not live here: how they are called (`gearmap.named`), and Gearman's names for them (`core.names`).

Rule 1: a name means one function. The module that defines it may be loaded anew; another function is an error.
Rule 2: what travels of a named task is its name and its module, never its code: whoever runs it has it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from gearmap.config import check_queue
from gearmap.core.names import is_task_name
from gearmap.errors import ConfigurationError
from gearmap.wire.framing import Payload
from gearmap.wire.functions import digest_payload
from gearmap.wire.serializer import Elsewhere, dumps

__all__ = [
    "DEFAULT_MODULE",
    "TaskRecord",
    "find_callable",
    "find_function",
    "record_of",
    "reference_to",
    "register",
    "tasks_of",
]

DEFAULT_MODULE = "gearman_jobs"
"""The module of an application that tasks are usually in; their names do not show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One named task.

    Attributes
    ----------
    name
        What it is called, on the wire as well.
    function
        What runs.
    callable
        What its module has under the function's name: the function with its ways to be called elsewhere.
    queue
        The queue whose workers serve it, or None for the default one.
    """

    name: str
    function: Callable[..., Any] = field(repr=False)
    callable: Any = field(repr=False)
    queue: str | None = None

    @property
    def module(self) -> str:
        """Where it is defined."""
        return str(self.function.__module__)

    @property
    def place(self) -> str:
        """Where it is defined, for people."""
        return f"{self.module}.{self.function.__qualname__}"


_records: dict[str, TaskRecord] = {}


def default_name(function: Callable[..., Any]) -> str:
    """Return what a task is called of which nobody has said it.

    >>> def send_mail(): ...
    >>> send_mail.__module__, send_mail.__qualname__ = "shop.gearman_jobs", "send_mail"
    >>> default_name(send_mail)
    'shop.send_mail'
    """
    parts = function.__module__.split(".")
    if parts[-1] in (DEFAULT_MODULE, "__main__"):
        del parts[-1]
    return ".".join([*parts, function.__qualname__])


def register(function: Callable[..., Any], callable: Any, *, name: str | None, queue: str | None) -> TaskRecord:
    """Note a task.

    Raises
    ------
    ConfigurationError
        If it cannot be found by its name elsewhere, the name is none, or is taken by another function.
    """
    qualname = getattr(function, "__qualname__", "")
    if not qualname or "<" in qualname:
        what = qualname or repr(function)
        raise ConfigurationError(f"a named task must be a function of a module, so that workers find it; got {what}")
    chosen = default_name(function) if name is None else name
    if not isinstance(chosen, str) or not is_task_name(chosen):
        raise ConfigurationError(
            f"a task's name must be 1 to 200 characters of ASCII without spaces and '~', got {chosen!r} for {qualname}"
        )
    if queue is not None:
        check_queue(queue)
    record = TaskRecord(name=chosen, function=function, callable=callable, queue=queue)
    known = _records.get(chosen)
    if known is not None and known.place != record.place:
        raise ConfigurationError(
            f"two tasks are called {chosen!r}: {known.place} and {record.place}; give one another name="
        )
    _records[chosen] = record
    return record


def record_of(fn: Any) -> TaskRecord | None:
    """Return the record of a named task, or None for any other callable, one that wraps a task among them."""
    record = getattr(fn, "_gearmap_record", None)
    return record if isinstance(record, TaskRecord) and record.callable is fn else None


def reference_to(record: TaskRecord) -> tuple[bytes, Payload]:
    """Return digest and payload of a task's function: its name, for whoever has it."""
    payload = dumps(Elsewhere(find_function, (record.name, record.module)))
    return digest_payload(payload), payload


def find_function(name: str, module: str) -> Callable[..., Any]:
    """Return what runs under a name, here; the module is imported if nobody has."""
    return _find(name, module).function


def find_callable(name: str, module: str) -> Any:
    """Return the named task itself, here."""
    return _find(name, module).callable


def _find(name: str, module: str) -> TaskRecord:
    record = _records.get(name)
    if record is None and module != "__main__":
        importlib.import_module(module)
        record = _records.get(name)
    if record is None:
        raise ConfigurationError(f"no task is called {name!r} here; it should be in module {module!r}")
    return record


def tasks_of(modules: Iterable[str]) -> list[TaskRecord]:
    """Import modules and return the tasks that they define or import, in the order of their names.

    Raises
    ------
    ConfigurationError
        If one of them has none.
    """
    found: dict[str, TaskRecord] = {}
    for module in modules:
        importlib.import_module(module)
        values = [record_of(value) for value in vars(sys.modules[module]).values()]
        records = {record.name: record for record in values if record is not None}
        if not records:
            raise ConfigurationError(f"module {module!r} has no task; mark its functions with @gearmap.task")
        found |= records
    return [found[name] for name in sorted(found)]
