"""Run the product's programs as a user's script would: the CLI, the server and the agents, with their logs in files."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from skerry.errors import Broken, Rejected


@dataclass(slots=True)
class Programs:
    """The programs installed beside this interpreter, all they start, and how to stop it again."""

    home: Path
    logs: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _files: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(*reversed(self._running))
        self._files.close()

    def run(self, program: str, *arguments: str, timeout_s: float = 170.0) -> str:
        """Run a program to its end and return what it printed; raises `Rejected` with its own last line."""
        done = subprocess.run(
            [_path(program), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self._environment(),
            check=False,
        )
        if done.returncode:
            raise Rejected(f"{program} {arguments[0]}: {(done.stderr.strip() or done.stdout.strip())[-2000:]}")
        return done.stdout

    def skerry(self, *arguments: str) -> Any:
        """Run the operators' CLI with --json and return its answer."""
        return json.loads(self.run("skerry", "--home", str(self.home), "--json", *arguments))

    def start(self, name: str, program: str, *arguments: str) -> None:
        """Start a program that stays, its output going to `logs/NAME.log`."""
        log = self._files.enter_context((self.logs / f"{name}.log").open("ab"))
        self._running[name] = subprocess.Popen(
            [_path(program), *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment()
        )

    def check_running(self) -> None:
        """Raise `Broken` when a started program has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                log = (self.logs / f"{name}.log").read_text(errors="replace").strip()
                raise Broken(f"{name}: expected it to run, got exit {process.returncode}: {log[-2000:]}")

    def stop(self, *names: str, patience_s: float = 10.0) -> None:
        """Ask programs to end (SIGTERM), wait, and kill what does not."""
        ending = {name: self._running.pop(name) for name in names}
        for process in ending.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        for process in ending.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def wait_for(self, name: str) -> int:
        """Wait until a started program ends (Ctrl-C goes to it as well); return its exit code."""
        return self._running[name].wait()

    def _environment(self) -> dict[str, str]:
        # one thread per process: eight agents, a server and a trainer share the machine
        return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _path(program: str) -> str:
    path = Path(sys.executable).parent / program
    if not path.exists():
        raise Broken(f"{program}: expected it beside {sys.executable}, got none; run `make setup`")
    return str(path)
