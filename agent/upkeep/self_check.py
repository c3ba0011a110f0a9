"""`python -P -m agent.upkeep.self_check STATE`: would this agent run on that state folder? Changes nothing; answers in
JSON.

The agent that is in charge asks the one that is to take its place, before that one is tried; so it is a contract
between versions, and only ever grows: `agent` (its version), `wire` (the version that it speaks), `package` (where its
code lies) and `models` (the committed ones, which it has loaded by its own runtime and replayed as they were gated).
"""

import importlib
import json
import sys
from pathlib import Path

import agent
from agent.config import read_config
from agent.deployment.runner import read_state
from agent.fetching.rest import open_vault
from agent.identity.folder import StateFolder
from agent.inference.loading import Loader
from skerry import __version__
from skerry.delivery.slots import Slots
from skerry.errors import SkerryError
from skerry.wire.messages import AGENT, VERSION


def check(path: Path) -> dict[str, object]:
    """Read what a start reads first.

    Raises:
        SkerryError: something there is nothing for this version.
    """
    # all that a start imports: what is missing or does not fit together says so here
    for module in ("agent.daemon", "agent.trust.trust_child"):
        importlib.import_module(module)
    folder = StateFolder(path)
    folder.identity()
    folder.anchor()
    config = read_config(folder.path, {})
    models = []
    for name in ("", *folder.component_names()):
        place = folder.component(name)
        read_state(place.lifecycle_file)
        if name != AGENT and (place.slots / "pointer.json").exists():
            models += _replay(Slots(place.slots, open_vault(config.rest_key_file)), config.rest_key_file)
    package = str(Path(agent.__file__ or "").resolve().parent)
    return {"agent": __version__, "wire": VERSION, "package": package, "models": models}


def _replay(slots: Slots, rest_key_file: str) -> list[str]:
    """Load what is committed beside the one that runs, and replay its golden vectors; raises what is wrong with it."""
    name = slots.active
    try:
        if not name or not slots.pointer.slot(name).fit:
            return []
        manifest = slots.read(name)
        Loader(slots, rest_key_file=rest_key_file).open_replayed(name, manifest).worker.close()
    finally:
        if slots.vault is not None:
            slots.vault.close()
    return [f"{manifest.model}-{manifest.version}"]


def main() -> int:
    """Answer on standard output; a failure is one line on standard error."""
    try:
        print(json.dumps(check(Path(sys.argv[1]))))
    except (SkerryError, OSError) as error:
        print(f"self-check: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
