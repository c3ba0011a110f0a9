"""What a device depends on, each looked at and said in plain words: one table, for `doctor` and for the self-test.

A check returns what it found, or a `Doubt` where that will need somebody soon, and raises the error whose leaf says who
must act: `Broken` this machine's owner, `Rejected` whoever set it up, `Unavailable` the network. None changes anything:
what is written to try the disk has no name and is gone with its handle.

What needs the network is in `agent.upkeep.reach`. Only short-lived processes import this.
"""

import contextlib
import os
import platform
import pwd
import shutil
import stat
import time
from collections.abc import Callable

from agent.config import Config, read_config
from agent.deployment.lifecycle import Phase
from agent.deployment.runner import read_state
from agent.fetching.rest import open_vault
from agent.identity.folder import StateFolder
from agent.identity.life import Life
from agent.inference.golden import golden_vectors, replay_in_child
from agent.link.address import parse_broker
from agent.telling.health import LITTLE_DISK_BYTES
from agent.trust.floor import read_floor, show_moment
from agent.upkeep.disk import try_to_write
from skerry.delivery.slots import NAMES, Slots
from skerry.errors import Broken, Rejected, SkerryError
from skerry.runtimes import Refused, find_runtime
from skerry.wire.manifest import Manifest
from skerry.wire.messages import AGENT

CLOCK_SLACK_S = 300.0
# no agent is older than this: a clock that says so was never set
NEVER_SET = 1_735_689_600.0
# what others may do with the state folder is to pass through it, to the socket
_OTHERS_MAY = stat.S_IXGRP


class Doubt(str):
    """What was found works today and wants to be looked at."""

    __slots__ = ()


Check = Callable[[StateFolder], str]


def state(folder: StateFolder) -> str:
    """Is there a device in the folder, and is it its owner's alone?"""
    path = folder.path
    if not path.is_dir():
        raise Rejected(f"expected a state folder in {path}, got none; name it with --state, or run skerry-agent init")
    who = folder.identity().who
    found = path.stat()
    if os.geteuid() not in (0, found.st_uid):
        raise Broken(f"expected to be {_name(found.st_uid)}, who owns {path}, got {_name(os.geteuid())}; use sudo -u")
    for file in (path, *sorted(path.iterdir())):
        there = file.lstat()
        if there.st_uid != found.st_uid:
            owner, other = _name(found.st_uid), _name(there.st_uid)
            raise Broken(f"expected {file} to be {owner}'s, got {other}'s; chown -R {owner} {path}")
        if file.name.endswith(".key") and there.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            shown = stat.filemode(there.st_mode)
            raise Broken(f"expected nobody else to read {file}, got {shown}; chmod 600 it, and enrol again if some did")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~_OTHERS_MAY:
        return Doubt(f"{who}, but others may look into {path} ({stat.filemode(found.st_mode)}); chmod 700 it")
    return f"{who}, in {path} of {_name(found.st_uid)}"


def config(folder: StateFolder) -> str:
    """Can the configuration be read?"""
    config_of(folder)
    file = folder.path / "config.toml"
    return f"{file}" if file.exists() else "the defaults: there is no config.toml"


def clock(folder: StateFolder) -> str:
    """Can it be as early, or as late, as this clock says?"""
    now, floor = time.time(), read_floor(folder.trust)
    if now < NEVER_SET:
        raise Broken(f"expected a clock that was set, got {show_moment(now)}; set it, or find it a time server")
    if now < floor:
        raise Broken(f"expected {show_moment(floor)} or later, got {show_moment(now)}; set the clock")
    life = None
    # what is wrong with the certificate is said where that is looked at
    with contextlib.suppress(SkerryError, OSError, ImportError, UnicodeDecodeError):
        life = _life(folder)
    if life is not None and now < life.begins - CLOCK_SLACK_S:
        began = show_moment(life.begins)
        raise Broken(f"expected {began} or later, when our certificate began, got {show_moment(now)}; set the clock")
    if life is not None and floor < life.ends <= now:
        return Doubt(f"{show_moment(now)}, after the end of our certificate; is the clock ahead?")
    return f"{show_moment(now)}, not before the newest assignment"


def certificate(folder: StateFolder) -> str:
    """Is there one, for now, for us, and for our key?"""
    life = _life(folder)
    if life is None:
        if parse_broker(config_of(folder).broker or folder.identity().broker).tls:
            raise Broken(f"expected {folder.credentials.certificate}, got none; enrol again in another folder")
        return "none: this broker knows no identities"
    # cryptography is imported by short-lived processes alone
    from agent.identity.proof import check_pair

    check_pair(folder)
    now = max(time.time(), read_floor(folder.trust))
    if not life.begins <= now < life.ends:
        span = f"from {show_moment(life.begins)} to {show_moment(life.ends)}"
        todo = (
            "set the clock" if now < life.begins else "run the agent where it reaches the server: it renews late, too"
        )
        raise Rejected(f"expected one for now, got one {span}; {todo}")
    if now >= life.renew_at:
        due = show_moment(life.renew_at)
        return Doubt(
            f"good until {show_moment(life.ends)}, but due since {due}; it is renewed where the server is reached"
        )
    return f"good until {show_moment(life.ends)}"


def disk(folder: StateFolder) -> str:
    """Is there room for the outbox, and can it be written?"""
    room, wanted = shutil.disk_usage(folder.path), _outbox_wants(folder)
    if os.statvfs(folder.path).f_flag & os.ST_RDONLY:
        raise Broken(f"expected to write to {folder.path}, got a read-only file system; see dmesg, and mount it rw")
    if room.free < wanted:
        raise Broken(f"expected {wanted} bytes free for the outbox, got {room.free}; make room")
    try:
        try_to_write(folder.path)
    except OSError as error:
        todo = "make room" if os.access(folder.path, os.W_OK | os.X_OK) else "check its permissions"
        raise Broken(f"expected to write to {folder.path}, got: {error.strerror}; {todo}") from error
    if room.free < LITTLE_DISK_BYTES:
        return Doubt(f"{room.free >> 20} MiB free, which is little for a new model; make room")
    return f"{room.free >> 20} MiB free, and it can be written"


def runtime(folder: StateFolder) -> str:
    """Is the runtime installed, in a version and for an architecture that will do?"""
    identity = folder.identity()
    machine = platform.machine()
    if machine != identity.architecture and not identity.simulated:
        raise Rejected(
            f"expected {identity.architecture}, as {identity.profile} is, got {machine}; enrol as what it is"
        )
    found = find_runtime(identity.runtime)
    if isinstance(found, Refused):
        raise Broken(found.reason)
    from agent.inference.runtime_fit import check_runtime

    check_runtime(identity.runtime, found)
    return f"{identity.runtime} {found.version}"


def lifecycle(folder: StateFolder) -> str:
    """Can what the updater knows be read, and how did its last deployment end?"""
    told = []
    for name in ("", *folder.component_names()):
        kept = read_state(folder.component(name).lifecycle_file)
        told.append(
            f"{f'{name}: ' if name else ''}{kept.phase}{f' ({kept.good.release})' if kept.good.release else ''}"
        )
        if kept.phase == Phase.FAILED.value:
            return Doubt(f"{told[-1]}: {kept.reason or 'no reason'}; what ran before runs on")
    return ", ".join(told)


def digests(folder: StateFolder) -> str:
    """Is what each component has committed the one that was signed, to the byte?"""
    return _of_each(folder, _whole)


def golden(folder: StateFolder) -> str:
    """Does each model still answer what it answered when it was released?"""
    return _of_each(folder, _replayed, besides=(AGENT,))


def _of_each(folder: StateFolder, look: Callable[[Slots, Manifest], str], *, besides: tuple[str, ...] = ()) -> str:
    """Look at what each component has committed, and say what was found of all of them."""
    told = []
    for name in ("", *folder.component_names()):
        if name in besides:
            continue
        place = folder.component(name)
        good, said = read_state(place.lifecycle_file).good, f"{name}: " if name else ""
        # opening slots makes them
        has_slots = all((place.slots / each).is_dir() for each in NAMES)
        # wheels are kept as they are (`agent.deployment.unit`)
        vault = None if name == AGENT else open_vault(config_of(folder).rest_key_file)
        try:
            slots = Slots(place.slots, vault) if has_slots else None
            if slots is not None and slots.active:
                told.append(f"{said}{look(slots, slots.read(slots.active))}")
            elif good.manifest:
                missing = f"{said}expected a slot with {good.release}, which is committed, got none; assign it again"
                raise Broken(missing)
        except Rejected as error:
            raise Rejected(f"{said}{error}") from error
        finally:
            if vault is not None:
                vault.close()
    return "; ".join(told) or "nothing is committed"


def _whole(slots: Slots, manifest: Manifest) -> str:
    return f"slot {slots.active}: {len(manifest.files)} files of {manifest.model} {manifest.version} are whole"


def _replayed(slots: Slots, manifest: Manifest) -> str:
    name = slots.active
    data = slots.load(name, manifest.golden_file, sha256=manifest.file(manifest.golden_file).sha256)
    inputs, expected = golden_vectors(data, manifest)
    model = slots.source(name, manifest.model_file, sha256=manifest.file(manifest.model_file).sha256)
    ran = replay_in_child(model, manifest, inputs, expected)
    rows = len(next(iter(inputs.values())))
    return f"{rows} rows within their tolerances, {ran.latency_p50_us} us at the median"


def config_of(folder: StateFolder) -> Config:
    """Return the configuration of a state folder."""
    return read_config(folder.path, {})


def _life(folder: StateFolder) -> Life | None:
    if not folder.has_certificate:
        return None
    from agent.identity.proof import life_of

    return life_of(folder.credentials.certificate.read_text(encoding="ascii"))


def _outbox_wants(folder: StateFolder) -> int:
    """Return how many bytes of its quota the outbox has not taken yet."""
    taken = folder.outbox_file.stat().st_size if folder.outbox_file.exists() else 0
    return max(config_of(folder).quota_bytes - taken, 0)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


SELF_TEST: dict[str, Check] = {
    "runtime": runtime,
    "digests": digests,
    "golden": golden,
    "disk": disk,
    "clock": clock,
    "certificate": certificate,
}
"""What the agent looks at when it is asked to test itself; it says the rest of its own accord."""
