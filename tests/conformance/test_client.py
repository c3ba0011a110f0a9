"""The client for conformance suites, as they start it: one process a verb, against a repository over HTTP."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, SuccinctRoles, Targets

from tests.tuf_repository import Delegated, TufRepository, now, sign

CLIENT = Path(__file__).with_name("client.py")


class World:
    """A repository behind a real HTTP server, and a client with its folders."""

    def __init__(self, folder: Path) -> None:
        self.repository = TufRepository()
        self.artifacts: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.metadata, self.out = folder / "metadata", folder / "targets"
        self.first = folder / "first.json"
        self.first.write_bytes(self.repository.root)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, path: str, data: bytes, *, role: str = "targets") -> None:
        """List a target, published by the next `publish`, and serve it under its hash."""
        self.repository.add(path, data, role=role)
        listed = self.repository.targets if role == "targets" else self.repository.delegated[role].targets
        folder, slash, name = path.rpartition("/")
        self.artifacts[f"{folder}{slash}{listed[path].hashes['sha256']}.{name}"] = data

    def run(self, *words: str) -> int:
        """Start the client; return its exit status, which is never that of a crash."""
        command = [sys.executable, str(CLIENT), "--metadata-dir", str(self.metadata), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        assert (done.returncode == 0) == (done.stderr == ""), done.stderr
        return done.returncode

    def init(self) -> int:
        return self.run("init", str(self.first))

    def refresh(self) -> int:
        return self.run("--metadata-url", f"{self.url}/metadata", "refresh")

    def download(self, *names: str) -> int:
        wanted = [word for name in names for word in ("--target-name", name)]
        where = ["--target-base-url", f"{self.url}/targets/", "--target-dir", str(self.out)]
        return self.run("--metadata-url", f"{self.url}/metadata/", *wanted, *where, "download")

    def version(self, role: str) -> int:
        """Return the version of a role that is trusted now; 0 when none is."""
        path = self.metadata / f"{role}.json"
        return int(json.loads(path.read_bytes())["signed"]["version"]) if path.exists() else 0

    def versions(self) -> tuple[int, ...]:
        """Return the versions of root, timestamp, snapshot and targets."""
        return tuple(self.version(role) for role in ("root", "timestamp", "snapshot", "targets"))

    def downloaded(self) -> list[bytes]:
        """Return what lies in the target folder."""
        return [path.read_bytes() for path in sorted(self.out.rglob("*")) if path.is_file()]


def _handler(world: World) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            world.asked.append(self.path)
            kind, _, name = self.path.removeprefix("/").partition("/")
            files = {"metadata": world.repository.files, "targets": world.artifacts}[kind]
            # metadata is asked for by quoted role names, targets by their paths
            data = files.get(name, files.get(unquote(name)))
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A repository with one target, published, and a client that trusts its first root."""
    world = World(tmp_path)
    world.add("file.txt", b"content")
    world.repository.publish()
    assert world.init() == 0
    yield world
    world.server.shutdown()
    world.server.server_close()


def test_it_can_be_started_by_its_name() -> None:
    assert CLIENT.stat().st_mode & 0o111 == 0o111
    assert CLIENT.read_text().startswith("#!")


def test_init_asks_nobody_and_keeps_the_root_alone(world: World) -> None:
    assert world.asked == []
    assert [path.name for path in world.metadata.iterdir()] == ["root.json"]
    assert (world.metadata / "root.json").read_bytes() == world.repository.root


def test_init_over_a_refreshed_folder_does_not_touch_its_history(world: World) -> None:
    world.repository.rotate("timestamp", [CryptoSigner.generate_ed25519()])
    world.repository.publish()
    assert world.refresh() == 0
    kept = (world.metadata / "root_history/2.root.json").read_bytes()

    assert world.init() == 0
    assert (world.metadata / "root_history/2.root.json").read_bytes() == kept
    assert world.refresh() == 0
    assert world.version("root") == 2


def test_a_refresh_follows_what_is_published_and_asks_for_no_more_than_it_needs(world: World) -> None:
    assert world.refresh() == 0
    assert world.versions() == (1, 1, 1, 1)
    names = ("2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json")
    assert world.asked == [f"/metadata/{name}" for name in names]

    world.asked.clear()
    assert world.refresh() == 0
    assert world.asked == ["/metadata/2.root.json", "/metadata/timestamp.json"]
    world.repository.publish()
    assert world.refresh() == 0
    assert world.versions() == (1, 2, 2, 2)


@pytest.mark.parametrize("root", [b"", b"{}", b"not a root"])
def test_a_root_that_is_none_is_refused_at_the_refresh(world: World, root: bytes) -> None:
    world.first.write_bytes(root)
    world.init()
    assert world.refresh() == 1


@pytest.mark.parametrize("missing", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_missing_metadata_fails_and_keeps_what_came_before_it(world: World, missing: str) -> None:
    del world.repository.files[missing]
    assert world.refresh() == 1
    assert world.version("targets") == 0


def test_a_server_that_is_not_there_fails(world: World) -> None:
    world.url = "http://127.0.0.1:1"
    assert world.refresh() == 1
    world.url = "file:///etc"
    assert world.refresh() == 1


def test_an_expired_root_is_kept_and_ends_the_refresh(world: World) -> None:
    world.refresh()
    world.repository.root_expires = now() - timedelta(days=1)
    world.repository.publish_root()
    world.repository.publish()

    assert world.refresh() == 1
    assert world.versions() == (2, 1, 1, 1)


@pytest.mark.parametrize(("role", "kept"), [("timestamp", (1, 1, 1, 1)), ("snapshot", (1, 2, 1, 1))])
def test_expired_metadata_is_not_trusted(world: World, role: str, kept: tuple[int, ...]) -> None:
    world.refresh()
    repository = world.repository
    alive = repository.expires
    repository.expires = now() - timedelta(days=1)
    repository.publish()
    if role == "snapshot":
        repository.expires = alive
        repository.sign_timestamp()

    assert world.refresh() == 1
    assert world.versions() == kept


def test_older_metadata_is_refused(world: World) -> None:
    older = dict(world.repository.files)
    world.repository.publish()
    world.refresh()

    world.repository.files = older
    assert world.refresh() == 1
    assert world.versions() == (1, 2, 2, 2)


def test_a_fast_forwarded_timestamp_is_recovered_from_by_new_keys(world: World) -> None:
    repository = world.repository
    repository.timestamp_version = 99_999
    repository.sign_timestamp()
    assert world.refresh() == 0
    repository.timestamp_version = 1
    repository.publish()
    assert world.refresh() == 1

    for role in ("timestamp", "snapshot"):
        repository.rotate(role, [CryptoSigner.generate_ed25519()])
    repository.publish()
    assert world.refresh() == 0
    assert world.version("timestamp") == 3


def test_a_chain_of_roots_is_walked_and_a_gap_or_a_wrong_signature_ends_it(world: World) -> None:
    old = world.repository.signers["root"]
    for _ in range(3):
        world.repository.rotate("root", [CryptoSigner.generate_ed25519()])
    assert world.refresh() == 0
    assert world.version("root") == 4

    # signed by the new keys and by those of three roots ago, not by those in between
    stranger = CryptoSigner.generate_ed25519()
    world.repository.signers["root"] = [stranger]
    world.repository.publish_root(signers=[*old, stranger])
    assert world.refresh() == 1
    assert world.version("root") == 4


@pytest.mark.parametrize(("signing", "status"), [(1, 1), (2, 0), (3, 0)])
def test_a_threshold_is_met_or_not(world: World, signing: int, status: int) -> None:
    keys = [CryptoSigner.generate_ed25519() for _ in range(3)]
    world.repository.rotate("targets", keys, threshold=2)
    world.repository.signers["targets"] = keys[:signing]
    world.repository.publish()
    assert world.refresh() == status


# -- targets


def test_targets_are_downloaded_by_hash_and_several_at_once(world: World) -> None:
    world.add("path/to/a/file.txt", b"deep")
    world.repository.publish()

    assert world.download("file.txt", "path/to/a/file.txt") == 0
    assert sorted(world.downloaded()) == [b"content", b"deep"]
    assert all(path.parent == world.out for path in world.out.iterdir())


def test_a_target_that_is_here_is_not_downloaded_again_and_a_changed_one_takes_its_place(world: World) -> None:
    assert world.download("file.txt") == 0
    world.artifacts.clear()
    assert world.download("file.txt") == 0

    world.add("file.txt", b"changed")
    world.repository.publish()
    assert world.download("file.txt") == 0
    assert world.downloaded() == [b"changed"]


@pytest.mark.parametrize("served", [b"malicious", b"content and more", b"", None])
def test_other_bytes_are_not_stored(world: World, served: bytes | None) -> None:
    (name,) = world.artifacts
    if served is None:
        world.artifacts.clear()
    else:
        world.artifacts[name] = served

    assert world.download("file.txt") == 1
    assert world.downloaded() == []


def test_one_unlisted_target_fails_the_whole_and_keeps_the_good(world: World) -> None:
    assert world.download("file.txt", "nobody.txt") == 1
    assert world.downloaded() == [b"content"]


@pytest.mark.parametrize("name", ["a b.txt", "ä.txt", "../escape.txt", "q?x=1", "h#y", "per%20cent", "a//b", "+&=.txt"])
def test_odd_target_names_are_asked_for_and_stored_safely(world: World, name: str) -> None:
    world.add(name, b"odd")
    world.repository.publish()

    assert world.download(name) == 0
    assert world.downloaded() == [b"odd"]
    assert all(path.parent == world.out for path in world.out.iterdir())


@pytest.mark.parametrize("role", ["?", "#", "/delegated", "../delegated", "a b", "ä"])
def test_odd_role_names_are_quoted_on_the_road_and_on_the_disk(world: World, role: str) -> None:
    world.repository.delegate(role, ["*"])
    world.add("theirs.txt", b"theirs", role=role)
    world.repository.publish()
    quoted = quote(role, "")
    world.repository.files[f"1.{quoted}.json"] = world.repository.files.pop(f"1.{role}.json")

    assert world.download("theirs.txt") == 0
    assert f"/metadata/1.{quoted}.json" in world.asked
    assert (world.metadata / f"{quoted}.json").is_file()
    assert len([path for path in world.metadata.iterdir() if path.suffix == ".json"]) == 5


def test_a_terminating_delegation_ends_the_search(world: World) -> None:
    world.repository.delegate("first", ["x/*"], terminating=True)
    world.repository.delegate("second", ["x/*"])
    world.add("x/file", b"second's", role="second")
    world.repository.publish()

    assert world.download("x/file") == 1
    assert not any("second" in path for path in world.asked)


def test_delegations_are_walked_in_order_and_not_in_circles(world: World) -> None:
    world.repository.delegate("first", ["*"], terminating=False)
    world.repository.delegate("second", ["*"], terminating=False)
    keys = {name: role.signers[0].public_key for name, role in world.repository.delegated.items()}
    circle = DelegatedRole("second", [keys["second"].keyid], 1, False, paths=["*"])
    world.repository.delegated["first"].delegations = Delegations(
        {keys["second"].keyid: keys["second"]}, roles={"second": circle}
    )
    back = DelegatedRole("first", [keys["first"].keyid], 1, False, paths=["*"])
    world.repository.delegated["second"].delegations = Delegations(
        {keys["first"].keyid: keys["first"]}, roles={"first": back}
    )
    world.add("theirs", b"theirs", role="second")
    world.repository.publish()

    assert world.download("theirs") == 0
    assert world.download("nobody's") == 1


def test_a_delegated_role_signed_by_another_key_is_refused(world: World) -> None:
    world.repository.delegate("theirs", ["*"])
    world.add("x", b"x", role="theirs")
    world.repository.publish()
    theirs = Targets(version=1, expires=now() + timedelta(days=1), targets=world.repository.delegated["theirs"].targets)
    world.repository.files["1.theirs.json"] = sign(theirs, [CryptoSigner.generate_ed25519()])

    assert world.download("x") == 1
    assert world.downloaded() == []


def test_hash_bins_lead_to_their_targets(world: World) -> None:
    signer = CryptoSigner.generate_ed25519()
    bins = SuccinctRoles([signer.public_key.keyid], 1, 3, "bin")
    for name in bins.get_roles():
        world.repository.delegated[name] = Delegated([signer])
    world.repository.succinct = bins
    names = [f"file-{number}" for number in range(6)]
    for name in names:
        world.add(name, name.encode(), role=bins.get_role_for_target(name))
    world.repository.publish()

    assert world.download(*names) == 0
    assert world.downloaded() == [name.encode() for name in names]
    assert world.download("file-none") == 1
