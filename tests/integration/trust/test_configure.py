"""What devices keep to when they fetch, set through the command line."""

from typing import Any

import pytest

from control_plane.cli.program import main

Output = pytest.CaptureFixture[str]


def test_a_group_is_configured_and_says_so(shared: Any, capsys: Output) -> None:
    home = ("--home", str(shared.home))

    assert main((*home, "group", "configure", "meadow", "metered=pause", "quiet_hours=22:00-06:00")) == 0
    assert "group meadow: metered=pause quiet_hours=22:00-06:00; 0 devices are told" in capsys.readouterr().out
    assert main((*home, "group", "configure", "meadow", "metered=")) == 0
    assert "group meadow: quiet_hours=22:00-06:00;" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("group", "configure", "meadow", "metered=maybe"),
        ("group", "configure", "meadow", "colour=red"),
        ("group", "configure", "meadow", "metered"),
        ("device", "configure", "nobody", "metered=pause"),
    ],
)
def test_what_cannot_be_configured_is_refused_in_one_line(
    shared: Any, capsys: Output, arguments: tuple[str, ...]
) -> None:
    assert main(("--home", str(shared.home), *arguments)) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "expected" in line
