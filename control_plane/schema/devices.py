"""Tables of devices: who they are, what proves it, what is wanted of them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.schema.tables import Table


class Device(Table):
    """One agent identity. `reported` is the last `Reported` message, `public_key` (PEM) what its key proves.

    `state`: pending (an operator has not accepted it), offline (named for installs from a file, not enrolled yet),
    enrolled, revoked, decommissioning (told to wipe itself, not heard since), decommissioned.
    """

    __tablename__ = "device"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    profile: Mapped[str] = mapped_column(String(63))
    group: Mapped[str] = mapped_column("group_name", String(63), default="default")
    state: Mapped[str] = mapped_column(String(16), default="enrolled")
    certificate_serial: Mapped[str] = mapped_column(String(64))
    certificate_expires: Mapped[datetime]
    enrolled_at: Mapped[datetime]
    online: Mapped[bool] = mapped_column(default=False)
    last_seen: Mapped[datetime | None]
    reported: Mapped[dict[str, Any]] = mapped_column(default=dict)
    assign_counter: Mapped[int] = mapped_column(default=0)
    public_key: Mapped[str] = mapped_column(Text, default="")


class DeviceComponent(Table):
    """A component of a device beside its unnamed one; named like its model, or `agent`.

    `manifest` is the SHA-256 of what it last said it has committed, `reported` the last `Component` message.
    """

    __tablename__ = "device_component"
    device: Mapped[str] = mapped_column(ForeignKey("device.name"), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    manifest: Mapped[str] = mapped_column(String(64), default="", index=True)
    reported: Mapped[dict[str, Any]] = mapped_column(default=dict)
    added_at: Mapped[datetime]


class DeviceGroup(Table):
    """The rules of a group that has any. `approve`: automatic, or pending until an operator accepts each device."""

    __tablename__ = "device_group"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    approve: Mapped[str] = mapped_column(String(9), default="automatic")
    refuse_automatic: Mapped[bool] = mapped_column(default=False)


class ClaimToken(Table):
    """A claim token, stored as SHA-256, bound to a profile and group and, where given, to one device name.

    `approve` is automatic, pending, or empty where the rule of the group decides.
    """

    __tablename__ = "claim_token"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    profile: Mapped[str] = mapped_column(String(63))
    group: Mapped[str] = mapped_column("group_name", String(63), default="default")
    device: Mapped[str] = mapped_column(String(63), default="")
    uses_left: Mapped[int] = mapped_column(default=1)
    expires: Mapped[datetime]
    approve: Mapped[str] = mapped_column(String(9), default="")


class PendingClaim(Table):
    """A claim that waits for an operator, or whose answer waits for the device. `state`: pending, accepted, rejected.

    The device asks with its ticket, of which the SHA-256 is kept; `certificate` (PEM) is there once it was accepted.
    """

    __tablename__ = "pending_claim"
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    profile: Mapped[str] = mapped_column(String(63))
    group: Mapped[str] = mapped_column("group_name", String(63))
    csr: Mapped[str] = mapped_column(Text)
    ticket_sha256: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(8), default="pending")
    certificate: Mapped[str] = mapped_column(Text, default="")
    asked_at: Mapped[datetime]
    expires: Mapped[datetime]


class IssuedCertificate(Table):
    """A certificate that the device CA has signed and that has not ended: all of a device's are revoked with it."""

    __tablename__ = "issued_certificate"
    serial: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    issued_at: Mapped[datetime]
    expires: Mapped[datetime]


class RevokedCertificate(Table):
    """A certificate that is no longer good although it has not ended: what the revocation list names."""

    __tablename__ = "revoked_certificate"
    serial: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    expires: Mapped[datetime]
    revoked_at: Mapped[datetime]


class SpentNonce(Table):
    """A nonce that has served: kept, as SHA-256, until it would have ended anyway."""

    __tablename__ = "spent_nonce"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    expires: Mapped[datetime]


class DeviceToken(Table):
    """A device's bearer token for HTTPS, as SHA-256."""

    __tablename__ = "device_token"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    expires: Mapped[datetime]


class Configuration(Table):
    """What an operator wants of a device, or of all of a group. `scope`: device or group."""

    __tablename__ = "configuration"
    scope: Mapped[str] = mapped_column(String(6), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)


class DesiredState(Table):
    """The desired half of a device's twin as published: group and device taken together, under its version."""

    __tablename__ = "desired"
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int]
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)


class DeviceRequest(Table):
    """A remote request to a device, by whom, and what came of it; `answered_at` is None until something did.

    `number` is their order and `id` what the device answers to; after `expires` no device acts on it any more, but an
    answer that was under way is kept all the same.
    """

    __tablename__ = "request"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    verb: Mapped[str] = mapped_column(String(24))
    args: Mapped[dict[str, Any]] = mapped_column(default=dict)
    asked_by: Mapped[str] = mapped_column(String(80))
    asked_at: Mapped[datetime]
    expires: Mapped[datetime]
    answered_at: Mapped[datetime | None]
    ok: Mapped[bool | None]
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
