"""Which environment variables a node that serves a cluster hands on to tasks.

Tasks are those of everybody who has the key, the environment is that of whoever started the node. What belongs to his
session or to the node's own service is not theirs. This keeps tasks from using it by accident: a task runs as the
node's user, and what that user may open, it may open. The nodes of a local cluster pass everything on: their tasks are
the caller's own.

Law of the file: pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["environment_for_tasks"]

# The places of keys; whatever speaks for the person who started the node; and the node's line to its service manager.
_WITHHELD = re.compile(
    r"GEARMAP_KEY_FILE|GEARMAP_TLS_KEY|SSH_.*|GPG_AGENT_INFO|GPG_TTY|DBUS_SESSION_BUS_ADDRESS|XAUTHORITY|SUDO_.*|"
    r"CREDENTIALS_DIRECTORY|NOTIFY_SOCKET|WATCHDOG_.*|LISTEN_.*|INVOCATION_ID|JOURNAL_STREAM|MAINPID|SYSTEMD_EXEC_PID"
)

# What programs need to find themselves, their libraries, their user and his language.
_NEEDED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT|COMSPEC|PATHEXT|USERPROFILE|"
    r"PYTHON.*|VIRTUAL_ENV|CONDA_PREFIX|LD_LIBRARY_PATH|DYLD_.*|CUDA_.*|NVIDIA_.*|ROCR_.*|HIP_.*|"
    r"OMP_.*|MKL_.*|OPENBLAS_.*|NUMEXPR_.*|BLIS_.*|VECLIB_.*|MPLBACKEND"
)


def environment_for_tasks(environ: Mapping[str, str], *, clean: bool = False) -> dict[str, str]:
    """Return what the node and its tasks get of an environment; only what programs need, if it is to be clean.

    >>> environment_for_tasks({"HOME": "/h", "TOKEN": "t", "SSH_AUTH_SOCK": "/s"})
    {'HOME': '/h', 'TOKEN': 't'}
    >>> environment_for_tasks({"HOME": "/h", "TOKEN": "t"}, clean=True)
    {'HOME': '/h'}
    """
    return {
        name: value
        for name, value in environ.items()
        if not _WITHHELD.fullmatch(name) and (not clean or _NEEDED.fullmatch(name))
    }
