"""What a worker adds to errors that mean something is missing or forbidden there: where that is, and what to do.

What must not live here: how errors travel (`wire.failure`).

Rule 1: an answer is a note below the exception, never a change of it.
Rule 2: nothing here raises, whatever the exception's attributes are.
"""

from __future__ import annotations

import os
import sys

from gearmap.errors import SerializationError

__all__ = ["advice"]


def advice(error: BaseException, worker: str) -> str | None:
    """Return a note on what is missing where a task ran, or None for any other error.

    Parameters
    ----------
    error
        What a task raised, or what unpickling for it raised.
    worker
        The name of the worker: node and number.
    """
    try:
        problem = _problem(error)
        if isinstance(problem, FileNotFoundError):
            return _on_file(problem, worker)
        if isinstance(problem, ImportError):
            return _on_import(problem, worker)
        if isinstance(problem, NameError) and not isinstance(problem, UnboundLocalError):
            return (
                f"(on {_python(worker)}: a function travels with the globals that it had when it was sent; define or "
                "import the name before that, or inside the function)"
            )
        if isinstance(problem, (ValueError, TypeError, BufferError)) and _is_of_read_only_memory(problem):
            return (
                f"(on {_python(worker)}: what gearmap.share() gives is read-only, since all tasks there see the same "
                "memory; change a copy: x = x.copy())"
            )
        if isinstance(problem, AttributeError) and problem is not error:
            return (
                f"(on {_python(worker)}: a module is another version there, or another module of that name; install "
                "the same version there)"
            )
    except Exception:
        return None
    return None


def _is_of_read_only_memory(error: BaseException) -> bool:
    """Whether an error says that memory may not be written to, where something shared was loaded."""
    said = str(error)
    return "gearmap.runtime.sharing" in sys.modules and ("read-only" in said or "not writable" in said)


def _problem(error: BaseException) -> BaseException:
    """The reason why something did not unpickle, or the error itself."""
    return error.__cause__ if type(error) is SerializationError and error.__cause__ is not None else error


def _on_import(error: ImportError, worker: str) -> str:
    name = error.name.partition(".")[0] if isinstance(error.name, str) and error.name else ""
    if isinstance(error, ModuleNotFoundError):
        return (
            f"(on {_python(worker)}: install {name or 'it'} there, for that Python; only modules of "
            f"your own travel with a function, others with gearmap.options(by_value=[{name!r}]))"
        )
    return f"(on {_python(worker)}: {name or 'the module'} may be another version there than here)"


def _on_file(error: FileNotFoundError, worker: str) -> str | None:
    file = error.filename
    if not isinstance(file, (str, bytes, os.PathLike)):
        return None
    path, folder = os.fsdecode(file), os.getcwd()
    place = f"looked for {path!r}" if os.path.isabs(path) else f"looked for {os.path.join(folder, path)!r}"
    return f"(on {_node(worker)}, where the current folder is {folder!r}: {place} there)"


def _python(worker: str) -> str:
    return f"worker {worker} of {_node(worker)}, Python {sys.version.split()[0]} at {sys.executable}"


def _node(worker: str) -> str:
    return f"node {worker.rpartition('/')[0] or worker}"
