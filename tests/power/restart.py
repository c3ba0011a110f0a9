"""Restarts a device on a cut, in this process, and says what is wrong with it; nothing is, on any cut.

As the daemon does it: the state folder is opened, what is good runs, the lifecycle wakes up; first without a network,
then with one, until there is nothing left to do. What is checked is what makes a device worth its name:

- it starts, and without a network runs the last good model, with its digests;
- with a network it ends where its last assignment wants it: committed, or on its last good model if that one is bad;
- pointer, lifecycle and outbox agree with each other, and with everything that it had promised (`promises`).
"""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from agent.config import Config
from agent.deployment.effects import DeviceEffects
from agent.deployment.lifecycle import Event, Kind, Phase, settled
from agent.deployment.runner import Runner, Saved
from agent.fetching.desired import DesiredFile
from agent.identity.folder import StateFolder
from agent.telling.outbox import OutboxFile
from agent.telling.reporter import Versions
from skerry.delivery.slots import Mark, Slots
from skerry.errors import Rejected, SkerryError
from skerry.wire import codec
from skerry.wire.messages import DeploymentEvent
from tests.power.promises import OUTBOX, Promises, read_content
from tests.power.stand_ins import Loop, standing_in
from tests.power.world import Assigned, Shelf, World

TURNS = 400
OFFLINE_TURNS = 12
CONFIG = Config(fetch_timeout_s=0.1, retry_s=1e-9, retry_most_s=1e-9)


@dataclass
class Device:
    """A device in this process: the daemon's parts, without its threads."""

    folder: StateFolder
    world: World
    shelf: Shelf
    outbox: OutboxFile
    slots: Slots
    loop: Loop
    runner: Runner
    effects: DeviceEffects
    version: int
    desired: DesiredFile

    def settle(self, turns: int) -> bool:
        """Let it work until there is nothing to do; False when there still is."""
        for _ in range(turns):
            busy = self.runner.turn(self.effects)
            if not busy and not self.effects.pending() and settled(self.runner.state):
                return True
        return False

    def go_online(self, assigned: Assigned | None) -> bool:
        """Hear the newest assignment, and do what it says."""
        self.shelf.online = True
        if assigned is not None:
            self.effects.offer(assigned.payload)
        self.runner.nudge()
        return self.settle(TURNS)


def start(path: Path, world: World) -> Device:
    """Start the agent's parts on a state folder, in the daemon's order."""
    folder = StateFolder(path)
    identity = folder.identity()
    version = Versions(folder.starts()).next()
    desired = DesiredFile(folder.path)
    outbox = OutboxFile(folder.outbox_file, quota_bytes=CONFIG.quota_bytes)
    shelf = Shelf(world)

    def announce(event: DeploymentEvent) -> None:
        outbox.put("deployment", codec.encode(event), event_time=1.0)

    runner = Runner(folder.lifecycle_file, announce=announce, retry_s=CONFIG.retry_s, retry_most_s=CONFIG.retry_most_s)
    bad = {each.manifest for each in world.assigned if each.bad}

    def decide(manifest: str) -> None:
        kind = Kind.REFUSED if manifest in bad else Kind.PASSED
        runner.tell(Event(kind, grant=runner.state.grant, reason="too slow" if manifest in bad else ""))

    loop = Loop(decide)
    slots = Slots(folder.slots)
    effects = DeviceEffects(folder=folder, identity=identity, config=CONFIG, link=shelf, engine=loop, slots=slots)
    damage = None
    if runner.state.phase not in (Phase.TRIAL.value, Phase.ROLLING_BACK.value):
        damage = effects.run_last_good()
    runner.wake_up(effects)
    if damage is not None:
        runner.tell(damage)
    return Device(folder, world, shelf, outbox, slots, loop, runner, effects, version, desired)


def find_faults(path: Path, world: World, promises: Promises, *, at: int, now: float) -> list[str]:
    """Return what is wrong with the device in `path` after a power cut at operation `at`, at the time `now`."""
    try:
        with standing_in(world.opened):
            return list(_faults(path, world, promises, at=at, now=now))
    except Exception as error:  # noqa: BLE001 -- whatever stops the restart has lost the device
        return [f"the agent does not start: {type(error).__name__}: {error}"]


def _faults(path: Path, world: World, promises: Promises, *, at: int, now: float) -> Iterator[str]:
    yield from _outbox_faults(path, promises, at=at)
    yield from _lifecycle_faults(path, world, promises, at=at)
    twin = promises.twin(at)
    device = start(path, world)
    with closing(device.outbox):
        if device.version <= twin.version:
            yield f"reports would be numbered {device.version}, after {twin.version} was said"
        if device.desired.version < twin.desired_version:
            yield f"the configuration {twin.desired_version} was reported as obeyed, {device.desired.version} is there"
        device.settle(OFFLINE_TURNS)
        if twin.releases and not _runs(device):
            yield f"without a network nothing runs, after {twin.releases[-1]} was reported"
        good = device.runner.state.good.release
        if good not in _not_older_than(twin.releases, world):
            yield f"the last good is {good or 'nothing'}, after {twin.releases[-1]} was reported"

        assigned = world.assignment(now)
        if not device.go_online(assigned):
            state = device.runner.state
            yield f"it does not come to rest: {state.phase}: {device.runner.problem or state.reason}"
        yield from _final_faults(device, assigned)
        state = device.runner.state
        if state.grant and (state.grant.deployment, state.phase) not in _said(path, promises, at=at):
            yield f"{state.grant.deployment} ended {state.phase}, and nothing says so"
        sequence = device.outbox.put("deployment", b"{}", event_time=1.0)
        said = [number for epoch, number in promises.heard(at) if epoch == device.outbox.epoch]
        if said and sequence <= max(said):
            yield f"the number {sequence} is used again, after {max(said)} was published"


def _outbox_faults(path: Path, promises: Promises, *, at: int) -> Iterator[str]:
    found = read_content(path / OUTBOX)
    allowed = promises.outbox(at)
    if found not in allowed:
        have = [row.sequence for row in found.rows] if found else None
        wanted = [row.sequence for row in allowed[0].rows] if allowed and allowed[0] else None
        yield f"the outbox is none that a transaction left since the last promise: rows {have}, promised {wanted}"
    heard = promises.heard(at)
    for row in found.rows if found else ():
        said = heard.get((found.epoch if found else "", row.sequence))
        if said is not None and (said.kind, said.body) != (row.kind, row.body):
            yield f"number {row.sequence} was published with another body"


def _said(path: Path, promises: Promises, *, at: int) -> set[tuple[str, str]]:
    """Return which deployments are said to be in which state, by the outbox or by what was published before."""
    content = read_content(path / OUTBOX)
    rows = [*(content.rows if content else ()), *promises.heard(at).values()]
    events = [codec.decode(DeploymentEvent, row.body) for row in rows if row.kind == "deployment"]
    return {(event.deployment, event.state) for event in events}


def _lifecycle_faults(path: Path, world: World, promises: Promises, *, at: int) -> Iterator[str]:
    """What the lifecycle believes to have been said is in the outbox, or was published; what it took on is trusted."""
    file = path / "lifecycle.json"
    if not file.exists():
        return
    saved = codec.decode(Saved, file.read_bytes())
    state = saved.state
    taken = [
        number
        for number, each in enumerate(world.assigned, 1)
        if state.grant and each.deployment == state.grant.deployment
    ]
    if taken and _counter(path) < taken[0]:
        yield f"the assignment {taken[0]} was taken on, and trust has gone back to {_counter(path)}"
    if saved.announced and state.grant and (state.grant.deployment, state.phase) not in _said(path, promises, at=at):
        yield f"{state.grant.deployment} is {state.phase}, and nothing says so"


def _counter(path: Path) -> int:
    """Return the newest counter that TUF would hold the director to; 0 where it holds it to none."""
    try:
        tree = json.loads((path / "trust" / "director" / "targets.json").read_bytes())
    except (OSError, ValueError):
        return 0
    return int(tree["signed"]["version"])


def _runs(device: Device) -> bool:
    active, running = device.slots.active, device.loop.running
    return bool(active) and running is not None and running.digest == device.slots.pointer.slot(active).manifest


def _not_older_than(releases: tuple[str, ...], world: World) -> list[str]:
    """Return which releases may be the last good one, after these were: the last of them, or one assigned later."""
    known = ["", *dict.fromkeys(each.release for each in world.assigned)]
    return known[known.index(releases[-1]) :] if releases else known


def _final_faults(device: Device, assigned: Assigned | None) -> Iterator[str]:
    state, pointer = device.runner.state, device.slots.pointer
    if assigned is None:
        if state.phase != Phase.IDLE.value:
            yield f"nothing was assigned, and it is {state.phase}"
        return
    wanted, phase = assigned, Phase.COMMITTED
    if assigned.bad:
        phase = Phase.FAILED
        wanted = [each for each in device.world.assigned if not each.bad and each.time < assigned.time][-1]
    if (state.phase, state.grant and state.grant.deployment) != (phase.value, assigned.deployment):
        yield f"{assigned.deployment} is {state.phase} ({state.reason}), expected {phase.value}"
    if (state.good.release, state.good.manifest) != (wanted.release, wanted.manifest):
        yield f"the last good is {state.good.release or 'nothing'}, expected {wanted.release}"
    active = pointer.active
    slot = pointer.slot(active)
    if not active or (slot.mark, slot.manifest) != (Mark.GOOD.value, wanted.manifest):
        yield f"the pointer names {active or 'no slot'} ({slot.mark}, {slot.release}), expected {wanted.release}"
    if not _runs(device):
        yield "what runs is not what the pointer names"
    for name in ("a", "b"):
        if pointer.slot(name).mark in (Mark.GOOD.value, Mark.PENDING.value):
            try:
                device.slots.read(name)
            except (Rejected, SkerryError) as error:
                yield f"slot {name} ({pointer.slot(name).mark}): {error}"
