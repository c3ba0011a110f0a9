"""Restarts a device on a cut, in this process, and says what is wrong with it; nothing is, on any cut.

The device is switched on (`tests.power.machine`): its launcher, its recovery, what is good runs, the lifecycles wake
up; first without a network, then with one, until there is nothing left to do. What is checked is what makes a device
worth its name:

- it starts, and without a network runs the last good model of each component, with its digests;
- with a network each component ends where its last assignment wants it: committed, or on its last good version if that
  one is bad, or gone; a device that was told to wipe itself is wiped, or as whole as ever until it has heard so again;
- pointers, lifecycles and outbox agree with each other, and with everything that it had promised (`promises`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agent.deployment.lifecycle import Phase
from agent.deployment.runner import decode_saved
from agent.deployment.unit import Unit
from agent.identity.folder import StateFolder
from agent.identity.leaving import is_leaving
from agent.upkeep import launcher
from skerry.delivery.slots import NAMES, Mark, Slots
from skerry.errors import Rejected, SkerryError
from skerry.wire import codec
from skerry.wire.messages import AGENT, DeploymentEvent
from tests.power.machine import Device, Machine
from tests.power.promises import OUTBOX, Promises, read_content
from tests.power.world import Assigned, Verb, World

OFFLINE_TURNS = 12


@dataclass(frozen=True, slots=True)
class Updates:
    """Judges a device whose components are updated, and which may be told to wipe itself.

    `rotten` says that its disk had spoilt something before, and of `doubtful` components what nothing proves any more:
    they run nothing until a network is there.
    """

    world: World
    promises: Promises
    rotten: bool = False
    doubtful: tuple[str, ...] = ()

    def find_faults(self, folder: Path, *, at: int, now: float) -> list[str]:
        """Return what is wrong with the device in `folder` after a cut at operation `at`, at the time `now`."""
        return _Visit(folder, self, at, now).find_faults()


@dataclass
class _Visit:
    """One look at one device; it goes on over the restarts that an update of the agent asks for."""

    path: Path
    judge: Updates
    at: int
    now: float
    faults: list[str] = field(default_factory=list)
    is_offline: bool = True
    has_ended: bool = False

    @property
    def world(self) -> World:
        """What happened on the shore."""
        return self.judge.world

    @property
    def promises(self) -> Promises:
        """What the device has promised."""
        return self.judge.promises

    def find_faults(self) -> list[str]:
        try:
            if not self._is_wiped():
                self._look()
        except Exception as error:  # noqa: BLE001 -- whatever stops the restart has lost the device
            self.faults.append(f"the agent does not start: {type(error).__name__}: {error}")
        return self.faults

    def _look(self) -> None:
        leaving = is_leaving(self.path)
        if not leaving:
            self.faults += self._outbox_faults()
            self.faults += self._lifecycle_faults()
            self.faults += self._launch_faults()
        machine = Machine(self.path, self.world)
        status = machine.run(self._live)
        if status:
            self.faults.append(f"the agent ended with {status}: {machine.said.getvalue()[-500:]}")
        elif leaving or self._is_told_to_wipe():
            left = [each.name for each in self.path.iterdir()]
            self.faults += [f"it was to be wiped, and has kept {', '.join(left)}"] if left else []
        elif not self.has_ended:
            self.faults.append("the agent ended before it had heard its assignment")

    def _is_told_to_wipe(self) -> bool:
        assigned = self.world.assignment(self.now)
        return assigned is not None and assigned.verb is Verb.WIPE

    def _is_wiped(self) -> bool:
        """Say whether nothing is left, where that may be."""
        return self._is_told_to_wipe() and not any(self.path.iterdir())

    # --- the life of a process

    def _live(self, device: Device) -> None:
        twin = self.promises.twin(self.at)
        if device.version <= twin.version:
            self.faults.append(f"reports would be numbered {device.version}, after {twin.version} was said")
        if device.desired.version < twin.desired_version:
            self.faults.append(f"configuration {twin.desired_version} was obeyed, {device.desired.version} is there")
        if self.is_offline:
            device.settle(OFFLINE_TURNS)
            if device.wants_restart:
                return
            self.faults += self._offline_faults(device)
            self.is_offline = False
        assigned = self.world.assignment(self.now)
        at_rest = device.go_online(assigned)
        if device.wants_restart or device.leaving:
            return
        if not at_rest:
            told = [f"{name} {unit.runner.state.phase} {unit.problem}" for name, unit in device.all_units().items()]
            self.faults.append(f"it does not come to rest: {'; '.join(told)}")
        self.faults += self._final_faults(device)
        sequence = device.outbox.put("deployment", b"{}", event_time=1.0)
        said = [number for epoch, number in self.promises.heard(self.at) if epoch == device.outbox.epoch]
        if said and sequence <= max(said):
            self.faults.append(f"the number {sequence} is used again, after {max(said)} was published")
        self.has_ended = True

    def _offline_faults(self, device: Device) -> Iterator[str]:
        reported = self.promises.twin(self.at).releases
        units = device.all_units()
        for name, releases in reported.items():
            if name not in units:
                if releases and name in self.world.wanted(self.now):
                    yield f"{name}: forgotten, after {releases[-1]} was reported"
                continue
            good = units[name].runner.state.good.release
            if self._is_taken_away(name) or name in self.judge.doubtful:
                # it is on its way out, or to be proven anew: what is left of it need not run
                continue
            if releases and not _runs(device, units[name]):
                yield f"{name}: without a network nothing runs, after {releases[-1]} was reported"
            if good not in self._not_older_than(releases, name):
                yield f"{name}: the last good is {good or 'nothing'}, after {releases[-1]} was reported"

    def _is_taken_away(self, name: str) -> bool:
        return name not in ("", AGENT) and name not in self.world.wanted(self.now)

    def _not_older_than(self, releases: tuple[str, ...], component: str) -> list[str]:
        """Return which releases may be the last good one, after these were: the last of them, or one given later."""
        given = [each.release for each in self.world.assigned if each.component == component and each.release]
        known = ["", *dict.fromkeys(given)]
        return known[known.index(releases[-1]) :] if releases else known

    def _final_faults(self, device: Device) -> Iterator[str]:
        wanted, units = self.world.wanted(self.now), device.all_units()
        for name in wanted.keys() - units.keys():
            yield f"{name}: {wanted[name].release} was given, and there is no such component"
        for name, unit in units.items():
            if name in wanted:
                yield from (f"{name}: {fault}" for fault in self._component_faults(device, unit, wanted[name]))
            elif name not in ("", AGENT):
                yield f"{name}: it was taken away, and is still there"
            elif unit.runner.state.phase != Phase.IDLE.value:
                yield f"{name}: nothing was given, and it is {unit.runner.state.phase}"

    def _component_faults(self, device: Device, unit: Unit, wanted: Assigned) -> Iterator[str]:
        state, slots = unit.runner.state, Slots(unit.place.slots)
        good = self.world.good(wanted)
        release, manifest = (good.release, good.manifest) if good is not None else ("", "")
        phase = Phase.FAILED if wanted.bad else Phase.COMMITTED
        if (state.phase, state.grant and state.grant.deployment) != (phase.value, wanted.deployment):
            yield f"{wanted.deployment} is {state.phase} ({state.reason}), expected {phase.value}"
        if (state.good.release, state.good.manifest) != (release, manifest):
            yield f"the last good is {state.good.release or 'nothing'}, expected {release or 'nothing'}"
        active = slots.active
        slot = slots.pointer.slot(active) if active else None
        if (slot and (slot.mark, slot.manifest)) != ((Mark.GOOD.value, manifest) if manifest else None):
            yield f"the pointer names {slot.release if slot else 'no slot'}, expected {release or 'nothing'}"
        if device.runs(unit.name) != manifest:
            yield "what runs is not what the pointer names"
        for name in NAMES:
            if slots.pointer.slot(name).mark in (Mark.GOOD.value, Mark.PENDING.value):
                try:
                    slots.read(name)
                except SkerryError as error:
                    yield f"slot {name} ({slots.pointer.slot(name).mark}): {error}"
        if state.grant and (state.grant.deployment, state.phase) not in self._said():
            yield f"{state.grant.deployment} ended {state.phase}, and nothing says so"

    # --- what lies there

    def _outbox_faults(self) -> Iterator[str]:
        found = read_content(self.path / OUTBOX)
        allowed = self.promises.outbox(self.at)
        if found not in allowed:
            have = [row.sequence for row in found.rows] if found else None
            wanted = [row.sequence for row in allowed[0].rows] if allowed and allowed[0] else None
            yield f"the outbox is none that a transaction left since the last promise: rows {have}, promised {wanted}"
        heard = self.promises.heard(self.at)
        for row in found.rows if found else ():
            said = heard.get((found.epoch if found else "", row.sequence))
            if said is not None and (said.kind, said.body) != (row.kind, row.body):
                yield f"number {row.sequence} was published with another body"

    def _said(self) -> set[tuple[str, str]]:
        """Return which deployments are said to be in which state, by the outbox or by what was published before."""
        content = read_content(self.path / OUTBOX)
        rows = [*(content.rows if content else ()), *self.promises.heard(self.at).values()]
        events = [codec.decode(DeploymentEvent, row.body) for row in rows if row.kind == "deployment"]
        return {(event.deployment, event.state) for event in events}

    def _lifecycle_faults(self) -> Iterator[str]:
        """What a lifecycle believes to have been said was put or published; what it took on is trusted."""
        folder = StateFolder(self.path)
        for name in ("", *folder.component_names()):
            file = folder.component(name).lifecycle_file
            if not file.exists():
                continue
            try:
                saved = decode_saved(file.read_bytes())
            except Rejected:
                if not self.judge.rotten:
                    raise
                continue
            state = saved.state
            if state.grant is None:
                continue
            taken = [at for at, each in enumerate(self.world.assigned, 1) if each.deployment == state.grant.deployment]
            if taken and _counter(self.path) < taken[0]:
                yield f"the assignment {taken[0]} was taken on, and trust has gone back to {_counter(self.path)}"
            if saved.announced and (state.grant.deployment, state.phase) not in self._said():
                yield f"{state.grant.deployment} is {state.phase}, and nothing says so"

    def _launch_faults(self) -> Iterator[str]:
        """A version that ends the power at each start is given up all the same."""
        home = launcher.home_of(self.path)
        bad = {each.manifest for each in self.world.assigned if each.bad}
        for manifest, count in self.promises.started(self.at).items():
            counted = launcher._starts(home, manifest)
            if manifest in bad and counted < count and not launcher.given_up(home, manifest):
                yield f"the version {manifest[:8]} was started {count} times, {counted} are known of"


def _counter(path: Path) -> int:
    """Return the newest counter that TUF would hold the director to; 0 where it holds it to none."""
    try:
        tree = json.loads((path / "trust" / "director" / "targets.json").read_bytes())
    except (OSError, ValueError):
        return 0
    return int(tree["signed"]["version"])


def _runs(device: Device, unit: Unit) -> bool:
    slots = Slots(unit.place.slots)
    return bool(slots.active) and device.runs(unit.name) == slots.pointer.slot(slots.active).manifest
