"""Every released version of the wire is still spoken: `golden/VERSION/` is what it said, and the code that said it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skerry.errors import Rejected
from skerry.wire import codec, enrolment, evidence, manifest, messages
from skerry.wire.join import parse_join
from skerry.wire.proof import RENEW, proof_text
from skerry.wire.report import decode_report
from tests.unit.wire.filled import filled, messages_of_the_wire

VERSIONS = sorted(folder for folder in Path(__file__).with_name("golden").iterdir() if folder.is_dir())
FILES = [file for folder in VERSIONS for file in sorted(folder.glob("*.json"))]
# run with nothing of ours on its path but the old code, and nothing but the standard library beside that
OLD_READER = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
import skerry
from skerry.wire import codec, evidence, manifest, messages
assert skerry.__file__.startswith(sys.argv[1]), skerry.__file__
for line in sys.stdin:
    name, text = json.loads(line)
    kind = next((getattr(each, name) for each in (messages, evidence, manifest) if hasattr(each, name)), None)
    values = None if kind is None else dataclasses.asdict(codec.decode(kind, text.encode()))
    print(json.dumps([name, values]))
"""


def named(name: str) -> type[Any]:
    kind: type[Any] = next(
        getattr(each, name) for each in (messages, enrolment, evidence, manifest) if hasattr(each, name)
    )
    return kind


def tree_of(message: Any) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(message)))


def assert_holds(tree: Any, values: Any, path: str = "") -> None:
    """Every value that was said is there; what is there beside it is of a field that came later."""
    if isinstance(values, dict):
        assert isinstance(tree, dict), path
        for key, value in values.items():
            assert key in tree, f"{path}.{key}"
            assert_holds(tree[key], value, f"{path}.{key}")
    elif isinstance(values, list):
        assert len(tree) == len(values), path
        for number, value in enumerate(values):
            assert_holds(tree[number], value, f"{path}[{number}]")
    else:
        assert tree == values, path


@pytest.mark.parametrize("file", FILES, ids=[f"{file.parent.name}-{file.stem}" for file in FILES])
def test_what_a_released_version_said_means_the_same_today(file: Path) -> None:
    golden = json.loads(file.read_text())

    if golden["kind"] == "WindowReport":
        decoded = tree_of(decode_report(bytes.fromhex(golden["hex"])))
    elif golden["kind"] == "Join":
        decoded = tree_of(parse_join(golden["text"]))
    elif golden["kind"] == "proof":
        assert proof_text(RENEW, **golden["values"]).decode() == golden["text"]
        return
    else:
        decoded = tree_of(codec.decode(named(golden["kind"]), golden["text"].encode()))

    assert_holds(decoded, golden["values"])


@pytest.mark.parametrize("folder", VERSIONS, ids=[folder.name for folder in VERSIONS])
def test_a_released_version_reads_what_is_said_today(folder: Path) -> None:
    said = {kind.__name__: filled(kind) for kind in messages_of_the_wire()}
    lines = [json.dumps([name, codec.encode(message).decode()]) for name, message in said.items()]
    command = [sys.executable, "-I", "-c", OLD_READER, str(folder / "wire.zip")]

    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    read = dict(json.loads(line) for line in done.stdout.splitlines())
    assert {json.loads(file.read_text())["kind"] for file in folder.glob("[A-Z]*.json")} <= {
        *(name for name, values in read.items() if values is not None),
        "WindowReport",
        "Join",
    }
    for name, values in read.items():
        if values is not None:
            assert_holds(tree_of(said[name]), values)


def test_each_version_is_whole() -> None:
    for folder in VERSIONS:
        assert (folder / "wire.zip").is_file()
        assert len(list(folder.glob("*.json"))) >= 26


def test_a_field_that_went_missing_would_be_noticed() -> None:
    golden = json.loads((VERSIONS[0] / "Ack.json").read_text())

    with pytest.raises(AssertionError, match="new_epoch"):
        assert_holds({"epoch": "epoch 2", "up_to": 1003, "v": 1}, golden["values"])
    with pytest.raises(Rejected):
        codec.decode(messages.Ack, golden["text"].replace("up_to", "up_until").encode())
