"""Following an agent's pointer from inside a program: what is loaded, swapped between two calls, and what it counted.

One thread looks at the pointer once a second and sends what was counted. It holds no reference to the `Model` that the
program holds, so a model that is simply dropped ends with it.
"""

import logging
import os
import threading
import time
import weakref
from pathlib import Path

from skerry.errors import SkerryError, Unavailable
from skerry.local.committed import committed_slot, find_slots, read_committed, read_pointer
from skerry.local.loaded import Loaded
from skerry.local.marker import Crash, Marker, sweep
from skerry.local.post import Agent, Heard
from skerry.local.tally import BATCH_ROWS, MAX_ROWS, Tally

_log = logging.getLogger("skerry.model")
LOOK_S = 1.0
_AGAIN_S = 10.0
# how long an opening program waits for the agent to roll back what killed the last one
_ROLL_BACK_S = 3.0
_POLL_S = 0.05
_BATCHES = 2 * MAX_ROWS // BATCH_ROWS


class Following:
    """The committed model of a name, as of the last look; `close` sends what there is left to count."""

    def __init__(self, state: Path, name: str, *, threads: int) -> None:
        self._name = name
        self._state = state
        self._threads = threads
        self._pid = os.getpid()
        self._agent = Agent(state)
        self._wake, self._stop = threading.Event(), threading.Event()
        self._closing = threading.Lock()
        self._retired: list[tuple[weakref.ref[Loaded], str, Tally]] = []
        self._told = 0
        self._past = 0
        self._again = 0.0
        self.problem = ""
        self.loaded: Loaded | None = None

        users = state / "users"
        # before anything is loaded: what killed the last program may be what is about to be loaded
        self._after_crashes(users)
        self._marker = Marker.of(users)
        try:
            self._seen = self._stamp()
            self.loaded = self._load()
        except BaseException:
            self._leave_marker()
            raise
        self._thread = threading.Thread(target=self._run, name="skerry-model", daemon=True)
        self._thread.start()

    def current(self) -> Loaded:
        """Return what runs; raises `Unavailable` when nothing may."""
        if os.getpid() != self._pid:
            raise Unavailable("model: expected the process that opened it, got a forked one; open another Model there")
        loaded = self.loaded
        if loaded is None:
            raise Unavailable(self.problem or "model: expected an open one, got one that was closed; open another")
        return loaded

    @property
    def dropped(self) -> int:
        """How many rows were never counted: there was no room, nobody took them, or they were no numbers."""
        loaded = self.loaded
        running = loaded.tally.dropped if loaded is not None else 0
        return self._past + sum(tally.dropped for _, _, tally in list(self._retired)) + running

    def close(self) -> None:
        """Stop following, have the rest counted, and remove the marker; takes a few seconds at most."""
        with self._closing:
            if self._stop.is_set() or os.getpid() != self._pid:
                return
            self._stop.set()
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=10)
        self.problem = ""
        self._swap(None)
        for _, digest, tally in self._retired:
            tally.is_ending = True
            self._send(digest, tally)
            while tally.take() is not None:  # nobody is there to count it
                tally.settle(counted=False)
        self._leave_marker()

    # --- the thread

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(LOOK_S)
            self._wake.clear()
            try:
                self._send_all()
                self._look()
            except Exception:  # noqa: BLE001 -- without this thread, nothing would be counted or swapped any more
                _log.exception("following the agent's pointer")

    def _look(self) -> None:
        """Load what the pointer names when that has changed; what runs runs on, whatever is wrong with the new one."""
        stamp, now = self._stamp(), time.monotonic()
        if stamp == self._seen and not (self.problem and now >= self._again):
            return
        self._seen, self._again = stamp, now + _AGAIN_S
        try:
            self._swap(self._load())
            self.problem = ""
        except Unavailable as error:
            # given up or revoked, and nothing to go back to: the agent does not run it any more either
            self._say(str(error))
            self._swap(None)
        except SkerryError as error:
            self._say(str(error))

    def _load(self) -> Loaded:
        """Return what is committed: what is loaded already, where it is the same."""
        committed = read_committed(find_slots(self._state, self._name), self._name)
        if self.loaded is not None and self.loaded.digest == committed.digest:
            return self.loaded
        return Loaded(committed, threads=self._threads, marker=self._marker, wake=self._wake.set)

    def _swap(self, loaded: Loaded | None) -> None:
        before = self.loaded
        if loaded is before:
            return
        if before is not None:
            # calls that began with it end with it, and are counted for it
            self._retired.append((weakref.ref(before), before.digest, before.tally))
        self.loaded = loaded

    def _send_all(self) -> None:
        loaded = self.loaded
        if loaded is not None:
            self._send(loaded.digest, loaded.tally)
        for entry in list(self._retired):
            ended = entry[2].is_ending = entry[0]() is None
            self._send(*entry[1:])
            if ended and entry[2].take() is None:
                self._past += entry[2].dropped
                self._retired.remove(entry)

    def _send(self, digest: str, tally: Tally) -> None:
        # bounded: a program that runs rows faster than they are counted must not keep this thread from its other work
        for _ in range(_BATCHES):
            batch = tally.take()
            if batch is None:
                return
            dropped = self.dropped
            heard = self._agent.observe(digest, batch, dropped=dropped - self._told)
            if heard is Heard.LATER:
                return
            if heard is Heard.COUNTED:
                self._told = dropped
            tally.settle(counted=heard is Heard.COUNTED)
            # an agent that gives no answer gives none to the next batch either, and a program that ends waits for this
            if heard is Heard.LOST or not tally.is_due:
                return

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = (find_slots(self._state, self._name) / "pointer.json").stat()
        except (OSError, SkerryError):  # whoever loads it says why
            return ()
        return (found.st_dev, found.st_ino, found.st_mtime_ns)

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("%s", problem)
        self.problem = problem

    # --- who died before

    def _after_crashes(self, users: Path) -> None:
        """Tell the agent of programs that died inside a model, and give it a moment to roll that back."""
        told: set[str] = set()

        def tell(crash: Crash) -> bool:
            heard = self._agent.crashed(crash)
            if heard:
                told.add(crash.manifest)
                _log.warning("%s", crash.reason)
            return heard

        sweep(users, tell)
        deadline = time.monotonic() + _ROLL_BACK_S
        while told and time.monotonic() < deadline:
            pointer = read_pointer(find_slots(self._state, self._name))
            if pointer.slot(committed_slot(pointer)).manifest not in told:
                return
            self._stop.wait(_POLL_S)

    def _leave_marker(self) -> None:
        if self._marker is not None:
            self._marker.close()
