"""A tiny shore for agents: a real broker, TUF repositories made on the spot, and a small ONNX model."""

import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from onnx import TensorProto, helper
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from tuf.api.metadata import TargetFile

from agent.identity.folder import Identity, StateFolder
from skerry.delivery.sealed import make_key, seal_file, seal_key
from skerry.drift.reference import build_monitor
from skerry.runtimes import open_session
from skerry.runtimes.arrays import pack
from skerry.wire import codec, topics
from skerry.wire.enrolment import Anchor
from skerry.wire.manifest import (
    SEALED_CHUNK_BYTES,
    Manifest,
    TensorSpec,
    Tolerance,
    describe_file,
    other_build,
    target_name,
)
from skerry.wire.messages import Ack, Assign, Content, DeploymentEvent, Index, Outbox, Reported, Terms
from skerry.wire.report import WindowReport, decode_report
from tests.device_keys import make_pair
from tests.tuf_repository import TufRepository, published

PROJECT = "watch"
PROFILE = "gateway"
MODEL = "strokes"
LABELS = ("rest", "lift", "turn")
WINDOW_ROWS = 25
T = TypeVar("T")


def wait_for(what: Callable[[], T], *, why: str, timeout_s: float = 20.0) -> T:
    """Return the first true value of `what`, or fail."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = what()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"expected {why} within {timeout_s} s")


def make_model(seed: int, *, layers: int = 0) -> bytes:
    """Return an ONNX model: the mean of each axis, as many wide layers as asked for, a linear layer, softmax."""
    rng = np.random.default_rng(seed)
    sizes = [6, *[512] * layers, 3]
    shapes = list(pairwise(sizes))
    weights = [(rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32) for shape in shapes]
    names = ["features", *[f"hidden-{number}" for number in range(layers)], "scores"]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["window"], ["features"], axes=[1], keepdims=0),
            *(
                helper.make_node("MatMul", [name, f"weights-{number}"], [names[number + 1]])
                for number, name in enumerate(names[:-1])
            ),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ],
        "strokes",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, (1, 100, 6))],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, (1, 3)),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, (1, 6)),
        ],
        [
            helper.make_tensor(f"weights-{number}", TensorProto.FLOAT, each.shape, each.tobytes(), raw=True)
            for number, each in enumerate(weights)
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    # weight that is never read, so that the file has several chunks
    model.graph.initializer.append(
        helper.make_tensor(
            "ballast", TensorProto.UINT8, (200_000,), np.random.default_rng(seed).bytes(200_000), raw=True
        )
    )
    return bytes(model.SerializeToString())


def make_artifact(
    folder: Path,
    *,
    version: int,
    wrong_golden: bool = False,
    layers: int = 0,
    profile: str = PROFILE,
    latency_budget_ms: float = 100.0,
) -> dict[str, bytes]:
    """Return the files of an artifact of this model version."""
    model = make_model(seed=version, layers=layers)
    path = folder / f"model-{version}.onnx"
    path.write_bytes(model)
    session = open_session("onnxruntime", path)
    rows = np.random.default_rng(7).normal(size=(40, 100, 6)).astype(np.float32)
    outputs = [session.run({"window": row[None]}) for row in rows]
    chances = np.concatenate([each["probabilities"] for each in outputs])
    features = np.concatenate([each["features"] for each in outputs])
    golden: dict[str, Any] = {
        "window": rows[:4],
        "probabilities": chances[:4] + (0.5 if wrong_golden else 0),
        "features": features[:4],
    }
    monitor = build_monitor(
        {f"mean-{index}": features[:, index].tolist() for index in range(6)},
        categories={"prediction": [LABELS[index] for index in chances.argmax(axis=1)]},
        confidence=chances.max(axis=1).tolist(),
        window_n=WINDOW_ROWS,
    )
    files = {"model.onnx": model, "golden.npz": pack(golden), "gate.json": b"{}"}
    manifest = Manifest(
        model=MODEL,
        version=version,
        profile=profile,
        runtime="onnxruntime",
        model_file="model.onnx",
        golden_file="golden.npz",
        gate_file="gate.json",
        inputs=(TensorSpec("window", (1, 100, 6), "float32"),),
        outputs=(TensorSpec("probabilities", (1, 3), "float32"), TensorSpec("features", (1, 6), "float32")),
        labels=LABELS,
        tolerances={"probabilities": Tolerance(1e-4, 1e-4), "features": Tolerance(1e-4, 1e-4)},
        observe={"features": "features", "probabilities": "probabilities"},
        monitor=monitor.to_json(),
        files=tuple(describe_file(name, data) for name, data in files.items()),
        latency_budget_ms=latency_budget_ms,
        created="2026-01-01T00:00:00Z",
    )
    return {**files, "manifest.json": codec.encode(manifest)}


class Shore:
    """The control plane of these tests: signs, publishes, listens and acknowledges."""

    def __init__(self, port: int, folder: Path, *, user: str = "", password: str = "") -> None:
        self.port = port
        self.folder = folder
        self.image = TufRepository()
        self.directors: dict[str, TufRepository] = {}
        self.director_keys = TufRepository()
        self.reported: dict[str, Reported] = {}
        self.entries: dict[tuple[str, str, int], tuple[str, bytes]] = {}
        self.repeats = 0
        self.conflicts = 0
        self.acknowledging = True
        self.artifacts: dict[int, dict[str, bytes]] = {}
        self.seconds: dict[int, dict[str, bytes]] = {}
        self.content_key = make_key()
        self.public_keys: dict[str, str] = {}
        self.sealed: dict[tuple[int, bool], dict[str, str]] = {}
        self.sealed_files: dict[str, list[bytes]] = {}
        self._deployments = 0
        self._client = Client(CallbackAPIVersion.VERSION2, client_id="shore", protocol=MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe([(each, 1) for each in topics.UP_FILTERS])
        self._client.on_message = self._hear
        if user:
            self._client.username_pw_set(user, password)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        wait_for(self._client.is_connected, why="the shore to connect")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def say(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1, retain=True).wait_for_publish(5)

    # --- what is published

    def release(self, version: int, *, second: dict[str, Any] | None = None, **options: Any) -> None:
        """Make, sign and publish an artifact, and with `second` (options of that one) the other build beside it."""
        self.artifacts[version] = self._list(version, is_second=False, **options)
        if second is not None:
            self.seconds[version] = self._list(version, is_second=True, **second)
        self.publish_image()

    def _list(self, version: int, *, is_second: bool, **options: Any) -> dict[str, bytes]:
        files = make_artifact(self.folder, version=version, **options)
        self._sealed(version, is_second=is_second).clear()
        for name, data in files.items():
            path = target_name(MODEL, version, PROFILE, name, second=is_second)
            self.image.targets[path] = TargetFile.from_data(path, data, ["sha256"])
            self._sealed(version, is_second=is_second)[name] = self.chunks(data)
        return files

    def _sealed(self, version: int, *, is_second: bool) -> dict[str, str]:
        return self.sealed.setdefault((version, is_second), {})

    def publish_image(self) -> None:
        roles, version = published(self.image), self.image.targets_version
        self.say(topics.tuf(PROJECT, f"{version}.targets"), roles["targets"].encode())
        self.say(topics.tuf(PROJECT, f"{version}.snapshot"), roles["snapshot"].encode())
        self.say(topics.tuf(PROJECT, "timestamp"), roles["timestamp"].encode())
        index = Index(root=1, timestamp=version, snapshot=version, targets=version)
        self.say(topics.tuf(PROJECT, "index"), codec.encode(index))

    def chunks(self, data: bytes) -> str:
        """Publish a file's sealed chunks, the same ones each time; return under which name."""
        digest = hashlib.sha256(data).hexdigest()
        sealed = self.sealed_files.setdefault(digest, list(seal_file(self.content_key, data, sha256=digest)))
        published = hashlib.sha256(b"".join(sealed)).hexdigest()
        for number, chunk in enumerate(sealed):
            self.say(topics.blob(published, number), chunk)
        return published

    def spoil_chunk(self, data: bytes, number: int) -> None:
        sealed = b"".join(self.sealed_files[hashlib.sha256(data).hexdigest()])
        self.say(topics.blob(hashlib.sha256(sealed).hexdigest(), number), b"\0" * SEALED_CHUNK_BYTES)

    def content(self, device: str, version: int, *, is_second: bool = False) -> Content:
        """Return how a device comes by the bytes of a version."""
        key = seal_key(self.content_key, self.public_keys[device], who=f"{PROJECT}.{device}")
        return Content(key=key, files=self._sealed(version, is_second=is_second))

    def assign(
        self,
        device: str,
        version: int,
        *,
        names: str = "",
        manifest: bytes | None = None,
        measure: bool = False,
        **terms: Any,
    ) -> str:
        """Assign a version to a device (`names`: whom the terms name), maybe to `measure` both builds.

        Returns the deployment.
        """
        self._deployments += 1
        deployment = f"d{self._deployments}"
        director = self.directors.setdefault(device, self._director())
        path = target_name(MODEL, version, PROFILE, "manifest.json")
        if measure:
            other = hashlib.sha256(self.seconds[version]["manifest.json"]).hexdigest()
            content = self.content(device, version, is_second=True)
            measured = {"measure": other_build(path), "measure_sha256": other, "measure_content": content}
            terms = measured | terms
        given = Terms(
            device=names or device,
            counter=director.targets_version + 1,
            issued="2026-01-01T00:00:00Z",
            deployment=deployment,
            release=f"{MODEL}-{version}",
            **({"content": self.content(device, version)} | terms),
        )
        target = TargetFile.from_data(path, manifest or self.artifacts[version]["manifest.json"], ["sha256"])
        target.unrecognized_fields["custom"] = asdict(given)
        director.targets = {path: target}
        self.say(topics.down(f"{PROJECT}.{device}", "assign"), codec.encode(Assign(metadata=published(director))))
        return deployment

    def _director(self) -> TufRepository:
        return TufRepository(signers=self.director_keys.signers)

    # --- what is heard

    def _hear(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        who, name = topics.split_up(message.topic)
        device = who.partition(".")[2]
        if name == "reported":
            self.reported[device] = codec.decode(Reported, bytes(message.payload))
        elif name == "outbox":
            outbox = codec.decode(Outbox, bytes(message.payload))
            if not self.acknowledging:
                return
            for entry in outbox.entries:
                self._merge(device, outbox.epoch, entry)
            ack = Ack(epoch=outbox.epoch, up_to=outbox.entries[-1].sequence)
            client.publish(topics.down(who, "ack"), codec.encode(ack), qos=1)

    def _merge(self, device: str, epoch: str, entry: Any) -> None:
        key, value = (device, epoch, entry.sequence), (entry.kind, base64.b64decode(entry.body))
        if key in self.entries:
            self.repeats += 1
            self.conflicts += self.entries[key] != value
        self.entries[key] = value

    def bodies(self, device: str, kind: str) -> list[bytes]:
        keys = sorted(key for key in list(self.entries) if key[0] == device)
        return [self.entries[key][1] for key in keys if self.entries[key][0] == kind]

    def windows(self, device: str) -> list[WindowReport]:
        return [decode_report(body) for body in self.bodies(device, "window")]

    def states(self, device: str, deployment: str) -> list[DeploymentEvent]:
        events = [codec.decode(DeploymentEvent, body) for body in self.bodies(device, "deployment")]
        return [event for event in events if event.deployment == deployment]

    def ends(self, device: str, deployment: str, *, timeout_s: float = 25.0) -> DeploymentEvent:
        """Wait until a deployment is committed or failed."""
        return (
            wait_for(
                lambda: next((e for e in self.states(device, deployment) if e.state in ("committed", "failed")), None),
                why=f"{deployment} of {device} to end",
                timeout_s=timeout_s,
            )
            or self.states(device, deployment)[-1]
        )


class Device:
    """A real `skerry-agent run`, on a state folder that was enrolled by hand."""

    def __init__(self, shore: Shore, name: str, folder: Path, recording: Path) -> None:
        self._shore = shore
        self.name = name
        self.folder = folder
        self.recording = recording
        self.port = shore.port
        self.scheme = "mqtt"
        self.log = folder.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        identity = Identity(
            project=PROJECT,
            device=name,
            profile=PROFILE,
            runtime="onnxruntime",
            architecture="x86_64",
            broker=f"mqtt://127.0.0.1:{shore.port}",
            server="https://127.0.0.1:1",
        )
        anchor = Anchor(
            project=PROJECT,
            image_root=shore.image.root.decode(),
            director_root=shore.director_keys.root.decode(),
            server_ca="",
        )
        key, shore.public_keys[name] = make_pair()
        StateFolder(folder).keep(identity, anchor=codec.encode(anchor), key=key, certificate="", broker_ca="")
        (folder / "config.toml").write_text(
            "fetch_timeout_s = 1.0\nretry_s = 0.2\nretry_most_s = 1.0\nack_timeout_s = 1.0\nsave_rows = 5\n"
            "reconnect_s = 0.3\n"
        )

    def certify(self, certificate: Path, key: Path, *, broker_ca: Path, public_key: str) -> None:
        """Give it a certificate of the device CA, so that it speaks TLS."""
        folder = StateFolder(self.folder)
        folder.credentials.key.write_bytes(key.read_bytes())
        folder.keep_certificate(certificate.read_text(), broker_ca=broker_ca.read_text())
        self._shore.public_keys[self.name] = public_key
        self.scheme = "mqtts"

    def start(self, *, rate: float = 200.0) -> "Device":
        command = [
            *(sys.executable, "-m", "agent", "run", "--state", str(self.folder)),
            *("--replay", str(self.recording), "--rate", str(rate), "--event-step", "864"),
            *("--broker", f"{self.scheme}://127.0.0.1:{self.port}"),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True
            )
        return self

    def kill(self) -> None:
        """Pull the plug: of all that the agent has started, too."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, or a test has started it in its own group
                os.killpg(self._process.pid, signal.SIGKILL)
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; return its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(timeout=20)

    def status(self, *options: str) -> str:
        command = [sys.executable, "-m", "agent", "status", "--state", str(self.folder), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout

    def state(self) -> str:
        path = self.folder / "lifecycle.json"
        return str(json.loads(path.read_bytes())["state"]["phase"]) if path.exists() else ""
