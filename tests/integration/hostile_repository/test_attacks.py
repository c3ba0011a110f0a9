"""Each attack, over MQTT and over HTTPS: the device ends on its last good artifact, and its report says why."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Snapshot, Targets

from skerry.wire import topics
from skerry.wire.manifest import SEALED_CHUNK_BYTES
from tests.integration.hostile_repository.world import World
from tests.tuf_repository import now, sign

pytestmark = [pytest.mark.broker, pytest.mark.long]

EVIL = b'{"model": "evil"}'
YESTERDAY = timedelta(days=-1)


def new_key() -> list[CryptoSigner]:
    """Return somebody else's key."""
    return [CryptoSigner.generate_ed25519()]


# -- attackers on the road: they replay, withhold and spoil, and have no key


def arbitrary_artifact(world: World) -> None:
    """Whoever owns the broker serves other bytes under the topics of version 2."""
    world.assign(2)
    for published in world.sea.sealed[2, False].values():
        world.sea.say(topics.blob(published, 0), b"\0" * SEALED_CHUNK_BYTES)


def forged_image_metadata(world: World) -> None:
    """A whole image repository, signed by a stranger."""
    world.assign(2, data=EVIL)
    world.image.signers = dict.fromkeys(world.image.signers, new_key())
    world.image.add(world.path(2), EVIL)
    world.image.publish()


def rollback(world: World) -> None:
    """An older timestamp, once signed and still alive."""
    older = world.image.files["timestamp.json"]
    world.image.publish()
    world.renew()
    world.assign(2)
    world.image.files["timestamp.json"] = older


def freeze(world: World) -> None:
    """The image repository of some time ago, for ever."""
    world.assign(2)
    world.image.expires = now() + YESTERDAY
    world.image.publish()


def mix_and_match(world: World) -> None:
    """A new timestamp with the snapshot of before."""
    world.assign(2)
    world.image.publish()
    older = world.image.files[f"{world.image.snapshot_version - 1}.snapshot.json"]
    world.image.files[f"{world.image.snapshot_version}.snapshot.json"] = older


def one_role_for_another(world: World) -> None:
    """Targets where the snapshot belongs."""
    world.assign(2)
    world.image.publish()
    targets = world.image.files[f"{world.image.targets_version}.targets.json"]
    world.image.files[f"{world.image.snapshot_version}.snapshot.json"] = targets


def endless_data(world: World) -> None:
    """A timestamp without an end; on the broker, one that is merely far too long."""
    world.assign(2)
    world.image.files["timestamp.json"] = b"{" + b" " * 500_000
    world.server.endless = True


def slow_retrieval(world: World) -> None:
    """A server that drips; a broker that never answers."""
    world.assign(2)
    world.server.drips = True
    if world.road == "mqtt":
        world.image.files["timestamp.json"] = b""


def broken_root_chain(world: World) -> None:
    """A next root signed by its own keys alone, which names the attacker's for everything."""
    world.assign(2, data=EVIL)
    world.image.signers = dict.fromkeys(world.image.signers, new_key())
    world.image.publish_root()
    world.image.add(world.path(2), EVIL)
    world.image.publish()


def withheld_root(world: World) -> None:
    """New keys for the timestamp, of which the device is not told."""
    world.assign(2)
    world.image.rotate("timestamp", new_key())
    world.image.publish()
    del world.image.files["2.root.json"]


# -- attackers with the director's road


def wrong_device(world: World) -> None:
    """Another device's assignment, genuine."""
    world.assign(2, device="watch-2")


def replayed_assignment(world: World) -> None:
    """An assignment that was genuine once, after a newer one was trusted."""
    older = world.director.clone()
    world.renew()
    world.director.files = older.files
    for role in ("targets", "snapshot", "timestamp"):
        setattr(world.director, f"{role}_version", getattr(older, f"{role}_version"))


def expired_assignment(world: World) -> None:
    """An assignment that nobody renewed."""
    world.director.expires = now() + YESTERDAY
    world.assign(2)


def forged_assignment(world: World) -> None:
    """An assignment that the director did not sign."""
    world.director.signers = dict.fromkeys(world.director.signers, new_key())
    world.assign(2)


# -- attackers with keys


def compromised_director_alone(world: World) -> None:
    """The director's keys sign what the offline keys did not."""
    world.assign(2, data=EVIL)


def compromised_director_with_an_older_release(world: World) -> None:
    """The director's keys sign a path that was never released."""
    world.assign(2, path="models/strokes/9/gateway/manifest.json")


def compromised_image_keys_alone(world: World) -> None:
    """All of the image repository's keys list other bytes; the director assigns what was released."""
    world.assign(2)
    world.image.add(world.path(2), EVIL)
    world.image.publish()


def online_keys_with_older_targets(world: World) -> None:
    """Snapshot and timestamp keys list targets of before, which listed what was revoked since."""
    del world.image.targets[world.path(3)]
    world.image.publish()
    world.renew()
    world.assign(3)
    repository = world.image
    repository.snapshot_version += 1
    snapshot = Snapshot(version=repository.snapshot_version, expires=repository.expires)
    snapshot.meta["targets.json"].version = repository.targets_version - 1
    repository.files[f"{repository.snapshot_version}.snapshot.json"] = sign(snapshot, repository.signers["snapshot"])
    repository.timestamp_version += 1
    repository.sign_timestamp()


def revoked_key(world: World) -> None:
    """A targets key that the root has revoked signs on."""
    revoked = world.image.signers["targets"]
    world.image.rotate("targets", new_key())
    world.image.signers["targets"] = revoked
    world.assign(2, data=EVIL)
    world.image.add(world.path(2), EVIL)
    world.image.publish()


def threshold_not_met(world: World) -> None:
    """One of two keys that must agree."""
    keys = [CryptoSigner.generate_ed25519() for _ in range(3)]
    world.image.rotate("targets", keys, threshold=2)
    world.image.signers["targets"] = keys[:1]
    world.assign(2, data=EVIL)
    world.image.add(world.path(2), EVIL)
    world.image.publish()


def _sign_twice(world: World, second: Callable[[dict[str, str]], dict[str, str]]) -> None:
    threshold_not_met(world)
    name = f"{world.image.targets_version}.targets.json"
    tree: dict[str, Any] = json.loads(world.image.files[name])
    tree["signatures"].append(second(tree["signatures"][0]))
    world.image.files[name] = json.dumps(tree).encode()


def duplicate_key(world: World) -> None:
    """One of two keys that must agree, twice."""
    _sign_twice(world, dict)


def duplicate_signature_under_another_keys_name(world: World) -> None:
    """One key's signature, once more as that of the second key."""
    _sign_twice(world, lambda first: {**first, "keyid": _second_keyid(world)})


def _second_keyid(world: World) -> str:
    root = json.loads(world.image.files[f"{world.image.root_version}.root.json"])["signed"]
    signed_by = world.image.signers["targets"][0].public_key.keyid
    return next(str(each) for each in root["roles"]["targets"]["keyids"] if each != signed_by)


def both_disagree(world: World) -> None:
    """Both are signed by whom they should be, and of different lengths."""
    world.assign(2, data=EVIL + b" ")
    world.image.add(world.path(2), EVIL)
    world.image.publish()


def both_agree_on_an_older_release_that_is_no_rollback(world: World) -> None:
    """The director assigns, of what the offline keys still list, something older than what runs."""
    _install(world, 2)
    world.assign(1)


def _install(world: World, version: int, **terms: Any) -> None:
    deployment = world.assign(version, **terms)
    world.publish()
    world.hear()
    world.drive(lambda: world.phase_of(deployment) in ("committed", "failed"), why="the end of a deployment")
    assert world.phase_of(deployment) == "committed", world.report()


@dataclass(frozen=True)
class Attack:
    """What is done, what the report must say, and which version is the last good one."""

    does: Callable[[World], None]
    says: str
    over_mqtt: str = ""
    good: int = 1


ATTACKS = [
    Attack(arbitrary_artifact, "expected the chunks that were signed"),
    Attack(forged_image_metadata, "timestamp was signed by 0/1 keys"),
    Attack(rollback, "New timestamp version"),
    Attack(freeze, "timestamp.json is expired"),
    Attack(mix_and_match, "Expected snapshot version"),
    Attack(one_role_for_another, "Expected 'snapshot'"),
    Attack(endless_data, "expected at most", over_mqtt="expected at most 16384 bytes, got 500001"),
    Attack(slow_retrieval, "within 1 s", over_mqtt="expected timestamp.json, got none"),
    Attack(broken_root_chain, "root was signed by 0/1 keys"),
    Attack(withheld_root, "timestamp was signed by 0/1 keys"),
    Attack(wrong_device, "expected an assignment for watch-1, got one for watch-2"),
    Attack(replayed_assignment, "New timestamp version"),
    Attack(expired_assignment, "timestamp.json is expired"),
    Attack(forged_assignment, "timestamp was signed by 0/1 keys"),
    Attack(compromised_director_alone, "agree on length and hashes"),
    Attack(compromised_director_with_an_older_release, "among its targets, got none"),
    Attack(compromised_image_keys_alone, "agree on length and hashes"),
    Attack(online_keys_with_older_targets, "Expected targets.json version"),
    Attack(revoked_key, "targets was signed by 0/1 keys"),
    Attack(threshold_not_met, "targets was signed by 1/2 keys"),
    Attack(duplicate_key, "Failed to deserialize"),
    Attack(duplicate_signature_under_another_keys_name, "targets was signed by 1/2 keys"),
    Attack(both_disagree, "agree on length and hashes"),
    Attack(both_agree_on_an_older_release_that_is_no_rollback, "expected a newer version, got 1", good=2),
]


def test_an_honest_release_is_installed(world: World) -> None:
    _install(world, 2)

    assert world.running() == world.digest(2)
    assert world.report() in ("", "no inputs within the grace: committed on the golden replay alone")
    roads = {"https": True, "mqtt": False}
    assert any("/v1/tuf/director/watch-1/" in path for path in world.server.asked) is roads[world.road]


@pytest.mark.parametrize("attack", ATTACKS, ids=[each.does.__name__ for each in ATTACKS])
def test_an_attack_installs_nothing_and_is_reported(world: World, attack: Attack) -> None:
    # what the attack breaks is mended from here: it has all honest keys, and goes on from the versions of before
    attack.does(world)
    world.publish()
    world.hear()
    says = attack.over_mqtt if attack.over_mqtt and world.road == "mqtt" else attack.says

    world.drive(lambda: says in world.report(), why=f"a report that says {says!r}")
    for _ in range(3):  # and it stays so, asked again or not
        world.runner.nudge()
        world.runner.turn(world.effects)

    slot = world.slots.pointer.slot(world.slots.active)
    assert world.running() == slot.manifest == world.runner.state.good.manifest == world.digest(attack.good)
    assert (slot.mark, slot.revoked) == ("good", False)
    assert says in world.report()
    assert world.runner.state.phase in ("committed", "failed")


# -- what must still work


def test_a_chain_of_key_rotations_is_followed_and_then_installs(world: World) -> None:
    for _ in range(3):
        for role in ("root", "targets", "snapshot", "timestamp"):
            world.image.rotate(role, new_key())
            world.director.rotate(role, new_key())
    world.image.publish()
    _install(world, 2)

    assert world.running() == world.digest(2)


def test_a_fast_forward_by_stolen_online_keys_is_recovered_from_by_rotating_them(world: World) -> None:
    before = (world.image.timestamp_version, world.image.snapshot_version, world.director.targets_version)
    stolen = world.image.clone()
    stolen.timestamp_version = stolen.snapshot_version = 1 << 30
    stolen.publish(targets=False)
    honest, world.image = world.image, stolen
    world.director.targets_version = world.director.snapshot_version = world.director.timestamp_version = 1 << 30
    world.renew()

    world.image = honest
    world.director.targets_version, world.director.snapshot_version, world.director.timestamp_version = (before[2],) * 3
    world.image.publish()
    world.assign(2)
    world.publish()
    world.hear()
    world.drive(lambda: "New timestamp version" in world.report(), why="the fast-forward to be felt")

    for repository in (world.image, world.director):
        for role in ("timestamp", "snapshot", *(("targets",) if repository is world.director else ())):
            repository.rotate(role, new_key())
    world.image.publish()
    _install(world, 2)

    assert world.running() == world.digest(2)


@pytest.mark.parametrize("attack", [freeze, endless_data, slow_retrieval, wrong_device, compromised_director_alone])
def test_nothing_is_left_behind_when_an_attack_ends(world: World, attack: Callable[[World], None]) -> None:
    expires, files = world.image.expires, dict(world.image.files)
    attack(world)
    world.publish()
    world.hear()
    world.drive(lambda: world.report() != "", why="a report")

    world.server.endless = world.server.drips = False
    world.image.expires, world.image.files = expires, {**world.image.files, **files}
    world.image.publish()
    _install(world, 2)

    assert world.running() == world.digest(2)


def test_targets_that_expire_do_not_stop_what_runs(world: World) -> None:
    world.image.expires = now() + YESTERDAY
    listed = Targets(version=9, expires=world.image.expires)
    world.image.files["9.targets.json"] = sign(listed, world.image.signers["targets"])
    world.image.publish()
    world.assign(1, deployment="d1")
    world.publish()
    world.hear()
    world.drive(lambda: "expired" in world.report(), why="a report")

    assert world.running() == world.digest(1)
    assert world.runner.state.phase == "committed"
