"""Which named tasks some modules have: a process of its own, `python -m gearmap.runtime.tasklist MODULE ...`.

Law of the file: the modules are imported here and in children, never in the node, which they would slow down, make
larger, or end. What they print goes to standard error; standard output is one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gearmap.errors import ConfigurationError

__all__ = ["ListedTask", "list_tasks"]

# How long modules may take to be imported. Raised: applications that connect to slow services while they are imported;
# lowered: one that hangs is told sooner.
LIST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class ListedTask:
    """One named task, as it is known to a process that has not imported it."""

    name: str
    queue: str | None
    place: str


def list_tasks(modules: Sequence[str], *, cwd: str, environment: Mapping[str, str]) -> list[ListedTask]:
    """Return the named tasks of some modules, in the order of their names.

    Parameters
    ----------
    cwd
        A folder in which modules are found, after those of Python's own search path.
    environment
        What the modules are imported with.

    Raises
    ------
    ConfigurationError
        If one cannot be imported, has no task, or takes too long.
    """
    command = [sys.executable, "-m", "gearmap.runtime.tasklist", cwd, *modules]
    try:
        done = subprocess.run(
            command, cwd=os.sep, env=dict(environment), stdout=subprocess.PIPE, timeout=LIST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"modules {', '.join(modules)} were not imported within {LIST_SECONDS:g} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise ConfigurationError(
            f"the process that imports {', '.join(modules)} ended with status {done.returncode}"
        ) from None
    if "problem" in answer:
        raise ConfigurationError(answer["problem"])
    return [ListedTask(*row) for row in answer["tasks"]]


def main(arguments: Sequence[str]) -> dict[str, object]:
    """Import modules and return what they have, or what is wrong."""
    from gearmap.runtime.taskbook import tasks_of

    cwd, *modules = arguments
    sys.path.append(cwd)
    try:
        return {"tasks": [(task.name, task.queue, task.place) for task in tasks_of(modules)]}
    except ConfigurationError as error:
        return {"problem": str(error)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"problem": f"cannot import {', '.join(modules)}: {type(error).__name__}: {error}"}


if __name__ == "__main__":
    # Descriptor 1 is for the answer alone, whatever the modules write there.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    answer = json.dumps(main(sys.argv[1:]))
    with os.fdopen(answer_fd, "w") as file:
        file.write(answer)
