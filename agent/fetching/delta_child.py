"""`python -m agent.fetching.delta_child`: applies one delta, in a process of its own that has limits and ends.

A delta is bytes from a network that say what to compute. First comes a line of JSON on stdin, `{"source", "length",
"target_length", "memory_bytes", "cpu_s"}`: the path of the source file, how long the delta is and how long what it
makes, and the limits; then the delta. What it makes goes to stdout, and nothing to any file; who reads it there judges
every chunk. Exit status 2 is a delta that was refused, with the reason as the last line on stderr.
"""

import json
import os
import sys
from pathlib import Path

from skerry.delivery.delta import apply_delta
from skerry.errors import Rejected
from skerry.runtimes.confined import confine

MAX_LINE = 64 * 1024


def main() -> int:
    """Apply one delta."""
    given = json.loads(sys.stdin.buffer.readline(MAX_LINE))
    # beside what the interpreter and NumPy have mapped by now, whatever that is on this machine
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    space = mapped + given["memory_bytes"] + 2 * given["length"]
    confine({"address_space_bytes": space, "file_bytes": 0, "cpu_s": given["cpu_s"]})
    delta = sys.stdin.buffer.read(given["length"])
    try:
        apply_delta(delta, Path(given["source"]), sys.stdout.buffer, length=given["target_length"])
        sys.stdout.buffer.flush()
    except Rejected as error:
        print(error, file=sys.stderr)
        return 2
    except MemoryError:
        print(f"delta: expected to need at most {given['memory_bytes']} bytes of memory, got more", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
