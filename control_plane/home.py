"""Owns the home folder of a control plane: its layout, its version, and the secrets in it (mode 0600).

```
VERSION         the number of this layout; a newer one is refused
settings.toml   what the operator may edit
skerry.db       the database
blobs/          content-addressed bytes, named by SHA-256
cache/          results of earlier compilations, by content; may be deleted at any time
keys/           online TUF keys
ca/             the device CA, the server CA, the server's certificate
anchor.json     what join strings pin; written once, by the key ceremony
operator.token  who has it is an operator
lock            held by the server that runs
broker.toml     the embedded broker's configuration, written at each start
```
"""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skerry.delivery.durable import write_durably
from skerry.errors import Broken, Rejected

VERSION = 1


@dataclass(frozen=True, slots=True)
class Home:
    """The folder, and where what is in it."""

    path: Path

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.path / "settings.toml"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.path / "skerry.db"

    @property
    def blobs(self) -> Path:
        """The folder of the object store."""
        return self.path / "blobs"

    @property
    def cache(self) -> Path:
        """The folder of results of earlier compilations."""
        return self.path / "cache"

    @property
    def keys(self) -> Path:
        """The folder of the online TUF keys."""
        return self.path / "keys"

    @property
    def ca(self) -> Path:
        """The folder of the certificate authorities."""
        return self.path / "ca"

    @property
    def anchor(self) -> Path:
        """The anchor, as served."""
        return self.path / "anchor.json"

    @property
    def broker_config(self) -> Path:
        """The embedded broker's configuration."""
        return self.path / "broker.toml"

    def operator_token(self) -> str:
        """Return the operator's token; raises `Broken` when it is gone, or empty: that would let anybody in."""
        file = self.path / "operator.token"
        try:
            token = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Broken(f"{file}: expected the operator's token, got: {error}; restore it from its backup") from error
        if not token:
            raise Broken(f"{file}: expected the operator's token, got an empty file; restore it from its backup")
        return token


def create_home(path: Path) -> Home:
    """Make the folder with its subfolders and version; raises `Rejected` when one is there already."""
    # the anchor is there since the key ceremony: without a VERSION this is a damaged home, not a half-made one
    if (path / "VERSION").exists() or (path / "anchor.json").exists():
        raise Rejected(f"{path}: expected no home folder yet, got one; to start it: skerry-server run --home {path}")
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        # a folder that was there before may be open to others
        path.chmod(0o700)
        home = Home(path.resolve())
        for folder in (home.blobs, home.keys, home.ca):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Broken(
            f"{path}: expected a folder that can be made, got {error.strerror}; choose another --home"
        ) from error
    return home


def finish_home(home: Home) -> None:
    """Write the version, which says that everything else in the folder is complete."""
    write_durably(home.path / "VERSION", f"{VERSION}\n".encode())


def open_home(path: Path) -> Home:
    """Open an existing home folder.

    Raises:
        Broken: there is none, or a newer Skerry made it.
    """
    try:
        text = (path / "VERSION").read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Broken(
            f"{path}: expected a home folder, got none; make one with: skerry-server init --home {path} --project NAME"
        ) from error
    if not (text.isascii() and text.isdigit()):
        raise Broken(f"{path / 'VERSION'}: expected a number, got {text[:20]!r}; restore the folder from its backup")
    if int(text) > VERSION:
        raise Broken(f"{path}: expected a home folder of version {VERSION} or older, got {text}; upgrade skerry")
    return Home(path.resolve())


@contextlib.contextmanager
def held(home: Home) -> Iterator[None]:
    """Hold the home folder for the one server that may run on it; raises `Rejected` when another does.

    The kernel lets go of the lock when the holder ends, however it ends.
    """
    with (home.path / "lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Rejected(
                f"{home.path}: expected no server on this home folder, got one that runs; stop it first"
            ) from error
        yield


def write_secret(path: Path, data: bytes) -> None:
    """Write `data` durably so that only this user can read it; raises `Broken`."""
    write_durably(path, data, mode=0o600)
