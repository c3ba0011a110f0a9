"""The trust decision over a spool folder: only what both repositories say, for this device, and never backwards."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.assignment import ask_child
from agent.trust import Verdict, judge
from agent.trust_child import SpoolFetcher
from skerry.wire import codec
from skerry.wire.messages import Anchor, Terms

PATH = "models/strokes/1/gateway/manifest.json"
TERMS = Terms(device="watch-1", counter=1, issued="2026-01-01T00:00:00Z", deployment="d1", release="strokes-1")
NOW = datetime.now(UTC).replace(microsecond=0)
SIGNER = CryptoSigner.generate_ed25519()
STRANGER = CryptoSigner.generate_ed25519()


def signed(content: Any, signer: CryptoSigner = SIGNER) -> bytes:
    """Return signed metadata."""
    metadata = Metadata(content)
    metadata.sign(signer)
    return metadata.to_bytes()


def root() -> str:
    """Return a root that trusts the test's signer with everything."""
    content = Root(expires=NOW + timedelta(days=9), consistent_snapshot=True)
    for role in ("root", "timestamp", "snapshot", "targets"):
        content.add_key(SIGNER.public_key, role)
    return signed(content).decode()


ANCHOR = Anchor(project="watch", image_root=root(), director_root=root(), server_ca="")


def write(
    folder: Path,
    *,
    version: int,
    data: bytes = b"manifest",
    terms: Terms | None = None,
    prefix: str = "",
    expires: datetime = NOW + timedelta(days=7),
    signer: CryptoSigner = SIGNER,
    extra: bool = False,
) -> None:
    """Write one repository's metadata into a spool folder; `terms` make it a director's."""
    target = TargetFile.from_data(PATH, data, ["sha256"])
    if terms is not None:
        target.unrecognized_fields["custom"] = asdict(terms)
    targets = {PATH: target}
    if extra:
        targets["other"] = TargetFile.from_data("other", b"", ["sha256"])
    snapshot = Snapshot(version=version, expires=expires)
    snapshot.meta["targets.json"].version = version
    timestamp = Timestamp(version=version, expires=expires)
    timestamp.snapshot_meta.version = version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "timestamp.json").write_bytes(signed(timestamp, signer))
    (folder / f"{prefix}snapshot.json").write_bytes(signed(snapshot, signer))
    content = Targets(version=version, expires=expires, targets=targets)
    (folder / f"{prefix}targets.json").write_bytes(signed(content, signer))


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Verdict]:
    """Return a function that spools both repositories and asks for a verdict; trusted metadata stays between calls."""

    def ask(*, director: dict[str, Any] | None = None, image: dict[str, Any] | None = None) -> Verdict:
        spool = tmp_path / "spool"
        write(spool / "director", **{"version": 1, "terms": TERMS, **(director or {})})
        write(spool / "image", **{"version": 3, "prefix": "3.", **(image or {})})
        return judge(
            anchor=ANCHOR,
            device="watch-1",
            image=SpoolFetcher(spool / "image"),
            director=SpoolFetcher(spool / "director"),
            folder=tmp_path / "trust",
        )

    return ask


def test_what_both_repositories_list_for_this_device_is_trusted(ask: Callable[..., Verdict]) -> None:
    verdict = ask()

    assert verdict.ok, verdict
    assert (verdict.terms, verdict.path, verdict.length) == (TERMS, PATH, len(b"manifest"))
    assert len(verdict.sha256) == 64
    assert ask() == verdict


def test_the_process_that_judges_takes_no_module_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tuf.py").write_text("raise SystemExit('taken over')")
    (tmp_path / "anchor.json").write_bytes(codec.encode(ANCHOR))
    monkeypatch.chdir(tmp_path)

    verdict = ask_child(
        anchor=tmp_path / "anchor.json", trust=tmp_path / "trust", spool=tmp_path / "spool", device="watch-1"
    )

    assert verdict.later, verdict


def newer(counter: int) -> Terms:
    """Return the terms of a later assignment."""
    return Terms(**{**asdict(TERMS), "counter": counter})


CASES = {
    "another device": (
        {"terms": Terms(**{**asdict(TERMS), "device": "watch-2"})},
        {},
        "expected an assignment for watch-1",
    ),
    "other bytes": ({"data": b"another manifest"}, {}, "agree on length and hashes"),
    "a counter of its own": ({"terms": newer(7)}, {}, "expected counter 1"),
    "two targets": ({"extra": True}, {}, "expected exactly one target"),
    "no terms": ({"terms": None}, {}, "Terms"),
    "a director's forger": ({"signer": STRANGER}, {}, "timestamp"),
    "an image forger": ({}, {"signer": STRANGER}, "timestamp"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_they_do_not_agree_on_is_refused_with_the_reason(ask: Callable[..., Verdict], case: str) -> None:
    director, image, reason = CASES[case]
    verdict = ask(director=director, image=image)

    assert (verdict.ok, verdict.later) == (False, False)
    assert reason in verdict.reason


def test_an_older_assignment_is_refused_after_a_newer_one(ask: Callable[..., Verdict]) -> None:
    assert ask(director={"version": 5, "terms": newer(5)}).ok

    verdict = ask(director={"version": 4, "terms": newer(4)})

    assert not verdict.ok
    assert ask(director={"version": 6, "terms": newer(6)}).ok


@pytest.mark.parametrize("which", ["director", "image"])
def test_expired_metadata_is_waited_for(ask: Callable[..., Verdict], which: str) -> None:
    verdict = ask(**{which: {"expires": NOW - timedelta(days=1)}})

    assert (verdict.ok, verdict.later) == (False, True)


def test_missing_metadata_is_waited_for_and_the_deployment_is_known(ask: Callable[..., Verdict]) -> None:
    verdict = ask(image={"prefix": "2."})

    assert (verdict.ok, verdict.later, verdict.terms) == (False, True, TERMS)
