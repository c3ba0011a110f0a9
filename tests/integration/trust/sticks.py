"""Sticks between a server and devices without a network, and how a hostile one differs."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.__main__ import main as agent
from agent.deployment.runner import read_state
from agent.identity.folder import StateFolder
from control_plane.cli.program import main as skerry
from tests.integration.trust.products import PROFILE


@dataclass
class World:
    """A server with two releases; one device that is enrolled, one that never was; and their sticks."""

    server: Any
    folder: Path
    anchor_sha256: str

    def skerry(self, *arguments: str) -> int:
        """Run the operators' command line."""
        return skerry(["--home", str(self.server.home), *arguments])

    def bundle(self, device: str, version: int, *more: str, model: str = "strokes") -> Path:
        """Write a bundle; return its file."""
        out = self.folder / f"{device}-{version}-{len(list(self.folder.iterdir()))}.zip"
        arguments = ["--device", device, "--release", f"{model}-{version}", "--out", str(out)]
        assert self.skerry("bundle", "create", *arguments, *more) == 0
        return out

    def enrol(self, name: str) -> Path:
        """Enrol a device over the network; return its state folder."""
        join = self.server.post("/v1/devices/invite", {"profile": PROFILE, "name": name})["join"]
        state = self.folder / name
        assert agent(["init", join, "--profile", PROFILE, "--state", str(state), "--simulate"]) == 0
        return state

    def ask(self, name: str) -> tuple[Path, Path]:
        """Name a device, and let it ask for a bundle; return its state folder and the request."""
        assert self.skerry("device", "create", name, "--profile", PROFILE) == 0
        state, request = self.folder / name, self.folder / f"{name}.request"
        pinned = ["--anchor-sha256", self.anchor_sha256, "--profile", PROFILE, "--simulate"]
        assert agent(["request", "--out", str(request), *pinned, "--state", str(state)]) == 0
        return state, request


def files(state: Path) -> dict[str, str]:
    """Return everything in a state folder by the hash of its bytes."""
    return {
        str(path.relative_to(state)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(state.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def install(state: Path, bundle: Path) -> int:
    """Install a bundle."""
    return agent(["install", str(bundle), "--state", str(state)])


def committed(state: Path, component: str = "") -> str:
    """Return which release is committed."""
    return read_state(StateFolder(state).component(component).lifecycle_file).good.release


Change = Callable[[dict[str, bytes]], Mapping[str, bytes]]


def replaced(name: str, old: bytes, new: bytes) -> Change:
    """Change the bytes of a member."""

    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        assert old in members[name]
        return {**members, name: members[name].replace(old, new)}

    return change


def swapped_blobs(members: dict[str, bytes]) -> dict[str, bytes]:
    """Give each sealed file the bytes of another."""
    blobs = sorted(name for name in members if name.startswith("blob/"))
    return members | {name: members[other] for name, other in zip(blobs, [*blobs[1:], blobs[0]], strict=True)}


def without_a_blob(members: dict[str, bytes]) -> dict[str, bytes]:
    """Leave the longest sealed file out."""
    longest = max((name for name in members if name.startswith("blob/")), key=lambda name: len(members[name]))
    return {name: data for name, data in members.items() if name != longest}


def of_image(role: str, old: bytes, new: bytes) -> Change:
    """Change a signed file of the image repository."""

    def change(members: dict[str, bytes]) -> Mapping[str, bytes]:
        (name,) = (each for each in members if each.startswith("tuf/") and each.endswith(role))
        return replaced(name, old, new)(members)

    return change


def without(name: str) -> Change:
    """Leave a member out."""

    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        assert name in members
        return {each: data for each, data in members.items() if each != name}

    return change
