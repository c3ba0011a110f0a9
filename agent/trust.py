"""The trust decision: does a director's assignment, and the image repository, agree on one target for this device?

    repository = open_repository(fetcher, folder, root, at=now)     # the anchor's root, and what was trusted before
    repository.refresh()                                            # root, timestamp, snapshot, targets
    found = find_target(repository, "models/strokes/1/gateway/manifest.json")

`judge` does that for both repositories and returns a `Verdict`. All checks of signatures, thresholds, versions and
expiry are python-tuf's client workflow (TUF specification 5); what is added:

- Uptane's agreement: both list the same path, length and hashes, and the terms name this device;
- `Terms.counter` is the version of the director's targets, which TUF lets only grow;
- expiry is judged at the latest of the clock, the floor (`agent.floor`) and the assignment's own `issued`;
- of delegated roles only `automatic-MODEL` counts, named by the offline targets themselves, for that model's paths,
  until the end of its grant, and not at all on a device that refuses automatic releases;
- `decommission` is the director's word alone: it makes nothing run.

Imports tuf and cryptography, so the resident agent never imports it: it runs `agent.trust_child`.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from tuf.api.exceptions import DownloadError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.fetcher import FetcherInterface

from agent.floor import advance, parse_moment, read_floor, show_moment
from agent.question import Question, Verdict
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.manifest import GRANTED_UNTIL, other_build
from skerry.wire.messages import Terms

MAX_ROOTS = 256
MAX_DELEGATIONS = 32
DECOMMISSION = "decommission"
AUTOMATIC = "automatic-"
# no machine's calendar ends before it, and it fits every one
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Found:
    """A target and the role that lists it; `direct` when the top-level targets name that role, or are it."""

    target: TargetFile
    role: str
    direct: bool


# -- one repository: what `judge` and a client for conformance suites have in common


def open_repository(
    fetcher: FetcherInterface,
    folder: Path,
    root: bytes,
    *,
    at: float,
    url: str = "metadata://",
    targets: Path | None = None,
    targets_url: str | None = None,
) -> Updater:
    """Return a repository that trusts `root` and what `folder` keeps, and judges expiry at `at` (seconds since 1970).

    Raises:
        RepositoryError: the root is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    updater = Updater(
        str(folder),
        url,
        target_dir=str(targets) if targets else None,
        target_base_url=targets_url,
        fetcher=fetcher,
        config=UpdaterConfig(max_root_rotations=MAX_ROOTS, max_delegations=MAX_DELEGATIONS),
        bootstrap=root,
    )
    # private, because python-tuf reads the clock in a constructor: nothing has been judged by it at this point
    # (the first root is valid however old it is, TUF specification 5.3.10), so all of the workflow sees our moment
    _trusted(updater).reference_time = datetime.fromtimestamp(min(max(at, 0.0), _LATEST), UTC)
    return updater


def find_target(repository: Updater, path: str) -> Found | None:
    """Return the target of a path after the whole client workflow, delegations included; None when nobody lists it."""
    target = repository.get_targetinfo(path)
    if target is None:
        return None
    trusted = _trusted(repository)
    # iterating the set itself yields no names, and python-tuf does not say which role listed a target
    for role, signed in trusted._trusted_set.items():  # noqa: SLF001
        # the very object: another role may list the same path, and is not the one that was chosen
        if isinstance(signed, Targets) and signed.targets.get(path) is target:
            direct = role == Targets.type or trusted.contains(role, Targets.type)
            if direct and role != Targets.type:
                _check_grant(trusted, role)
            return Found(target=target, role=role, direct=direct)
    raise Rejected(f"{path}: expected a role that lists it, got none; report this")


def _check_grant(trusted: TrustedMetadataSet, role: str) -> None:
    """Raise `ExpiredMetadataError` when the grant of a role has ended: its own metadata may say what its key likes."""
    delegation = (trusted.targets.delegations.roles or {}).get(role) if trusted.targets.delegations else None
    until = delegation.unrecognized_fields.get(GRANTED_UNTIL) if delegation else None
    if until is not None and trusted.reference_time.timestamp() >= parse_moment(str(until)):
        raise ExpiredMetadataError(f"{role}: expected a grant that lasts, got one that ended {until}")


# -- the decision


def judge(question: Question, *, image: FetcherInterface, director: FetcherInterface) -> Verdict:
    """Decide on the assignment that `director` has for the device; trusted metadata is kept in the question's folder.

    Raises:
        Broken: the disk refused.
    """
    folder = Path(question.folder)
    verdict = Verdict(ok=False)
    witness = _witness(folder / "director", question.anchor.director_root)
    at = max(question.clock, read_floor(folder, witness=witness))
    try:
        theirs = open_repository(director, folder / "director", question.anchor.director_root.encode(), at=at)
        assignment = _assigned(theirs)
        terms = _terms(assignment, device=question.device)
        if assignment.path == DECOMMISSION:
            # nothing is reported of an order that is refused: there is no deployment that it belongs to
            _check_meant(terms, question.certificate)
            return Verdict(ok=True, terms=terms, path=assignment.path, decommission=True)

        verdict = Verdict(ok=False, terms=terms)
        # the director vouches for `issued`: what had expired by then is no longer fresh, whatever the clock says
        issued = parse_moment(terms.issued)
        at = max(at, issued)
        ours = open_repository(image, folder / "image", question.anchor.image_root.encode(), at=at)
        ours.refresh()
        # only now: offline targets that are alive at `issued` bound what a director can claim
        advance(folder, issued, witness=_keys_of(_trusted(theirs).root))

        verdict = _with_standing(verdict, ours, question)
        found = _permitted(find_target(ours, assignment.path), assignment.path, question)
        sha256 = _agreed(assignment, found.target)
        other = _to_measure(ours, terms, assignment.path, question)
    except ExpiredMetadataError as error:
        return _refused(verdict, f"{_line(error)}, judged at {_judged(at, question)}", later=True)
    except DownloadError as error:
        return _refused(verdict, _line(error), later=True)
    except (RepositoryError, Rejected) as error:
        return _refused(verdict, _line(error))
    return Verdict(
        ok=True,
        terms=terms,
        path=assignment.path,
        length=assignment.length,
        sha256=sha256,
        measure_length=other.length if other else 0,
        measure_sha256=terms.measure_sha256 if other else "",
        revoked=verdict.revoked,
        listed=verdict.listed,
    )


def _assigned(repository: Updater) -> TargetFile:
    """Return the director's one target after the whole client workflow."""
    repository.refresh()
    listed = _trusted(repository).targets
    if len(listed.targets) != 1:
        raise Rejected(f"director: expected exactly one target, got {len(listed.targets)}")
    path = next(iter(listed.targets))
    found = find_target(repository, path)
    if found is None or found.role != Targets.type:
        raise Rejected(f"director: expected the target {path} in its own targets, got none")
    counter = _terms_of(found.target).counter
    if counter != listed.version:
        raise Rejected(f"director: expected counter {listed.version}, the version of its targets, got {counter}")
    return found.target


def _check_meant(terms: Terms, certificate: str) -> None:
    """Raise `Rejected` when an order to wipe is for a device that had this one's name before it enrolled."""
    if not (terms.key_sha256 and certificate):
        return
    try:
        key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Rejected("expected this device's certificate, got another text; enrol again") from error
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if hashlib.sha256(pem).hexdigest() != terms.key_sha256:
        raise Rejected("director: expected an order to wipe for the key of this device, got one for an earlier key")


def _permitted(found: Found | None, path: str, question: Question) -> Found:
    """Return what was found if the role that lists it may do so here; raises `Rejected`."""
    if found is None:
        raise Rejected(f"image repository: expected {path} among its targets, got none; sign the release first")
    if found.role == Targets.type:
        return found
    model = found.role.removeprefix(AUTOMATIC)
    # a delegated role may delegate on, under any name: only what the offline keys named themselves is bounded by them
    if not found.direct or model == found.role:
        raise Rejected(f"{path}: expected it in the offline targets or {AUTOMATIC}MODEL, got it from {found.role}")
    if not path.startswith(f"models/{model}/"):
        raise Rejected(f"{path}: expected {found.role} to list models/{model}/ alone; withdraw its grant")
    if question.refuse_automatic:
        raise Rejected(f"{path}: expected an offline signature, got one of {found.role}, which this device refuses")
    return found


def _to_measure(ours: Updater, terms: Terms, path: str, question: Question) -> TargetFile | None:
    """Return the other build that shall be measured: of the same profile, listed, and the one that both mean."""
    if not terms.measure:
        return None
    if terms.measure != other_build(path):
        raise Rejected(f"director: expected to measure the other build beside {path}, got {terms.measure:.200}")
    listed = _permitted(find_target(ours, terms.measure), terms.measure, question).target
    if not terms.measure_sha256 or listed.hashes.get("sha256") != terms.measure_sha256:
        raise Rejected(f"{terms.measure}: expected director and image repository to agree on its SHA-256")
    return listed


def _agreed(theirs: TargetFile, ours: TargetFile) -> str:
    if theirs.length != ours.length or theirs.hashes != ours.hashes:
        raise Rejected(f"{theirs.path}: expected director and image repository to agree on length and hashes")
    sha256 = theirs.hashes.get("sha256", "")
    if not sha256:
        raise Rejected(f"{theirs.path}: expected a SHA-256, got {', '.join(sorted(theirs.hashes)) or 'none'}")
    return sha256


def _with_standing(verdict: Verdict, repository: Updater, question: Question) -> Verdict:
    """Look up what the device holds: revoked is what a whole and fresh repository no longer lists for it."""
    revoked: list[str] = []
    listed: list[str] = []
    for held in question.held:
        try:
            good = any(_lists(repository, path, held.sha256, question) for path in (held.path, other_build(held.path)))
        except (DownloadError, RepositoryError):
            # a delegated role that is missing or has expired says nothing about what it listed
            continue
        (listed if good else revoked).append(held.sha256)
    return Verdict(ok=False, terms=verdict.terms, revoked=tuple(revoked), listed=tuple(listed))


def _lists(repository: Updater, path: str, sha256: str, question: Question) -> bool:
    try:
        found = _permitted(find_target(repository, path), path, question)
    except Rejected:
        return False
    return found.target.hashes.get("sha256") == sha256


def _refused(verdict: Verdict, reason: str, *, later: bool = False) -> Verdict:
    return Verdict(
        ok=False, reason=reason, later=later, terms=verdict.terms, revoked=verdict.revoked, listed=verdict.listed
    )


def _terms(target: TargetFile, *, device: str) -> Terms:
    terms = _terms_of(target)
    if terms.device != device:
        raise Rejected(f"director: expected an assignment for {device}, got one for {terms.device}")
    return terms


def _terms_of(target: TargetFile) -> Terms:
    return codec.from_tree(Terms, target.custom)


def _witness(folder: Path, anchor: str) -> tuple[str, ...]:
    """Return the director's keys by the newest root that was trusted before, the anchor's to begin with."""
    try:
        root = Metadata[Root].from_bytes((folder / "root.json").read_bytes()).signed
    except (OSError, RepositoryError):
        # a first start, or a power cut between two roots; should the anchor be none either, opening it says so
        try:
            root = Metadata[Root].from_bytes(anchor.encode()).signed
        except RepositoryError:
            return ()
    return _keys_of(root)


def _trusted(repository: Updater) -> TrustedMetadataSet:
    # private in python-tuf, so tests pin what is used of it: the moment, the roles by name, who delegated to them
    return repository._trusted_set  # noqa: SLF001


def _keys_of(root: Root) -> tuple[str, ...]:
    return tuple(root.roles[Targets.type].keyids)


def _judged(at: float, question: Question) -> str:
    shown = show_moment(at)
    if at > question.clock:
        return f"{shown}, the latest moment that an assignment proved"
    known = read_floor(Path(question.folder))
    since = f"; the newest assignment that it trusted is of {show_moment(known)}" if known else ""
    return f"{shown} by this device's clock{since}; if that clock is ahead, set it"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]
