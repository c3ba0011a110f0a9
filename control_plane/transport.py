"""What brokers allow, and which road an artifact takes: retained chunks over MQTT, or ranges over HTTPS.

Chunks cost the control plane their bytes once, and the broker their memory; ranges cost the control plane their bytes
for each device, and the broker nothing. So MQTT comes first, unless the broker cannot hold the chunks, the device's way
to it cannot carry them, or there is so much to deliver that the operator rather has HTTPS servers do it.
"""

from dataclasses import dataclass, replace

from control_plane.settings import Settings
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES
from skerry.wire.profile import Profile

MQTT = "mqtt"
HTTPS = "https"


@dataclass(frozen=True, slots=True)
class Preset:
    """What a broker allows: the longest message, and how many retained messages and bytes of them; 0 is no limit."""

    name: str
    message_bytes: int
    retained_messages: int
    retained_bytes: int


PRESETS = {
    preset.name: preset
    for preset in (
        # memory is its limit: this much is safe on a small server
        Preset("mosquitto", message_bytes=1 << 20, retained_messages=0, retained_bytes=1 << 30),
        Preset("emqx", message_bytes=1 << 20, retained_messages=0, retained_bytes=4 << 30),
        # in the memory of one machine, beside everything else
        Preset("embedded", message_bytes=1 << 20, retained_messages=0, retained_bytes=256 << 20),
        # the least of what the managed ones allow
        Preset("128k-cloud", message_bytes=128 << 10, retained_messages=2000, retained_bytes=0),
    )
}


@dataclass(frozen=True, slots=True)
class Load:
    """What lies on a broker: retained messages, and their bytes."""

    messages: int = 0
    bytes: int = 0

    def __add__(self, other: "Load") -> "Load":
        """Return both together."""
        return Load(self.messages + other.messages, self.bytes + other.bytes)


def blob_load(length: int) -> Load:
    """Return what a sealed blob of `length` bytes lays on a broker."""
    return Load(-(-length // SEALED_CHUNK_BYTES), length)


def preset_of(settings: Settings) -> Preset:
    """Return what the broker of these settings allows."""
    preset = PRESETS[settings.broker_preset or ("embedded" if settings.embedded_broker else "mosquitto")]
    if settings.broker_retained_mb:
        return replace(preset, retained_bytes=settings.broker_retained_mb * 1_000_000)
    return preset


def excess(preset: Preset, load: Load) -> str:
    """Say in a few words which limit of the broker a load exceeds; empty when it holds it."""
    if preset.retained_messages and load.messages > preset.retained_messages:
        return f"at most {preset.retained_messages} retained messages, got {load.messages}"
    if preset.retained_bytes and load.bytes > preset.retained_bytes:
        return f"at most {preset.retained_bytes / 1e6:.0f} MB of retained messages, got {load.bytes / 1e6:.1f} MB"
    return ""


def roads(profile: Profile, *, held: bool, length: int, devices: int, settings: Settings) -> tuple[str, ...]:
    """Return the roads to an artifact of `length` bytes for one of `devices` devices, the preferred one first.

    `held` says whether the broker has room for its chunks.
    """
    limits = profile.transport
    carried = limits.chunk_bytes >= CHUNK_BYTES and limits.message_bytes >= SEALED_CHUNK_BYTES
    if not held or not carried:
        return (HTTPS,)
    much = length * devices > settings.https_above_mb * 1_000_000
    if profile.transports[:1] == (HTTPS,) or much:
        return (HTTPS, MQTT)
    return (MQTT, HTTPS)
