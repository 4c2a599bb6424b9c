"""What a process can tell of its host that decides whether a cluster works: files that may be open, shared memory."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["host_facts"]


def host_facts() -> dict[str, Any]:
    """Return what is known, as plain values; None for what this system does not say.

    `descriptors` are open now, of `descriptor_limit`; `shared_free` are bytes of /dev/shm, through which a node and its
    children speak.
    """
    return {
        "descriptors": _open_descriptors(),
        "descriptor_limit": _descriptor_limit(),
        "shared_free": _shared_free(),
    }


def _open_descriptors() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # but for the one that lists them
    except OSError:
        return None


def _descriptor_limit() -> int | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _shared_free() -> int | None:
    try:
        status = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return None
    return status.f_bavail * status.f_frsize
