"""Whether an artifact fits this device: its profile and runtime, its version, and the room on the disk."""

import shutil
from pathlib import Path

from agent.config import Budget
from agent.deployment.lifecycle import Grant
from agent.identity.folder import Identity
from agent.inference.golden import MAX_ARTIFACT_BYTES
from agent.inference.observe import read_monitor
from skerry.delivery.slots import MANIFEST
from skerry.errors import Broken, Rejected
from skerry.wire.manifest import PYTHON, Manifest, other_build, target_name


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


def check_own_fit(manifest: Manifest, grant: Grant, *, here: Identity, committed: Manifest | None) -> None:
    """Raise `Rejected` unless the manifest is one of wheels for this profile, and not older than what runs."""
    path = target_name(manifest.model, manifest.version, manifest.profile, MANIFEST)
    if grant.path != path:
        raise Rejected(f"manifest: expected the one of {grant.path}, got the one of {path}")
    if (manifest.profile, manifest.runtime) != (here.profile, PYTHON):
        got = f"{manifest.profile} on {manifest.runtime}"
        raise Rejected(f"manifest: expected profile {here.profile} on {PYTHON}, got {got}")
    manifest.file(manifest.model_file)
    total = sum(entry.length for entry in manifest.files)
    if total > MAX_ARTIFACT_BYTES:
        raise Rejected(f"manifest: expected at most {MAX_ARTIFACT_BYTES} bytes of wheels, got {total}")
    if not all(entry.name.endswith(".whl") for entry in manifest.files):
        raise Rejected("manifest: expected wheels and nothing else")
    if committed is not None and manifest.version < committed.version and not grant.rollback:
        raise Rejected(f"{manifest.model}: expected a newer version, got {manifest.version}; assign it as a rollback")


def check_budget(manifest: Manifest, slots: Path, active: str, *, budget: Budget) -> None:
    """Raise `Rejected` when a component with this artifact in one slot and what is active in the other takes too much.

    The owner's limit is about what stays; while an artifact comes it lies in the fetch folder as well, for a while.
    """
    if not budget.disk_bytes:
        return
    kept = sum(each.stat().st_size for each in (slots / active).iterdir()) if active else 0
    needed = kept + sum(entry.length for entry in manifest.files)
    if needed > budget.disk_bytes:
        raise Rejected(
            f"{manifest.model} {manifest.version}: expected at most {budget.disk_bytes} bytes in its slots, got "
            f"{needed}; raise its budget in config.toml, or assign a smaller one"
        )


def check_room(manifest: Manifest, folder: Path, *, spare_bytes: int) -> None:
    """Raise `Broken` unless the files fit twice, fetched and in a slot, and leave the outbox what it may need."""
    needed = 2 * sum(entry.length for entry in manifest.files) + spare_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Broken(f"{folder}: expected {needed} bytes free for the artifact, got {free}; make room")
