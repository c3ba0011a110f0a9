"""Remembers which sites there are, in `sites.json` of the home folder, and says what a broker must grant them.

A site is the name of its gateway, a device, and the names of the devices behind it. Its bridge reads what they may
read, and passes on what they say: which is all that the gateway may do beyond what any device may.
"""

import json
from collections.abc import Collection, Mapping

from control_plane.home import Home
from control_plane.settings import Settings
from control_plane.transport import preset_of
from skerry.delivery.durable import write_durably
from skerry.errors import Broken
from skerry.wire.manifest import SEALED_CHUNK_BYTES
from skerry.wire.topics import ROOT, identity

# half of what a day of acknowledgements and assignments comes to; what does not fit is said again
QUEUED_MESSAGES = 1000
QUEUED_BYTES = 16 << 20
Sites = Mapping[str, Collection[str]]


def read_sites(home: Home) -> dict[str, list[str]]:
    """Return the devices of each site by the name of its gateway; raises `Broken`."""
    file = home.path / "sites.json"
    try:
        tree = json.loads(file.read_bytes()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise Broken(f"{file}: expected the sites, got: {error}; configure them again without it") from error
    if not isinstance(tree, dict) or not all(isinstance(each, list) for each in tree.values()):
        raise Broken(f"{file}: expected lists of devices by site, got another form; configure them again without it")
    return {str(site): [str(name) for name in names] for site, names in tree.items()}


def write_sites(home: Home, sites: Sites) -> None:
    """Remember the sites."""
    tree = {site: list(names) for site, names in sorted(sites.items())}
    write_durably(home.path / "sites.json", json.dumps(tree, indent=1).encode() + b"\n")


def site_acl(project: str, sites: Sites) -> str:
    """Return the lines of a Mosquitto's `acl` that let the gateways carry what their devices say and hear."""
    blocks = []
    for site, names in sorted(sites.items()):
        lines = [f"# the site {site}: its gateway carries what these devices say and hear", f"user {project}.{site}"]
        for name in names:
            who = identity(project, name)
            lines += [f"topic read {ROOT}/d/{who}/down/+", f"topic write {ROOT}/d/{who}/up/+"]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def queue_lines(settings: Settings, sites: Sites) -> str:
    """Return the lines of a `mosquitto.conf` that say how much may wait for one client.

    All that is retained comes at once when a bridge subscribes, and what is beyond the queue Mosquitto (2.0.11, as in
    Debian) drops without a word. So with a site there is room for all that this broker may retain by its budget. It is
    not 0: then the limit in bytes would hold no more either, whatever the manual says.
    """
    messages, size = QUEUED_MESSAGES, QUEUED_BYTES
    if sites:
        preset = preset_of(settings)
        # small files are chunks as well, shorter than others
        messages += preset.retained_messages or 2 * preset.retained_bytes // SEALED_CHUNK_BYTES
        size += preset.retained_bytes or preset.retained_messages * SEALED_CHUNK_BYTES
    return f"max_queued_messages {messages}\nmax_queued_bytes {size}"
