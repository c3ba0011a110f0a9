"""Enrolment: the anchor first, then the token; a key that never leaves the device, and a certificate for it.

1. Fetch the anchor over TLS that proves nothing yet, and compare its SHA-256 with the join string's.
2. Only then open TLS that is verified by the anchor's CA, and send the token with a signing request.
3. See whether this machine is what the profile says; only then keep anything.
"""

import hashlib
import http.client
import json
import platform
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agent.identity import Identity, StateFolder
from agent.link import parse_broker
from skerry import __version__
from skerry.errors import Rejected, Unavailable
from skerry.runtimes import RuntimeInfo, probe
from skerry.wire import codec
from skerry.wire.join import Join, parse_join
from skerry.wire.messages import Anchor, Enrolled, EnrolRequest
from skerry.wire.profile import RUNTIMES

TIMEOUT_S = 20.0
MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    status: int
    body: bytes


def enrol(join_text: str, *, profile: str, folder: Path, runtime: str = "", simulated: bool = False) -> Identity:
    """Enrol this machine as a device of `profile` and keep its identity in `folder`.

    Raises:
        Rejected: the join string, the anchor, the token, the profile or this machine does not fit; nothing is kept.
        Unavailable: the server does not answer.
    """
    join = parse_join(join_text)
    state = StateFolder(folder)
    state.expect_new()  # before the token is spent
    here = tuple(each for each in RUNTIMES if isinstance(probe(each), RuntimeInfo))
    if runtime and runtime not in here:
        raise Rejected(_missing(runtime))

    anchor_bytes = fetch_anchor(join)
    anchor = codec.decode(Anchor, anchor_bytes)

    key, csr = make_key_and_request()
    request = EnrolRequest(
        token=join.token,
        csr=csr,
        profile=profile,
        agent=__version__,
        architecture=platform.machine(),
        simulated=simulated,
        runtimes=here,
    )
    enrolled = send_request(join, anchor, request)

    _check_machine(enrolled, runtime=runtime, runtimes=here, simulated=simulated, profile=profile)
    parse_broker(enrolled.broker)
    if enrolled.project != anchor.project:
        raise Rejected(f"server: expected project {anchor.project} as in the anchor, got {enrolled.project}")
    identity = Identity(
        project=enrolled.project,
        device=enrolled.device,
        profile=profile,
        runtime=enrolled.runtime or runtime,
        architecture=platform.machine(),
        broker=enrolled.broker,
        server=join.url,
        simulated=simulated,
    )
    state.keep(identity, anchor=anchor_bytes, key=key, certificate=enrolled.certificate, broker_ca=enrolled.broker_ca)
    return identity


def fetch_anchor(join: Join) -> bytes:
    """Return the server's anchor if it is the one that the join string pins; raises `Rejected` otherwise."""
    unproven = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unproven.check_hostname = False
    # nothing secret is sent here, and what comes is judged by its hash
    unproven.verify_mode = ssl.CERT_NONE
    answer = _call(join.url, "GET", "/v1/anchor", context=unproven)
    if answer.status != 200:
        raise Rejected(f"{join.url}: expected an anchor, got status {answer.status}: {_problem(answer)}")
    digest = hashlib.sha256(answer.body).hexdigest()
    if digest != join.anchor_sha256:
        raise Rejected(
            f"{join.url}: expected the anchor {join.anchor_sha256[:16]}..., got {digest[:16]}...;"
            " this is not the server of the join string, the token was not sent"
        )
    return answer.body


def send_request(join: Join, anchor: Anchor, request: EnrolRequest) -> Enrolled:
    """Send the claim over TLS that the anchor's CA vouches for; raises `Rejected` with the server's reason."""
    try:
        context = ssl.create_default_context(cadata=anchor.server_ca)
    except (ssl.SSLError, ValueError) as error:
        raise Rejected(f"anchor: expected the server's CA as PEM, got: {error}") from error
    answer = _call(join.url, "POST", "/v1/enrol", context=context, body=codec.encode(request))
    if answer.status in (200, 201):
        return codec.decode(Enrolled, answer.body)
    reason = f"{join.url}: expected to be enrolled, got status {answer.status}: {_problem(answer)}"
    if answer.status >= 500:
        raise Unavailable(reason)
    raise Rejected(reason)


def make_key_and_request() -> tuple[bytes, str]:
    """Return a new EC P-256 key and a signing request for it, both PEM; the CA chooses the name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, csr.public_bytes(serialization.Encoding.PEM).decode()


def _check_machine(
    enrolled: Enrolled, *, runtime: str, runtimes: tuple[str, ...], simulated: bool, profile: str
) -> None:
    wanted = enrolled.runtime or runtime
    if runtime and enrolled.runtime and runtime != enrolled.runtime:
        raise Rejected(f"profile {profile}: expected the runtime {enrolled.runtime}, got --runtime {runtime}")
    if wanted not in runtimes:
        raise Rejected(f"profile {profile}: {_missing(wanted)}; nothing was kept")
    machine = platform.machine()
    if enrolled.architecture not in ("", machine) and not simulated:
        raise Rejected(
            f"profile {profile}: expected a machine of architecture {enrolled.architecture}, got {machine};"
            " choose another profile, or --simulate; nothing was kept"
        )


def _missing(runtime: str) -> str:
    found = probe(runtime)
    return f"expected the runtime {runtime}, got none" if isinstance(found, RuntimeInfo) else found.reason


def _call(url: str, method: str, path: str, *, context: ssl.SSLContext, body: bytes | None = None) -> Answer:
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port or 443, timeout=TIMEOUT_S, context=context
    )
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, f"{parts.path.rstrip('/')}{path}", body=body, headers=headers)
        response = connection.getresponse()
        data = response.read(MAX_ANSWER_BYTES + 1)
    except ssl.SSLCertVerificationError as error:
        raise Rejected(f"{url}: expected a certificate of the pinned CA, got: {error.verify_message}") from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last: a name that no host can have
        shown = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unavailable(
            f"{url}: expected an answer, got: {shown}; check the address and that the server runs"
        ) from error
    finally:
        connection.close()
    if len(data) > MAX_ANSWER_BYTES:
        raise Rejected(f"{url}: expected at most {MAX_ANSWER_BYTES} bytes, got more")
    return Answer(status=response.status, body=data)


def _problem(answer: Answer) -> str:
    """Return the one line of a problem+json answer."""
    try:
        tree = json.loads(answer.body)
        text = str(tree.get("detail") or tree.get("title") or "")
    except (ValueError, AttributeError):
        text = ""
    return " ".join(text.split())[:200] or "no reason given"
