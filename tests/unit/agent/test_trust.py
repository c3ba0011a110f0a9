"""The trust decision: only what both repositories say, for this device, and never backwards."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import DelegatedRole, Delegations
from tuf.ngclient.fetcher import FetcherInterface

from agent.identity.enrol import make_key_and_request
from agent.trust.assignment import ask_child
from agent.trust.decision import judge
from agent.trust.floor import parse_moment, read_floor
from agent.trust.metadata import Bounds, HeldMetadata
from agent.trust.question import DIRECTOR, IMAGE, Held, Judgement, Question, Verdict
from agent.trust.repository import find_target, open_repository
from control_plane.authority import issue, load_authority, make_authorities, read_csr
from skerry.errors import Broken
from skerry.wire.enrolment import Anchor
from skerry.wire.manifest import GRANTED_UNTIL, NO_SAMPLES, SamplePolicy
from skerry.wire.messages import Terms
from tests.tuf_repository import TufRepository, now, sign

PATH = "models/strokes/1/gateway/manifest.json"
OTHER = "models/lamps/1/gateway/manifest.json"
NOW = now()
ISSUED = NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
TERMS = Terms(device="watch-1", counter=1, issued=ISSUED, deployment="d1", release="strokes-1")
STRANGER = CryptoSigner.generate_ed25519()
DAY = 86400.0


class Serving(FetcherInterface):
    """Fetches from a dictionary."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rsplit("/", 1)[-1]
        if name not in self._files:
            raise DownloadHTTPError(f"{name}: expected a file, got none", 404)
        return iter([self._files[name]])


class Case:
    """Two repositories that agree, and a device that asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = TufRepository()
        self.director = TufRepository()
        self.clock = NOW.timestamp()
        self.held: tuple[Held, ...] = ()
        self.refuse_automatic = False
        self.image.add(PATH, b"manifest")
        self.image.publish()
        self.certificate = ""
        self.anchor = Anchor("watch", self.image.root.decode(), self.director.root.decode(), server_ca="")
        self.assign()

    def assign(
        self, *, path: str = PATH, data: bytes = b"manifest", terms: Terms | None = TERMS, **changed: Any
    ) -> None:
        """Let the director assign; the counter is the version unless it is given."""
        counter = {"counter": self.director.targets_version + 1}
        custom = asdict(replace(terms, **(counter | changed))) if terms else None
        self.director.targets.clear()
        self.director.add(path, data, custom=custom)
        self.director.publish()

    @property
    def question(self) -> Question:
        """What the device asks."""
        return Question(
            anchor=self.anchor,
            device="watch-1",
            folder=str(self.folder),
            clock=self.clock,
            held=self.held,
            refuse_automatic=self.refuse_automatic,
            certificate=self.certificate,
        )

    def ask(self) -> Verdict:
        """Return the verdict on what both repositories serve now."""
        return self.judge().of("")

    def judge(self) -> Judgement:
        """Return what is decided on all that both repositories serve now."""
        return judge(self.question, image=Serving(self.image.files), director=Serving(self.director.files))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Two repositories that agree on a first assignment."""
    return Case(tmp_path / "trust")


def test_what_both_repositories_list_for_this_device_is_trusted(case: Case) -> None:
    verdict = case.ask()

    assert verdict.ok, verdict
    assert (verdict.terms, verdict.path, verdict.length) == (TERMS, PATH, len(b"manifest"))
    assert len(verdict.sha256) == 64
    assert case.ask() == verdict


def held_of(case: Case) -> HeldMetadata:
    """Return both repositories as files that are here already."""
    named = {IMAGE: case.image.files, DIRECTOR: case.director.files}
    return HeldMetadata({(which, name): data for which, files in named.items() for name, data in files.items()})


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


def refused(case: Case, reason: str) -> None:
    """Expect a refusal for good."""
    verdict = case.ask()
    assert (verdict.ok, verdict.later) == (False, False), verdict
    assert reason in verdict.reason


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


# -- time


def test_a_clock_in_1970_installs_what_is_fresh_and_refuses_what_had_expired_by_the_floor(case: Case) -> None:
    case.clock = 0.0
    assert case.ask().ok
    assert read_floor(case.folder) == parse_moment(ISSUED)

    # the director is fresh; the image repository is a frozen one that only a clock in 1970 finds alive
    case.image.expires = NOW - timedelta(seconds=1)
    case.image.publish()
    verdict = case.ask()

    assert (verdict.ok, verdict.later) == (False, True)
    assert "the latest moment that an assignment proved" in verdict.reason


def test_the_very_first_assignment_lifts_the_moment_by_which_the_image_repository_is_judged(case: Case) -> None:
    case.clock = 0.0
    case.image.expires = NOW - timedelta(days=1)
    case.image.publish()

    assert case.ask().later
    assert read_floor(case.folder) == 0.0


def test_a_clock_stepped_back_makes_nothing_fresh_again(case: Case) -> None:
    assert case.ask().ok
    case.director.expires = NOW - timedelta(hours=1)
    case.assign()
    case.clock -= 30 * DAY

    assert case.ask().later


def test_a_clock_ten_years_ahead_refuses_says_so_and_leaves_nothing_behind(case: Case) -> None:
    assert case.ask().ok
    case.assign()
    case.clock += 3650 * DAY

    ahead = case.ask()
    assert (ahead.ok, ahead.later) == (False, True)
    assert "if that clock is ahead, set it" in ahead.reason
    assert NOW.strftime("%Y-%m-%d") in ahead.reason

    case.clock -= 3650 * DAY
    assert case.ask().ok


@pytest.mark.parametrize("clock", [-1.0, 1e18])
def test_a_clock_that_no_calendar_has_does_not_end_the_judge(case: Case, clock: float) -> None:
    case.clock = clock
    assert case.ask().ok is (clock < 0)


def test_a_director_cannot_claim_a_moment_at_which_the_offline_targets_have_expired(case: Case) -> None:
    case.director.expires = NOW + timedelta(days=9000)
    case.assign(issued="2050-01-01T00:00:00Z")

    assert case.ask().later
    assert read_floor(case.folder) == 0.0
    case.assign()
    assert case.ask().ok


def test_a_floor_counts_no_longer_once_the_directors_keys_are_replaced(case: Case) -> None:
    # whoever held the online keys of both repositories pushed the floor as far as the offline targets reach
    case.image.expires = case.director.expires = NOW + timedelta(days=300)
    case.image.publish()
    case.assign(issued=(NOW + timedelta(days=299)).strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert case.ask().ok
    case.image.expires = case.director.expires = NOW + timedelta(days=7)
    case.image.publish()
    case.assign()
    assert case.ask().later, "the floor holds while its witness does"

    key = [CryptoSigner.generate_ed25519()]
    for role in ("timestamp", "snapshot", "targets"):
        case.director.rotate(role, key)
    case.assign()

    case.ask()  # learns the new root, still by the old floor
    assert case.ask().ok
    assert read_floor(case.folder) == parse_moment(ISSUED)


# -- roles that sign online


def automatic(
    case: Case, *, paths: tuple[str, ...] = ("models/strokes/*/*/*",), lists: str = PATH, **options: Any
) -> None:
    """Let `automatic-strokes` list a target, and the director assign it."""
    case.image.targets.clear()
    case.image.delegate("automatic-strokes", paths, **options)
    case.image.add(lists, b"manifest", role="automatic-strokes")
    case.image.publish()
    case.assign(path=lists)


def test_an_automatic_release_of_its_model_is_trusted(case: Case) -> None:
    automatic(case)
    assert case.ask().ok


@pytest.mark.parametrize(("ends", "trusted"), [(timedelta(hours=1), True), (timedelta(0), False)])
def test_a_grant_ends_when_the_offline_keys_said_whatever_its_own_key_signs(
    case: Case, ends: timedelta, trusted: bool
) -> None:
    automatic(case, expires=NOW + timedelta(days=300))
    until = (NOW + ends).strftime("%Y-%m-%dT%H:%M:%SZ")
    case.image.delegations[-1].unrecognized_fields[GRANTED_UNTIL] = until
    case.image.publish()
    case.assign(path=PATH)
    case.held = (Held(PATH, hashlib.sha256(b"manifest").hexdigest()),)

    verdict = case.ask()

    # it says nothing about what was installed while it lasted
    assert (verdict.ok, verdict.later, verdict.revoked) == (trusted, not trusted, ())
    assert trusted or f"got one that ended {until}" in verdict.reason


def test_a_device_may_refuse_automatic_releases(case: Case) -> None:
    automatic(case)
    case.refuse_automatic = True
    refused(case, "which this device refuses")


def test_an_automatic_role_lists_nothing_of_another_model_even_where_it_was_granted_too_much(case: Case) -> None:
    automatic(case, paths=("models/*/*/*/*",), lists=OTHER)
    refused(case, "to list models/strokes/ alone")


def test_an_automatic_role_lists_nothing_outside_its_paths(case: Case) -> None:
    automatic(case, lists=OTHER)
    refused(case, "among its targets, got none")


def test_an_automatic_role_cannot_pass_its_right_on(case: Case) -> None:
    automatic(case)
    mine = case.image.delegated["automatic-strokes"]
    mine.targets.clear()
    helper = CryptoSigner.generate_ed25519()
    further = DelegatedRole("helper", [helper.public_key.keyid], 1, True, paths=["models/strokes/*/*/*"])
    mine.delegations = Delegations({helper.public_key.keyid: helper.public_key}, roles={"helper": further})
    case.image.delegate("helper", ["nothing"])
    case.image.delegated["helper"].signers = [helper]
    case.image.delegations.pop()
    case.image.add(PATH, b"manifest", role="helper")
    case.image.publish()
    refused(case, "got it from helper")


def test_an_expired_delegation_is_waited_for_and_revokes_nothing(case: Case) -> None:
    automatic(case)
    digest = case.ask().sha256
    case.held = (Held(path=PATH, sha256=digest),)
    case.image.delegated["automatic-strokes"].expires = NOW - timedelta(days=1)
    case.image.publish()

    verdict = case.ask()

    assert (verdict.later, verdict.revoked, verdict.listed) == (True, (), ())


def test_the_offline_targets_come_before_a_delegated_role(case: Case) -> None:
    automatic(case)
    case.image.add(PATH, b"manifest")
    case.image.publish()
    case.refuse_automatic = True

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


# -- what may leave the device


LEAVES = {"samples": {"rows_per_window": 2, "inputs": ["window"], "max_bytes": 100}}
POLICY = SamplePolicy(2, ("window",), 100)


def test_what_the_offline_targets_let_leave_the_device_comes_with_the_verdict(case: Case) -> None:
    assert case.ask().samples == NO_SAMPLES
    case.image.add(PATH, b"manifest", custom=LEAVES)
    case.image.publish()
    digest = case.ask().sha256
    case.held = (Held(path=PATH, sha256=digest),)

    verdict = case.ask()

    assert (verdict.samples, verdict.allowed) == (POLICY, {digest: POLICY})
    assert ask_child(case.question, held_of(case)) == case.judge()


def test_what_an_online_key_lets_leave_the_device_counts_for_nothing(case: Case) -> None:
    automatic(case)
    case.image.add(PATH, b"manifest", role="automatic-strokes", custom=LEAVES)
    case.image.publish()
    case.held = (Held(path=PATH, sha256=case.ask().sha256),)

    verdict = case.ask()

    assert (verdict.ok, verdict.samples, verdict.allowed) == (True, NO_SAMPLES, {})


@pytest.mark.parametrize("said", [7, {"rows_per_window": -1}, {"inputs": "window"}, {"max_bytes": 1 << 40}])
def test_a_policy_that_cannot_be_read_lets_nothing_leave(case: Case, said: object) -> None:
    case.image.add(PATH, b"manifest", custom={"samples": said})
    case.image.publish()
    assert (case.ask().ok, case.ask().samples) == (True, NO_SAMPLES)
