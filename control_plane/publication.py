"""Owns the chunks of sealed artifacts and deltas on the broker: each published once, kept while needed, then cleared.

What is needed is `retention`'s to say. A blob that the broker kept over a lost connection is not sent again: a few of
its chunks are looked for, and where publishing broke off, it goes on there. Chunks expire on the broker, so that none
outlives its control plane, and are published anew at half of their life. Whoever misses one says so in its twin
(`ask`), and it is published once more for all.
"""

import logging
import threading
from datetime import timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from control_plane import deltas, retention, sealing
from control_plane.link import IN_FLIGHT
from control_plane.plane import Plane
from control_plane.schema.delivery import Publication, SealedArtifact, SealedDelta
from control_plane.schema.releases import Release
from control_plane.sealing import Sealed
from control_plane.transport import Load, blob_load, excess, preset_of
from skerry.errors import SkerryError
from skerry.wire import topics
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES

log = logging.getLogger(__name__)

CHUNK_LIFE = timedelta(days=30)
ASK_AGAIN = timedelta(minutes=2)
"""For so long a blob is not published again: many devices miss the same one at the same time."""
LARGE_BYTES = 1 << 20
"""Above it a file is not published beside its packed form, while nobody asks for it: it would double what is sent."""
LOOKED_FOR = 8
"""Explicit topics at a time, as for devices."""

# a request, the link and the clock may all want to publish: one after the other, each finds what is done
_publishing = threading.Lock()


def publish_release(plane: Plane, name: str) -> None:
    """Publish what is not yet there of the chunks of a live release and of its deltas, as far as there is room."""
    with _publishing:
        _publish_release(plane, name)


def converge(plane: Plane) -> None:
    """Publish what is needed and not there, and clear what is there and needed no more."""
    with _publishing:
        with plane.readers() as session:
            room = retention.room(plane, session)
        kept: set[str] = set()
        for name in room.held:
            try:
                kept |= _publish_release(plane, name)
            except SkerryError as error:
                # a blob that is gone or damaged must not keep the others from the devices
                log.error("%s: %s", name, error)
                with plane.readers() as session:
                    kept |= set(session.scalars(select(Publication.sha256).where(Publication.release == name)))
        _clear_all_but(plane, kept)


def tend(plane: Plane) -> None:
    """Converge while there is a connection; what a clock calls."""
    if plane.outgoing.connected:
        converge(plane)


def look_again(plane: Plane) -> None:
    """Find out, after a connect, which blobs the broker still has whole; the others are to be published again."""
    with _publishing:
        with plane.readers() as session:
            rows = session.scalars(select(Publication).where(Publication.published_at.is_not(None)))
            held = {row.sha256: _chunks(row.length) for row in rows}
        # the embedded broker starts empty
        there = set[str]() if plane.settings.embedded_broker else _whole(plane, held)
        with plane.sessions.begin() as session:
            lost = update(Publication).where(Publication.sha256.not_in(there))
            session.execute(lost.values(published_at=None))


def ask(plane: Plane, session: Session, sha256: str, *, release: str) -> bool:
    """Take note that a device waits in vain for the chunks of a sealed blob: `converge` publishes them once more.

    The caller has made sure that the blob is one of that release, and the device's own. False when that was done just
    now.
    """
    now = plane.clock()
    row = session.get(Publication, sha256)
    if row is None:
        row = Publication(sha256=sha256, release=release, length=plane.blobs.size(sha256), bytes_sent=0)
        session.add(row)
    elif row.asked_at is not None and now - row.asked_at < ASK_AGAIN:
        return False
    row.asked_at, row.published_at = now, None
    return True


def _publish_release(plane: Plane, name: str) -> set[str]:
    """Return the blobs of a release that are, or are being, published."""
    with plane.readers() as session:
        release = session.get_one(Release, name)
        if release.state != "live" or not retention.holds(plane, session, release):
            return set()
        listed = retention.blobs(session, release)
        manifests = [each for each in retention.manifests_of(session, release, fetched=True) if each in listed]
        sources = retention.sources(session)
    kept: set[str] = set()
    for manifest in manifests:
        with plane.readers() as session:
            sealed = sealing.sealed(session, manifest, sources)
        if sealed is None:
            # one short transaction each: others write in between
            with plane.sessions.begin() as session:
                sealed = sealing.seal_all(plane, session, manifest, sources)
        shorter = _publish_shorter(plane, sealed.shorter, release=name)
        with plane.readers() as session:
            files = _whole_files(plane, session, sealed, shorter, release=name)
        for sha256 in files:
            _publish_blob(plane, sha256, release=name)
        kept |= shorter | files
    return kept


def _whole_files(plane: Plane, session: Session, sealed: Sealed, shorter: set[str], *, release: str) -> set[str]:
    """Return the files to publish as they are: a large one only where it is not there packed, or was asked for."""
    now = plane.clock()
    recently = Publication.asked_at > now - retention.ASKED_FOR
    asked = set(session.scalars(select(Publication.sha256).where(recently)))
    large = {name for name, sha256 in sealed.files.items() if plane.blobs.size(sha256) > LARGE_BYTES}
    if not deltas.awaited(session, release, now=now):
        large = {name for name in large if sealed.packed.get(name) in shorter}
    return {sha256 for name, sha256 in sealed.files.items() if name not in large or sha256 in asked}


def _publish_shorter(plane: Plane, lengths: dict[str, int], *, release: str) -> set[str]:
    """Publish deltas while the broker has room; a device takes the file where it finds none."""
    with plane.readers() as session:
        there = {row.sha256: row.length for row in session.scalars(select(Publication))}
    preset, kept = preset_of(plane.settings), set[str]()
    for sha256, length in lengths.items():
        with_it = {**there, sha256: length}
        if excess(preset, sum(map(blob_load, with_it.values()), Load())):
            continue
        there = with_it
        _publish_blob(plane, sha256, release=release)
        kept.add(sha256)
    return kept


def _publish_blob(plane: Plane, sha256: str, *, release: str) -> None:
    now = plane.clock()
    with plane.readers() as session:
        row = session.get(Publication, sha256)
    if row is not None and row.published_at is not None and now - row.published_at < CHUNK_LIFE / 2:
        return
    data = plane.blobs.get(sha256)
    first = 0
    if row is None:
        with plane.sessions.begin() as session:
            session.add(Publication(sha256=sha256, release=release, length=len(data), bytes_sent=0))
    elif row.published_at is None and row.asked_at is None:
        first = _broken_off(plane, sha256, _chunks(len(data)))

    sent, whole = 0, True
    for number in range(first, _chunks(len(data))):
        chunk = data[number * SEALED_CHUNK_BYTES : (number + 1) * SEALED_CHUNK_BYTES]
        life = int(CHUNK_LIFE.total_seconds())
        whole = plane.outgoing.publish(topics.blob(sha256, number), chunk, retain=True, expiry_s=life)
        if not whole:
            break
        sent += len(chunk)
    with plane.sessions.begin() as session:
        counted = update(Publication).where(Publication.sha256 == sha256)
        session.execute(counted.values(bytes_sent=Publication.bytes_sent + sent, published_at=now if whole else None))


def _whole(plane: Plane, chunks: dict[str, int]) -> set[str]:
    """Return the blobs of which the first, a middle and the last chunk are retained."""
    wanted = {
        sha256: {topics.blob(sha256, number) for number in {0, count // 2, count - 1}}
        for sha256, count in chunks.items()
        if count
    }
    found: set[str] = set()
    names = sorted(set[str]().union(*wanted.values()))
    for start in range(0, len(names), LOOKED_FOR):
        found |= plane.outgoing.retained(names[start : start + LOOKED_FOR])
        if not found:
            # it kept nothing: looking for each would only take time
            break
    return {sha256 for sha256, each in wanted.items() if each <= found}


def _broken_off(plane: Plane, sha256: str, count: int) -> int:
    """Return the chunk at which to go on: they are published in order, so those before a retained one are there."""
    if plane.settings.embedded_broker or not count or not plane.outgoing.retained([topics.blob(sha256, 0)]):
        return 0
    there, missing = 0, count
    while missing - there > 1:
        middle = (there + missing) // 2
        if plane.outgoing.retained([topics.blob(sha256, middle)]):
            there = middle
        else:
            missing = middle
    # what was in flight when the connection broke may have arrived in part
    return max(0, there + 1 - 2 * IN_FLIGHT) if missing < count else count


def _clear_all_but(plane: Plane, kept: set[str]) -> None:
    """Clear what is published and needed no more; among it what an older Skerry published in the clear."""
    with plane.readers() as session:
        sealed = {sha256 for files in session.scalars(select(SealedArtifact.files)) for sha256 in files.values()}
        sealed |= set(session.scalars(select(SealedDelta.sealed)))
        live = set(session.scalars(select(Release.name).where(Release.state == "live")))
        superseded = {
            row.sha256: -(-row.length // (SEALED_CHUNK_BYTES if row.sha256 in sealed else CHUNK_BYTES))
            for row in session.scalars(select(Publication))
            if row.sha256 not in kept or row.release not in live
        }
    for sha256, chunks in superseded.items():
        # an empty retained message deletes what was retained
        if all(plane.outgoing.publish(topics.blob(sha256, number), b"", retain=True) for number in range(chunks)):
            with plane.sessions.begin() as session:
                session.execute(delete(Publication).where(Publication.sha256 == sha256))


def _chunks(length: int) -> int:
    return -(-length // SEALED_CHUNK_BYTES)
