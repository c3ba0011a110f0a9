"""The trust decision: do a director's assignment, and the image repository, agree on what this device shall run?

`judge` asks both repositories and returns a `Judgement`: as Uptane's director lists an image for each ECU of a
car, ours lists a target for each component of a device, and there is a `Verdict` on each. All checks of signatures,
thresholds, versions and expiry are python-tuf's client workflow (TUF specification 5); what is added:

- Uptane's agreement: both list the same path, length and hashes, and the terms name this device;
- every target is judged by itself: one that is refused stops no other; a component that is listed twice gets neither;
- a named component is for the model of its name alone, and the agent's own code is never what an online key signed;
- `Terms.counter` is the version of the director's targets, which TUF lets only grow;
- expiry is judged at the latest of the clock, the floor (`agent.trust.floor`) and the assignment's own `issued`;
- of delegated roles only `automatic-MODEL` counts, named by the offline targets themselves, for that model's paths,
  until the end of its grant, and not at all on a device that refuses automatic releases;
- `decommission` is the director's word alone: it makes nothing run.

Imports tuf and cryptography, so the resident agent never imports it: it runs `agent.trust.trust_child`.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from tuf.api.exceptions import DownloadError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from agent.trust.floor import advance, parse_moment, read_floor, show_moment
from agent.trust.question import Judgement, Question, Verdict
from agent.trust.repository import Found, find_target, open_repository, trusted
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.manifest import NO_SAMPLES, SAMPLES, SamplePolicy, other_build
from skerry.wire.messages import AGENT, MAX_COMPONENTS, Terms
from skerry.wire.topics import check_name

DECOMMISSION = "decommission"
AUTOMATIC = "automatic-"


def judge(question: Question, *, image: FetcherInterface, director: FetcherInterface) -> Judgement:
    """Decide on the assignment that `director` has for the device; trusted metadata is kept in the question's folder.

    Raises:
        Broken: the disk refused.
    """
    folder = Path(question.folder)
    witness = _witness(folder / "director", question.anchor.director_root)
    at = max(question.clock, read_floor(folder, witness=witness))
    try:
        theirs = open_repository(director, folder / "director", question.anchor.director_root.encode(), at=at)
        assigned, unread = _assigned(theirs, question)
    except (DownloadError, RepositoryError, Rejected) as error:
        return Judgement(reason=_reason(error, at, question), later=_is_later(error))
    if unread and not assigned:
        return Judgement(reason=unread)
    if any(each.path == DECOMMISSION for each in assigned):
        return _ordered_to_wipe(assigned, unread, question)

    # the director vouches for `issued`: what had expired by then is no longer fresh, whatever the clock says
    issued = max((parse_moment(each.terms.issued) for each in assigned), default=0.0)
    at = max(at, issued)
    try:
        ours = open_repository(image, folder / "image", question.anchor.image_root.encode(), at=at)
        ours.refresh()
        if assigned:
            # only now: offline targets that are alive at `issued` bound what a director can claim
            advance(folder, issued, witness=_keys_of(trusted(theirs).root))
        revoked, allowed = _standing(ours, question)
    except (DownloadError, RepositoryError, Rejected) as error:
        reason, later = _reason(error, at, question), _is_later(error)
        verdicts = tuple(_refused(each, reason, later=later) for each in assigned)
        return Judgement(verdicts=verdicts, whole=not unread, reason=unread, later=later and not assigned)
    return Judgement(
        verdicts=tuple(_judge_one(each, ours, at, question) for each in assigned),
        whole=not unread,
        reason=unread,
        revoked=revoked,
        listed=tuple(allowed),
        allowed={digest: policy for digest, policy in allowed.items() if policy != NO_SAMPLES},
    )


@dataclass(frozen=True, slots=True)
class Assigned:
    """One target of the director's for this device, and its terms; `doubt` says why it can only be refused."""

    target: TargetFile
    terms: Terms
    doubt: str = ""

    @property
    def path(self) -> str:
        """The path of the target."""
        return self.target.path


def _assigned(repository: Updater, question: Question) -> tuple[list[Assigned], str]:
    """Return what the director assigns, by component, after the whole client workflow; and why not all of it."""
    repository.refresh()
    listed = trusted(repository).targets
    if len(listed.targets) > MAX_COMPONENTS:
        raise Rejected(f"director: expected at most {MAX_COMPONENTS} targets, got {len(listed.targets)}")
    found: dict[str, Assigned] = {}
    unread = ""
    for path in sorted(listed.targets):
        try:
            target = _own_target(repository, path)
            terms = _terms(target, device=question.device, version=listed.version)
        except Rejected as error:
            unread = unread or _line(error)
            continue
        again = found.get(terms.component)
        doubt = _doubt(terms, path) if again is None else _twice(again, terms)
        found[terms.component] = replace(again or Assigned(target, terms), doubt=doubt)
    return list(found.values()), unread


def _own_target(repository: Updater, path: str) -> TargetFile:
    found = find_target(repository, path)
    if found is None or found.role != Targets.type:
        raise Rejected(f"director: expected the target {path} in its own targets, got none")
    return found.target


def _terms(target: TargetFile, *, device: str, version: int) -> Terms:
    terms = codec.from_tree(Terms, target.custom)
    if terms.device != device:
        raise Rejected(f"director: expected an assignment for {device}, got one for {terms.device}")
    if terms.counter != version:
        raise Rejected(f"director: expected counter {version}, the version of its targets, got {terms.counter}")
    parse_moment(terms.issued)
    if terms.component:
        # it becomes a folder's name
        check_name(terms.component, "component")
    return terms


def _doubt(terms: Terms, path: str) -> str:
    """Return why a target cannot be for its component; empty when it can."""
    model = path.split("/")[1] if path.count("/") > 1 else ""
    if terms.component and model != terms.component:
        return f"director: expected models/{terms.component}/ for the component of that name, got {path:.200}"
    if not terms.component and model == AGENT:
        return f"director: expected a model, got the agent itself, {path:.200}, which is a component of its own"
    return ""


def _twice(again: Assigned, terms: Terms) -> str:
    what = terms.component or "the one without a name"
    return f"director: expected one target for each component, got two for {what}: {again.path:.200} and another"


def _ordered_to_wipe(assigned: list[Assigned], unread: str, question: Question) -> Judgement:
    order = assigned[0]
    try:
        if len(assigned) > 1 or unread:
            raise Rejected(f"director: expected nothing beside an order to wipe, got {unread or 'more targets'}")
        if order.doubt:
            raise Rejected(order.doubt)
        # nothing is reported of an order that is refused: there is no deployment that it belongs to
        _check_meant(order.terms, question.certificate)
    except Rejected as error:
        return Judgement(reason=_line(error))
    verdict = Verdict(ok=True, terms=order.terms, path=order.path, decommission=True)
    return Judgement(verdicts=(verdict,), whole=True)


def _judge_one(assigned: Assigned, ours: Updater, at: float, question: Question) -> Verdict:
    """Decide on one target, with both repositories fresh."""
    if assigned.doubt:
        return _refused(assigned, assigned.doubt)
    path, terms = assigned.path, assigned.terms
    try:
        found = _permitted(find_target(ours, path), path, question)
        sha256 = _agreed(assigned.target, found.target)
        other = _to_measure(ours, terms, path, question)
    except (DownloadError, RepositoryError, Rejected) as error:
        return _refused(assigned, _reason(error, at, question), later=_is_later(error))
    return Verdict(
        ok=True,
        terms=terms,
        path=path,
        length=assigned.target.length,
        sha256=sha256,
        measure_length=other.length if other else 0,
        measure_sha256=terms.measure_sha256 if other else "",
        samples=_samples(found),
    )


def _refused(assigned: Assigned, reason: str, *, later: bool = False) -> Verdict:
    return Verdict(ok=False, reason=reason, later=later, terms=assigned.terms)


def _is_later(error: Exception) -> bool:
    """True where nothing was proven bad: something is missing, or has expired."""
    return isinstance(error, (ExpiredMetadataError, DownloadError))


def _reason(error: Exception, at: float, question: Question) -> str:
    expired = isinstance(error, ExpiredMetadataError)
    return f"{_line(error)}, judged at {_judged(at, question)}" if expired else _line(error)


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
    if model == AGENT:
        raise Rejected(f"{path}: expected an offline signature on the agent's own code, got one of {found.role}")
    if question.refuse_automatic:
        raise Rejected(f"{path}: expected an offline signature, got one of {found.role}, which this device refuses")
    return found


def _samples(found: Found) -> SamplePolicy:
    """Return what may leave a device of an artifact's inputs: what an online key says of that counts for nothing."""
    said = found.target.custom
    if found.role != Targets.type or not isinstance(said, dict) or SAMPLES not in said:
        return NO_SAMPLES
    try:
        return codec.from_tree(SamplePolicy, said[SAMPLES])
    except Rejected:
        return NO_SAMPLES


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


def _standing(repository: Updater, question: Question) -> tuple[tuple[str, ...], dict[str, SamplePolicy]]:
    """Look up what the device holds: what a whole and fresh repository lists no more for it, and what it does."""
    revoked: list[str] = []
    listed: dict[str, SamplePolicy] = {}
    for held in question.held:
        try:
            paths = (held.path, other_build(held.path))
            good = next(filter(None, (_listed(repository, path, held.sha256, question) for path in paths)), None)
        except (DownloadError, RepositoryError):
            # a delegated role that is missing or has expired says nothing about what it listed
            continue
        if good is None:
            revoked.append(held.sha256)
        else:
            listed[held.sha256] = _samples(good)
    return tuple(revoked), listed


def _listed(repository: Updater, path: str, sha256: str, question: Question) -> Found | None:
    try:
        found = _permitted(find_target(repository, path), path, question)
    except Rejected:
        return None
    return found if found.target.hashes.get("sha256") == sha256 else None


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
