"""The main module of a node's process, started as `python -m gearmap.runtime.node_main`.

Law of the file: tiny, and nothing of gearmap is imported at its top. Every child imports it again as its own main
module; what stands here at the top costs each of them that much.

The configuration comes as one line of JSON on a file descriptor, so that no key is ever in a command line. With
`"lifeline": true` the same descriptor stays open, and its end is the end of the node.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run a node until it is told to end; return the exit status."""
    import json
    import os

    fd = int(sys.argv[1])
    line = b""
    while not line.endswith(b"\n"):
        got = os.read(fd, 65536)
        if not got:
            break
        line += got
    config = json.loads(line)
    lifeline = None
    if config["lifeline"]:
        lifeline = os.dup(fd)
    if fd != 0:
        os.close(fd)
    # Children inherit standard input: they must find nothing there.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    from gearmap.runtime.noderun import run_node

    return run_node(config, lifeline)


if __name__ == "__main__":
    sys.exit(main())
