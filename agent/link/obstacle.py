"""What stands between a device and its broker, in one line that its owner can act upon.

A captive portal, a proxy that opens TLS and a wrong port all answer where the broker should; none of them can be told
from the other with certainty, so the line names what was seen and what it may be.
"""

import ssl

from agent.link.address import Address
from agent.link.tls import Expired

_PERHAPS = "a sign-in page of the network (captive portal), a proxy, or a wrong address"
# what OpenSSL calls an answer that is no TLS record; 3.2 changed the name
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})


class NotOurs(OSError):
    """Something answered, and it was not a broker: the text says what it did."""


def describe(error: Exception, address: Address) -> str:
    """Return why no connection came about: `expected X, got Y; what to do`."""
    if isinstance(error, Expired):
        return (
            f"expected a certificate of its CA, got: {error.verify_message}; the broker has to renew it"
            " (or the assignments are dated ahead of their time)"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"expected a certificate of its CA, got: {error.verify_message}; what answers is {_PERHAPS}"
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return f"expected TLS, got another protocol; what answers is {_PERHAPS}"
    if isinstance(error, NotOurs):
        return f"expected {'a WebSocket' if address.path else 'MQTT 5'}, got: {error}; what answers is {_PERHAPS}"
    if isinstance(error, ssl.SSLError):
        shown = (error.reason or str(error)).lower().replace("_", " ")
        return f"expected TLS with our certificate, got: {shown}; check the device's certificate and clock"
    shown = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"expected it to answer, got: {shown}; check that it runs and that the address is right"
