"""Two repositories that agree, and a device that asks: what tests of the trust decision begin with."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from agent.trust.decision import judge
from agent.trust.metadata import HeldMetadata
from agent.trust.question import DIRECTOR, IMAGE, Held, Judgement, Question, Verdict
from skerry.wire.enrolment import Anchor
from skerry.wire.messages import Terms
from tests.tuf_repository import TufRepository, now

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


def held_of(case: Case) -> HeldMetadata:
    """Return both repositories as files that are here already."""
    named = {IMAGE: case.image.files, DIRECTOR: case.director.files}
    return HeldMetadata({(which, name): data for which, files in named.items() for name, data in files.items()})


def refused(case: Case, reason: str) -> None:
    """Expect a refusal for good."""
    verdict = case.ask()
    assert (verdict.ok, verdict.later) == (False, False), verdict
    assert reason in verdict.reason


def automatic(
    case: Case, *, paths: tuple[str, ...] = ("models/strokes/*/*/*",), lists: str = PATH, **options: Any
) -> None:
    """Let `automatic-strokes` list a target, and the director assign it."""
    case.image.targets.clear()
    case.image.delegate("automatic-strokes", paths, **options)
    case.image.add(lists, b"manifest", role="automatic-strokes")
    case.image.publish()
    case.assign(path=lists)
