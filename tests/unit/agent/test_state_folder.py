"""The state folder and the program around it: an identity is kept, never replaced; what cannot be is one line."""

from pathlib import Path

import pytest

from agent.__main__ import main
from agent.identity.folder import Identity, StateFolder
from skerry.errors import Broken, Rejected

IDENTITY = Identity(
    project="watch",
    device="watch-1",
    profile="gateway",
    runtime="onnxruntime",
    architecture="x86_64",
    broker="mqtt://127.0.0.1:1",
    server="https://127.0.0.1:1",
)


def enrolled(folder: Path) -> StateFolder:
    """Return a state folder with an identity."""
    state = StateFolder(folder)
    state.keep(IDENTITY, anchor=b"{}", key=b"secret", certificate="", broker_ca="")
    return state


def test_the_key_of_a_device_is_for_its_owner_alone(tmp_path: Path) -> None:
    state = enrolled(tmp_path / "state")

    assert state.credentials.key.stat().st_mode & 0o777 == 0o600
    assert StateFolder(tmp_path / "state").identity() == IDENTITY
    assert [state.starts(), state.starts()] == [1, 2]


def test_two_agents_do_not_share_a_state_folder(tmp_path: Path) -> None:
    state = enrolled(tmp_path / "state")
    with state.lock(), pytest.raises(Broken, match="another one running"):
        state.lock()


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (["status"], "expected an enrolled device", 2),
        (["run"], "run skerry-agent init first", 2),
        (["init", "https://127.0.0.1:1", "--profile", "gateway"], "join string: expected", 2),
        (["init", f"https://127.0.0.1:1#t:{'0' * 64}", "--profile", "gateway"], "check the address", 3),
        (["init", f"https://127.0.0.1:99999#t:{'0' * 64}", "--profile", "gateway"], "join string: expected", 2),
        (["init", f"https://[::1#t:{'0' * 64}", "--profile", "gateway"], "join string: expected", 2),
        (["init", f"https://{'a' * 80}:1#t:{'0' * 64}", "--profile", "gateway"], "check the address", 3),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str, code: int
) -> None:
    assert main([*arguments, "--state", str(tmp_path / "state")]) == code

    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("skerry-agent: ")
    assert line in said[0]
    assert not (tmp_path / "state").exists()


def test_a_state_folder_that_cannot_be_is_refused_before_the_token_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    nobody_listens = f"https://127.0.0.1:1#t:{'0' * 64}"

    assert main(["init", nobody_listens, "--profile", "gateway", "--state", str(tmp_path / "file" / "state")]) == 4

    assert "expected to write to" in capsys.readouterr().err


def test_what_the_disk_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enrolled(tmp_path)
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()

    assert main(["run", "--state", str(tmp_path)]) == 4

    assert capsys.readouterr().err.strip().splitlines() == [
        f"skerry-agent: {tmp_path / 'lock'}: Is a directory; check its permissions and the disk"
    ]


def test_an_identity_is_never_replaced(tmp_path: Path) -> None:
    state = enrolled(tmp_path)

    with pytest.raises(Rejected, match=r"got the one of watch\.watch-1"):
        state.keep(IDENTITY, anchor=b"{}", key=b"another", certificate="", broker_ca="")
    assert state.credentials.key.read_bytes() == b"secret"


def test_a_state_folder_of_a_newer_version_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolled(tmp_path)
    (tmp_path / "VERSION").write_text("99\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert main(["run", "--state", str(tmp_path)]) == 4

    assert "use a newer skerry-agent" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
