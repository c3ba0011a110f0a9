"""A fake of the engine for the local face: models that are NumPy functions, swapped at will, and what it was told."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.local.serving_port import Reply, Row, Rows, Served
from skerry.errors import Rejected, Unavailable
from skerry.inference.oip import answer_request
from skerry.wire.manifest import TensorSpec

Arrays = dict[str, Any]
INPUTS = (TensorSpec("window", (-1, 3), "float32"), TensorSpec("age", (1,), "int64"))
OUTPUTS = (TensorSpec("scaled", (-1, 3), "float32"), TensorSpec("label", (1,), "object"))


def digest(version: int) -> str:
    """Return a manifest's digest of a version of the fake's model."""
    return f"{version:064x}"


@dataclass
class FakeModels:
    """Serves `watch` in one version, which multiplies by that version; implements `agent.local.serving_port.Models`."""

    version: int = 1
    ready: bool = True
    stateful: bool = True
    busy: bool = False
    runs: int = 0
    rows: list[tuple[str, list[Row], int]] = field(default_factory=list)
    crashes: list[tuple[str, str]] = field(default_factory=list)
    before_run: Callable[[], None] = lambda: None
    trial: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serving(self) -> tuple[Served, ...]:
        version = self.version
        if not version:
            return ()
        return (
            Served(
                name="watch",
                version=str(version),
                manifest=digest(version),
                runtime="onnxruntime",
                ready=self.ready,
                inputs=INPUTS,
                outputs=OUTPUTS,
                stateful=self.stateful,
            ),
        )

    def infer(self, name: str, version: str, *, head: Mapping[str, str], body: bytes) -> Reply:
        assert name == "watch"
        if self.busy:
            raise Unavailable("expected room for a caller, got 64 that wait: try again later")
        running = self.version
        if version and version != str(running):
            raise Rejected(f"expected version {running}, got {version}")

        def run(inputs: Arrays) -> Arrays:
            with self.lock:
                self.runs += 1
            self.before_run()
            label = np.array([f"v{running}"], dtype=object)
            return {"scaled": inputs["window"] * np.float32(running), "label": label}

        answer = answer_request(self.serving()[0], run, name=name, version=str(running), head=head, body=body)
        rows = Rows(width=5, data=np.array([1.5, -1, 0, -1, 120.0]).tobytes())
        return Reply(answer.status, answer.headers, answer.body, digest(running), rows)

    def observe(self, manifest: str, rows: Rows) -> bool:
        if self.trial or manifest != digest(self.version):
            return False
        if rows.width != 5:
            raise Rejected(f"rows: expected a width of 5, got {rows.width}")
        self.rows.append((manifest, list(rows), rows.dropped))
        return True

    def crashed(self, manifest: str, *, reason: str) -> None:
        self.crashes.append((manifest, reason))
