"""Enrolment: the anchor first, then the token; a key that never leaves the device, and a certificate for it.

1. Fetch the anchor over TLS that proves nothing yet, and compare its SHA-256 with the join string's.
2. Only then open TLS that is verified by the anchor's CA, and send the token with a signing request.
3. See whether this machine is what the profile says; only then keep anything.
4. Where an operator has to accept the device, keep the key and a ticket, and ask again with it: now, or in another run.
"""

import hashlib
import logging
import math
import platform
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from agent.identity.folder import Identity, StateFolder, Waiting
from agent.link.address import parse_broker
from agent.link.backoff import full_jitter
from agent.link.https import Answer, call, pinned, problem
from agent.link.proxy import Proxy
from skerry import __version__
from skerry.errors import Rejected, Unavailable
from skerry.runtimes import Found, find_runtime
from skerry.wire import codec
from skerry.wire.enrolment import Anchor, Enrolled, EnrolRequest, TicketRequest
from skerry.wire.join import Join, parse_join
from skerry.wire.profile import RUNTIMES

ASK_LEAST_S = 1.0
ASK_MOST_S = 30.0
_log = logging.getLogger("skerry.agent.enrol")


def enrol(
    join_text: str,
    *,
    profile: str,
    folder: Path,
    runtime: str = "",
    simulated: bool = False,
    refuse_automatic: bool = False,
    wait_s: float = 600.0,
    sleep: Callable[[float], None] = time.sleep,
    proxy: Proxy | None = None,
) -> Identity:
    """Enrol this machine as a device of `profile` and keep its identity in `folder`.

    Raises:
        Rejected: the join string, the anchor, the token, the profile or this machine does not fit, or an operator has
            rejected the device; nothing is kept.
        Unavailable: the server does not answer, or no operator has accepted the device within `wait_s` seconds: the
            same call later goes on where this one ended.
    """
    if not 0 <= wait_s < math.inf:
        raise Rejected(f"--wait: expected 0 seconds or more, got {wait_s}")
    join = parse_join(join_text)
    state = StateFolder(folder)
    state.expect_new()  # before the token is spent
    here = tuple(each for each in RUNTIMES if isinstance(find_runtime(each), Found))
    if runtime and runtime not in here:
        raise Rejected(_missing(runtime))

    anchor_bytes = fetch_anchor(join, proxy=proxy)
    anchor = codec.decode(Anchor, anchor_bytes)
    context = pinned(anchor.server_ca)

    def identify(enrolled: Enrolled) -> Identity:
        check_machine(enrolled, runtime=runtime, runtimes=here, simulated=simulated, profile=profile)
        parse_broker(enrolled.broker)
        if enrolled.project != anchor.project:
            raise Rejected(f"server: expected project {anchor.project} as in the anchor, got {enrolled.project}")
        return Identity(
            project=enrolled.project,
            device=enrolled.device,
            profile=profile,
            runtime=enrolled.runtime or runtime,
            architecture=platform.machine(),
            broker=enrolled.broker,
            server=join.url,
            simulated=simulated,
            refuse_automatic=refuse_automatic or enrolled.refuse_automatic,
        )

    join_sha256 = hashlib.sha256(str(join).encode()).hexdigest()
    waiting = state.waiting(join_sha256)
    if waiting is None:
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
        enrolled = send_request(join, context, request, proxy=proxy)
        if enrolled.state != "pending":
            return _keep(state, identify(enrolled), enrolled, anchor=anchor_bytes, key=key)
        identify(enrolled)
        waiting = Waiting(join_sha256, enrolled.device, enrolled.ticket, key.decode())
        state.keep_waiting(waiting)
    enrolled = _await(state, join, context, waiting, wait_s=wait_s, sleep=sleep, proxy=proxy)
    return _keep(state, identify(enrolled), enrolled, anchor=anchor_bytes, key=waiting.key.encode())


def fetch_anchor(join: Join, *, proxy: Proxy | None = None) -> bytes:
    """Return the server's anchor if it is the one that the join string pins; raises `Rejected` otherwise."""
    unproven = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unproven.check_hostname = False
    # nothing secret is sent here, and what comes is judged by its hash
    unproven.verify_mode = ssl.CERT_NONE
    answer = call(join.url, "GET", "/v1/anchor", context=unproven, proxy=proxy)
    if answer.status != 200:
        raise Rejected(f"{join.url}: expected an anchor, got status {answer.status}: {problem(answer)}")
    digest = hashlib.sha256(answer.body).hexdigest()
    if digest != join.anchor_sha256:
        raise Rejected(
            f"{join.url}: expected the anchor {join.anchor_sha256[:16]}..., got {digest[:16]}...;"
            " this is not the server of the join string, the token was not sent"
        )
    return answer.body


def send_request(join: Join, context: ssl.SSLContext, request: EnrolRequest, *, proxy: Proxy | None = None) -> Enrolled:
    """Send the claim over TLS that the anchor's CA vouches for; raises `Rejected` with the server's reason."""
    answer = call(join.url, "POST", "/v1/enrol", context=context, body=codec.encode(request), proxy=proxy)
    return _read(join.url, answer, "to be enrolled")


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


def _await(
    state: StateFolder,
    join: Join,
    context: ssl.SSLContext,
    waiting: Waiting,
    *,
    wait_s: float,
    sleep: Callable[[float], None],
    proxy: Proxy | None,
) -> Enrolled:
    """Ask with the ticket until an operator has decided; outages in between are waited for too."""
    body = codec.encode(TicketRequest(device=waiting.device, ticket=waiting.ticket))
    deadline = time.monotonic() + wait_s
    attempt = 0
    while True:
        reason = f"skerry device accept {waiting.device}"
        try:
            answer = call(join.url, "POST", "/v1/enrol/ticket", context=context, body=body, proxy=proxy)
            enrolled = _read(join.url, answer, "an answer")
            if enrolled.state != "pending":
                return enrolled
        except Unavailable as error:
            reason = str(error)
        except Rejected:
            state.waiting_file.unlink(missing_ok=True)
            raise
        pause = full_jitter(attempt, least_s=ASK_LEAST_S, most_s=ASK_MOST_S)
        if time.monotonic() + pause > deadline:
            raise Unavailable(
                f"{waiting.device}: expected to be accepted within {wait_s:g} s, got no decision ({reason});"
                " run the same command again to go on"
            )
        if not attempt:
            _log.info("waiting as %s for an operator: skerry device accept %s", waiting.device, waiting.device)
        attempt += 1
        sleep(pause)


def _keep(state: StateFolder, identity: Identity, enrolled: Enrolled, *, anchor: bytes, key: bytes) -> Identity:
    state.keep(identity, anchor=anchor, key=key, certificate=enrolled.certificate, broker_ca=enrolled.broker_ca)
    return identity


def _read(url: str, answer: Answer, expected: str) -> Enrolled:
    if answer.ok:
        return codec.decode(Enrolled, answer.body)
    reason = f"{url}: expected {expected}, got status {answer.status}: {problem(answer)}"
    if answer.status >= 500 or answer.status == 429:
        raise Unavailable(reason)
    raise Rejected(reason)


def check_machine(
    enrolled: Enrolled, *, runtime: str, runtimes: tuple[str, ...], simulated: bool, profile: str
) -> None:
    """Raise `Rejected` unless this machine is what the profile says."""
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
    found = find_runtime(runtime)
    return f"expected the runtime {runtime}, got none" if isinstance(found, Found) else found.reason
