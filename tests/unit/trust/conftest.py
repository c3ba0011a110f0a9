"""A control plane without a network: a home folder, a database and keys in a temporary folder, and a clock to turn."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from control_plane import ceremony
from control_plane.keys import hold_ceremony
from control_plane.online_keys import describe_online
from control_plane.plane import Plane
from control_plane.server import make_home, open_plane
from control_plane.settings import Settings
from tests.unit.trust.delivering import World, found_world


@dataclass
class Clock:
    """A clock that stands still until it is turned."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    def __call__(self) -> datetime:
        return self.now

    def turn(self, by: timedelta) -> None:
        """Go forward."""
        self.now += by


class Shelf(FetcherInterface):
    """Serves metadata from a dictionary, by the names that the control plane publishes."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2].removesuffix(".json")
        if name not in self.files:
            raise DownloadHTTPError(f"no {name}", 404)
        return iter([self.files[name]])


@pytest.fixture
def device(tmp_path: Path) -> Callable[..., Updater]:
    """Return python-tuf's updater over a dictionary of files; it keeps its state under a name, as a device does."""

    def look(name: str, root: bytes, files: Mapping[str, bytes]) -> Updater:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Updater(str(folder), "shelf:///", fetcher=Shelf(files), bootstrap=root)

    return look


@pytest.fixture
def clock() -> Clock:
    """Return the plane's clock."""
    return Clock()


@pytest.fixture
def plane(tmp_path: Path, clock: Clock) -> Iterator[Plane]:
    """Return a control plane before the ceremony."""
    home = make_home(tmp_path / "home", Settings(project="watch"))
    opened = replace(open_plane(home.path), clock=clock)
    yield opened
    opened.sessions.kw["bind"].dispose()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Return the folder of the offline keys."""
    return tmp_path / "keys"


@pytest.fixture
def founded(plane: Plane, keys: Path, clock: Clock) -> Plane:
    """Return the plane after a ceremony with three keys, of which two must sign."""
    online = describe_online(plane.signers, "watch")
    made = hold_ceremony(keys, online, keys=3, threshold=2, now=clock())
    with plane.sessions.begin() as session:
        ceremony.take(plane, session, **made)
    return plane


@pytest.fixture
def session(founded: Plane) -> Iterator[Session]:
    """Return a writing session of the founded plane."""
    with founded.sessions() as opened:
        yield opened


@pytest.fixture
def world(founded: Plane, keys: Path) -> World:
    """Return a plane after the ceremony, with one device, on a broker of another machine."""
    return found_world(founded, keys)
