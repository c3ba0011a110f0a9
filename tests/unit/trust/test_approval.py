"""The file that goes to the holders of the offline keys and comes back, and what it shows them."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from tuf.api.metadata import Targets

from control_plane import approval, releases, tuf_rows
from control_plane.key_files import KeyList, load_signer, read_keys, write_keys
from control_plane.plane import Plane
from control_plane.refusals import Unknown
from skerry.errors import Broken, Rejected
from tests.unit.trust.releasing import release, train

FOLDER = "models/gestures/2/x86-64-gateway"


@pytest.fixture
def waiting(founded: Plane, session: Session, keys: Path) -> approval.Approval:
    """Return the approval of gestures-2, while gestures-1 is live; two of three keys must sign."""
    release(founded, session, keys, 1)
    train(founded, session, 2)
    releases.stage(founded, session, model="gestures", version=2)
    return releases.approval_of(founded, session, "gestures-2")


def holder(keys: Path, folder: Path, number: int) -> Path:
    """Make the folder of somebody who holds one key of each role; return it."""
    held = read_keys(keys)
    folder.mkdir()
    mine = [held.of(role)[number] for role in ("root", "targets")]
    for entry in mine:
        name = entry.uri.partition(":")[2]
        (folder / name).write_bytes((keys / name).read_bytes())
    write_keys(folder, KeyList(tuple(mine), threshold=held.threshold))
    return folder


def test_holders_sign_one_after_the_other_and_the_release_is_live(
    founded: Plane, session: Session, keys: Path, tmp_path: Path, waiting: approval.Approval
) -> None:
    first, second = (holder(keys, tmp_path / f"holder{number}", number) for number in (0, 2))

    once = approval.sign(approval.read(approval.write(waiting), "f"), first)
    twice = approval.sign(approval.read(approval.write(once), "f"), second)

    assert [len(each.signatures) for each in (waiting, once, twice)] == [0, 1, 2]
    for each in twice.signatures:
        assert releases.get(session, "gestures-2").state == "staged"
        releases.add_signature(founded, session, "gestures-2", keyid=each.keyid, sig=each.sig)
    assert releases.get(session, "gestures-2").state == "live"


def test_signing_twice_with_the_same_key_is_one_signature(
    waiting: approval.Approval, keys: Path, tmp_path: Path
) -> None:
    mine = holder(keys, tmp_path / "holder", 1)

    again = approval.sign(approval.sign(waiting, mine), mine)

    assert len(again.signatures) == 1


def test_what_is_shown_is_the_change_by_name_and_digest(waiting: approval.Approval, keys: Path, founded: Plane) -> None:
    shown = approval.show(waiting, keys)

    assert shown.checked
    assert f"+ {FOLDER}/manifest.json 10 bytes sha256 {founded.blobs.put(b'manifest 2')}" in shown.lines
    assert {line.split()[1].rpartition("/")[2] for line in shown.lines if line.startswith("+")} == {
        "manifest.json",
        "model.onnx",
        "bom.cdx.json",
        "provenance.intoto.json",
    }
    assert shown.lines[-1] == "4 other targets stay as they are"
    assert list(waiting.publishes) == list(shown.lines)


def test_a_server_that_lies_about_what_is_published_has_everything_shown(
    waiting: approval.Approval, keys: Path, session: Session
) -> None:
    """A target smuggled in must not pass for one that was there: what vouches for it is a root key of the signer."""
    payload = json.loads(base64.b64decode(waiting.payload))
    own = tuf_rows.sign(
        Targets.from_dict(payload | {"version": payload["version"] - 1}),
        load_signer(keys, read_keys(keys).of("root")[0]),
    )
    lies = {
        "published as it will be, signed by nobody who may": replace(waiting, published=own.decode()),
        "nothing that is metadata": replace(waiting, published="{}"),
        "a root of somebody else": replace(waiting, root=waiting.published),
        "an older list": replace(waiting, published=tuf_rows.read(session, "image", "1.targets").decode()),
    }
    for what, lie in lies.items():
        shown = approval.show(lie, keys)
        assert not shown.checked, what
        assert sum(line.startswith("+ models/") for line in shown.lines) == 8, what

    # nor is the list believed when the folder has no key that signed the root
    assert not approval.show(waiting).checked


def test_a_changed_digest_and_a_delegation_are_shown(waiting: approval.Approval, keys: Path) -> None:
    payload = json.loads(base64.b64decode(waiting.payload))
    path = "models/gestures/1/x86-64-gateway/manifest.json"
    payload["targets"][path]["hashes"]["sha256"] = "9" * 64
    key = read_keys(keys).of("targets")[0]
    payload["delegations"] = {
        "keys": {key.keyid: key.public},
        "roles": [
            {"name": "all", "keyids": [key.keyid], "threshold": 1, "terminating": False, "paths": ["models/*/*/*/*"]}
        ],
    }
    body = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
    forged = replace(waiting, payload=base64.b64encode(body).decode())

    lines = approval.show(forged, keys).lines

    assert any(line.startswith(f"~ {path} ") and "9" * 64 in line for line in lines)
    (role,) = [line for line in lines if line.startswith("+ role all")]
    assert "models/*/*/*/*" in role
    assert key.keyid in role


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ("no base64!", "expected a payload in base64"),
        (base64.b64encode(b"{}").decode(), "expected TUF targets metadata"),
        (base64.b64encode(b'{"_type": "root"}').decode(), "expected TUF targets metadata"),
    ],
)
def test_what_is_no_targets_metadata_is_not_signed(
    waiting: approval.Approval, keys: Path, payload: str, says: str
) -> None:
    with pytest.raises(Rejected, match=says):
        approval.sign(replace(waiting, payload=payload), keys)


def test_a_root_is_not_signed_as_a_release(waiting: approval.Approval, keys: Path) -> None:
    root = json.loads(waiting.root)["signed"]
    body = json.dumps(root, sort_keys=True, separators=(",", ":")).encode()

    with pytest.raises(Rejected, match="expected TUF targets metadata"):
        approval.sign(replace(waiting, payload=base64.b64encode(body).decode()), keys)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b'{"format": "skerry-approval-9"}',
        b'{"format": "skerry-approval-1"}',
        b"[" * 9999,
    ],
)
def test_a_file_that_is_no_approval_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        approval.read(data, "release.json")

    assert len(str(refused.value).splitlines()) == 1


def test_a_folder_without_a_key_that_is_asked_for_signs_nothing(
    waiting: approval.Approval, keys: Path, tmp_path: Path, founded: Plane
) -> None:
    with pytest.raises((Rejected, Broken), match="expected"):
        approval.sign(replace(waiting, keyids=("0" * 64,)), keys)
    with pytest.raises(Broken, match=r"no keys\.json"):
        approval.sign(waiting, tmp_path / "empty")


def test_nothing_is_exported_of_a_release_that_is_live(founded: Plane, session: Session, keys: Path) -> None:
    release(founded, session, keys, 1)

    with pytest.raises(Unknown, match="expected one with something to sign, got one that is live"):
        releases.approval_of(founded, session, "gestures-1")
