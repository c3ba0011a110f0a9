"""The short-lived process that checks what a device depends on, and prints a table of it as JSON.

    python -m agent.remote.self_test --state DIR

It reads the state folder and changes nothing. It loads the committed model in a further process with limits, so what
runs is not disturbed, but for the processor's time: it is nice. The checks are those of `doctor`
(`agent.upkeep.checks`).
"""

import argparse
import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.identity.folder import StateFolder
from agent.upkeep.checks import SELF_TEST, Check
from skerry.errors import SkerryError

MAX_DETAIL = 300


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    check: str
    ok: bool
    detail: str


def main() -> int:
    """Run all checks; the exit status is 0 whatever they find, for the table says it."""
    parser = argparse.ArgumentParser(prog="agent.remote.self_test")
    parser.add_argument("--state", type=Path, required=True)
    folder = StateFolder(parser.parse_args().state)
    with contextlib.suppress(OSError):
        os.nice(10)
    rows = [_checked(name, check, folder) for name, check in SELF_TEST.items()]
    print(json.dumps({"ok": all(each.ok for each in rows), "checks": [asdict(each) for each in rows]}))
    return 0


def _checked(name: str, check: Check, folder: StateFolder) -> Row:
    try:
        return Row(name, ok=True, detail=check(folder)[:MAX_DETAIL])
    except (SkerryError, OSError) as error:
        return Row(name, ok=False, detail=str(error)[:MAX_DETAIL])
    except Exception as error:  # noqa: BLE001 -- one check that fails itself must not hide the others
        return Row(name, ok=False, detail=f"{type(error).__name__}: {error}"[:MAX_DETAIL])


if __name__ == "__main__":
    sys.exit(main())
