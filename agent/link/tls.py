"""TLS to the shore for a machine whose clock may lie: the chain is verified, time is judged by the floor.

A gateway without a battery wakes in 1970, and one bad time server puts it ten years ahead. Were the clock asked, it
could not connect again to be told better. So OpenSSL checks signatures, names and purposes, and no times; once the
handshake is done, and before a byte is sent, the server's certificate must not have ended at the floor
(`agent.trust.floor`).

That it has *begun* is not checked: the floor is the least time that it can be now, so a certificate that begins after
it may be a new one. What this costs: docs/adr/0908.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.errors import Broken

# <openssl/x509_vfy.h>; the module `ssl` has no name for it
_NO_CHECK_TIME = 0x200000


class Expired(ssl.SSLCertVerificationError):
    """The server's certificate had ended by the floor."""

    def __init__(self, ended: str) -> None:
        self.verify_message = f"a certificate that ended {ended}"
        super().__init__(1, self.verify_message)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files of a TLS identity; unused where the broker speaks no TLS."""

    ca: Path
    certificate: Path
    key: Path

    def context(self, *, floor: float) -> ssl.SSLContext:
        """Return TLS with this identity, judged at `floor`; raises `Broken` when the files cannot be read or used."""
        try:
            ca = self.ca.read_text(encoding="ascii")
            return client_context(ca, floor=floor, certificate=self.certificate, key=self.key)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            shown = getattr(error, "strerror", None) or str(error)
            raise Broken(f"{self.certificate}: expected a certificate, its key and its CA, got: {shown}") from error


def client_context(
    ca: str, *, floor: float = 0.0, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return TLS 1.2 or later for which only the CAs in `ca` (PEM) vouch, or the system's where it is empty.

    `floor` is in seconds since 1970, 0 where nothing is known yet; `certificate` and `key` say who we are. A handshake
    raises `Expired` (an `ssl.SSLCertVerificationError`) where the server's certificate had ended by then.

    Raises:
        ssl.SSLError, OSError: the certificates are none, or the files cannot be read or do not fit.
    """
    context = ssl.create_default_context(cadata=ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    context.sslsocket_class = _judged(floor)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def _judged(floor: float) -> type[ssl.SSLSocket]:
    """Return sockets that judge for themselves: whichever library shakes hands, none can forget to."""

    class Judged(ssl.SSLSocket):
        def do_handshake(self, *arguments: Any, **named: Any) -> None:
            try:
                super().do_handshake(*arguments, **named)
                ended = str((self.getpeercert() or {}).get("notAfter", ""))
                if not ended or ssl.cert_time_to_seconds(ended) <= floor:
                    raise Expired(ended or "at no time")
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise  # a socket that does not block: it is not over
            except OSError:
                # nobody shall speak to it, whatever becomes of the error
                self.close()
                raise

    return Judged
