"""A built model in a control plane, and its release, as training and compiling would have left them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from control_plane.keys import sign_payload
from control_plane.schema.models import Build, ModelVersion
from control_plane.server import open_plane
from skerry.wire import codec
from skerry.wire.manifest import Manifest
from tests.integration.agent.shore import MODEL, make_artifact

PROFILE = "x86-64-gateway"


def train(
    home: Path, folder: Path, *, version: int = 1, model: str = MODEL, **options: Any
) -> tuple[dict[str, bytes], str]:
    """Put a built and gated version of a model into a home folder; return its files and its manifest's SHA-256."""
    files = make_artifact(folder, version=version, **options)
    manifest = replace(codec.decode(Manifest, files["manifest.json"]), profile=PROFILE, model=model)
    files["manifest.json"] = codec.encode(manifest)
    plane = open_plane(home)
    now = plane.clock()
    blobs = {name: plane.blobs.put(data) for name, data in files.items()}
    digest = blobs.pop("manifest.json")
    with plane.sessions.begin() as session:
        bundle = blobs["model.onnx"]
        session.add(ModelVersion(model=model, version=version, dataset="d", bundle=bundle, trained_at=now))
        session.add(
            Build(
                model=model,
                version=version,
                profile=PROFILE,
                gate="passed",
                manifest=digest,
                files=blobs,
                built_at=now,
            )
        )
    plane.sessions.kw["bind"].dispose()
    return files, digest


def release(server: Any, version: int = 1, *, model: str = MODEL) -> str:
    """Stage a release on a running server, and approve it with the offline keys; return its name."""
    name = f"{model}-{version}"
    server.post("/v1/releases", {"model": model, "version": version})
    token = (server.home / "operator.token").read_text().strip()
    url = f"http://127.0.0.1:{server.pages_port}/v1/releases/{name}/payload"
    payload = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, trust_env=False).content
    for signature in sign_payload(server.home.parent / "keys", payload):
        answer = server.post(f"/v1/releases/{name}/signatures", signature)
    assert answer["state"] == "live"
    return name
