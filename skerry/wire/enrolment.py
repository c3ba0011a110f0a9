"""What crosses HTTPS between a device and the server: enrolment, and proof of the device's key afterwards."""

from dataclasses import dataclass

from skerry.wire.messages import VERSION


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """HTTPS `POST /v1/enrol`: a claim token and a certificate signing request (PEM).

    `architecture` is what `platform.machine()` says on the device and `runtimes` what it can load, so that the server
    may refuse a device that is not of the profile before the token is spent; `simulated` waives the architecture.
    """

    token: str
    csr: str
    profile: str
    agent: str = ""
    architecture: str = ""
    simulated: bool = False
    runtimes: tuple[str, ...] = ()
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The answer to an enrolment: the name that the CA chose, a certificate (PEM) and where the broker is.

    `broker_ca` is empty where the broker speaks no TLS: the embedded one, on loopback alone. `architecture` and
    `runtime` are those of the profile: the device checks them against itself before it keeps anything. `state` is
    enrolled; or pending while no operator has accepted the device: then there is no certificate, and `ticket` is what
    it asks again with. `refuse_automatic` is the rule of the device's group.
    """

    project: str
    device: str
    certificate: str
    broker: str
    broker_ca: str = ""
    architecture: str = ""
    runtime: str = ""
    state: str = "enrolled"
    ticket: str = ""
    refuse_automatic: bool = False
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class TicketRequest:
    """HTTPS `POST /v1/enrol/ticket`: asks again for a claim that was pending; the answer is an `Enrolled`."""

    device: str
    ticket: str
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class NonceRequest:
    """HTTPS `POST /v1/proof/nonce`: asks for a nonce to sign."""

    device: str
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Nonce:
    """The answer: a nonce for this device alone, good once and for `expires_s` seconds."""

    nonce: str
    expires_s: int
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """HTTPS `POST /v1/renew`: a signing request for the same key, signed (`skerry.wire.proof`, base64) by that key.

    `certificate` is the present one (PEM), needed only by a server that enrolled the device before it kept its key.
    The answer is an `Enrolled`.
    """

    device: str
    nonce: str
    csr: str
    signature: str
    certificate: str = ""
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """HTTPS `POST /v1/token`: the same proof buys a short token."""

    device: str
    nonce: str
    signature: str
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Token:
    """The answer: a bearer token for HTTPS, good for `expires_s` seconds."""

    token: str
    expires_s: int
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a join string pins: the two TUF roots and the server's CA, served at `/v1/anchor`.

    The hash of these very bytes is in the join string, so all three are trusted, or none.
    """

    project: str
    image_root: str
    director_root: str
    server_ca: str
    v: int = VERSION
