"""A whole agent whose disk has spoilt a file: it starts, answers, is reachable, and ends committed; nobody is near."""

import json
from pathlib import Path

import pytest

from agent.deployment.runner import read_state
from skerry.inference.local_socket import SOCKET
from tests.integration.agent.shore import MODEL, Device, Shore, wait_for
from tests.integration.serving.clients import UnixConnection

pytestmark = [
    pytest.mark.broker,
    pytest.mark.long,
    pytest.mark.parametrize("broker_port", ["mosquitto"], indirect=True),
]


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    # in the middle of a digest, so that it is sound JSON of the right form
    data = bytearray(file.read_bytes())
    at = data.index(b'"manifest":"', data.index(b'"b":{') if b'"b":{' in data else 0) + 30
    data[at] = ord("0") if data[at] != ord("0") else ord("1")
    assert json.loads(data)
    file.write_bytes(data)


def lose(file: Path) -> None:
    file.unlink()


def answers(device: Device) -> bool:
    """Say whether a program on the device is answered by a model."""
    connection = UnixConnection(device.folder / SOCKET)
    try:
        connection.request("GET", f"/v2/models/{MODEL}/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def at_rest(shore: Shore, device: Device, version: int) -> bool:
    """Say whether it is reachable, runs a version, and the twin says so."""
    said = shore.reported[device.name]
    release = f"{MODEL}-{version}"
    decided = (device.folder / "assignment.decided").exists()
    return (said.online, said.state, said.release, decided) == (True, "committed", release, True) and answers(device)


def wait_for_word(shore: Shore, device: Device, name: str) -> None:
    wait_for(lambda: name in shore.reported[device.name].last_error, why=f"a word of {name}")


def test_a_lost_pointer_or_lifecycle_costs_no_model_and_no_visit(shore: Shore, device: Device) -> None:
    for version in (1, 2, 3):
        shore.release(version)
    device.start()
    for version in (1, 2):
        assert shore.ends(device.name, shore.assign(device.name, version)).state == "committed"

    for name in ("lifecycle.json", "slots/pointer.json"):
        for spoil in (zero, cut, flip, lose):
            assert device.stop() == 0
            fetched = shore.states(device.name, "d2")[-1].bytes_received
            spoil(device.folder / name)

            device.start()

            wait_for_word(shore, device, Path(name).name)
            wait_for(lambda: at_rest(shore, device, 2), why=f"version 2 after {spoil.__name__} {name}")
            # nothing was fetched for it
            assert shore.states(device.name, "d2")[-1].bytes_received in (0, fetched)

    # the next release is committed as ever, and nothing more is said of the past
    assert shore.ends(device.name, shore.assign(device.name, 3)).state == "committed"
    wait_for(lambda: at_rest(shore, device, 3), why="version 3")
    wait_for(lambda: not shore.reported[device.name].last_error, why="nothing more to say")
    assert shore.conflicts == 0


def test_with_both_files_lost_the_release_is_fetched_and_tried_again(shore: Shore, device: Device) -> None:
    shore.release(1)
    device.start()
    deployment = shore.assign(device.name, 1)
    assert shore.ends(device.name, deployment).state == "committed"
    assert device.stop() == 0
    for name in ("lifecycle.json", "slots/pointer.json"):
        zero(device.folder / name)

    device.start()

    wait_for(lambda: at_rest(shore, device, 1), why="version 1")
    assert [each.state for each in shore.states(device.name, deployment)].count("trial") == 2
    assert read_state(device.folder / "lifecycle.json").good.release == "strokes-1"


def test_a_release_that_was_revoked_meanwhile_is_known_to_be_so_again(shore: Shore, device: Device) -> None:
    for version in (1, 2):
        shore.release(version)
    device.start()
    assert shore.ends(device.name, shore.assign(device.name, 1)).state == "committed"
    wait_for(lambda: at_rest(shore, device, 1), why="version 1")
    revoked = [path for path in shore.image.targets if "/1/" in path]
    for path in revoked:
        del shore.image.targets[path]
    shore.publish_image()
    shore.assign(device.name, 1)
    wait_for(lambda: '"revoked":true' in pointer(device), why="the revocation")
    assert device.stop() == 0
    lose(device.folder / "slots" / "pointer.json")

    device.start()

    wait_for(lambda: '"revoked":true' in pointer(device), why="the revocation, again")


def pointer(device: Device) -> str:
    file = device.folder / "slots" / "pointer.json"
    return file.read_text() if file.exists() else ""


def test_an_identity_of_which_a_copy_is_left_is_enough(shore: Shore, device: Device) -> None:
    shore.release(1)
    device.start()
    assert shore.ends(device.name, shore.assign(device.name, 1)).state == "committed"
    for name in ("identity.json", "anchor.json", "VERSION"):
        assert device.stop() == 0
        zero(device.folder / name)
        device.start()
        wait_for_word(shore, device, name)
        wait_for(lambda: at_rest(shore, device, 1), why="version 1")
