"""`python -m tests.power.enrolment SERVER FOLDER`: how a device comes by its identity and its certificates, recorded.

It enrols, waits for an operator, is accepted, renews its certificate twice, and learns that its group refuses automatic
releases. The verbs are the agent's own; in place of HTTPS stands a server that spends a token once and keeps a claim.
Whatever the power cuts off, the same command goes on, or says that it needs another join string while nobody has been
told of the device; and one that was enrolled is that for ever, with a key that fits its certificate.
"""

import contextlib
import hashlib
import io
import json
import logging
import pickle
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.__main__ import main as program
from agent.config import read_config
from agent.identity.folder import StateFolder
from agent.identity.proof import check_pair
from agent.identity.proof_child import _renew
from agent.link.https import Answer
from agent.upkeep.recovery import recover
from skerry.wire import codec
from skerry.wire.enrolment import Anchor, Enrolled, EnrolRequest, Nonce, RenewRequest, TicketRequest
from skerry.wire.join import Join
from tests.authority import make_authority
from tests.integration.agent.shore import PROFILE, PROJECT
from tests.power.machine import Machine
from tests.power.operations import Operation, Sent, read_operations
from tests.power.story import compare_with_disk
from tests.power.strace import command, read_calls
from tests.power.world import Recording, World

NAME = "watch-1"
URL = "https://127.0.0.1:1"
_NAMED = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{PROJECT}.{NAME}")])
_YEAR = timedelta(days=365)
# what is sent, and what the program itself says of how far it came
ENROL, TICKET, RENEW = "/v1/enrol", "/v1/enrol/ticket", "/v1/renew"
ENROLLED, RENEWED, REFUSING = "enrolled", "renewed", "refusing"


@dataclass
class Server:
    """What the server knows: which tokens are spent, whose signing request a ticket stands for, its group's rule.

    `log` has what was asked, in order; the first time that a ticket is shown, nobody has decided yet.
    """

    anchor: bytes
    spent: set[str] = field(default_factory=set)
    claim: str = ""
    shown: int = 0
    refuses: bool = False
    log: list[tuple[float, str, bytes]] = field(default_factory=list)

    def join(self, token: str) -> str:
        """Return the join string with this token."""
        return str(Join(URL, token, hashlib.sha256(self.anchor).hexdigest()))

    def call(self, _url: str, _method: str, path: str, *, body: bytes = b"", **_: object) -> Answer:
        """Answer as `agent.link.https.call` would."""
        self.log.append((time.time(), path, body))
        if path == "/v1/anchor":
            return Answer(200, self.anchor)
        if path == ENROL:
            request = codec.decode(EnrolRequest, body)
            if request.token in self.spent:
                return Answer(
                    403, json.dumps({"detail": "token: expected one that is alive, got a spent one"}).encode()
                )
            self.spent.add(request.token)
            self.claim, self.shown = request.csr, 0
            return self._enrolled("")
        if path == TICKET:
            assert codec.decode(TicketRequest, body).ticket == hashlib.sha256(self.claim.encode()).hexdigest()
            self.shown += 1
            return self._enrolled(self.claim if self.shown > 1 else "")
        if path == RENEW:
            return self._enrolled(codec.decode(RenewRequest, body).csr)
        return Answer(200, codec.encode(Nonce("nonce", 60)))

    def _enrolled(self, csr: str) -> Answer:
        certificate = certify(csr) if csr else ""
        enrolled = Enrolled(
            project=PROJECT,
            device=NAME,
            certificate=certificate,
            broker="mqtts://127.0.0.1:1",
            broker_ca=_broker_ca(certificate),
            runtime="onnxruntime",
            state="enrolled" if csr else "pending",
            ticket="" if csr else hashlib.sha256(self.claim.encode()).hexdigest(),
            refuse_automatic=self.refuses,
        )
        return Answer(200, codec.encode(enrolled))


def _broker_ca(certificate: str) -> str:
    """Return what vouches for the broker at the time of a certificate."""
    return f"as of {hashlib.sha256(certificate.encode()).hexdigest()}"


def certify(csr: str) -> str:
    """Return a certificate (PEM) for the key of a signing request."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(_NAMED).issuer_name(_NAMED)
    builder = builder.public_key(x509.load_pem_x509_csr(csr.encode()).public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + _YEAR)
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


@contextlib.contextmanager
def answered_by(server: Server) -> Iterator[None]:
    """Put the server where HTTPS was; nobody sleeps until an operator has decided."""
    with (
        patch("agent.identity.enrol.call", server.call),
        patch("agent.identity.proof.call", server.call),
        patch("agent.identity.enrol.full_jitter", lambda *_, **__: 0.0),
        patch("agent.__main__.log_to_stderr", lambda **_: None),
    ):
        yield


def init(server: Server, state: Path, token: str) -> tuple[int, str]:
    """Enrol as an operator does at the device; return the exit status and what was said."""
    said = io.StringIO()
    options = ("--profile", PROFILE, "--runtime", "onnxruntime", "--simulate", "--state", str(state))
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = program(["init", server.join(token), *options])
    return status, said.getvalue()


@dataclass(frozen=True, slots=True)
class Identities:
    """Judges what is left of an enrolment: by what was asked and said until then."""

    anchor: bytes
    log: tuple[tuple[int, str, bytes], ...]

    def find_faults(self, folder: Path, *, at: int, now: float) -> list[str]:  # noqa: ARG002
        """Return what is wrong with the device in `folder` after a cut at operation `at`."""
        state = folder / "state"
        server = self._server(at)
        try:
            with answered_by(server):
                return list(self._faults(state, server, at))
        except Exception as error:  # noqa: BLE001 -- whatever stops it has lost the device
            return [f"it cannot be enrolled: {type(error).__name__}: {error}"]

    def _server(self, at: int) -> Server:
        """Return the server as it was."""
        server = Server(self.anchor)
        for when, path, body in self.log:
            if when <= at and path == ENROL:
                request = codec.decode(EnrolRequest, body)
                server.spent.add(request.token)
                server.claim = request.csr
            elif when <= at and path == TICKET:
                server.shown += 1
        return server

    def _said(self, at: int) -> list[str]:
        return [name for when, name, _ in self.log if when <= at]

    def _faults(self, state: Path, server: Server, at: int) -> Iterator[str]:
        said = self._said(at)
        is_enrolled = StateFolder(state).is_enrolled
        if ENROLLED in said and not is_enrolled:
            yield "it was enrolled, and nobody lives there"
        status, words = init(server, state, "one")
        if is_enrolled and "expected a new state folder" not in words:
            yield f"it is enrolled, and was enrolled again: {words}"
        if not is_enrolled and status:
            if TICKET in said:
                yield f"it was on its way, and is not enrolled by the same command: {words}"
            status, words = init(server, state, "another")
            if status:
                yield f"it cannot be enrolled with another join string: {words}"
        yield from self._identity_faults(state, at)
        yield from _running_faults(state)
        # the next certificate is its own as well, and what it refuses it goes on to refuse
        _renew(StateFolder(state))
        yield from self._identity_faults(state, at)

    def _identity_faults(self, state: Path, at: int) -> Iterator[str]:
        folder = StateFolder(state)
        recover(folder, read_config(state, {}))
        check_pair(folder)
        if folder.anchor_bytes() != self.anchor:
            yield "the anchor is another one"
        if REFUSING in self._said(at) and not folder.identity().refuse_automatic:
            yield "it had learnt to refuse automatic releases, and takes them again"
        certificate = folder.credentials.certificate.read_text()
        known = [body.decode() for when, name, body in self.log if when <= at and name in (ENROLLED, RENEWED)]
        if certificate in known[:-1]:
            yield "its certificate is an older one than it had"
        vouching = folder.credentials.ca.read_text()
        if vouching != _broker_ca(certificate) and (certificate not in known or vouching in map(_broker_ca, known)):
            yield "what vouches for the broker is older than its certificate"


def _running_faults(state: Path) -> Iterator[str]:
    """It starts, and waits for what it is told."""
    machine = Machine(state, World({}, {}, (), PROJECT, NAME))
    status = machine.run(lambda device: _settled(device.settle(10)))
    if status:
        yield f"it does not start: {machine.said.getvalue()[-300:]}"


def _settled(rests: bool) -> None:
    assert rests, "expected a device that waits for an assignment"


def record_enrolment(folder: Path, *, without: str = "") -> Recording:
    """Record an enrolment and two renewals."""
    authority = make_authority(folder / "ca")
    anchor = codec.encode(Anchor(project=PROJECT, image_root="{}", director_root="{}", server_ca=authority.pem))
    place = folder / "device"
    place.mkdir()
    (folder / "server.pickle").write_bytes(pickle.dumps(Server(anchor)))
    trace = folder / "enrolment.strace"
    arguments = (str(folder / "server.pickle"), str(place / "state"), without)
    done = subprocess.run(
        command(trace, (sys.executable, "-m", __name__, *arguments)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = list(read_operations(read_calls(trace), str(place)))
    compare_with_disk({}, found, place)
    operations: list[Operation] = [*found, *(_read(line) for line in done.stdout.splitlines())]
    operations.sort(key=lambda each: (each.time, not isinstance(each, Sent)))
    log = tuple((at, each.topic, each.payload) for at, each in enumerate(operations) if isinstance(each, Sent))
    return Recording("enrolment", {}, tuple(operations), Identities(anchor, log))


def _read(line: str) -> Sent:
    when, topic, payload = (*line.split(), "")[:3]
    return Sent(topic=topic, payload=b64decode(payload), time=float(when), began=0, ended=0)


def main(server_file: str, state: str, without: str) -> int:
    """Enrol, and renew twice."""
    logging.disable(logging.CRITICAL)
    if without:
        from tests.power.without import EVERY_CALL

        EVERY_CALL[without]()
    server: Server = pickle.loads(Path(server_file).read_bytes())  # noqa: S301 -- our own file, of a moment ago
    folder = Path(state)
    with answered_by(server):
        status, words = init(server, folder, "one")
        assert status == 0, words
        _note(server, ENROLLED, _certificate(folder))
        for refuses in (False, True):
            server.refuses = refuses
            _renew(StateFolder(folder))
            _note(server, RENEWED, _certificate(folder))
        _note(server, REFUSING, b"")
    for when, topic, payload in server.log:
        print(when, topic, b64encode(payload).decode())
    return 0


def _certificate(folder: Path) -> bytes:
    return StateFolder(folder).credentials.certificate.read_bytes()


def _note(server: Server, name: str, payload: bytes) -> None:
    server.log.append((time.time(), name, payload))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
