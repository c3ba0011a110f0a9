"""Which artifact a program may run: the committed one of a name in an agent's state folder, read and never written.

The agent is the only writer of slots. A slot on trial is not committed: until it is, the last good one is.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from skerry.delivery.slots import MANIFEST, NAMES, Mark, Pointer, Slot, decode_pointer
from skerry.errors import Broken, Rejected, Unavailable
from skerry.inference.local_socket import SOCKET
from skerry.runtimes.session import read_model
from skerry.wire import codec
from skerry.wire.manifest import Manifest
from skerry.wire.topics import is_name

VARIABLE = "SKERRY_STATE"
DEFAULTS = (Path("/var/lib/skerry-agent"), Path("skerry-agent"))
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed artifact: the SHA-256 of its manifest, the manifest, and the model's bytes, digests checked."""

    digest: str
    manifest: Manifest
    model: bytes


def find_state(state: str | os.PathLike[str] | None) -> Path:
    """Return the agent's state folder: the one given, else SKERRY_STATE, else the usual places.

    Raises:
        Broken: there is none.
    """
    # read at the call and not at import: a program may set it for its own tests
    named = state if state is not None else os.environ.get(VARIABLE) or None
    places = (Path(named),) if named is not None else DEFAULTS
    for place in places:
        if any(_exists(place / each) for each in ("identity.json", "slots", "components")):
            # a program may change its working folder while it follows the pointer
            return place.absolute()
    searched = " or ".join(str(place) for place in places)
    raise Broken(
        f"expected the state folder of an agent in {searched}, got none; "
        f"run skerry-agent init, give state=, or set {VARIABLE}"
    )


def find_slots(state: Path, name: str) -> Path:
    """Return the slots folder of the model `name`: the device's one model, or a component of that name."""
    component = state / "components" / name / "slots"
    return component if is_name(name) and _exists(component / "pointer.json") else state / "slots"


def read_pointer(slots: Path) -> Pointer:
    """Return the pointer of a slots folder; raises `Unavailable` when nothing was ever staged, `Broken` as `_read`."""
    try:
        return decode_pointer(_read(slots / "pointer.json"))
    except FileNotFoundError:
        return Pointer()
    except Rejected as error:
        raise Broken(f"{slots / 'pointer.json'}: {error}; see skerry-agent doctor") from error


def committed_slot(pointer: Pointer) -> str:
    """Return "a", "b" or, when nothing is committed, nothing."""
    active = pointer.active
    if active and pointer.slot(active).mark == Mark.GOOD.value:
        return active
    # the active one is on trial, or was just given up: the last good one runs
    return next((name for name in NAMES if pointer.slot(name).fit), "") if active else ""


def read_committed(slots: Path, name: str) -> Committed:
    """Read the committed artifact of a slots folder.

    Raises:
        Unavailable: nothing is committed yet, or no more.
        Rejected: it is another model, or its files are no longer what was signed.
        Broken: it cannot be read by this program: sealed at rest, or no permission.
    """
    for attempt in range(_ATTEMPTS):
        pointer = read_pointer(slots)
        place = committed_slot(pointer)
        if not place and pointer.active and pointer.slot(pointer.active).mark == Mark.PENDING.value:
            raise Unavailable(
                f"{slots}: expected a committed model, got one on trial; it is committed after some inferences on its "
                f"source or over the socket {SOCKET}, or else after a minute"
            )
        if not place:
            raise Unavailable(f"{slots}: expected a committed model, got none; assign {name}, then try again")
        try:
            return _read_slot(slots / place, pointer.slot(place), name)
        except Rejected:
            # the agent may have committed another one meanwhile, and begun to write here
            if attempt + 1 == _ATTEMPTS or read_pointer(slots) == pointer:
                raise
    raise Unavailable(f"{slots}: expected a slot that stands still, got one that is written; try again")


def _read_slot(folder: Path, slot: Slot, name: str) -> Committed:
    if slot.rest_key:
        raise Broken(
            f"{folder}: expected a model that is kept as it is, got one sealed with the rest key {slot.rest_key}, "
            f"which the agent alone holds; ask the agent over the socket {SOCKET} of its state folder"
        )
    data = _checked(folder / MANIFEST, sha256=slot.manifest)
    manifest = codec.decode(Manifest, data)
    if manifest.model != name:
        state = folder.parent.parent
        here = sorted(
            {manifest.model, *(each.parent.parent.name for each in state.glob("components/*/slots/pointer.json"))}
        )
        raise Rejected(f"{state}: expected the model {name:.80}, got {', '.join(here)}; ask for one that is here")
    file = manifest.file(manifest.model_file)
    return Committed(slot.manifest, manifest, _checked(folder / file.name, sha256=file.sha256))


def _checked(path: Path, *, sha256: str) -> bytes:
    try:
        data = _read(path)
    except FileNotFoundError as error:
        raise Rejected(f"{path}: expected a file of the slot, got none; assign it again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Rejected(f"{path}: expected the bytes that were signed, got others; assign it again")
    return data


def _read(path: Path) -> bytes:
    try:
        return read_model(path)
    except Rejected as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, PermissionError):
            raise _forbidden(path) from error
        raise


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise _forbidden(path) from error
    return True


def _forbidden(path: Path) -> Broken:
    return Broken(f"{path}: expected to read it, got no permission; run as the agent's user")
