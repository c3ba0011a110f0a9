"""A wipe, cut by the power wherever it may be, and the modes of what makes an identity."""

from pathlib import Path

import pytest

from agent.__main__ import main
from agent.identity import leaving
from agent.identity.folder import Identity, StateFolder, Waiting
from agent.identity.leaving import begin_to_leave, is_leaving, wipe
from skerry.errors import Broken

IDENTITY = Identity(
    project="watch",
    device="watch-1",
    profile="gateway",
    runtime="onnxruntime",
    architecture="x86_64",
    broker="mqtt://127.0.0.1:1",
    server="https://127.0.0.1:1",
)


def fill(folder: Path) -> None:
    """Make what a device keeps."""
    StateFolder(folder).keep(IDENTITY, anchor=b"{}", key=b"secret", certificate="c", broker_ca="")
    for part in ("slots/a", "trust/image", "fetch"):
        (folder / part).mkdir(parents=True)
        (folder / part / "file").write_bytes(b"x")
    for name in ("outbox.db", "outbox.db-wal", "lifecycle.json", "config.toml"):
        (folder / name).write_bytes(b"x")


class PowerCut(Exception):
    """The end of this run."""


@pytest.mark.parametrize("step", range(13))
def test_a_wipe_is_finished_by_the_next_start_wherever_the_power_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    state = tmp_path / "state"
    fill(state)
    begin_to_leave(state)
    steps = iter(range(100))

    def cut(path: Path, *, missing_ok: bool = False, real: object = Path.unlink) -> None:
        if next(steps) == step:
            raise PowerCut
        real(path, missing_ok=missing_ok)  # type: ignore[operator] # it is Path.unlink

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut)
        try:
            wipe(state)
        except PowerCut:
            assert is_leaving(state)

    if is_leaving(state):
        assert main(["run", "--state", str(state)]) == 0
        assert "was wiped" in capsys.readouterr().out
    assert list(state.iterdir()) == []


def test_the_key_goes_first_and_the_marker_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    begin_to_leave(tmp_path)
    gone: list[str] = []
    real = Path.unlink

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        gone.append(path.name)
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    wipe(tmp_path)

    assert gone[0] == "device.key"
    assert gone[-1] == leaving.MARKER


def test_what_the_disk_will_not_delete_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(Broken, match="Read-only file system"):
        wipe(tmp_path)


def test_everything_that_makes_an_identity_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    state = StateFolder(folder)
    state.keep_waiting(Waiting(join_sha256="0", device="watch-1", ticket="t", key="k"))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert state.waiting_file.stat().st_mode & 0o777 == 0o600
    assert state.waiting("1") is None

    state.keep(IDENTITY, anchor=b"{}", key=b"k", certificate="c", broker_ca="")
    state.keep_certificate("another", broker_ca="ca")
    state.keep_refusal()

    assert state.identity().refuse_automatic
    assert not state.waiting_file.exists()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.name != "lock"} == {0o600}
