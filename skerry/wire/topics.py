"""The MQTT topics, one level per name, so that plain ACL patterns suffice.

Devices read `down`, write `up`, read `tuf` and `blob`; the control plane does the opposite. The user name of a device
is its identity `PROJECT.DEVICE`, so a broker's ACL needs one pattern for all devices.
"""

import re

from skerry.errors import Rejected

ROOT = "skerry/1"
DOWN = ("desired", "assign", "ack", "request")
UP = ("reported", "outbox", "answer")
UP_FILTERS = tuple(f"{ROOT}/d/+/up/{name}" for name in UP)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def check_name(name: str, what: str) -> str:
    """Return `name` if it may stand in a topic, a path and an identity; raises `Rejected` otherwise."""
    if not _NAME.fullmatch(name):
        raise Rejected(f"{what}: expected 1 to 63 of a-z, 0-9 and '-', not starting with '-', got {name!r}")
    return name


def is_name(text: str) -> bool:
    """Say whether a text may stand in a topic, a path and an identity."""
    return _NAME.fullmatch(text) is not None


def identity(project: str, device: str) -> str:
    """Return `PROJECT.DEVICE`, the user name and client id of a device."""
    return f"{check_name(project, 'project')}.{check_name(device, 'device')}"


def split_identity(text: str) -> tuple[str, str]:
    """Return (project, device) of an identity; raises `Rejected`."""
    project, dot, device = text.partition(".")
    if not dot:
        raise Rejected(f"identity: expected PROJECT.DEVICE, got {text!r}")
    return check_name(project, "project"), check_name(device, "device")


def down(who: str, name: str) -> str:
    """Return the topic on which the device `who` (its identity) hears `name`, one of `DOWN`."""
    if name not in DOWN:
        raise ValueError(f"expected one of {DOWN}, got {name!r}")
    return f"{ROOT}/d/{who}/down/{name}"


def up(who: str, name: str) -> str:
    """Return the topic on which the device `who` (its identity) says `name`, one of `UP`."""
    if name not in UP:
        raise ValueError(f"expected one of {UP}, got {name!r}")
    return f"{ROOT}/d/{who}/up/{name}"


def split_up(topic: str) -> tuple[str, str]:
    """Return (identity, name) of an `up` topic; raises `Rejected` for any other topic."""
    parts = topic.split("/")
    if len(parts) != 6 or "/".join(parts[:3]) != f"{ROOT}/d" or parts[4] != "up" or parts[5] not in UP:
        raise Rejected(f"topic: expected {ROOT}/d/PROJECT.DEVICE/up/NAME, got {topic!r}")
    split_identity(parts[3])
    return parts[3], parts[5]


def tuf(project: str, role: str) -> str:
    """Return the retained topic of a metadata file: `role` is `index`, `timestamp`, `3.snapshot` and the like."""
    return f"{ROOT}/tuf/{project}/{role}"


def blob(sha256: str, number: int) -> str:
    """Return the retained topic of chunk `number` of the blob with that digest."""
    return f"{ROOT}/blob/{sha256}/{number}"
