"""For `bench.agent`: agents and bare stacks as processes, and what memory and processor time these take."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from agent.identity.folder import Identity
from bench.agent_loop import http_request, read_answer, request_body
from skerry.errors import SkerryError
from skerry.inference.local_socket import connect
from skerry.wire import codec
from tests.artifacts import commit
from tests.integration.agent.shore import Device, Shore

PATIENCE_S = 60.0
_POLL_S = 0.004
# address, permissions, offset, device, inode, and for a file its path
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ ([0-9a-f]+) \S+ (\d+)\s*(.*)$")


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found, waiting = [], [pid]
    while waiting:
        each = waiting.pop()
        found.append(each)
        for task in _folders(each):
            with contextlib.suppress(OSError):
                waiting += [int(child) for child in (task / "children").read_text().split()]
    return found


def pss_bytes(pids: list[int]) -> int:
    """Return the sum of the proportional set sizes, as the kernel has them."""
    total = 0
    for pid in pids:
        total += _rollup(pid, "Pss")
    return total


def pss_alone_bytes(pids: list[int]) -> int:
    """Return what that sum would be if nobody else on this machine had the same files mapped.

    Anonymous pages (also a file's that were written to) are as the kernel has them, for nobody else can share these; of
    a file's, what the process has that has most of it. Beside other users of the same libraries the kernel's sum is
    smaller, for an agent and for what it is held against in unequal parts.
    """
    anonymous = 0
    files: dict[tuple[str, str, str], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for pid in pids:
        key: tuple[str, str, str] | None = None
        rss = 0
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            mapping = _MAPPING.match(line)
            if mapping:
                offset, inode, path = mapping.groups()
                key = (path, inode, offset) if inode != "0" else None
            elif line.startswith("Rss:"):
                rss = int(line.split()[1]) * 1024
            elif line.startswith("Anonymous:") and key is not None:
                files[key][pid] += rss - int(line.split()[1]) * 1024
        anonymous += _rollup(pid, "Pss_Anon")
    return anonymous + sum(max(each.values()) for each in files.values())


def _rollup(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def cpu_s(pids: list[int]) -> float:
    """Return the processor time that processes have used, in seconds, threads that have ended included."""
    # a process's own clock, as clock_getcpuclockid(3) makes its number
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def disk_bytes(folder: Path) -> int:
    """Return what a folder takes on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def keep_bytecode(folder: Path) -> None:
    """Have the programs started from here keep compiled modules, as an installed package has them.

    What is compiled at each start takes a third more memory, and most of the time to the first inference.
    """
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


class LiveAgent:
    """A real `skerry-agent run` on a committed artifact, joined to a broker and a shore that acknowledges."""

    program = ("-m", "agent")

    def __init__(self, shore: Shore, folder: Path, files: dict[str, bytes], runtime: str) -> None:
        self._device = Device(shore, folder.name, folder, folder.with_suffix(".npz"))
        self.name, self.state = folder.name, folder
        identity_file = folder / "identity.json"
        identity = codec.decode(Identity, identity_file.read_bytes())
        identity_file.write_bytes(codec.encode(dataclasses.replace(identity, runtime=runtime)))
        commit(folder, files)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def pids(self) -> list[int]:
        """The daemon and its workers."""
        assert self._process is not None
        return family(self._process.pid)

    def start(self, *options: str) -> float:
        """Start it, and return the seconds to its first answer over the socket."""
        command = [sys.executable, *self.program, "run", "--state", str(self.state), *options]
        (self.state / "serve.sock").unlink(missing_ok=True)
        began = time.monotonic()
        self._log = self.state.with_suffix(".log").open("ab")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        while not self.ask():
            assert self._process.poll() is None, self.state.with_suffix(".log").read_text()[-2000:]
            assert time.monotonic() < began + PATIENCE_S, self.state.with_suffix(".log").read_text()[-2000:]
            time.sleep(_POLL_S)
        return time.monotonic() - began

    def ask(self, times: int = 1) -> bool:
        """Ask for inferences; False when there is no answer yet."""
        request = http_request("watch", *request_body(np.zeros((1, 50, 8), np.float32)))
        try:
            with connect(self.state / "serve.sock", timeout_s=PATIENCE_S) as connection:
                for _ in range(times):
                    connection.sendall(request)
                    read_answer(connection)
        except (OSError, SkerryError):
            return False
        return True

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
        if self._log is not None:
            self._log.close()


@contextlib.contextmanager
def bare_stack(runtime: str, model: Path) -> Iterator[tuple[int, float]]:
    """Run the bare stack; yield its process and the seconds to its first inference."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.agent_bare", runtime, str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        first = float(process.stdout.readline()) - began
        assert process.stdout.readline() == b"ready\n"
        yield process.pid, first
    finally:
        process.communicate()


def _folders(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []
