"""The main module of a node's process: `python -m gearmap.runtime.node_main FD [WORKERS]`.

Law of the file: tiny, and nothing of gearmap is imported at its top. Every child imports it again as its own main
module; what stands here at the top costs each of them that much.

The configuration comes as one line of JSON on a file descriptor, so that no key is ever in a command line. With
`"lifeline": true` the same descriptor stays open, and its end is the end of the node. Who has more to do before it can
tell the configuration says how many workers this machine will have: then the node gets ready in the meantime.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run a node until it is told to end; return the exit status."""
    import os

    fd = int(sys.argv[1])
    source = os.dup(fd)  # of this process alone
    if fd != 0:
        os.close(fd)
    # Children inherit standard input: they must find nothing there.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    if len(sys.argv) > 2:
        from gearmap.runtime.noderun import get_ready

        get_ready(int(sys.argv[2]))

    from gearmap.runtime.noderun import run_node

    return run_node(source)


if __name__ == "__main__":
    sys.exit(main())
