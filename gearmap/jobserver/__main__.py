"""`python -m gearmap.jobserver`: the embedded job server as a process.

What lives here: command line, logging, the one line that tells where the server listens. What must not: serving.

Rule 1: standard output carries exactly one line, JSON, when connections are accepted; then it stays quiet.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gearmap.errors import ConfigurationError
from gearmap.jobserver.limits import Limits, Stock, usable_memory
from gearmap.jobserver.records import ServerOptions
from gearmap.jobserver.shell import serve
from gearmap.jobserver.sockets import leave_folder, listen, listen_in_folder, raise_file_limit

if TYPE_CHECKING:
    import ssl

__all__ = ["main"]

# As it starts, glibc gives memory back at every 128 KiB, and each packet of 100 kB finds fresh pages. Once so much was
# freed it keeps twice that (`gearmap.memory` has more). Raised: more is kept; lowered: larger packets find none.
_LEARNED_BYTES = 2 * 1024 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop; return the exit status."""
    args = _parse(argv)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)]
    # Without a file the log goes to standard error.
    logging.basicConfig(filename=args.log, level=level, format="%(asctime)s %(levelname)s %(message)s")
    max_files = raise_file_limit()
    memory_bytes = usable_memory()
    bytes(_LEARNED_BYTES)
    try:
        make_tls = _tls(args)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        listener = listen(args.host, args.port) if args.folder is None else listen_in_folder(args.folder)
    except OSError as error:
        where = f"{args.host!r} port {args.port}" if args.folder is None else f"a socket in {args.folder!r}"
        print(f"cannot listen on {where}: {error}", file=sys.stderr)
        return 1
    host, port = listener.getsockname()[:2] if args.folder is None else (listener.getsockname(), 0)
    ready = json.dumps({"host": host, "port": port, "pid": os.getpid()})
    options = ServerOptions(
        host_name=socket.gethostname().encode()[:40],
        job_retries=args.job_retries,
        wake_one=args.wake_one,
        stock=Stock.of_machine(memory_bytes=memory_bytes),
    )
    try:
        serve(
            listener,
            options,
            limits=Limits.of_machine(memory_bytes=memory_bytes, max_files=max_files),
            lifeline=0 if args.lifeline else None,
            make_tls=make_tls,
            on_ready=lambda: print(ready, flush=True),
        )
    finally:
        if args.folder is not None:
            leave_folder(args.folder)
    return 0


def _tls(args: argparse.Namespace) -> Callable[[], ssl.SSLContext] | None:
    """Return what makes contexts of TLS, if it is to be spoken; it was tried once."""
    if args.tls_cert is None:
        return None
    from gearmap.tls import TlsServerFiles, server_context

    files = TlsServerFiles.of_options(args.tls_cert, args.tls_key, args.tls_ca)
    server_context(files)
    return lambda: server_context(files)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gearmap.jobserver", description="A small Gearman job server.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    parser.add_argument(
        "--folder", help="instead: a Unix socket in this folder, of this user alone; removed at the end"
    )
    parser.add_argument("--lifeline", action="store_true", help="stop at the end of standard input")
    parser.add_argument("--job-retries", type=int, default=5, metavar="N", help="workers a job may lose; 0: no limit")
    parser.add_argument("--wake-one", action="store_true", help="a job wakes one sleeping worker, not all")
    parser.add_argument("--tls-cert", metavar="FILE", help="speak TLS, with this certificate")
    parser.add_argument("--tls-key", metavar="FILE", help="its key, if it is not in the same file")
    parser.add_argument("--tls-ca", metavar="FILE", help="clients must show a certificate that this CA has signed")
    parser.add_argument("--log", metavar="FILE", help="log file (default: standard error)")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log more; twice for everything")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
