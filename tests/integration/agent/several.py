"""A shore that assigns several components to a device: models beside its own, and the agent itself."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

from tuf.api.metadata import TargetFile

from skerry.delivery.sealed import seal_key
from skerry.wire import codec, topics
from skerry.wire.manifest import PYTHON, Manifest, describe_file, target_name
from skerry.wire.messages import AGENT, Assign, Content, Terms
from tests.integration.agent.shore import PROFILE, PROJECT, Shore, make_artifact
from tests.tuf_repository import published


class SeveralShore(Shore):
    """Signs one set of metadata for all components of a device; what was assigned before stays until told otherwise."""

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(port, folder)
        self.made: dict[tuple[str, int], dict[str, bytes]] = {}
        self.blobs: dict[tuple[str, int], dict[str, str]] = {}
        self.assigned: dict[str, dict[str, tuple[Terms, str, bytes]]] = {}

    def release_model(self, model: str, version: int, *, seed: int = 0) -> None:
        """Make, sign and publish a version of a model of this name."""
        files = make_artifact(self.folder, version=seed or version)
        manifest = codec.decode(Manifest, files["manifest.json"])
        self._publish(model, version, files, replace(manifest, model=model, version=version))

    def release_agent(self, version: int, wheels: dict[str, bytes]) -> None:
        """Sign and publish a version of the agent."""
        manifest = Manifest(
            model=AGENT,
            version=version,
            profile=PROFILE,
            runtime=PYTHON,
            model_file="skerry.whl",
            golden_file="",
            gate_file="",
            inputs=(),
            outputs=(),
            labels=(),
            tolerances={},
            observe={},
            monitor={},
            files=tuple(describe_file(name, data) for name, data in wheels.items()),
            latency_budget_ms=0,
            created="2026-01-01T00:00:00Z",
        )
        self._publish(AGENT, version, wheels, manifest)

    def _publish(self, model: str, version: int, files: dict[str, bytes], manifest: Manifest) -> None:
        files = {**files, "manifest.json": codec.encode(manifest)}
        self.made[model, version] = files
        self.blobs[model, version] = {}
        for name, data in files.items():
            path = target_name(model, version, PROFILE, name)
            self.image.targets[path] = TargetFile.from_data(path, data, ["sha256"])
            self.blobs[model, version][name] = self.chunks(data)
        self.publish_image()

    def give(self, device: str, component: str, model: str, version: int, **terms: object) -> str:
        """Assign a version to a component of a device beside what its others have; return the deployment."""
        self._deployments += 1
        key = seal_key(self.content_key, self.public_keys[device], who=f"{PROJECT}.{device}")
        given = Terms(
            device=device,
            counter=0,
            issued="2026-01-01T00:00:00Z",
            deployment=f"d{self._deployments}",
            release=f"{model}-{version}",
            component=component,
            content=Content(key=key, files=self.blobs[model, version]),
        )
        path = target_name(model, version, PROFILE, "manifest.json")
        manifest = self.made[model, version]["manifest.json"]
        self.assigned.setdefault(device, {})[component] = (replace(given, **terms), path, manifest)  # type: ignore[arg-type]
        self.sign(device)
        return given.deployment

    def take(self, device: str, component: str) -> None:
        """Assign a component of a device nothing any more."""
        del self.assigned[device][component]
        self.sign(device)

    def sign(self, device: str) -> None:
        """Sign what is assigned under the next counter, and publish it."""
        director = self.directors.setdefault(device, self._director())
        director.targets = {}
        for terms, path, manifest in self.assigned[device].values():
            target = TargetFile.from_data(path, manifest, ["sha256"])
            target.unrecognized_fields["custom"] = asdict(replace(terms, counter=director.targets_version + 1))
            director.targets[path] = target
        self.say(topics.down(f"{PROJECT}.{device}", "assign"), codec.encode(Assign(metadata=published(director))))

    def digest(self, model: str, version: int) -> str:
        """Return the SHA-256 of the manifest of a version."""
        return hashlib.sha256(self.made[model, version]["manifest.json"]).hexdigest()
