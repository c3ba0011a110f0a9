"""Where the local face's socket may be: places that agent and programs agree on, and nobody else can take."""

from pathlib import Path

import pytest

from skerry.inference.local_socket import RUNTIME, SOCKET, socket_places


def test_programs_look_for_the_agent_where_nobody_else_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Path("/var/lib/skerry-agent")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert [each.parent for each in socket_places(state)] == [state, RUNTIME]

    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert [each.parent for each in socket_places(state)] == [state, RUNTIME, Path("/run/user/1000/skerry-agent")]
    assert socket_places(state)[0].name == SOCKET


def test_a_state_folder_has_a_name_of_its_own_however_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to("one")
    monkeypatch.chdir(tmp_path)
    names = {
        socket_places(Path(each))[1] for each in ("one", "link", "../" + tmp_path.name + "/one", str(tmp_path / "one"))
    }

    assert len(names) == 1
    assert socket_places(tmp_path / "two")[1] not in names
