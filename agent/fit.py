"""Whether an artifact fits this device: its profile and runtime, its version, and the room on the disk."""

import shutil
from pathlib import Path

from agent.golden import MAX_ARTIFACT_BYTES
from agent.identity import Identity
from agent.lifecycle import Grant
from agent.observe import read_monitor
from skerry.delivery.slots import MANIFEST
from skerry.errors import Broken, Rejected
from skerry.wire.manifest import Manifest, other_build, target_name


def check_fit(manifest: Manifest, grant: Grant, *, here: Identity, committed: Manifest | None) -> None:
    """Raise `Rejected` unless the manifest is of this profile and runtime, complete and not older."""
    path = target_name(manifest.model, manifest.version, manifest.profile, MANIFEST)
    # which of a profile's two builds this is, the release says and not the build
    if grant.path not in (path, other_build(path)):
        raise Rejected(f"manifest: expected the one of {grant.path}, got the one of {path}")
    if (manifest.profile, manifest.runtime) != (here.profile, here.runtime):
        got = f"{manifest.profile} on {manifest.runtime}"
        raise Rejected(f"manifest: expected profile {here.profile} on {here.runtime}, got {got}")
    for name in (manifest.model_file, manifest.golden_file):
        manifest.file(name)
    total = sum(entry.length for entry in manifest.files)
    if total > MAX_ARTIFACT_BYTES:
        raise Rejected(f"manifest: expected at most {MAX_ARTIFACT_BYTES} bytes of files, got {total}")
    if not (manifest.inputs and manifest.outputs):
        raise Rejected("manifest: expected inputs and outputs, got none of one of them")
    if manifest.observe.get("probabilities") and not manifest.labels:
        raise Rejected("manifest: expected labels for its probabilities, got none")
    read_monitor(manifest)
    older = committed is not None and committed.model == manifest.model and manifest.version < committed.version
    if older and not grant.rollback:
        raise Rejected(f"{manifest.model}: expected a newer version, got {manifest.version}; assign it as a rollback")


def check_room(manifest: Manifest, folder: Path, *, spare_bytes: int) -> None:
    """Raise `Broken` unless the files fit twice, fetched and in a slot, and leave the outbox what it may need."""
    needed = 2 * sum(entry.length for entry in manifest.files) + spare_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Broken(f"{folder}: expected {needed} bytes free for the artifact, got {free}; make room")
