"""Which road an artifact takes, and what a broker has room for."""

from dataclasses import replace

import pytest

from control_plane.settings import Settings
from control_plane.transport import PRESETS, Load, blob_load, excess, preset_of, roads
from firmware_profiles.loader import load_profile
from skerry.errors import Rejected
from skerry.wire.manifest import SEALED_CHUNK_BYTES
from skerry.wire.profile import TransportLimits

PROFILE = load_profile("x86-64-gateway")
SETTINGS = Settings(project="watch")


def test_retained_chunks_come_first_and_ranges_second() -> None:
    assert roads(PROFILE, held=True, length=5_000_000, devices=500, settings=SETTINGS) == ("mqtt", "https")


@pytest.mark.parametrize(
    ("profile", "held", "megabytes", "expected"),
    [
        (PROFILE, True, 1000, ("mqtt", "https")),
        (PROFILE, True, 999, ("https", "mqtt")),
        (replace(PROFILE, transports=("https", "mqtt")), True, 1000, ("https", "mqtt")),
        (PROFILE, False, 1000, ("https",)),
        (replace(PROFILE, transport=TransportLimits(8192, 16384)), True, 1000, ("https",)),
    ],
    ids=["at the product", "above the product", "the profile prefers it", "no room", "chunks too long for its link"],
)
def test_a_road_follows_from_room_link_and_amount(profile, held, megabytes, expected) -> None:  # type: ignore[no-untyped-def]
    settings = replace(SETTINGS, https_above_mb=megabytes)

    assert roads(profile, held=held, length=10_000_000, devices=100, settings=settings) == expected


def test_a_broker_without_a_preset_is_taken_for_what_it_is() -> None:
    assert preset_of(SETTINGS) is PRESETS["embedded"]
    assert preset_of(replace(SETTINGS, broker="mqtts://broker:8883")) is PRESETS["mosquitto"]
    assert preset_of(replace(SETTINGS, broker_preset="128k-cloud")).message_bytes == 128 * 1024
    assert preset_of(replace(SETTINGS, broker_retained_mb=7)).retained_bytes == 7_000_000


def test_a_load_is_held_up_to_the_limit_and_not_beyond() -> None:
    cloud = PRESETS["128k-cloud"]
    full = blob_load(2000 * SEALED_CHUNK_BYTES)

    assert full.messages == 2000
    assert excess(cloud, full) == ""
    assert excess(cloud, full + blob_load(1)) == "at most 2000 retained messages, got 2001"
    assert "MB of retained messages" in excess(PRESETS["embedded"], Load(1, 300 << 20))


@pytest.mark.parametrize(
    "wrong", [{"broker_preset": "carrier-pigeon"}, {"over_budget": "ignore"}, {"https_above_mb": -1}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(Rejected, match=next(iter(wrong))):
        replace(SETTINGS, **wrong)  # type: ignore[arg-type]
