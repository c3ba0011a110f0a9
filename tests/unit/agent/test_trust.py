"""The trust decision: only what both repositories say, for this device, and never backwards."""

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from agent.identity.enrol import make_key_and_request
from agent.trust.assignment import ask_child
from agent.trust.metadata import Bounds, HeldMetadata
from agent.trust.question import Held
from agent.trust.repository import find_target, open_repository
from control_plane.authority import issue, load_authority, make_authorities, read_csr
from skerry.errors import Broken
from tests.tuf_repository import TufRepository, now, sign
from tests.unit.agent.trust_case import (
    DAY,
    NOW,
    OTHER,
    PATH,
    STRANGER,
    TERMS,
    Case,
    Serving,
    automatic,
    held_of,
    refused,
)


def test_what_both_repositories_list_for_this_device_is_trusted(case: Case) -> None:
    verdict = case.ask()

    assert verdict.ok, verdict
    assert (verdict.terms, verdict.path, verdict.length) == (TERMS, PATH, len(b"manifest"))
    assert len(verdict.sha256) == 64
    assert case.ask() == verdict


def test_a_process_of_its_own_gives_the_same_verdict(case: Case) -> None:
    assert ask_child(case.question, held_of(case)) == case.judge()


def test_the_process_that_judges_takes_no_module_from_the_working_folder(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tuf.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)

    verdict = ask_child(case.question, HeldMetadata({})).of("")

    assert verdict.later, verdict


def test_a_process_that_gives_no_verdict_is_ended_and_is_this_machines_trouble(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.trust.assignment.CHILD_TIMEOUT_S", 0.01)
    with pytest.raises(Broken, match="expected a verdict"):
        ask_child(case.question, held_of(case), bounds=Bounds(total_s=0.01))


def test_a_disk_that_refuses_is_named(case: Case) -> None:
    case.folder.parent.mkdir(parents=True, exist_ok=True)
    case.folder.write_text("a file where the folder should be")
    with pytest.raises(Broken, match=r"expected a verdict, got .*(Not a directory|File exists)"):
        ask_child(case.question, held_of(case))


def test_files_that_come_too_slowly_are_waited_for_no_longer_than_the_bound(case: Case) -> None:
    verdict = ask_child(case.question, held_of(case), bounds=Bounds(total_s=0.0)).of("")

    assert (verdict.ok, verdict.later) == (False, True)
    assert "within 0 s" in verdict.reason


def test_another_device_is_refused(case: Case) -> None:
    case.assign(device="watch-2")
    refused(case, "expected an assignment for watch-1")


def test_other_bytes_are_refused(case: Case) -> None:
    case.assign(data=b"another manifest")
    refused(case, "agree on length and hashes")


def test_a_counter_that_is_not_the_version_is_refused(case: Case) -> None:
    case.assign(counter=7)
    refused(case, "expected counter 2")


def test_an_assignment_without_terms_is_refused(case: Case) -> None:
    case.assign(terms=None)
    refused(case, "Terms")


def test_an_assignment_of_no_moment_is_refused(case: Case) -> None:
    case.assign(issued="yesterday")
    refused(case, "expected a moment like")


@pytest.mark.parametrize("which", ["director", "image"])
def test_a_forger_is_refused(case: Case, which: str) -> None:
    repository: TufRepository = getattr(case, which)
    repository.signers["timestamp"] = [STRANGER]
    repository.publish()
    refused(case, "timestamp")


def test_an_older_assignment_is_refused_after_a_newer_one(case: Case) -> None:
    older = dict(case.director.files)
    case.assign()
    assert case.ask().ok

    newer, case.director.files = case.director.files, older
    refused(case, "must be >= 2")
    case.director.files = newer
    assert case.ask().ok


@pytest.mark.parametrize("which", ["director", "image"])
def test_expired_metadata_is_waited_for(case: Case, which: str) -> None:
    repository: TufRepository = getattr(case, which)
    repository.expires = NOW - timedelta(days=1)
    repository.publish()

    verdict = case.ask()

    assert (verdict.ok, verdict.later) == (False, True)
    assert "by this device's clock" in verdict.reason


def test_missing_metadata_is_waited_for_and_the_deployment_is_known(case: Case) -> None:
    del case.image.files["1.targets.json"]

    verdict = case.ask()

    assert (verdict.ok, verdict.later, verdict.terms) == (False, True, TERMS)


def test_a_root_chain_longer_than_one_start_is_walked_to_its_end(case: Case) -> None:
    for _ in range(40):
        case.image.rotate("root", [CryptoSigner.generate_ed25519()])
    case.image.rotate("targets", [CryptoSigner.generate_ed25519()])
    case.image.publish()

    assert case.ask().ok
    assert case.ask().ok


# -- what a device holds, and its end


def test_what_is_held_and_no_longer_listed_is_revoked(case: Case) -> None:
    case.image.add(OTHER, b"other")
    case.image.publish()
    first = case.ask().sha256
    case.held = (Held(PATH, first), Held(OTHER, "0" * 64), Held("models/gone/1/gateway/manifest.json", "1" * 64))

    verdict = case.ask()

    assert verdict.ok
    assert (verdict.listed, verdict.revoked) == ((first,), ("0" * 64, "1" * 64))


def test_what_is_revoked_is_known_also_when_its_own_assignment_is_refused(case: Case) -> None:
    digest = case.ask().sha256
    case.held = (Held(PATH, digest),)
    case.image.targets.clear()
    case.image.publish()

    verdict = case.ask()

    assert (verdict.ok, verdict.revoked) == (False, (digest,))


def test_the_director_alone_may_end_a_device(case: Case) -> None:
    case.assign(path="decommission", data=b"")
    case.image.files.clear()

    verdict = case.ask()

    assert (verdict.ok, verdict.decommission) == (True, True)


def test_another_devices_end_is_not_ours(case: Case) -> None:
    case.assign(path="decommission", data=b"", device="watch-2")
    verdict = case.ask()
    assert (verdict.ok, verdict.decommission) == (False, False)


def test_an_order_to_wipe_is_for_one_key_and_not_for_the_next_device_of_that_name(case: Case, tmp_path: Path) -> None:
    make_authorities(tmp_path, "watch")
    ca = load_authority(tmp_path, "device")
    keys = [read_csr(make_key_and_request()[1]) for _ in range(2)]
    issued = [issue(ca, key, name="watch.watch-1", now=now()) for key in keys]
    first, second = (hashlib.sha256(each.public_key.encode()).hexdigest() for each in issued)
    case.certificate = issued[1].pem

    case.assign(path="decommission", data=b"", key_sha256=first)
    replayed = case.ask()
    case.assign(path="decommission", data=b"", key_sha256=second)

    assert (replayed.ok, replayed.decommission, replayed.terms) == (False, False, None)
    assert "an earlier key" in replayed.reason
    assert case.ask().decommission


# -- what is used of python-tuf beneath its public face


def test_the_moment_that_is_given_is_the_one_that_expiry_is_judged_by(case: Case, tmp_path: Path) -> None:
    def opened(at: float) -> Any:
        return open_repository(Serving(case.image.files), tmp_path / f"{at}", case.image.root, at=at)

    opened(NOW.timestamp() + 6 * DAY).refresh()
    with pytest.raises(Exception, match="expired"):
        opened(NOW.timestamp() + 8 * DAY).refresh()


def test_a_target_is_found_with_the_role_that_lists_it(case: Case, tmp_path: Path) -> None:
    automatic(case)
    case.image.add(OTHER, b"other")
    case.image.publish()
    repository = open_repository(Serving(case.image.files), tmp_path / "r", case.image.root, at=NOW.timestamp())

    by_role = {path: find_target(repository, path) for path in (PATH, OTHER, "nothing")}

    assert [found and (found.role, found.direct) for found in by_role.values()] == [
        *(("automatic-strokes", True), ("targets", True), None),
    ]


def test_metadata_signed_for_another_role_is_none_of_ours(case: Case) -> None:
    case.image.files["2.snapshot.json"] = sign_as_targets(case)
    case.image.timestamp_version, case.image.snapshot_version = 2, 2
    case.image.sign_timestamp()
    refused(case, "snapshot")


def sign_as_targets(case: Case) -> bytes:
    """Return a snapshot that the targets key has signed."""
    from tuf.api.metadata import Snapshot

    return sign(Snapshot(version=2, expires=case.image.expires), case.image.signers["targets"])
