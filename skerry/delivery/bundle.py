"""An offline bundle: one file for a stick that carries what a broker would retain for one device and one release.

It is a ZIP whose members are stored as they are, so nothing in it can grow when it is read:

    bundle.json         what this is and for whom (`Header`); unproven, for people and for refusing early
    anchor.json         the anchor, as the server serves it; only as good as the hash that the device pinned
    assign.json         the director's metadata, as on the device's `down/assign`
    enrolled.json       for a first install: the certificate, as enrolment answers; the assignment holds its hash
    tuf/ROLE            the image repository's metadata, as on `tuf/PROJECT/ROLE`, the index among them
    blob/SHA256         sealed files, under the SHA-256 of their bytes

A stick is found on the street: all of it is hostile until proven. `open_bundle` reads nothing but these names, at most
so much of each, and refuses the whole file for any other; no member's name ever becomes a path.
"""

import hashlib
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from skerry.errors import Rejected
from skerry.wire import codec, topics
from skerry.wire.manifest import SEALED_CHUNK_BYTES

FORMAT = "skerry-bundle"
VERSION = 1
MAX_BYTES = 320 << 20
MAX_MEMBERS = 512
MAX_DOCUMENT_BYTES = 1 << 20
HEADER, ANCHOR, ASSIGN, ENROLLED = "bundle.json", "anchor.json", "assign.json", "enrolled.json"
_DOCUMENT = re.compile(r"bundle\.json|anchor\.json|assign\.json|enrolled\.json|tuf/[A-Za-z0-9_][A-Za-z0-9._%~-]{0,199}")
_BLOB = re.compile(r"blob/([0-9a-f]{64})")
_END = struct.Struct("<4s4H2LH")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """What a bundle says it is: for which device of which project, which release, made when, usable until when.

    `component` is what of the device the release is for: empty for its one model.
    """

    project: str
    device: str
    release: str
    created: str
    expires: str
    server: str
    component: str = ""
    format: str = FORMAT
    v: int = VERSION


def write_bundle(file: BinaryIO, members: Mapping[str, bytes]) -> None:
    """Write the members in order of their names; the same members give the same bundle."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), members[name])


class Bundle:
    """An open bundle whose form was checked; what is in it is still unproven."""

    def __init__(self, archive: zipfile.ZipFile, lengths: dict[str, int]) -> None:
        self._archive = archive
        self._lengths = lengths
        self.header = codec.decode(Header, self.read(HEADER))
        if (self.header.format, self.header.v) != (FORMAT, VERSION):
            got = f"{self.header.format} {self.header.v}"
            raise Rejected(f"bundle: expected {FORMAT} {VERSION}, got {got:.80}; use the skerry that made it")

    def close(self) -> None:
        """Let go of the file."""
        self._archive.close()

    def holds(self, name: str) -> bool:
        """Say whether there is such a member."""
        return name in self._lengths

    def read(self, name: str) -> bytes:
        """Return a document; raises `Rejected` when there is none of that name."""
        if name not in self._lengths:
            raise Rejected(f"bundle: expected {name} in it, got none; create it again")
        with _hostile():
            return self._archive.read(name)

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:  # noqa: ARG002 -- the port
        """Return what a broker would retain on these topics; one that it has not is left out."""
        found = {topic: self._retained(topic) for topic in wanted}
        return {topic: data for topic, data in found.items() if data is not None}

    def _retained(self, topic: str) -> bytes | None:
        prefix = topics.tuf(self.header.project, "")
        if topic.startswith(prefix):
            name = f"tuf/{topic.removeprefix(prefix)}"
            return self.read(name) if self.holds(name) else None
        place, _, number = topic.removeprefix(f"{topics.ROOT}/").rpartition("/")
        if not (self.holds(place) and number.isdecimal()):
            return None
        with _hostile(), self._archive.open(place) as file:
            file.seek(int(number) * SEALED_CHUNK_BYTES)
            return file.read(SEALED_CHUNK_BYTES) or None


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and check its form: the names, lengths and checksums of all members, and the names of blobs.

    Raises:
        Rejected: it is no bundle, is cut or damaged, or holds anything that a bundle does not.
    """
    try:
        length = path.stat().st_size
        if length > MAX_BYTES:
            raise Rejected(f"{path}: expected a bundle of at most {MAX_BYTES} bytes, got {length}")
        with path.open("rb") as file:
            _check_end(file, length)
    except OSError as error:
        raise Rejected(f"{path}: expected a bundle, got: {error.strerror}") from error
    with _hostile():
        archive = zipfile.ZipFile(path)
    try:
        lengths = _check_members(archive.infolist(), within=length)
        for name in lengths:
            _check_content(archive, name)
        return Bundle(archive, lengths)
    except BaseException:  # whatever ends the check, also an interrupt, must not leave the file open
        archive.close()
        raise


def _check_end(file: BinaryIO, length: int) -> None:
    """Bound the list of members before anything reads it; `write_bundle` leaves no comment, so the end is known."""
    file.seek(max(length - _END.size, 0))
    end = file.read(_END.size)
    if len(end) < _END.size or not end.startswith(b"PK\5\6"):
        raise Rejected("bundle: expected a whole one, got a file that ends otherwise; copy it again")
    _, _, _, _, members, size, _, comment = _END.unpack(end)
    if members > MAX_MEMBERS or size > MAX_DOCUMENT_BYTES or comment:
        raise Rejected(f"bundle: expected at most {MAX_MEMBERS} members, got {members} in {size} bytes")


def _check_members(members: Sequence[zipfile.ZipInfo], *, within: int) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for each in members:
        name, document = each.filename, _DOCUMENT.fullmatch(each.filename)
        if not (document or _BLOB.fullmatch(name)) or name in lengths:
            raise Rejected(f"bundle: expected names of a bundle, each once, got {name!r:.80}; do not trust this file")
        stored = each.compress_type == zipfile.ZIP_STORED and each.file_size == each.compress_size
        if not stored or each.flag_bits & 1:
            raise Rejected(f"bundle: expected {name:.80} stored as it is, got it compressed or encrypted")
        if document and each.file_size > MAX_DOCUMENT_BYTES:
            raise Rejected(f"bundle: expected at most {MAX_DOCUMENT_BYTES} bytes of {name:.80}, got {each.file_size}")
        lengths[name] = each.file_size
    if sum(lengths.values()) > within:
        raise Rejected(f"bundle: expected members of at most {within} bytes, its own length, got more")
    return lengths


def _check_content(archive: zipfile.ZipFile, name: str) -> None:
    """Read a member once, for its checksum, and a blob for its name as well."""
    digest = hashlib.sha256()
    with _hostile(), archive.open(name) as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    blob = _BLOB.fullmatch(name)
    if blob and digest.hexdigest() != blob[1]:
        raise Rejected(f"bundle: expected {name:.20}... under the hash of its bytes, got other bytes; copy it again")


@contextmanager
def _hostile() -> Iterator[None]:
    """Turn whatever `zipfile` says of a damaged file into one refusal."""
    try:
        yield
    except Rejected:
        raise
    # its own, a struct's, an OSError of a seek, NotImplementedError for features, RuntimeError for passwords
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise Rejected(f"bundle: expected a whole one, got: {line:.120}; copy it again") from error
