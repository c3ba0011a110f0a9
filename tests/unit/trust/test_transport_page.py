"""`docs/transport.md` names every setting of transport that exists, with its default, and none that does not."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from agent.config import Config
from agent.fetching.pace import MAX_JITTER_S, Wishes
from control_plane import delta_job, desired, publication, retention, transport
from control_plane.settings import BROKER_PRESETS, Settings
from skerry.wire.profile import Profile, TransportLimits

PAGE = Path(__file__).parents[3] / "docs" / "transport.md"


def table(heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table under a heading, by what stands in backticks in their first cell."""
    section = re.split(r"^#+ ", PAGE.read_text().partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


def defaults(kind: Any, *names: str) -> dict[str, str]:
    """Return the defaults of fields of a dataclass, as the page writes them."""
    by_name = {field.name: field for field in fields(kind)}
    return {name: written(by_name[name].default) for name in names}


def written(value: object) -> str:
    """Return a value as TOML has it, in backticks."""
    assert value is not MISSING
    text = f'"{value}"' if isinstance(value, str) else str(list(value)) if isinstance(value, tuple) else str(value)
    return f"`{text}`".replace("'", '"')


def test_every_setting_of_the_server_that_transport_reads_is_on_the_page() -> None:
    read = set()
    for module in (transport, retention):
        read |= set(re.findall(r"settings\.(\w+)", Path(str(module.__file__)).read_text()))
    names = read & {field.name for field in fields(Settings)}
    rows = table("On the server: `settings.toml` of the home folder")

    assert {name: row[0] for name, row in rows.items()} == defaults(Settings, *names)


def test_every_preset_is_on_the_page() -> None:
    presets = {
        each.name: [str(each.message_bytes), *(str(limit or "no limit") for limit in _limits(each))]
        for each in transport.PRESETS.values()
    }

    assert set(presets) == set(BROKER_PRESETS)
    assert {name: row[:3] for name, row in table("Presets").items()} == presets


def _limits(preset: transport.Preset) -> tuple[int, int]:
    return preset.retained_messages, preset.retained_bytes


def test_every_setting_of_a_profile_is_on_the_page() -> None:
    limits = [field.name for field in fields(TransportLimits)]
    expected = defaults(Profile, "transports") | defaults(TransportLimits, *limits)

    assert {name: row[0] for name, row in table("In a profile").items()} == expected


def test_every_key_of_the_desired_configuration_is_on_the_page_with_its_range() -> None:
    rows = table("For a device or a group: the desired configuration")

    assert set(rows) == set(desired.KEYS) == {field.name for field in fields(Wishes)}
    assert f"{desired.MIN_RATE} to {desired.MAX_RATE}" in rows["rate_limit_bytes_s"][1]
    assert f"0 to {desired.MAX_JITTER_S}" in rows["start_jitter_s"][1]
    assert MAX_JITTER_S == desired.MAX_JITTER_S
    assert rows["metered"][0] == f"`{Wishes().metered}`"


def test_every_setting_of_the_agent_that_is_about_fetching_is_on_the_page() -> None:
    names = [field.name for field in fields(Config) if re.search("metered|metadata|fetch|retry", field.name)]
    rows = table("On the device: `config.toml` of its state folder")

    assert {name: row[0] for name, row in rows.items()} == defaults(Config, *names)


def test_what_is_said_of_chunks_and_deltas_holds() -> None:
    said = [row[0] for row in table("How long chunks stay").values()]

    assert said == [
        f"{publication.CHUNK_LIFE.days} days",
        "at half of that",
        "cleared within seconds",
        f"at most every {publication.ASK_AGAIN.seconds // 60} minutes, and kept for {retention.ASKED_FOR.days} day",
        f"{delta_job.DELTA_SHARE} of the file packed by itself",
        f"{delta_job.PACKED_SHARE} of the file",
        f"{delta_job.MAX_CHUNKS} chunks",
        f"{publication.LARGE_BYTES >> 20} MiB",
    ]
