"""A device's identity from its first word to its last, by whole programs: waiting, renewing, being revoked, leaving."""

import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.identity.errand import Tokens, run_errand
from agent.identity.folder import StateFolder
from agent.identity.life import Life
from control_plane.authority import issue, load_authority, read_csr
from skerry.errors import Rejected, Unavailable
from skerry.wire.enrolment import Token
from tests.integration.agent import shore

PROFILE = "x86-64-gateway"
# a renewal, or what a server tells of a device, is a matter of many seconds
wait_for = partial(shore.wait_for, timeout_s=40.0)


@dataclass
class Agent:
    """A state folder, and the programs that run on it."""

    server: Any
    state: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def invite(self, **grants: Any) -> str:
        """Return a join string."""
        return str(self.server.post("/v1/devices/invite", {"profile": PROFILE, **grants})["join"])

    def init(self, join: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `skerry-agent init` to its end."""
        process = self.start("init", join, "--profile", PROFILE, *options)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, verb: str, *options: str) -> subprocess.Popen[str]:
        """Start a program on the state folder."""
        command = [sys.executable, "-m", "agent", verb, *options, "--state", str(self.state)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # what a careless service would run under
            umask=0,
        )
        self.running.append(process)
        return process

    @property
    def folder(self) -> StateFolder:
        """The state folder."""
        return StateFolder(self.state)

    @property
    def name(self) -> str:
        """The device's name."""
        return self.folder.identity().device

    def serial(self) -> str:
        """Return the serial number of the certificate on the disk."""
        certificate = x509.load_pem_x509_certificate(self.folder.credentials.certificate.read_bytes())
        return f"{certificate.serial_number:x}"

    def age(self, *, life: timedelta, age: timedelta) -> str:
        """Replace the certificate by one of the same key and CA that was issued `age` ago; return its serial number."""
        key: Any = serialization.load_pem_private_key(self.folder.credentials.key.read_bytes(), None)
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        csr = read_csr(request.public_bytes(serialization.Encoding.PEM).decode())
        authority = load_authority(self.server.home / "ca", "device")
        issued = issue(authority, csr, name=f"watch.{self.name}", now=datetime.now(UTC) - age, life=life)
        self.folder.keep_certificate(issued.pem, broker_ca="")
        return issued.serial

    def device(self) -> dict[str, Any]:
        """Return what the server knows of it."""
        answer: dict[str, Any] = self.server.get(f"/v1/devices/{self.name}")
        return answer


@pytest.fixture
def agent(shared: Any, tmp_path: Path) -> Iterator[Agent]:
    """An agent that has no identity yet."""
    agent = Agent(shared, tmp_path / "state")
    yield agent
    for process in agent.running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def enrolled(agent: Agent) -> Agent:
    """An agent that is enrolled."""
    assert agent.init(agent.invite()).returncode == 0
    return agent


def modes(folder: Path) -> set[str]:
    """Return the modes of all files, and of all folders."""
    return {
        ("folder " if path.is_dir() else "file ") + oct(stat.S_IMODE(path.lstat().st_mode))
        for path in (folder, *folder.rglob("*"))
    }


# --- the inbox


def test_a_device_waits_until_an_operator_accepts_it(agent: Agent) -> None:
    process = agent.start("init", agent.invite(name="waits-1", approve="pending"), "--profile", PROFILE)
    wait_for(
        lambda: "waits-1" in [claim["device"] for claim in agent.server.get("/v1/claims")], why="the claim to arrive"
    )

    assert agent.server.post("/v1/claims/waits-1/accept", {})["state"] == "enrolled"

    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.startswith("enrolled as watch.waits-1")) == (0, True), err
    assert agent.serial()
    assert not agent.folder.waiting_file.exists()
    assert "skerry device accept waits-1" in err
    assert modes(agent.state) == {"folder 0o700", "file 0o600"}


def test_waiting_is_resumed_with_the_same_key(agent: Agent) -> None:
    join = agent.invite(name="waits-2", approve="pending")

    done = agent.init(join, "--wait", "0")
    assert done.returncode == 3
    (line,) = done.stderr.strip().splitlines()
    assert "run the same command again" in line
    assert modes(agent.state) == {"folder 0o700", "file 0o600"}
    kept = json.loads(agent.folder.waiting_file.read_text())

    agent.server.post("/v1/claims/waits-2/accept", {})
    assert agent.init(join, "--wait", "0").returncode == 0
    assert agent.folder.credentials.key.read_text() == kept["key"]
    assert agent.name == "waits-2"


def test_a_rejected_device_is_told_in_one_line_and_keeps_nothing(agent: Agent) -> None:
    join = agent.invite(name="waits-3", approve="pending")
    assert agent.init(join, "--wait", "0").returncode == 3
    agent.server.post("/v1/claims/waits-3/reject", {})

    done = agent.init(join)

    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "rejected by an operator" in line
    assert list(agent.state.iterdir()) == []


# --- proof


def test_a_certificate_past_two_thirds_of_its_life_is_renewed(enrolled: Agent) -> None:
    old = enrolled.age(life=timedelta(days=30), age=timedelta(days=21))
    assert run_errand("life", enrolled.state, Life).renew_at < time.time()

    process = enrolled.start("run")
    wait_for(lambda: enrolled.serial() != old, why="another certificate")

    assert enrolled.device()["certificate_expires"].startswith(f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "the certificate was renewed" in err
    assert modes(enrolled.state) == {"folder 0o700", "file 0o600"}


def test_a_device_that_slept_past_the_end_of_its_certificate_renews_at_its_start(enrolled: Agent) -> None:
    old = enrolled.age(life=timedelta(days=30), age=timedelta(days=400))

    enrolled.start("run")

    wait_for(lambda: enrolled.serial() != old, why="another certificate")


def test_a_renewal_that_fails_is_one_line_in_the_twin_and_inference_goes_on(enrolled: Agent) -> None:
    enrolled.age(life=timedelta(days=30), age=timedelta(days=21))
    another = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    enrolled.folder.credentials.key.write_bytes(another.private_bytes(*form))

    process = enrolled.start("run")

    said = wait_for(lambda: enrolled.device()["reported"].get("last_error"), why="a problem")
    assert "expected a signature by the key" in said
    assert "\n" not in said
    assert process.poll() is None


def test_a_revoked_device_gets_nothing_more(enrolled: Agent) -> None:
    token = run_errand("token", enrolled.state, Token).token
    path = f"/v1/tuf/director/{enrolled.name}/1.root.json"
    assert enrolled.server.ask("GET", path, token=token)[0] != 401

    enrolled.server.post(f"/v1/devices/{enrolled.name}/revoke", {})

    assert enrolled.device()["state"] == "revoked"
    assert enrolled.server.ask("GET", path, token=token)[0] == 401
    for errand in ("renew", "token"):
        with pytest.raises(Rejected, match="got one that is revoked"):
            run_errand(errand, enrolled.state, Life)


def test_a_device_token_opens_nothing_of_an_operators(enrolled: Agent) -> None:
    token = Tokens(enrolled.state).get()

    assert enrolled.server.ask("GET", "/v1/devices", token=token)[0] == 401
    operator = (enrolled.server.home / "operator.token").read_text().strip()
    path = f"/v1/tuf/director/{enrolled.name}/1.root.json"
    assert enrolled.server.ask("GET", path, token=operator)[0] == 401
    assert enrolled.server.ask("GET", path, token="")[0] == 401


def test_a_token_is_bought_once_while_it_is_good(enrolled: Agent) -> None:
    now = [0.0]
    tokens = Tokens(enrolled.state, clock=lambda: now[0])

    first = tokens.get()
    now[0] = 700.0
    assert tokens.get() == first
    now[0] = 721.0
    assert tokens.get() != first


def test_a_server_of_another_ca_is_told_nothing(enrolled: Agent, shared: Any) -> None:
    anchor = json.loads(enrolled.folder.anchor_file.read_text())
    anchor["server_ca"] = (shared.home / "ca" / "device-ca.pem").read_text()
    enrolled.folder.anchor_file.write_text(json.dumps(anchor))

    with pytest.raises(Rejected, match="certificate of the pinned CA"):
        run_errand("renew", enrolled.state, Life)


def test_a_server_that_is_not_there_is_waited_for(enrolled: Agent) -> None:
    file = enrolled.folder.identity_file
    file.write_text(file.read_text().replace(f":{enrolled.server.port}", ":9"))

    with pytest.raises(Unavailable, match="check the address"):
        run_errand("renew", enrolled.state, Life)


def test_neither_tokens_nor_tickets_nor_keys_are_ever_printed(running: Any, tmp_path: Path) -> None:
    running.hold_ceremony()
    agent = Agent(running, tmp_path / "state")
    join = agent.invite(name="quiet-1", approve="pending")
    said = agent.init(join, "--wait", "0", "-v").stderr
    kept = json.loads(agent.folder.waiting_file.read_text())
    agent.server.post("/v1/claims/quiet-1/accept", {})
    said += agent.init(join, "-v").stderr
    token = run_errand("token", agent.state, Token).token
    running.ask("GET", "/v1/tuf/director/quiet-1/1.root.json", token=token)
    running.ask_securely("POST", "/v1/token", {"device": "quiet-1", "nonce": token, "signature": token})

    process = agent.start("run", "-v")
    wait_for(lambda: agent.device()["online"], why="the device to be online")
    process.send_signal(signal.SIGTERM)
    said += "".join(process.communicate(timeout=20))
    said += "".join(running.stop()[1:])

    secrets = [token, kept["ticket"], kept["key"].splitlines()[1], join.partition("#")[2].partition(":")[0]]
    assert [secret for secret in secrets if secret in said] == []
    database = b"".join(path.read_bytes() for path in running.home.glob("skerry.db*"))
    assert [secret for secret in secrets if secret.encode() in database] == []


# --- the end


def test_a_decommissioned_device_wipes_itself_and_nothing_else(agent: Agent, tmp_path: Path) -> None:
    assert agent.init(agent.invite(name="leaves-1")).returncode == 0
    outside = tmp_path / "recordings"
    outside.mkdir()
    (outside / "day-1.npz").write_bytes(b"not ours")
    (agent.state / "recordings").symlink_to(outside)
    process = agent.start("run")
    wait_for(lambda: agent.device()["online"], why="the device to be online")

    agent.server.post("/v1/devices/leaves-1/decommission", {})

    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == f"decommissioned: {agent.state} was wiped\n"
    assert "Traceback" not in err
    assert list(agent.state.iterdir()) == []
    assert (outside / "day-1.npz").read_bytes() == b"not ours"
    wait_for(
        lambda: agent.server.get("/v1/devices/leaves-1")["state"] == "decommissioned", why="the server to hear of it"
    )

    # the name begins again, and the order to wipe does not reach whoever has it now
    assert agent.init(agent.invite(name="leaves-1")).returncode == 0
    process = agent.start("run")
    wait_for(lambda: agent.device()["online"], why="the new device to be online")
    first = agent.device()["last_seen"]
    wait_for(lambda: agent.device()["last_seen"] != first, why="it to go on talking")
    assert process.poll() is None
    assert agent.device()["state"] == "enrolled"


def test_a_wipe_that_the_power_cut_goes_on_at_the_next_start(enrolled: Agent) -> None:
    (enrolled.state / "leaving").touch()
    (enrolled.state / "slots" / "a").mkdir(parents=True)
    enrolled.folder.credentials.key.unlink()

    process = enrolled.start("run")

    out, err = process.communicate(timeout=30)
    assert (process.returncode, out.count("was wiped")) == (0, 1), err
    assert list(enrolled.state.iterdir()) == []


def test_the_command_line_of_the_fleet(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    from control_plane.cli.program import main

    def skerry(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(("--home", str(agent.server.home), *arguments))
        said = capsys.readouterr()
        return code, (said.err if code else said.out).strip()

    assert skerry("group", "set", "lab", "--approve", "pending", "--refuse-automatic")[0] == 0
    code, join = skerry("device", "invite", "--profile", PROFILE, "--name", "cli-1", "--group", "lab")
    assert code == 0
    assert agent.init(join, "--wait", "0").returncode == 3
    assert "cli-1" in skerry("device", "pending")[1]
    assert skerry("device", "accept", "cli-1")[0] == 0
    assert agent.init(join).returncode == 0
    assert agent.folder.identity().refuse_automatic
    assert "lab" in skerry("group", "list")[1]
    assert skerry("device", "revoke", "cli-1")[1].startswith("cli-1 revoked: 1 certificate; ")
    assert skerry("device", "create", "cli-2", "--profile", PROFILE)[0] == 0

    for arguments, said in (
        (("device", "accept", "cli-1"), "expected one that waits"),
        (("device", "reject", "nobody"), "expected one that waits"),
        (("device", "revoke", "nobody"), "expected one that is enrolled"),
        (("device", "decommission", "cli-2"), "add --now"),
        (("device", "create", "cli-2", "--profile", PROFILE), "expected a new name"),
        (("device", "create", "cli-3", "--profile", "toaster"), "toaster"),
        (("group", "set", "lab"), "expected --approve"),
        (("group", "set", "Lab 1", "--approve", "pending"), "group: expected"),
    ):
        code, line = skerry(*arguments)
        assert (code, line.count("\n"), said in line) == (2, 0, True), line
