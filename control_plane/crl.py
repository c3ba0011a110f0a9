"""Owns the revocation list of the device CA, and the order in which a device is shut out.

A broker looks at its list when a device shakes hands, never again: a new list leaves live sessions up. So to revoke is
four steps, in an order that leaves no gap:

1. Write the list, with a probe in it: a certificate that is made for this list and thrown away after it.
2. Make the broker read it.
3. Connect with the probe until it is refused: from then on no handshake with a revoked certificate succeeds.
4. Take the device's session over with a brief certificate of its own name: the broker closes what was open.

Whoever shook hands before step 3 and sends its first packet after step 4 would slip through: so all who were revoked in
the last minutes are taken over again at each turn of `keep`, for longer than brokers wait for a first packet.

An expired list locks everyone out, and so does one from the future: it is dated back by a day, ends with the CA, and is
renewed daily. OpenSSL takes the newest of the lists that it has read, to the second: each is dated after the last.
"""

import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from sqlalchemy import select

from control_plane import takeover
from control_plane.authority import Authority, ensure_server_certificate, load_authority
from control_plane.plane import Plane
from control_plane.schema.devices import RevokedCertificate
from skerry.delivery.durable import write_durably
from skerry.errors import Broken, SkerryError, Unavailable

log = logging.getLogger(__name__)

FILE = "revoked.pem"
PID_FILE = "mosquitto.pid"
BACK_DATED = timedelta(days=1)
RENEW_AFTER = timedelta(days=1)
RELOAD_TIMEOUT_S = 20.0
# Mosquitto closes a connection without a first packet after 90 s, EMQX after 15 s
FIRST_PACKET_WITHIN = timedelta(minutes=3)
# each device's name has a dot in it, so this is no device's
PROBE = "probe"
_one_at_a_time = threading.Lock()


def build(
    authority: Authority, revoked: Mapping[str, datetime], *, now: datetime, after: datetime | None = None
) -> bytes:
    """Return the list (PEM) of the serial numbers (hex) in `revoked`, dated later than `after`; it ends with the CA."""
    dated = now - BACK_DATED
    if after is not None:
        dated = max(dated, after + timedelta(seconds=1))
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(dated)
        .next_update(authority.certificate.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        # RFC 5280, 5.2.3: grows from list to list
        .add_extension(x509.CRLNumber(int(dated.timestamp())), critical=False)
    )
    for serial, at in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(at)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def revoke_now(plane: Plane, device: str) -> str:
    """Shut out the certificates of a device that `revoked_certificate` names, and end its live session.

    Call it after the commit, from a thread that may wait. Returns a line for people.

    Raises:
        Unavailable: the broker did not take the list, or did not let us in to end the session.
        Broken: the list cannot be written, or the broker cannot be told.
    """
    if not plane.settings.broker_folder:
        return f"{device}: no session was ended, for the broker is not one that `skerry broker config` has set up"
    with _one_at_a_time:
        _spread(plane)
    takeover.end_session(plane, device)
    return f"{device}: its certificates are refused, and its session has ended"


def keep(plane: Plane) -> None:
    """Renew what is in the broker's folder, and make good what `revoke_now` could not finish.

    Sessions are ended again of who was revoked in the last minutes; of all, where the broker had not taken the list.

    Raises:
        Unavailable, Broken: as `revoke_now`; the next turn tries again.
    """
    if not plane.settings.broker_folder:
        return
    with _one_at_a_time:
        unfinished = _marker(plane).exists() or not _lists_all(plane)
        renewed = _renew_certificate(plane)
        if unfinished:
            _spread(plane)
        elif _old(plane):
            _write(plane, {})
            _reload(plane)
        elif renewed:
            _reload(plane)
    for device in _shut_out(plane, since=None if unfinished else plane.clock() - FIRST_PACKET_WITHIN):
        try:
            takeover.end_session(plane, device)
        except SkerryError as error:
            log.warning("%s: %s", device, error)


def hand_over(folder: Path, *names: str) -> None:
    """Give what root has written in `folder` to the folder's owner, who runs the broker."""
    if os.geteuid() == 0:
        owner = folder.stat()
        for name in names:
            # the folder is the broker's, and may hold links that lead elsewhere
            os.chown(folder / name, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _spread(plane: Plane) -> None:
    """Write the list and see that the broker has it; a marker stays where that did not come to its end."""
    marker = _marker(plane)
    write_durably(marker, b"")
    probe = takeover.make_pass(plane, PROBE, now=plane.clock())
    _write(plane, {f"{probe.certificate.serial_number:x}": plane.clock()})
    _reload(plane)
    _await_refusal(plane, probe)
    marker.unlink()


def _marker(plane: Plane) -> Path:
    return plane.home.ca / "revocation.unfinished"


def _shut_out(plane: Plane, *, since: datetime | None) -> list[str]:
    """Return the devices with certificates that were revoked since then, or that are and have not ended."""
    column = RevokedCertificate.revoked_at if since is not None else RevokedCertificate.expires
    with plane.readers() as session:
        query = select(RevokedCertificate.device).where(column > (since or plane.clock())).distinct()
        return sorted(session.scalars(query))


def _folder(plane: Plane) -> Path:
    return Path(plane.settings.broker_folder)


def _renew_certificate(plane: Plane) -> bool:
    """Make the broker's own certificate anew where due; say whether."""
    folder = _folder(plane)
    before = _read(folder / "server.pem")
    host = urlsplit(plane.settings.device_broker_url).hostname or ""
    certificate, key = ensure_server_certificate(plane.home.ca, host=host, now=plane.clock(), out=folder)
    if _read(certificate) == before:
        return False
    hand_over(folder, certificate.name, key.name)
    return True


def _lists_all(plane: Plane) -> bool:
    held = _held(plane)
    if held is None:
        return False
    numbers = {entry.serial_number for entry in held}
    return all(int(serial, 16) in numbers for serial in _revoked(plane))


def _old(plane: Plane) -> bool:
    held = _held(plane)
    return held is None or plane.clock() - BACK_DATED - held.last_update_utc > RENEW_AFTER


def _write(plane: Plane, more: Mapping[str, datetime]) -> None:
    held = _held(plane)
    data = build(
        load_authority(plane.home.ca, "device"),
        {**_revoked(plane), **more},
        now=plane.clock(),
        after=held.last_update_utc if held is not None else None,
    )
    write_durably(_folder(plane) / FILE, data)
    hand_over(_folder(plane), FILE)


def _revoked(plane: Plane) -> dict[str, datetime]:
    """Return the serial numbers that have not ended by themselves, each with the time of its revocation."""
    with plane.readers() as session:
        rows = session.scalars(select(RevokedCertificate).where(RevokedCertificate.expires > plane.clock()))
        return {row.serial: row.revoked_at for row in rows}


def _held(plane: Plane) -> x509.CertificateRevocationList | None:
    try:
        return x509.load_pem_x509_crl(_read(_folder(plane) / FILE))
    except ValueError:
        return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise Broken(f"{path}: expected to read it, got: {error.strerror}; check who owns it") from error


def _reload(plane: Plane) -> None:
    """Make the broker read its files again: by the operator's command, or by SIGHUP to the one on this machine."""
    if plane.settings.broker_reload:
        _run(plane.settings.broker_reload)
        return
    file = _folder(plane) / PID_FILE
    text = _read(file).decode("ascii", "replace").strip()
    # a broker that has ended reads its files when it starts; its number may be another's by now
    if not text.isdecimal() or _read(Path("/proc") / text / "comm").strip() != b"mosquitto":
        log.info("broker: %s names no broker that runs", file)
        return
    try:
        os.kill(int(text), signal.SIGHUP)
    except OSError as error:
        raise Broken(
            f"{file}: expected to signal the broker, got: {error.strerror}; set broker_reload to a command that may"
        ) from error


def _run(command: str) -> None:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=RELOAD_TIMEOUT_S, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise Broken(f"broker_reload: expected {command!r} to run, got: {error}; set broker_reload") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
        raise Broken(f"broker_reload: expected {command!r} to succeed, got exit {done.returncode}: {said:.200}")


def _await_refusal(plane: Plane, probe: takeover.Pass) -> None:
    deadline = time.monotonic() + RELOAD_TIMEOUT_S
    while takeover.connect(plane, probe) is takeover.Outcome.ACCEPTED:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"broker: expected it to take the new revocation list within {RELOAD_TIMEOUT_S:.0f} s, "
                "got the old one; set broker_reload to the command that makes it"
            )
        plane.stopping.wait(0.05)
