"""The service's unit: systemd understands it, and how much of the machine it leaves open."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.packaging.conftest import ROOT, needed

UNIT = ROOT / "packaging/systemd/skerry-agent.service"
MOST_EXPOSED = 2.0


def analyze(*arguments: str) -> str:
    """Return what systemd-analyze says; nothing of systemd is started."""
    program = needed("systemd-analyze", "systemd")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    # the program need not be installed here
    copy.write_text(UNIT.read_text().replace("/usr/bin/skerry-agent run", "/bin/true run"))
    said = [line for line in analyze("verify", "--man=no", str(copy)).splitlines() if UNIT.name in line]
    # before systemd 254 these two are unknown, and without effect
    unknown = [line for line in said if not re.search(r"'Restart(Steps|MaxDelaySec)' in section", line)]
    assert unknown == []


def test_little_of_the_machine_is_left_open() -> None:
    said = analyze("security", "--offline=true", "--no-pager", str(UNIT))
    level = re.search(r"Overall exposure level for skerry-agent.service: ([0-9.]+)", said)
    assert level is not None, said
    print(level[0])
    assert float(level[1]) <= MOST_EXPOSED


@pytest.mark.parametrize(
    "setting", ["Type=notify", "Restart=always", "MemoryDenyWriteExecute=yes", "NoNewPrivileges=yes"]
)
def test_the_unit_says(setting: str) -> None:
    assert setting in UNIT.read_text().splitlines()


def test_every_system_call_of_the_interpreter_and_its_runtime_is_allowed(tmp_path: Path) -> None:
    strace, allowed = needed("strace", "strace"), _allowed()
    trace = tmp_path / "calls"
    program = (
        "import agent.daemon, agent.trust.trust_child, sqlite3, ssl, subprocess, sys, onnxruntime, numpy; "
        "subprocess.run([sys.executable, '-c', 'import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))'])"
    )
    done = subprocess.run(
        [strace, "-f", "-qq", "-o", str(trace), sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    made = set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z0-9_]+)[( ]", trace.read_text(errors="replace"), re.MULTILINE))
    assert len(made) > 30
    assert sorted(made - allowed) == []
    # and none asks for memory that is both written and run, or makes memory executable afterwards
    gained = [line for line in trace.read_text(errors="replace").splitlines() if re.search("mprotect.*PROT_EXEC", line)]
    assert gained == []


def _allowed() -> set[str]:
    """Return the system calls that the unit's filter lets through."""
    text = UNIT.read_text()
    allowed: set[str] = set()
    for line in re.findall("^SystemCallFilter=(.*)$", text, re.MULTILINE):
        names = {call for word in line.removeprefix("~").split() for call in _expand(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    # seccomp lets nobody forbid these; systemd adds them itself
    return allowed | _expand("@default") | {"execve", "exit_group", "rt_sigreturn"}


def _expand(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    lines = [line.strip() for line in analyze("syscall-filter", word).splitlines()]
    words = {line for line in lines if re.fullmatch(r"@?[a-z0-9_-]+", line) and line != word}
    return {call for each in words for call in (_expand(each) if each.startswith("@") else {each})}
