"""Workers: a model in a supervised process of its own, as the daemon sees it. Nothing here imports NumPy or a runtime.

    worker = start_worker(given)              # Rejected: the artifact; Crashed, Hung, Broken: what it did instead
    worker.ask(Request(Verb.INFER, head, body), patience_s=30)
    worker.close()                            # after the inference under way

A crash is an end that nobody asked for, told by the name of its signal; a hang is no answer in time, and ends by our
own SIGKILL. Both are final for a worker: whoever wants another starts another.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import agent
import skerry
from agent.inference.frames import Answer, Request, Status, Verb, receive_answer, send_request, write_head
from skerry.errors import Broken, Rejected, Unavailable
from skerry.runtimes.confined import PASSED_ON, Limits
from skerry.runtimes.environments import find_runtime
from skerry.runtimes.resident import peak_rss_bytes
from skerry.runtimes.session import Refused, Signature
from skerry.wire import codec

PROGRAM = ("-m", "agent.inference.worker")
LOAD_S = 90.0
BATCH_S = 15.0
END_S = 2.0
_LINE_BYTES = 4096
# what a worker may say in a minute; of what is left out, the last lines are said at its end: they tell why it ended
MOST_LINES = 20
LAST_LINES = 5
_PERIOD_S = 60.0
_log = logging.getLogger("skerry.agent.workers")


class Crashed(Broken):
    """The worker ended although nobody asked it to."""


class Hung(Broken):
    """The worker gave no answer in time, and was ended."""


class Closed(Unavailable):
    """The worker was told to end before it was this request's turn: ask the one that took its place."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording that a worker replays."""

    file: Path
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a worker loads: files, or their bytes where they are sealed on the disk; `limits` for a first load.

    A model of one row takes several one after the other, for at most `batch_s`.
    """

    manifest: bytes
    runtime: str
    model: Path | bytes
    golden: Path | bytes | None = None
    recording: Recording | None = None
    limits: Limits | None = None
    batch_s: float = BATCH_S
    program: Sequence[str] = PROGRAM


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a worker says of what it has loaded."""

    bare_rss_bytes: int
    signature: Signature


class Worker:
    """A process with one loaded model; asked by one thread at a time, the others wait for their turn."""

    def __init__(self, process: subprocess.Popen[bytes], wire: socket.socket, cleanup: contextlib.ExitStack) -> None:
        self._process = process
        self._wire = wire
        self._cleanup = cleanup
        self._turn = threading.Lock()
        self._closed = False
        self._end: Broken | None = None
        self._bare = 0
        self.signature = Signature(inputs=(), outputs=())

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def ended(self) -> str:
        """How it ended, by itself or by our hand; empty while it runs, or while somebody is asking and will know."""
        if self._end is not None:
            return str(self._end)
        if self._closed:
            return "worker: expected one that runs, got one that was closed"
        if self._turn.locked() or self._process.poll() is None:
            return ""
        return f"worker: expected the model to run, got {self._how_it_ended()} between two requests"

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process held; 0 where nobody tells."""
        return peak_rss_bytes(self.pid)

    @property
    def growth_bytes(self) -> int:
        """By how much it grew at most over the bare runtime; 0 where nobody tells."""
        return max(self.peak_bytes - self._bare, 0)

    def ask(self, request: Request, *, patience_s: float) -> Answer:
        """Ask, and wait for the answer.

        Raises:
            Closed: it was closed before our turn.
            Unavailable: our turn did not come in time.
            Crashed, Hung: it ended; the request may be what ended it.
        """
        # whoever is before us may need all of its time until it is known for a hang, and be ended
        if not self._turn.acquire(timeout=patience_s + 2 * END_S):
            raise Unavailable(f"worker: expected a turn within {patience_s:g} s, got none; ask later")
        try:
            if self._end is not None:
                raise type(self._end)(str(self._end))
            if self._closed:
                raise Closed("worker: expected one that runs, got one that was replaced; ask again")
            return self._ask(request, patience_s)
        finally:
            self._turn.release()

    def _ask(self, request: Request, patience_s: float) -> Answer:
        deadline = time.monotonic() + patience_s
        try:
            self._wire.settimeout(patience_s)
            send_request(self._wire, request)
            return receive_answer(self._wire, deadline=deadline)
        except TimeoutError as error:
            self._end = Hung(f"worker: expected an answer within {patience_s:g} s, got none: the model hangs")
            self._finish()
            raise Hung(str(self._end)) from error
        except (OSError, Broken) as error:
            if self._closed:
                raise Closed("worker: expected one that runs, got one that was ended; ask again") from error
            how = str(error) if isinstance(error, Broken) else self._how_it_ended()
            self._end = Crashed(f"worker: expected the model to run, got {how}")
            self._finish()
            raise Crashed(str(self._end)) from error

    def load(self, request: Request) -> None:
        """Load the artifact; raises `Rejected` when it is at fault, `Broken` when this machine or the worker is."""
        answer = self.ask(request, patience_s=LOAD_S)
        check_answer(answer)
        said = codec.from_tree(_Loaded, answer.said)
        self._bare, self.signature = said.bare_rss_bytes, said.signature

    def close(self, *, now: bool = False) -> None:
        """End it after the inference under way, or `now`; who waits for a turn is told to ask elsewhere."""
        if now:
            self._closed = True
            self._kill()
        with self._turn:
            self._closed = True
            self._finish()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "a process that says no more"
        if code >= 0:
            return f"exit code {code}"
        return f"a crash of the runtime by {signal.Signals(-code).name}"

    def _finish(self) -> None:
        """End the process and let go of everything; may be repeated."""
        self._wire.close()
        if self._end is None:
            # it ends with the socket
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        self._kill()
        self._process.wait()
        self._cleanup.close()

    def _kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def start_worker(given: Given) -> Worker:
    """Start a worker and load what it is given.

    Raises:
        Rejected: the artifact cannot be loaded; assign another.
        Crashed, Hung: it ended the process instead, or was not done in time.
        Broken: the runtime is not here, or no process can be started.
    """
    with contextlib.ExitStack() as stack:
        descriptors: list[int] = []
        files = {
            name: _named(data, name, stack, descriptors)
            for name, data in (("model", given.model), ("golden", given.golden))
            if data is not None
        }
        worker = _spawn(given, descriptors)
    head: dict[str, Any] = {**files, "batch_s": given.batch_s}
    if given.recording is not None:
        head["recording"] = {"file": str(given.recording.file.absolute()), "seed": given.recording.seed}
    if given.limits is not None:
        head["limits"] = asdict(given.limits)
    try:
        worker.load(Request(Verb.LOAD, write_head(head), given.manifest))
    except BaseException:  # whatever it was, also an interrupt: a process that nobody holds must not run on
        worker.close()
        raise
    return worker


def check_answer(answer: Answer) -> None:
    """Raise what an answer that is none says: `Rejected`, or `Broken`."""
    if answer.status == Status.DONE:
        return
    raise Broken(answer.reason) if answer.status == Status.BROKEN else Rejected(answer.reason)


def _spawn(given: Given, descriptors: Sequence[int]) -> Worker:
    found = find_runtime(given.runtime)
    if isinstance(found, Refused):
        raise Broken(found.reason)
    with contextlib.ExitStack() as cleanup:
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        if found.python != sys.executable:
            passed["PYTHONPATH"] = cleanup.enter_context(_lent())
        ours, theirs = socket.socketpair()
        cleanup.callback(ours.close)
        # -P: the working folder is not searched for modules; one thread: a device has other things to do
        command = [found.python, "-P", *given.program, str(theirs.fileno())]
        try:
            process = subprocess.Popen(
                command,
                env={**passed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=(theirs.fileno(), *descriptors),
            )
        except OSError as error:
            raise Broken(f"worker: expected to start a process, got: {error.strerror}") from error
        finally:
            theirs.close()
        threading.Thread(target=_pass_on, args=(process.stderr,), name="worker's words", daemon=True).start()
        return Worker(process, ours, cleanup.pop_all())


def _pass_on(stream: IO[bytes]) -> None:
    """Log what runtimes write on standard error, and why a worker ended by itself, as lines like all others; not all
    of a flood."""
    said = left_out = 0
    last: deque[bytes] = deque(maxlen=LAST_LINES)
    until = time.monotonic() + _PERIOD_S
    with stream:
        while line := stream.readline(_LINE_BYTES):
            if time.monotonic() >= until:
                _say_left_out(left_out)
                said, left_out, until = 0, 0, time.monotonic() + _PERIOD_S
                last.clear()
            if said < MOST_LINES:
                said += 1
                _say(line)
                continue
            if not left_out:
                _log.warning("worker: more than %d lines in %g s; what follows is left out", MOST_LINES, _PERIOD_S)
            left_out += 1
            last.append(line)
    _say_left_out(left_out - len(last))
    for line in last:
        _say(line)


def _say(line: bytes) -> None:
    _log.info("worker: %s", line.decode(errors="replace").rstrip())


def _say_left_out(count: int) -> None:
    if count:
        _log.warning("worker: %d lines were left out", count)


@contextlib.contextmanager
def _lent() -> Iterator[str]:
    """Lend another Python our packages by links, and nothing that lies beside them."""
    with tempfile.TemporaryDirectory(prefix="skerry-worker-") as folder:
        for package in (agent, skerry):
            (Path(folder) / package.__name__).symlink_to(Path(str(package.__file__)).resolve().parent)
        yield folder


def _named(data: Path | bytes, name: str, stack: contextlib.ExitStack, descriptors: list[int]) -> str:
    """Return a path that the worker can read; bytes reach it in memory and are never on a disk."""
    if isinstance(data, Path):
        return str(data.absolute())
    descriptor = os.memfd_create(name)
    stack.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    descriptors.append(descriptor)
    return f"/dev/fd/{descriptor}"
