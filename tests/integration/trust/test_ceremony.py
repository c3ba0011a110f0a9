"""The key ceremony over HTTP."""

from pathlib import Path
from typing import Any

from control_plane.keys import hold_ceremony


def test_nobody_is_invited_before_the_ceremony(running: Any, tmp_path: Path) -> None:
    status, answer = running.ask("POST", "/v1/devices/invite", {"profile": "x86-64-gateway"})
    assert status == 409
    assert "skerry keys init" in answer["detail"]

    foreign = running.get("/v1/trust/online-keys")
    foreign["keys"]["snapshot"] = foreign["keys"]["director"]
    status, answer = running.ask("POST", "/v1/trust/init", hold_ceremony(tmp_path / "other", foreign))
    assert status == 422
    assert "expected the key of this server for snapshot" in answer["detail"]
    assert running.ask("GET", "/v1/anchor")[0] == 404

    running.hold_ceremony()
    assert running.ask("POST", "/v1/devices/invite", {"profile": "x86-64-gateway"})[0] == 200


def test_a_second_ceremony_is_refused_and_changes_nothing(shared: Any, tmp_path: Path) -> None:
    before = shared.get("/v1/trust")

    again = hold_ceremony(tmp_path / "keys", shared.get("/v1/trust/online-keys"))
    status, answer = shared.ask("POST", "/v1/trust/init", again)

    assert status == 409
    assert "got one already" in answer["detail"]
    assert shared.get("/v1/trust") == before


def test_the_state_of_trust_lists_each_role(shared: Any) -> None:
    roles = {(role["repository"], role["role"]): role["version"] for role in shared.get("/v1/trust")["roles"]}

    image = {("image", role): 1 for role in ("root", "targets", "snapshot", "timestamp")}
    assert roles == image | {("director", "root"): 1}
