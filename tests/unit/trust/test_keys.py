"""Signing keys and the offline ceremony."""

import stat
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root

from control_plane.key_files import KeyEntry, load_signer, read_keys, write_keys
from control_plane.keys import hold_ceremony, parse_payload, sign_payload
from control_plane.online_keys import OnlineSigners, describe_online, make_online_keys
from skerry.errors import Broken, Rejected


@pytest.fixture
def online(tmp_path: Path) -> dict[str, object]:
    """Return what a server says of its keys."""
    folder = tmp_path / "server"
    folder.mkdir()
    make_online_keys(folder)
    return describe_online(OnlineSigners(folder), "watch")


def root_of(made: dict[str, str], name: str) -> Root:
    """Return one of the ceremony's roots."""
    root = Metadata.from_bytes(made[name].encode()).signed
    assert isinstance(root, Root)
    return root


def payload_of(made: dict[str, str]) -> bytes:
    """Return the canonical bytes of the ceremony's targets."""
    return Metadata.from_bytes(made["targets"].encode()).signed_bytes


def test_the_ceremony_needs_the_threshold_of_different_keys(tmp_path: Path, online: dict[str, object]) -> None:
    made = hold_ceremony(tmp_path / "keys", online, keys=3, threshold=2)

    root = root_of(made, "image_root")
    assert {role: (len(named.keyids), named.threshold) for role, named in root.roles.items()} == {
        "root": (3, 2),
        "targets": (3, 2),
        "snapshot": (1, 1),
        "timestamp": (1, 1),
    }
    assert not set(root.roles["root"].keyids) & set(root.roles["targets"].keyids)


def test_both_roots_are_signed_by_the_same_offline_keys(tmp_path: Path, online: dict[str, object]) -> None:
    made = hold_ceremony(tmp_path / "keys", online, keys=2, threshold=2)

    image, director = root_of(made, "image_root"), root_of(made, "director_root")
    assert image.roles["root"].keyids == director.roles["root"].keyids
    for text in (made["image_root"], made["director_root"]):
        metadata = Metadata.from_bytes(text.encode())
        image.verify_delegate("root", metadata.signed_bytes, metadata.signatures)


def test_the_director_names_one_online_key_for_all_it_signs(tmp_path: Path, online: dict[str, object]) -> None:
    roles = root_of(hold_ceremony(tmp_path / "keys", online), "director_root").roles

    keys = online["keys"]
    assert isinstance(keys, dict)
    assert {tuple(roles[role].keyids) for role in ("targets", "snapshot", "timestamp")} == {
        (keys["director"]["keyid"],)
    }


def test_key_files_are_the_users_alone(tmp_path: Path, online: dict[str, object]) -> None:
    hold_ceremony(tmp_path / "keys", online, keys=2, threshold=1)

    files = list((tmp_path / "keys").glob("*.pem"))
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_passphrase_encrypts_the_files_and_is_needed_to_sign(tmp_path: Path, online: dict[str, object]) -> None:
    made = hold_ceremony(tmp_path / "keys", online, passphrase="open sesame")

    assert b"ENCRYPTED" in (tmp_path / "keys" / "root-1.pem").read_bytes()
    assert len(sign_payload(tmp_path / "keys", payload_of(made), passphrase="open sesame")) == 1
    for wrong in (None, "sesame"):
        with pytest.raises(Broken, match="SKERRY_KEY_PASSPHRASE"):
            sign_payload(tmp_path / "keys", payload_of(made), passphrase=wrong)


def test_a_payload_gets_as_many_signatures_as_the_threshold_asks_for(tmp_path: Path, online: dict[str, object]) -> None:
    made = hold_ceremony(tmp_path / "keys", online, keys=3, threshold=2)

    signed = sign_payload(tmp_path / "keys", payload_of(made))

    assert len({each["keyid"] for each in signed}) == 2
    assert {each["keyid"] for each in signed} <= set(root_of(made, "image_root").roles["targets"].keyids)


@pytest.mark.parametrize("payload", [b"", b"{}", b"[1]", b'{"_type":"targets"}', b"\xff", b"[" * 100_000])
def test_what_is_no_targets_metadata_is_not_signed(tmp_path: Path, online: dict[str, object], payload: bytes) -> None:
    hold_ceremony(tmp_path / "keys", online)

    with pytest.raises(Rejected, match="do not sign it"):
        sign_payload(tmp_path / "keys", payload)


def test_a_root_is_not_signed_as_a_release(tmp_path: Path, online: dict[str, object]) -> None:
    made = hold_ceremony(tmp_path / "keys", online)

    with pytest.raises(Rejected, match="expected TUF targets metadata"):
        sign_payload(tmp_path / "keys", Metadata.from_bytes(made["image_root"].encode()).signed_bytes)


def test_another_form_of_the_same_metadata_is_not_signed(tmp_path: Path, online: dict[str, object]) -> None:
    made = hold_ceremony(tmp_path / "keys", online)

    with pytest.raises(Rejected, match="canonical"):
        sign_payload(tmp_path / "keys", payload_of(made).replace(b",", b", "))


def test_a_ceremony_held_again_uses_the_keys_that_are_there(tmp_path: Path, online: dict[str, object]) -> None:
    first = hold_ceremony(tmp_path / "keys", online, keys=2, threshold=2)
    again = hold_ceremony(tmp_path / "keys", online, keys=2, threshold=2)

    assert root_of(first, "image_root").roles == root_of(again, "image_root").roles
    with pytest.raises(Rejected, match="choose another folder"):
        hold_ceremony(tmp_path / "keys", online, keys=3, threshold=2)


@pytest.mark.parametrize(("keys", "threshold"), [(1, 2), (0, 0), (1, 0), (17, 1)])
def test_impossible_thresholds_are_refused(
    tmp_path: Path, online: dict[str, object], keys: int, threshold: int
) -> None:
    with pytest.raises(Rejected, match="threshold"):
        hold_ceremony(tmp_path / "keys", online, keys=keys, threshold=threshold)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("keys", [{}, {"snapshot": {}}, None, {"snapshot": 1, "timestamp": 1, "director": 1}])
def test_a_server_that_shows_no_keys_is_refused(tmp_path: Path, keys: object) -> None:
    with pytest.raises(Rejected):
        hold_ceremony(tmp_path / "keys", {"project": "watch", "keys": keys})
    assert not (tmp_path / "keys").exists()


def test_a_folder_without_keys_says_how_to_make_them(tmp_path: Path, online: dict[str, object]) -> None:
    made = hold_ceremony(tmp_path / "keys", online)

    with pytest.raises(Broken, match="skerry keys init"):
        sign_payload(tmp_path, payload_of(made))


def test_a_key_that_is_not_the_listed_one_is_not_used(tmp_path: Path, online: dict[str, object]) -> None:
    made = hold_ceremony(tmp_path / "keys", online)
    (tmp_path / "keys" / "root-1.pem").replace(tmp_path / "keys" / "targets-1.pem")

    with pytest.raises(Broken, match="does not match"):
        sign_payload(tmp_path / "keys", payload_of(made))


def test_a_key_may_be_any_signer_uri(
    tmp_path: Path, online: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner

    made = hold_ceremony(tmp_path / "keys", online)
    held = read_keys(tmp_path / "keys")
    (entry,) = held.of("targets")
    local = load_signer(tmp_path / "keys", entry)

    class Vault(CryptoSigner):
        @classmethod
        def from_priv_key_uri(cls, *_: object, **__: object) -> CryptoSigner:
            assert isinstance(local, CryptoSigner)
            return local

    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "vault", Vault)
    moved = KeyEntry(role="targets", keyid=entry.keyid, public=entry.public, uri="vault:7")
    write_keys(tmp_path / "keys", type(held)(keys=(*held.of("root"), moved), threshold=1))
    (tmp_path / "keys" / "targets-1.pem").unlink()

    (signed,) = sign_payload(tmp_path / "keys", payload_of(made))
    assert signed["keyid"] == entry.keyid


def test_the_empty_targets_of_the_ceremony_list_nothing(tmp_path: Path, online: dict[str, object]) -> None:
    targets = parse_payload(payload_of(hold_ceremony(tmp_path / "keys", online)))

    assert (targets.version, targets.targets) == (1, {})
