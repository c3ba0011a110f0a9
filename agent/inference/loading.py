"""Loads what is in a slot into a worker; whoever runs it can have another worker for the same later."""

import logging
from collections.abc import Callable
from pathlib import Path

from agent.fetching.rest import open_vault
from agent.inference.frames import Request, Verb
from agent.inference.supervisor import Fallen, Running
from agent.inference.windows import check_rows
from agent.inference.workers import BATCH_S, Crashed, Given, Hung, Recording, Worker, check_answer, start_worker
from skerry.delivery.slots import MANIFEST, Slots
from skerry.wire.manifest import NO_SAMPLES, Manifest, SamplePolicy

_log = logging.getLogger("skerry.agent.loading")
REPLAY_S = 90.0


class Loader:
    """The models of one pair of slots; `recording` is what their workers replay, if anything, `batch_s` as in `Given`.

    With `keep_golden` a worker holds the golden vectors for as long as it lives, to be tried on them.
    """

    def __init__(self, slots: Slots, *, rest_key_file: str) -> None:
        self._slots = slots
        self._rest_key_file = rest_key_file
        self.recording: Recording | None = None
        self.batch_s = BATCH_S
        self.keep_golden = False
        self.start: Callable[[Given], Worker] = start_worker

    def open(self, name: str, manifest: Manifest) -> Running:
        """Load a slot; raises as `start_worker`."""
        given = self.given(name, manifest, golden=self.keep_golden)
        return self._running(self.start(given), name, manifest)

    def open_good(self, name: str, manifest: Manifest) -> Running:
        """Load what was committed; should it end at once, the engine starts it again, as if it had ended later."""
        try:
            return self.open(name, manifest)
        except (Crashed, Hung) as error:
            _log.warning("%s %s does not start: %s", manifest.model, manifest.version, error)
            return self._running(Fallen(error), name, manifest)

    def open_replayed(self, name: str, manifest: Manifest) -> Running:
        """Load a slot, and replay its golden vectors in the worker that is to go live.

        Raises:
            Rejected: what came out is not what was gated, or does not fit the monitor.
            Crashed, Hung: it passed its first load, and ended now.
        """
        running = self._running(self.start(self.given(name, manifest, golden=True)), name, manifest)
        try:
            answer = running.worker.ask(Request(Verb.REPLAY, b"{}" if self.keep_golden else b""), patience_s=REPLAY_S)
            check_answer(answer)
            check_rows(answer.rows, manifest, digest=running.digest)
        except BaseException:  # whatever it was, also an interrupt: a worker that nobody holds must not run on
            running.worker.close()
            raise
        return running

    def given(self, name: str, manifest: Manifest, *, golden: bool, slots: Slots | None = None) -> Given:
        """Return what a worker for a slot is given."""
        slots = slots or self._slots
        return Given(
            manifest=slots.load(name, MANIFEST, sha256=slots.pointer.slot(name).manifest),
            runtime=manifest.runtime,
            model=_source(slots, name, manifest, manifest.model_file),
            golden=_source(slots, name, manifest, manifest.golden_file) if golden else None,
            recording=self.recording,
            batch_s=self.batch_s,
        )

    def _running(self, worker: Worker | Fallen, name: str, manifest: Manifest) -> Running:
        digest = self._slots.pointer.slot(name).manifest
        return Running(
            worker,
            manifest,
            digest,
            reopen=lambda: self._reopen(name, manifest),
            allowed=lambda: self._allowed(name, digest),
        )

    def _allowed(self, name: str, digest: str) -> SamplePolicy:
        slot = self._slots.pointer.slot(name)
        return slot.samples if slot.manifest == digest else NO_SAMPLES

    def _reopen(self, name: str, manifest: Manifest) -> Worker:
        # from another thread: slots of its own, because a vault is one thread's
        slots = Slots(self._slots.folder(name).parent, open_vault(self._rest_key_file))
        try:
            return self.start(self.given(name, manifest, golden=self.keep_golden, slots=slots))
        finally:
            if slots.vault is not None:
                slots.vault.close()


def _source(slots: Slots, name: str, manifest: Manifest, file: str) -> Path | bytes:
    return slots.source(name, file, sha256=manifest.file(file).sha256)
