"""`python -m tests.power.check TASK`: restart a device on each cut of a share, and print what is wrong as JSON lines.

A process of its own, so that a share per core can be had without forking whatever a test process has grown.
"""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.power.cuts import Cut, walk
from tests.power.disk import write_tree
from tests.power.world import Recording, Task, load_task

MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Fault:
    """A cut after which something is lost."""

    story: str
    at: int
    digest: str
    after: str
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.story}: after operation {self.at} ({self.after}), tree {self.digest[:12]}: {'; '.join(self.faults)}"
        )


def check_cuts(chosen: Sequence[tuple[Recording, Sequence[Cut]]], folder: Path, *, processes: int = 2) -> list[Fault]:
    """Restart a device on every cut of each recording, on so many cores; return those after which something is lost."""
    running = []
    for share in range(processes):
        file = folder / f"share-{share}.pickle"
        Task(tuple((recording, tuple(cuts[share::processes])) for recording, cuts in chosen)).save(file)
        with file.with_suffix(".err").open("wb") as err, file.with_suffix(".out").open("wb") as out:
            running.append(
                (file, subprocess.Popen([sys.executable, "-m", __name__, str(file)], stdout=out, stderr=err))
            )
    faults: list[Fault] = []
    for file, process in running:
        assert process.wait() == 0, file.with_suffix(".err").read_text()[-2000:]
        for line in file.with_suffix(".out").read_text().splitlines():
            tree = json.loads(line)
            faults.append(Fault(**{**tree, "faults": tuple(tree["faults"])}))
    return sorted(faults, key=lambda fault: (fault.story, fault.at))


def find_in(recording: Recording, cuts: Sequence[Cut]) -> Iterator[Fault]:
    """Yield the cuts of a share after which something is lost."""
    where = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="skerry-power-", dir=where) as name:
        folder = Path(name, "state")
        for cut, tree in walk(recording.initial, recording.operations, cuts):
            write_tree(tree, folder)
            operation = recording.operations[cut.at]
            faults = recording.judge.find_faults(folder, at=cut.at, now=operation.time)
            shutil.rmtree(folder)
            if faults:
                after = f"{type(operation).__name__} {operation.path}"
                yield Fault(recording.name, cut.at, cut.digest, after, tuple(faults))


def main(file: str) -> int:
    """Print the faults of one share."""
    logging.disable(logging.CRITICAL)
    for recording, cuts in load_task(Path(file)).cuts:
        for fault in find_in(recording, cuts):
            print(json.dumps(asdict(fault)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
