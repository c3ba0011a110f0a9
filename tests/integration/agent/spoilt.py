"""A device whose workers can be spoilt: real slots, lifecycle, engine and processes; no network."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agent.config import Config
from agent.daemon import Daemon
from agent.deployment.lifecycle import Event, Good, Grant, Kind, Phase, State
from agent.deployment.runner import Saved
from agent.identity.folder import Identity, StateFolder
from agent.inference.workers import Given, Worker, start_worker
from agent.local.serving_port import Reply
from skerry.delivery.slots import Slots
from skerry.wire import codec
from skerry.wire.enrolment import Anchor
from skerry.wire.manifest import Manifest, describe_file
from tests.integration.agent.shore import MODEL, PROFILE, make_artifact, wait_for
from tests.integration.agent.spoilt_worker import POISON

PROGRAM = (str(Path(__file__).with_name("spoilt_worker.py")),)
ANCHOR = Anchor(project="watch", image_root="{}", director_root="{}", server_ca="")


def make_marked(folder: Path, *, version: int, mark: str = "", **changes: Any) -> dict[str, bytes]:
    """Return the files of an artifact whose model has a mark."""
    files = make_artifact(folder, version=version)
    manifest = codec.decode(Manifest, files["manifest.json"])
    if mark:
        model = onnx.load_from_string(files["model.onnx"])
        model.doc_string = f"MARK {mark}"
        files["model.onnx"] = model.SerializeToString()
    entries = tuple(describe_file(entry.name, files[entry.name]) for entry in manifest.files)
    return {**files, "manifest.json": codec.encode(replace(manifest, files=entries, **changes))}


def digest_of(files: dict[str, bytes]) -> str:
    """Return the SHA-256 of the manifest."""
    return hashlib.sha256(files["manifest.json"]).hexdigest()


def start_spoilt(given: Given) -> Worker:
    """Start a worker that can be spoilt."""
    return start_worker(replace(given, program=PROGRAM))


def request_for(value: float, *, rows: int = 1) -> tuple[dict[str, str], bytes]:
    """Return an Open Inference Protocol request for a window full of a value."""
    window = np.full((rows, 100, 6), value, np.float32)
    tensor = {"name": "window", "shape": list(window.shape), "datatype": "FP32"}
    tree = {"inputs": [{**tensor, "parameters": {"binary_data_size": window.nbytes}}]}
    text = json.dumps(tree).encode()
    return {"inference-header-content-length": str(len(text))}, text + window.tobytes()


class Stranded:
    """A device without a network, on version 1, driven by the test instead of the updater's thread."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self._folder = folder
        self.state = StateFolder(folder / "state")
        identity = Identity(
            project="watch",
            device="watch-1",
            profile=PROFILE,
            runtime="onnxruntime",
            architecture="x86_64",
            broker="mqtt://127.0.0.1:1",
            server="",
        )
        self.state.keep(identity, anchor=codec.encode(ANCHOR), key=b"", certificate="", broker_ca="")
        self._slots = Slots(self.state.slots)
        plain: dict[str, Any] = {"retry_s": 0.01, "retry_most_s": 0.02, "infer_timeout_s": 20.0, "serve": "off"}
        self._config = Config(**plain | config)
        self.files: dict[int, dict[str, bytes]] = {}

    def patience_s(self, seconds: float) -> None:
        """Say before it wakes how long an inference may take."""
        self._config = replace(self._config, infer_timeout_s=seconds)

    def commit(self, version: int, **options: Any) -> str:
        """Have a version committed already; returns the digest of its manifest."""
        files = self.files[version] = make_marked(self._folder, version=version, **options)
        self._slots.stage(files, release=f"{MODEL}-{version}", deployment=f"d{version}")
        self._slots.activate()
        self._slots.commit()
        good = Good(digest_of(files), f"{MODEL}-{version}", f"d{version}")
        grant = Grant(deployment=good.deployment, release=good.release, manifest=good.manifest)
        state = State(phase=Phase.COMMITTED.value, grant=grant, good=good)
        self.state.lifecycle_file.write_bytes(codec.encode(Saved(state=state)))
        return good.manifest

    def wake(self) -> "Stranded":
        """Start the engine on what is committed."""
        self.daemon = Daemon(self.state, self._config)
        main = self.daemon.units.main
        self.runner, self.effects, self.engine = main.runner, main.effects, main.engine
        self.effects.loader.start = start_spoilt
        assert self.effects.run_last_good() is None
        self.runner.wake_up(self.effects)
        self.engine.start()
        return self

    def stage(self, version: int, **options: Any) -> str:
        """Let a version be staged, as if it had been fetched; returns the digest of its manifest."""
        files = self.files[version] = make_marked(self._folder, version=version, **options)
        digest = digest_of(files)
        self.effects._slots.stage(files, release=f"{MODEL}-{version}", deployment=f"d{version}")
        grant = Grant(
            deployment=f"d{version}", release=f"{MODEL}-{version}", manifest=digest, trial_inferences=3, grace_s=3600
        )
        self.runner.state = replace(
            self.runner.state, phase=Phase.VERIFIED.value, grant=grant, attempts=0, reason="", undo=""
        )
        self.runner._feed(Event(Kind.STAGED), self.effects)
        return digest

    def drive(self, until: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
        """Let the runner work until something holds."""
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, f"got {self.runner.state}, {self.engine.problem}"
            if not self.runner.turn(self.effects):
                time.sleep(0.005)

    @property
    def phase(self) -> str:
        return self.runner.state.phase

    def infer(self, value: float, *, version: str = "", rows: int = 1) -> Reply:
        head, body = request_for(value, rows=rows)
        return self.engine.infer(MODEL, version, head=head, body=body)

    def close(self) -> None:
        if hasattr(self, "daemon"):
            self.engine.stop()
            self.effects.close()
            self.daemon._outbox.close()


class Callers:
    """Threads that ask without end, and what they were answered."""

    def __init__(self, device: Stranded, values: tuple[float, ...]) -> None:
        self.replies: list[tuple[float, Reply]] = []
        self.errors: list[Exception] = []
        self._device = device
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(value,)) for value in values]
        for each in self._threads:
            each.start()

    def _ask(self, value: float) -> None:
        while not self._stop.is_set():
            try:
                self.replies.append((value, self._device.infer(value)))
            except Exception as error:  # noqa: BLE001 -- whatever it is, the test is to see it
                self.errors.append(error)
                return

    def go_on(self) -> None:
        """Wait for more answers."""
        answered = len(self.replies)
        wait_for(lambda: len(self.replies) > answered + 20 or self.errors, why="more answers")

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        for each in self._threads:
            each.join(60)


__all__ = ["POISON", "Callers", "Stranded", "digest_of", "make_marked", "request_for", "start_spoilt"]
