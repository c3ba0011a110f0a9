"""Rotations and grants by the command line against a real server, followed by python-tuf's updater over HTTPS."""

import json
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import FetcherInterface, Updater

from control_plane.cli.program import main
from control_plane.database import open_database, sessions
from control_plane.home import open_home
from control_plane.schema.models import ModelVersion
from skerry.wire.join import parse_join
from skerry.wire.proof import TOKEN, proof_text

Output = pytest.CaptureFixture[str]
Run = Callable[..., tuple[int, str, str]]


class Https(FetcherInterface):
    """Fetches metadata from a control plane, verified against its own CA."""

    def __init__(self, server: Any, token: str = "") -> None:
        self._context = ssl.create_default_context(cafile=str(server.home / "ca" / "server-ca.pem"))
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        answer = httpx.get(url, verify=self._context, headers=self._headers, trust_env=False, timeout=20)
        if answer.status_code != 200:
            raise DownloadHTTPError(f"{url} answered {answer.status_code}", answer.status_code)
        return iter([answer.content])


@pytest.fixture
def run(capsys: Output) -> Run:
    """Return a function that runs one command, and returns its exit code, output and errors."""

    def call(server: Any, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(("--home", str(server.home), *arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def done(answer: tuple[int, str, str]) -> str:
    """Return what a command said that must succeed."""
    code, out, err = answer
    assert code == 0, err
    return out


def refused(answer: tuple[int, str, str], *, code: int = 2) -> str:
    """Return the one line of a command that must be refused."""
    got, _, err = answer
    (line,) = err.splitlines()
    assert got == code, line
    return line


def look(server: Any, folder: Path) -> Updater:
    """Return what a device that keeps its metadata in `folder` sees of the image repository now."""
    folder.mkdir(exist_ok=True)
    root = json.loads((server.home / "anchor.json").read_text())["image_root"].encode()
    return Updater(str(folder), f"https://localhost:{server.port}/v1/tuf/image/", fetcher=Https(server), bootstrap=root)


def versions(folder: Path) -> tuple[int, int]:
    """Return the versions of root and timestamp that a device trusts."""
    root, timestamp = (Metadata.from_file(str(folder / f"{role}.json")).signed for role in ("root", "timestamp"))
    return root.version, timestamp.version


def test_every_role_is_rotated_by_files_between_two_holders_while_a_device_follows(
    running: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben, file, device = tmp_path / "ann", tmp_path / "ben", str(tmp_path / "next.json"), tmp_path / "device"
    init = done(run(running, "keys", "init", "--out", str(ann), "--out", str(ben), "--keys", "2"))
    assert "not encrypted: no passphrase was given" in init
    look(running, device).refresh()

    # an online key: the file goes from the server to one holder, to the other, and back
    out = done(run(running, "keys", "rotate", "timestamp", "--file", file))
    assert "missing: image root: 0 of 2 signatures by the present root keys" in out
    assert "expected 2 signatures by keys of the present root, got 0" in refused(run(running, "keys", "submit", file))
    monkeypatch.setenv("SKERRY_URL", "https://127.0.0.1:1")  # holders have no network
    out = done(run(running, "keys", "sign", file, "--keys", str(ann)))
    assert "~ timestamp: 1 of " in out
    assert "the next holder signs the same file" in out
    assert "got 1" in refused(run(running, "keys", "submit", file))
    # the same holder again is not another one
    done(run(running, "keys", "sign", file, "--keys", str(ann)))
    assert "got 1" in refused(run(running, "keys", "submit", file))
    assert "skerry keys submit" in done(run(running, "keys", "sign", file, "--keys", str(ben)))
    assert "image root 2 is followed" in done(run(running, "keys", "submit", file))
    assert "nothing new" in done(run(running, "keys", "submit", file))
    look(running, device).refresh()
    assert versions(device)[0] == 2

    # everything else, with both folders at hand
    both = ("--keys", str(ann), "--keys", str(ben))
    done(run(running, "keys", "rotate", "snapshot", *both))
    done(run(running, "keys", "rotate", "director", *both))
    assert "--out: expected a folder" in refused(run(running, "keys", "rotate", "targets", *both))
    done(run(running, "keys", "rotate", "targets", *both, "--out", str(tmp_path / "targets-2")))
    look(running, device).refresh()
    line = refused(run(running, "keys", "rotate", "root", "--keys", str(ann), "--out", str(tmp_path / "root-2")))
    assert "image root: 1 of 2 signatures by the present root keys" in line
    done(run(running, "keys", "rotate", "root", *both, "--out", str(tmp_path / "root-2"), "--threshold", "2"))
    new = ("--keys", str(tmp_path / "root-2"))
    assert "expected a key that the old or the new roots name" in refused(
        run(running, "keys", "renew", "root", "--keys", str(ann))
    )
    done(run(running, "keys", "renew", "root", *new))
    done(run(running, "keys", "renew", "targets", "--keys", str(tmp_path / "targets-2")))
    look(running, device).refresh()
    assert versions(device)[0] == 6

    status = done(run(running, "keys", "status", *new))
    assert "director    root" in status
    assert "2 of 2" in status
    assert "file2:root-1.pem" in status
    # what is on the disk of the server: one key for each role, and it starts again with those
    assert {path.name for path in (running.home / "keys").glob("*.pem")} == {
        f"{role}-2.pem" for role in ("snapshot", "timestamp", "director")
    }
    running.stop()
    running.start()
    look(running, device).refresh()
    look(running, tmp_path / "newcomer").refresh()


def test_a_grant_is_signed_offline_and_withdrawn(running: Any, run: Run, tmp_path: Path) -> None:
    keys, file = ("--keys", str(tmp_path / "keys")), str(tmp_path / "grant.json")
    done(run(running, "keys", "init", "--out", str(tmp_path / "keys")))
    assert "expected one of `skerry model list`" in refused(run(running, "keys", "grant", "gestures", *keys))
    assert "expected a grant to withdraw, got none" in refused(run(running, "keys", "withdraw", "gestures", *keys))
    assert not list((running.home / "keys").glob("automatic-*"))
    _record_model(running, "gestures")
    for days in ("0", "366"):
        assert "days: expected 1 to 365" in refused(run(running, "keys", "grant", "gestures", "--days", days, *keys))

    device = tmp_path / "device"
    out = done(run(running, "keys", "grant", "gestures", "--days", "10", "--file", file))
    assert "+ role automatic-gestures" in out
    assert "missing: grant gestures: 0 of 2 signatures" in out
    assert "grant gestures has 0 of 2 signatures" in done(run(running, "keys", "submit", file))
    done(run(running, "keys", "sign", file, *keys))
    assert "grant gestures is published" in done(run(running, "keys", "submit", file))
    assert "got none; it may be published already" in refused(run(running, "keys", "submit", file))
    assert look(running, device).get_targetinfo("models/gestures/1/p/manifest.json") is None
    assert (device / "automatic-gestures.json").exists()
    status = done(run(running, "keys", "status"))
    assert "automatic-gestures" in status

    assert "- role automatic-gestures" in done(run(running, "keys", "withdraw", "gestures", *keys))
    look(running, device).refresh()
    assert not list((running.home / "keys").glob("automatic-*"))

    # a file that something else made
    for data in (b"{}", b"no json", b'{"format": "skerry-roots-1"}'):
        Path(file).write_bytes(data)
        refused(run(running, "keys", "sign", file, *keys))
        refused(run(running, "keys", "submit", file))


def test_wrong_passphrases_folders_and_roles_are_refused_in_one_line(
    running: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, file = tmp_path / "keys", str(tmp_path / "next.json")
    monkeypatch.setenv("SKERRY_KEY_PASSPHRASE", "open sesame")
    assert "not encrypted" not in done(run(running, "keys", "init", "--out", str(keys)))
    assert all(b"ENCRYPTED" in path.read_bytes() for path in keys.glob("*.pem"))
    done(run(running, "keys", "rotate", "timestamp", "--file", file))

    for wrong in ("sesame", ""):
        monkeypatch.setenv("SKERRY_KEY_PASSPHRASE", wrong)
        assert "SKERRY_KEY_PASSPHRASE" in refused(run(running, "keys", "sign", file, "--keys", str(keys)), code=4)
    monkeypatch.setenv("SKERRY_KEY_PASSPHRASE", "open sesame")
    assert "no keys.json" in refused(run(running, "keys", "sign", file, "--keys", str(tmp_path)), code=4)
    assert "expected a file, got none" in refused(run(running, "keys", "sign", file + "x", "--keys", str(keys)))
    assert "its key is the server's" in refused(
        run(running, "keys", "rotate", "timestamp", "--out", str(tmp_path / "x"), "--keys", str(keys))
    )
    assert "expected 1 <= threshold" in refused(
        run(running, "keys", "rotate", "root", "--out", str(tmp_path / "x"), "--threshold", "9", "--keys", str(keys))
    )
    assert "expected a scheme" in refused(
        run(running, "keys", "add", "root", "--uri", "x:1", "--public", file, "--out", str(tmp_path / "y"))
    )
    done(run(running, "keys", "sign", file, "--keys", str(keys)))
    done(run(running, "keys", "submit", file))

    # a version that is skipped, by somebody who holds all keys
    tree = json.loads(Path(file).read_text())
    metadata: Metadata[Root] = Metadata.from_bytes(tree["next"]["image_root"].encode())
    metadata.signed.version += 2
    metadata.signatures.clear()
    tree["next"]["image_root"] = metadata.to_bytes().decode()
    Path(file).write_text(json.dumps(tree))
    done(run(running, "keys", "sign", file, "--keys", str(keys)))
    assert "root: expected version 3, got 4" in refused(run(running, "keys", "submit", file))


def test_metadata_is_served_over_https_by_the_names_that_tuf_asks_for(shared: Any) -> None:
    def status(path: str) -> int:
        code: int = shared.ask_securely("GET", path)[0]
        return code

    for name in ("timestamp", "1.root", "1.snapshot", "1.targets"):
        assert status(f"/v1/tuf/image/{name}.json") == 200
    for name in ("2.root", "root", "9.targets", "1.timestamp", "..%2f1.root", "1.automatic-x", "1.root.json"):
        assert status(f"/v1/tuf/image/{name}.json") == 404
    assert status("/v1/tuf/director/wearer-1/timestamp.json") == 401
    # an operator is no device
    assert shared.ask("GET", "/v1/tuf/director/wearer-1/timestamp.json")[0] == 401


def test_a_device_reads_its_own_assignment_and_no_other(shared: Any, tmp_path: Path) -> None:
    tokens = {name: _token(shared, name) for name in ("reader-1", "reader-2")}
    shared.post("/v1/devices/reader-1/decommission", {"now": False})

    def updater(asks: str, about: str) -> Updater:
        folder = tmp_path / f"{asks}-{about}"
        folder.mkdir()
        root = json.loads((shared.home / "anchor.json").read_text())["director_root"].encode()
        url = f"https://localhost:{shared.port}/v1/tuf/director/{about}/"
        return Updater(str(folder), url, fetcher=Https(shared, tokens[asks]), bootstrap=root)

    order = updater("reader-1", "reader-1").get_targetinfo("decommission")
    assert order is not None
    assert order.unrecognized_fields["custom"]["device"] == "reader-1"
    with pytest.raises(DownloadHTTPError) as foreign:
        updater("reader-2", "reader-1").refresh()
    # asking for a root that it may not have looks like the end of the chain; the timestamp is refused
    assert foreign.value.status_code == 403


def _record_model(server: Any, name: str) -> None:
    engine = open_database(open_home(server.home))
    with sessions(engine).begin() as session:
        now = datetime.now(UTC)
        session.add(ModelVersion(model=name, version=1, dataset="d", bundle="0" * 64, trained_at=now))
    engine.dispose()


def _token(server: Any, name: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    join = parse_join(server.post("/v1/devices/invite", {"profile": "x86-64-gateway", "name": name})["join"])
    claim = {"token": join.token, "csr": csr, "profile": "x86-64-gateway"}
    assert server.ask_securely("POST", "/v1/enrol", claim)[0] == 200
    nonce = server.ask_securely("POST", "/v1/proof/nonce", {"device": name})[1]["nonce"]
    proof = key.sign(proof_text(TOKEN, device=name, nonce=nonce), ec.ECDSA(hashes.SHA256()))
    answer = _buy(server, name, nonce, proof)
    token: str = answer["token"]
    return token


def _buy(server: Any, name: str, nonce: str, proof: bytes) -> Any:
    import base64

    body = {"device": name, "nonce": nonce, "signature": base64.b64encode(proof).decode()}
    status, answer = server.ask_securely("POST", "/v1/token", body)
    assert status == 200, answer
    return answer
