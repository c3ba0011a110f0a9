"""The trust decision: does a director's assignment, and the image repository, agree on one target for this device?

`judge` is given two fetchers (any transport: a spool folder here, HTTP elsewhere) and a folder for the metadata that
was trusted before, and returns a `Verdict`. All checks of signatures, thresholds, versions and expiry are python-tuf's
client workflow (TUF specification 5); what is added is Uptane's: both must list the same path, length and hashes, and
the terms must name this device. `Terms.counter` is the version of the director's targets, which TUF lets only grow.

Imports tuf and cryptography, so the resident agent never imports it: it runs `agent.trust_child`.
"""

from dataclasses import dataclass
from pathlib import Path

from tuf.api.exceptions import DownloadError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.manifest import other_build
from skerry.wire.messages import Anchor, Terms

MAX_ROOTS = 32


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided. `later` means that something was missing or expired, and nothing was proven bad.

    `terms` are set as soon as the director's own signature held, so that a refusal can be reported to its deployment.
    `measure_length` and `measure_sha256` are of the target that `terms.measure` names, if it names one.
    """

    ok: bool
    reason: str = ""
    later: bool = False
    terms: Terms | None = None
    path: str = ""
    length: int = 0
    sha256: str = ""
    measure_length: int = 0
    measure_sha256: str = ""


def judge(*, anchor: Anchor, device: str, image: FetcherInterface, director: FetcherInterface, folder: Path) -> Verdict:
    """Verify an assignment for `device`; trusted metadata is read from and kept in `folder`."""
    terms: Terms | None = None
    try:
        theirs, path = _assigned(director, folder / "director", anchor.director_root)
        terms = _terms(theirs, device=device)
        ours = _refreshed(image, folder / "image", anchor.image_root)
        sha256 = _agreed(theirs, _listed(ours, path))
        other = _to_measure(ours, terms, path)
    except (DownloadError, ExpiredMetadataError) as error:
        return Verdict(ok=False, reason=_line(error), later=True, terms=terms)
    except (RepositoryError, Rejected) as error:
        return Verdict(ok=False, reason=_line(error), terms=terms)
    return Verdict(
        ok=True,
        terms=terms,
        path=path,
        length=theirs.length,
        sha256=sha256,
        measure_length=other.length if other else 0,
        measure_sha256=terms.measure_sha256 if other else "",
    )


def _assigned(fetcher: FetcherInterface, folder: Path, root: str) -> tuple[TargetFile, str]:
    """Return the director's one target after the whole client workflow."""
    updater = _refreshed(fetcher, folder, root)
    # the client has no list of targets; what it has just verified and persisted is the way to the path
    listed = Metadata[Targets].from_file(str(folder / "targets.json")).signed
    if len(listed.targets) != 1:
        raise Rejected(f"director: expected exactly one target, got {len(listed.targets)}")
    path = next(iter(listed.targets))
    target = updater.get_targetinfo(path)
    if target is None:
        raise Rejected(f"director: expected the target {path} in its own targets, got none")
    counter = _terms_of(target).counter
    if counter != listed.version:
        raise Rejected(f"director: expected counter {listed.version}, the version of its targets, got {counter}")
    return target, path


def _listed(updater: Updater, path: str) -> TargetFile:
    target = updater.get_targetinfo(path)
    if target is None:
        raise Rejected(f"image repository: expected {path} among its targets, got none; sign the release first")
    return target


def _to_measure(updater: Updater, terms: Terms, path: str) -> TargetFile | None:
    """Return the other build that shall be measured: of the same profile, listed, and the one that both mean."""
    if not terms.measure:
        return None
    if terms.measure != other_build(path):
        raise Rejected(f"director: expected to measure the other build beside {path}, got {terms.measure:.200}")
    listed = _listed(updater, terms.measure)
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


def _terms(target: TargetFile, *, device: str) -> Terms:
    terms = _terms_of(target)
    if terms.device != device:
        raise Rejected(f"director: expected an assignment for {device}, got one for {terms.device}")
    return terms


def _terms_of(target: TargetFile) -> Terms:
    return codec.from_tree(Terms, target.custom)


def _refreshed(fetcher: FetcherInterface, folder: Path, root: str) -> Updater:
    folder.mkdir(parents=True, exist_ok=True)
    config = UpdaterConfig(max_root_rotations=MAX_ROOTS)
    updater = Updater(str(folder), "spool://metadata/", fetcher=fetcher, config=config, bootstrap=root.encode())
    updater.refresh()
    return updater


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]
