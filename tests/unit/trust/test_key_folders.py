"""Folders of keys: several holders, keys that something else keeps, passphrases, and the server's own keys."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, SecretsHandler, Signature, Signer
from tuf.api.metadata import Metadata, Role, Root

from control_plane.key_files import KeyList, add_key, encrypted, load_signer, read_keys, write_keys
from control_plane.keys import deal_keys, held_keys, hold_ceremony, sign_payload
from control_plane.online_keys import OnlineSigners, describe_key, describe_online, make_online_keys
from control_plane.refusals import Unknown
from skerry.errors import Broken, Rejected


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """Return the key folder of a server."""
    folder = tmp_path / "server"
    folder.mkdir()
    make_online_keys(folder)
    return folder


@pytest.fixture
def online(server: Path) -> dict[str, Any]:
    """Return what a server says of its keys."""
    return describe_online(OnlineSigners(server), "watch")


class EnvironmentSigner(Signer):
    """A signer as a KMS has one: its key is somewhere else, and is found by a URI of its own scheme."""

    SCHEME = "envkey"

    def __init__(self, local: CryptoSigner) -> None:
        self._local = local

    @property
    def public_key(self) -> Key:
        return self._local.public_key

    @classmethod
    def from_priv_key_uri(
        cls,
        priv_key_uri: str,
        public_key: Key,
        secrets_handler: SecretsHandler | None = None,  # noqa: ARG003 -- the interface
    ) -> "EnvironmentSigner":
        pem = os.environ[priv_key_uri.partition(":")[2]].encode()
        private: Any = serialization.load_pem_private_key(pem, None)
        signer = CryptoSigner(private)
        assert signer.public_key.keyid == public_key.keyid
        return cls(signer)

    def sign(self, payload: bytes) -> Signature:
        return self._local.sign(payload)


@pytest.fixture
def kept_elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Register a scheme and return four keys of it, as URI and public PEM."""
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, EnvironmentSigner.SCHEME, EnvironmentSigner)
    made = []
    for number in range(4):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        monkeypatch.setenv(f"KEY_{number}", pem.decode())
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        made.append((f"envkey:KEY_{number}", public))
    return made


# -- several holders


def test_keys_are_dealt_out_over_holders_and_none_has_enough_alone(tmp_path: Path, online: dict[str, Any]) -> None:
    holders = [tmp_path / name for name in ("ann", "ben", "cleo")]
    made = hold_ceremony(holders, online, keys=3, threshold=2)

    assert [[entry.role for entry in read_keys(holder).keys] for holder in holders] == [["root", "targets"]] * 3
    metadata = Metadata[Any].from_bytes(made["targets"].encode())
    root = Metadata[Root].from_bytes(made["image_root"].encode()).signed
    assert root.roles["targets"].threshold == 2
    first, second = (sign_payload(holder, metadata.signed_bytes) for holder in holders[:2])
    assert len(first) == len(second) == 1
    metadata.signatures = {first[0]["keyid"]: Signature(first[0]["keyid"], first[0]["sig"])}
    assert not root.get_verification_result("targets", metadata.signed_bytes, metadata.signatures)
    metadata.signatures[second[0]["keyid"]] = Signature(second[0]["keyid"], second[0]["sig"])
    assert root.get_verification_result("targets", metadata.signed_bytes, metadata.signatures)


def test_a_ceremony_of_several_holders_can_be_held_again(tmp_path: Path, online: dict[str, Any]) -> None:
    holders = [tmp_path / "ann", tmp_path / "ben"]
    first = hold_ceremony(holders, online, keys=3, threshold=2)
    again = hold_ceremony(holders, online, keys=3, threshold=2)

    keyids = [set(Metadata[Root].from_bytes(made["image_root"].encode()).signed.keys) for made in (first, again)]
    assert keyids[0] == keyids[1]
    with pytest.raises(Broken, match=r"no keys\.json"):
        hold_ceremony([*holders, tmp_path / "late"], online, keys=3, threshold=2)


def test_more_folders_than_keys_are_refused(tmp_path: Path, online: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="at most one folder for each of 1 keys, got 2 folders"):
        hold_ceremony([tmp_path / "ann", tmp_path / "ben"], online, keys=1, threshold=1)
    assert not (tmp_path / "ann").exists()


def test_each_holder_may_have_a_passphrase_of_their_own(tmp_path: Path, online: dict[str, Any]) -> None:
    ann, ben = tmp_path / "ann", tmp_path / "ben"
    made = hold_ceremony([ann, ben], online, keys=2, threshold=1, passphrase={ann: "sesame"})
    payload = Metadata.from_bytes(made["targets"].encode()).signed_bytes

    assert (encrypted(ann), encrypted(ben)) == (True, False)
    assert sign_payload(ben, payload)
    assert sign_payload(ann, payload, passphrase="sesame")
    for wrong in (None, "open"):
        with pytest.raises(Broken, match="SKERRY_KEY_PASSPHRASE") as refused:
            sign_payload(ann, payload, passphrase=wrong)
        assert "\n" not in str(refused.value)


# -- keys that something else keeps


def test_a_ceremony_is_held_with_keys_that_something_else_keeps(
    tmp_path: Path, online: dict[str, Any], kept_elsewhere: list[tuple[str, bytes]]
) -> None:
    folder = tmp_path / "listed"
    for number, (uri, public) in enumerate(kept_elsewhere):
        add_key(folder, ("root", "targets")[number % 2], uri=uri, public=public, threshold=2)

    made = hold_ceremony(folder, online, keys=2, threshold=2)

    root = Metadata[Root].from_bytes(made["image_root"].encode())
    root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    assert {root.signed.keys[keyid].scheme for keyid in root.signed.roles["root"].keyids} == {"ecdsa-sha2-nistp256"}
    assert not list(folder.glob("*.pem"))
    payload = Metadata.from_bytes(made["targets"].encode()).signed_bytes
    assert len(sign_payload(folder, payload)) == 2


def test_a_key_is_listed_by_the_json_that_tuf_writes_of_it(
    tmp_path: Path, kept_elsewhere: list[tuple[str, bytes]]
) -> None:
    uri, public = kept_elsewhere[0]
    entry = add_key(tmp_path / "pem", "root", uri=uri, public=public)

    again = add_key(tmp_path / "json", "root", uri=uri, public=json.dumps(describe_key(entry.key())).encode())

    assert again == entry
    assert load_signer(tmp_path / "json", again).public_key == entry.key()


@pytest.mark.parametrize(
    ("uri", "public", "reason"),
    [
        ("nothing:1", b"", "expected a scheme that securesystemslib knows"),
        ("no uri", b"", "expected a scheme that securesystemslib knows"),
        ("hsm:1", b"", "expected a public key"),
        ("hsm:1", b"{}", "expected a public key"),
        ("hsm:1", b'{"keyid": "a", "keytype": 1}', "expected a public key"),
        ("hsm:1", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "expected a public key"),
    ],
)
def test_a_key_that_nothing_could_use_is_not_listed(tmp_path: Path, uri: str, public: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason) as refused:
        add_key(tmp_path / "keys", "root", uri=uri, public=public)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "keys").exists()


def test_a_key_is_listed_once(tmp_path: Path, kept_elsewhere: list[tuple[str, bytes]]) -> None:
    uri, public = kept_elsewhere[0]
    add_key(tmp_path / "keys", "root", uri=uri, public=public)
    with pytest.raises(Rejected, match="not listed yet"):
        add_key(tmp_path / "keys", "targets", uri=uri, public=public)


@pytest.mark.parametrize("error", [RuntimeError("no token\nin the slot"), OSError("gone"), KeyError("x")])
def test_what_a_signer_of_any_kind_raises_is_one_line(
    tmp_path: Path,
    kept_elsewhere: list[tuple[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    uri, public = kept_elsewhere[0]
    entry = add_key(tmp_path / "keys", "root", uri=uri, public=public)

    def fail(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(EnvironmentSigner, "from_priv_key_uri", fail)
    with pytest.raises(Broken) as refused:
        load_signer(tmp_path / "keys", entry)
    assert "\n" not in str(refused.value)


# -- the server's keys


def test_the_next_online_key_waits_and_the_one_before_is_deleted_once_it_is_named(server: Path) -> None:
    signers = OnlineSigners(server)
    first = signers.newest("director").public_key.keyid

    second = signers.make_next("director", named=[first]).keyid
    assert signers.make_next("director", named=[first]).keyid == second
    assert signers.forget([first]) == []
    assert {path.name for path in server.glob("director*.pem")} == {"director.pem", "director-2.pem"}

    assert signers.forget([second]) == [first]
    assert [path.name for path in server.glob("director*.pem")] == ["director-2.pem"]
    assert OnlineSigners(server).named(Role([second], 1), "director").public_key.keyid == second
    with pytest.raises(Broken, match="from the same backup"):
        signers.named(Role([first], 1), "director")


def test_keys_that_no_root_names_at_all_are_kept(server: Path) -> None:
    """Such a root would be a foreign one: nothing is deleted for it."""
    signers = OnlineSigners(server)
    assert signers.forget(["ab" * 32]) == []
    assert len(list(server.glob("*.pem"))) == 3


def test_a_server_without_a_key_for_each_role_does_not_start(server: Path) -> None:
    held = read_keys(server)
    write_keys(server, KeyList(tuple(entry for entry in held.keys if entry.role != "timestamp")))
    with pytest.raises(Broken, match="got none for timestamp"):
        OnlineSigners(server)


@pytest.mark.parametrize("role", ["root", "targets", "automatic", "x"])
def test_no_online_key_is_made_for_another_role(server: Path, role: str) -> None:
    with pytest.raises(Unknown, match="expected one of snapshot, timestamp, director"):
        OnlineSigners(server).make_next(role, named=[])
    assert len(list(server.glob("*.pem"))) == 3


def test_new_keys_are_other_ones_than_asked_for(tmp_path: Path) -> None:
    deal_keys([tmp_path / "a", tmp_path / "b"], ["targets"], keys=3, threshold=2)
    assert len(held_keys([tmp_path / "a", tmp_path / "b"], "targets", keys=3, threshold=2)) == 3
    for keys, threshold in ((2, 2), (3, 1)):
        with pytest.raises(Rejected, match="choose another folder"):
            held_keys([tmp_path / "a", tmp_path / "b"], "targets", keys=keys, threshold=threshold)
