"""Puts right what the disk has spoilt in a state folder, before the agent opens it to work on: nobody is near a device.

    identity, anchor, VERSION   from their second copies, which an older agent's folder is given here
    slots/pointer.json          from what the lifecycle knows to be good, if that slot is whole by its digests
    lifecycle.json              from the pointer; then the assignment is judged anew, and the same artifact is `present`
    both of them                nothing is known to be good: the assignment is judged anew, and fetched again
    desired, floor, mail        moved aside: the broker says them again, or the next assignment proves them anew

What is damaged is kept as NAME.damaged, one of each, and what was lost is said. Nothing is believed here that a digest
does not prove, and what TUF has trusted (`trust/image`, `trust/director`) is never touched. A pointer that was made
anew knows of no revocation. So until the assignment has been judged, which brings the standing of every slot back, only
that slot may run which the lifecycle names as the last good one, which is what was running; the other one is forgotten
and never rolled back to. Every step may be repeated after a power cut and ends in the same place.
"""

import errno
import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from agent.config import Config
from agent.deployment.lifecycle import Good, Phase, State
from agent.deployment.runner import Saved, decode_saved, encode_saved
from agent.fetching.rest import open_vault
from agent.identity.folder import ComponentFolder, StateFolder, is_anchor, is_identity, is_version
from skerry.delivery.checked import check_sum, read_copy, read_either, write_copy
from skerry.delivery.durable import copy_durably, make_folder, sync_folder, write_durably
from skerry.delivery.slots import MANIFEST, NAMES, Mark, Pointer, Slot, decode_pointer, encode_pointer
from skerry.delivery.vault import Vault, check_kept, read_kept
from skerry.errors import Broken, Rejected
from skerry.wire import codec
from skerry.wire.manifest import SEALED_CHUNK_BYTES, Manifest
from skerry.wire.messages import AGENT

_log = logging.getLogger("skerry.agent.recovery")
T = TypeVar("T")
# what a disk says of a sector that is gone; anything else that it refuses is no damage, and nothing is given up for it
_ROTTEN = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)
# in these, the artifact of the grant is in a slot and wanted there
_STAGED = (Phase.STAGED.value, Phase.REPLAYING.value, Phase.TRIAL.value)
_SETTLED = (Phase.IDLE.value, Phase.COMMITTED.value, Phase.FAILED.value)
_GOOD, _BAD, _PENDING = Mark.GOOD.value, Mark.BAD.value, Mark.PENDING.value


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was wrong and what was done, a line each; with `restart`, another version of the agent is to run."""

    lines: tuple[str, ...] = ()
    restart: bool = False


@dataclass(frozen=True, slots=True)
class _Read(Generic[T]):
    """A file: what it holds, and whether it is there and cannot be read."""

    value: T | None = None
    damaged: bool = False


def recover(folder: StateFolder, config: Config) -> Recovered:
    """Put right what is damaged; whoever calls holds the lock of the folder.

    Raises:
        Broken: the disk refuses to be written, or what is kept sealed cannot be opened without its key.
    """
    lines = [*_copied(folder), *_said_again(folder)]
    restart = False
    for name in ("", *folder.component_names()):
        place = folder.component(name)
        # wheels are kept as they are (`agent.deployment.unit`)
        vault = None if name == AGENT else open_vault(config.rest_key_file)
        try:
            told, pointer = _component(place, vault)
        finally:
            if vault is not None:
                vault.close()
        if told:
            lines.append(f"{name}: {told}" if name else told)
        restart |= name == AGENT and pointer is not None and pointer.active != ""
    for line in lines:
        _log.warning("%s", line)
    return Recovered(tuple(lines), restart)


# --- what exists twice


def _copied(folder: StateFolder) -> list[str]:
    lines = []
    soundness = {folder.identity_file: is_identity, folder.anchor_file: is_anchor, folder.version_file: is_version}
    for file, is_sound in soundness.items():
        first, right = _bytes_of(file), _read_either(file, is_sound)
        if right is None or not is_sound(right):
            # whoever needs it says so
            continue
        # what is known can be worked with, also on a disk that is full
        with suppress(Broken):
            if first.value != right:
                lines.append(f"{file.name} was {_how(first)}: restored from its copy")
                if _how(first) == "damaged":
                    _keep_damaged(file)
                write_durably(file, right, mode=0o600)
            if read_copy(file) != right:
                # of an older agent, or damaged, or somebody has edited the file
                write_copy(file, right, mode=0o600)
    return lines


def _read_either(file: Path, is_sound: Callable[[bytes], bool]) -> bytes | None:
    """Return what a file or its copy holds, also where the disk can no longer read the file."""
    try:
        return read_either(file, is_sound=is_sound)
    except OSError as error:
        if error.errno not in _ROTTEN:
            raise
        return read_copy(file)


# --- what will be said again


def _said_again(folder: StateFolder) -> list[str]:
    lines = []
    for file in (folder.path / "desired.json", folder.trust / "floor.json", folder.path / "assignment.json"):
        found = _read(file, check_sum)
        if found.damaged:
            _keep_damaged(file)
            # without it they are as on a new device; read with it, they might not be
            with suppress(FileNotFoundError):
                file.unlink()
            sync_folder(file.parent)
            lines.append(f"{file.name} was damaged: without it until it is heard again")
    if not (folder.trust / "floor.json").exists():
        # the assignment proves it: as early as the last one, if nothing newer comes
        _judge_again(folder.path)
    return lines


# --- a component


def _component(place: ComponentFolder, vault: Vault | None) -> tuple[str, Pointer | None]:
    """Put the pointer and the lifecycle of a component right.

    Returns what was done, empty for nothing, and the pointer if it may name something else now.
    """
    pointer_file = place.slots / "pointer.json"
    pointer, saved = _read(pointer_file, decode_pointer), _read(place.lifecycle_file, decode_saved)
    pointer_lost = pointer.damaged or (pointer.value is None and _had_pointer(place, saved.value))
    saved_lost = saved.damaged or (saved.value is None and _had_lifecycle(pointer.value))
    if not (pointer_lost or saved_lost):
        return "", None

    # first of all: whatever becomes of the rest, the assignment is judged again
    _judge_again(place.path)
    for file, damaged in ((pointer_file, pointer.damaged), (place.lifecycle_file, saved.damaged)):
        if damaged:
            _keep_damaged(file)
    if saved.value is not None:
        line = f"slots/pointer.json was {_how(pointer)}"
        made, state = _from_lifecycle(saved.value.state, place.slots, vault)
        # the lifecycle first: a pointer that names nothing, beside a lifecycle that is content, would stay so
        _write_saved(place, replace(saved.value, state=state))
        _write_pointer(place, made)
        runs = made.slot(made.active).release if made.active else ""
        return f"{line}: {runs} is whole and runs on" if runs else f"{line}: nothing is known to be good", made
    if pointer.value is not None and not pointer_lost:
        made, state = _from_pointer(pointer.value)
        line = f"lifecycle.json was {_how(saved)}: {state.good.release or 'nothing'} was committed"
        # the pointer first: one that names what is on trial, beside a lifecycle that knows of none, would stay so
        _write_pointer(place, made)
        _write_saved(place, Saved(state=replace(state, reason=line)))
        return line, made if made.active != pointer.value.active else None
    # a slot that is whole may be one that failed here, or was revoked: its digests do not tell, a trial does
    line = "lifecycle.json and slots/pointer.json were lost: nothing is known to be good"
    _write_saved(place, Saved(state=State(reason=line)))
    _write_pointer(place, Pointer())
    return line, None


def _had_pointer(place: ComponentFolder, saved: Saved | None) -> bool:
    """Say whether there must have been a pointer: it is written before the first byte in a slot."""
    known = saved is not None and (saved.state.good.manifest != "" or saved.state.phase in _STAGED)
    return known or any((place.slots / name / MANIFEST).exists() for name in NAMES)


def _had_lifecycle(pointer: Pointer | None) -> bool:
    """Say whether there must have been a lifecycle: it is saved before anything is staged."""
    return pointer is not None and any(pointer.slot(name).manifest for name in NAMES)


def _from_pointer(pointer: Pointer) -> tuple[Pointer, State]:
    """Return what the lifecycle was, as far as the slots know: without a grant, so any assignment is a new one."""
    good = pointer.active
    if good and pointer.slot(good).mark != _GOOD:
        # it was on trial
        good = next((name for name in NAMES if pointer.slot(name).fit), "")
    for name in NAMES:
        if pointer.slot(name).mark == _PENDING:
            # how often it was tried is not known any more: it is staged and tried as if it came for the first time
            pointer = pointer.with_slot(name, replace(pointer.slot(name), mark=_BAD))
    pointer = replace(pointer, active=good)
    if not good:
        return pointer, State()
    slot = pointer.slot(good)
    known = Good(manifest=slot.manifest, release=slot.release, deployment=slot.deployment)
    return pointer, State(phase=Phase.COMMITTED.value, good=known)


def _from_lifecycle(state: State, slots: Path, vault: Vault | None) -> tuple[Pointer, State]:
    """Return what the pointer was, as far as the lifecycle knows, and the state that goes with it."""
    pointer = Pointer()
    good = ""
    if state.good.manifest and state.good.manifest != state.undo:
        good, slot = _find(state.good.manifest, slots, vault)
        if good:
            known = state.good
            slot = replace(slot, mark=_GOOD, release=known.release, deployment=known.deployment)
            pointer = replace(pointer.with_slot(good, slot), active=good)
    if state.grant is not None and state.phase in _STAGED:
        grant, slot = _find(state.grant.manifest, slots, vault)
        if grant:
            wanted = state.grant
            slot = replace(slot, mark=_PENDING, release=wanted.release, deployment=wanted.deployment)
            # the trial itself points at it again
            pointer = pointer.with_slot(grant, replace(slot, samples=wanted.samples))
        else:
            state = replace(state, phase=Phase.ASSIGNED.value)
    if state.good.manifest and not good:
        state = _without_good(state)
    return pointer, state


def _without_good(state: State) -> State:
    """Return the state of a device that has lost its last good artifact: what is assigned is to be fetched again."""
    if state.phase == Phase.ROLLING_BACK.value and state.following is not None:
        return State(phase=Phase.ASSIGNED.value, grant=state.following)
    if state.phase in (*_SETTLED, Phase.ROLLING_BACK.value):
        return State(reason=f"{state.good.release} was given up, or is no longer whole")
    return replace(state, good=Good())


def _find(manifest: str, slots: Path, vault: Vault | None) -> tuple[str, Slot]:
    """Return the slot that holds an artifact, whole by its digests, and how it is kept; an empty name for none."""
    # kept as it is, or sealed: whether there was a vault when it was staged stood in the pointer
    ways = (None,) if vault is None else (None, vault)
    for name in NAMES:
        for way in ways:
            if _is_whole(slots / name, manifest, way):
                return name, Slot(manifest=manifest, rest_key=way.key_id if way else "")
    return "", Slot()


def _is_whole(folder: Path, manifest: str, vault: Vault | None) -> bool:
    file = folder / MANIFEST
    try:
        if file.stat().st_size > SEALED_CHUNK_BYTES:
            return False
        data = read_kept(vault, file, sha256=manifest)
        if data is None or hashlib.sha256(data).hexdigest() != manifest:
            return False
        files = codec.decode(Manifest, data).files
        return all(check_kept(vault, folder / entry.name, sha256=entry.sha256) for entry in files)
    except (OSError, Rejected):
        return False


# --- what they share


def _read(file: Path, decode: Callable[[bytes], T]) -> _Read[T]:
    data = _bytes_of(file)
    if data.value is None:
        return _Read(damaged=data.damaged)
    try:
        return _Read(decode(data.value))
    except Rejected:
        return _Read(damaged=True)


def _bytes_of(file: Path) -> _Read[bytes]:
    try:
        return _Read(file.read_bytes())
    except FileNotFoundError:
        return _Read()
    except OSError as error:
        if error.errno not in _ROTTEN:
            raise Broken(f"{file}: expected to read it, got: {error.strerror}; check its permissions") from error
        return _Read(damaged=True)


def _how(read: _Read[T]) -> str:
    return "damaged" if read.damaged or read.value is not None else "missing"


def _keep_damaged(file: Path) -> None:
    """Keep what the disk has made of a file, for whoever wants to know; there may be nothing to be read of it."""
    with suppress(Broken):
        copy_durably(file, file.with_name(f"{file.name}.damaged"))


def _judge_again(folder: Path) -> None:
    decided = folder / "assignment.decided"
    if decided.exists():
        decided.unlink()
        sync_folder(folder)


def _write_pointer(place: ComponentFolder, pointer: Pointer) -> None:
    try:
        make_folder(place.slots)
    except OSError as error:
        raise Broken(f"expected to make {place.slots}, got: {error.strerror}; check the disk") from error
    write_durably(place.slots / "pointer.json", encode_pointer(pointer))


def _write_saved(place: ComponentFolder, saved: Saved) -> None:
    write_durably(place.lifecycle_file, encode_saved(saved))
