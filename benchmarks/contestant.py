"""One contestant of one row in a process of its own: `python -m benchmarks.contestant ROW NAME [--quick]`.

The last line of its output is the figures as JSON.
"""

from __future__ import annotations

import json
import sys

from benchmarks import large, measures, payload, startup

MEASURES = {
    "map": measures.map_ints,
    "submits": measures.submits,
    "latency": measures.latency,
    "payload": payload.payload,
    "large": large.large,
    "capture": large.capture,
    "lazy": measures.lazy,
    "startup": startup.startup,
    "import": startup.importing,
    "sleeps": measures.sleeps,
    "cpu": measures.cpu,
    "transport": measures.transport_alone,
}


def main(arguments: list[str]) -> int:
    """Measure and print."""
    row, name, *rest = arguments
    print(json.dumps(MEASURES[row](name, "--quick" in rest)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
