"""Endpoints on which a device proves its key, and what lets it in with the token that a proof has bought.

Refusals are counted by the address that they came from: guessing is slow, and a device behind another address goes on.
"""

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request

from control_plane import proofs
from control_plane.api.context import PlaneDep, SessionDep, get_plane, read_body
from control_plane.refusals import TooMany
from skerry.errors import Rejected
from skerry.wire import codec
from skerry.wire.enrolment import Enrolled, Nonce, NonceRequest, RenewRequest, Token, TokenRequest

router = APIRouter(tags=["proof"])
Body = Annotated[bytes, Depends(read_body)]


class Refusals:
    """Counts what was refused, by address (of IPv6 the network), in the last minute; at most `addresses` of them."""

    def __init__(self, *, limit: int = 30, addresses: int = 4096) -> None:
        self._limit = limit
        self._addresses = addresses
        self._counts: OrderedDict[str, tuple[datetime, int]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def counted(self, request: Request, now: datetime) -> Iterator[None]:
        """Run the body unless too much was refused; count it when it is. Raises `TooMany`."""
        address = _network(request.client.host if request.client else "")
        if self._count(address, now) >= self._limit:
            raise TooMany(f"proof: expected at most {self._limit} refusals a minute, got more; wait a minute")
        try:
            yield
        except Rejected:
            self._add(address, now)
            raise

    def _count(self, address: str, now: datetime) -> int:
        with self._lock:
            since, count = self._counts.get(address, (now, 0))
            if now - since >= timedelta(minutes=1):
                self._counts.pop(address)
                return 0
            return count

    def _add(self, address: str, now: datetime) -> None:
        with self._lock:
            since, count = self._counts.get(address, (now, 0))
            self._counts[address] = (since, count + 1)
            self._counts.move_to_end(address)
            while len(self._counts) > self._addresses:
                self._counts.popitem(last=False)


_refusals = Refusals()


@router.post("/v1/proof/nonce")
def make_nonce(body: Body, plane: PlaneDep) -> Nonce:
    """Make a nonce; whoever asks learns nothing by it, and it keeps nothing."""
    return proofs.make_nonce(plane, codec.decode(NonceRequest, body).device)


@router.post("/v1/renew")
def renew(body: Body, request: Request, plane: PlaneDep, session: SessionDep) -> Enrolled:
    """Issue the next certificate; the proof is the authentication."""
    with _refusals.counted(request, plane.clock()):
        return proofs.renew(plane, session, codec.decode(RenewRequest, body))


@router.post("/v1/token")
def buy_token(body: Body, request: Request, plane: PlaneDep, session: SessionDep) -> Token:
    """Make a short token; the proof is the authentication."""
    with _refusals.counted(request, plane.clock()):
        return proofs.buy_token(plane, session, codec.decode(TokenRequest, body))


def device_of(request: Request) -> str:
    """Return the name of the device that asks, by its bearer token; 401 when it is nobody's (any more)."""
    plane = get_plane(request)
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and shown:
        with plane.readers() as session:
            if name := proofs.holder_of(session, shown.strip(), now=plane.clock()):
                return name
    raise HTTPException(
        401,
        "device token: expected one of POST /v1/token that is alive, got " + ("another" if shown else "none"),
        headers={"WWW-Authenticate": "Bearer"},
    )


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    # whoever has one IPv6 address has the other 2^64 of its network
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
