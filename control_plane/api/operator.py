"""Operator authentication: the token of the home folder as a bearer, or the cookie that /login sets, for reading.

A browser sends a cookie to every port of a host, and along with requests that another page made it send. So the cookie
is made from the token without giving it away, and is good for requests that change nothing.
"""

import hmac
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response

from control_plane.home import Home

COOKIE = "skerry_operator"
SAFE_METHODS = ("GET", "HEAD")
router = APIRouter()


def require_operator(request: Request) -> None:
    """Let the request pass if it carries the operator's token; 401 otherwise."""
    expected = _token(request)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    shown = bearer.strip()
    if scheme.lower() != "bearer":
        shown = request.cookies.get(COOKIE, "") if request.method in SAFE_METHODS else ""
        expected = _cookie(expected)
    if not _same(shown, expected):
        raise HTTPException(
            401,
            "operator token: expected the one in operator.token of the server's home folder, got "
            + ("another" if shown else "none"),
            headers={"WWW-Authenticate": "Bearer"},
        )


def operator_name(request: Request) -> str:
    """Return who asks, as it is audited: one token is one operator, so all that is known beside it is from where."""
    return f"operator at {request.client.host if request.client else 'an unknown address'}"


@router.get("/login", include_in_schema=False)
def log_in(request: Request, token: Annotated[str, Query(max_length=200)]) -> Response:
    """Exchange the token of the printed link for a cookie, and go to the first page."""
    expected = _token(request)
    if not _same(token, expected):
        raise HTTPException(
            401, "login: expected the token that skerry-server printed, got another; copy the link whole"
        )
    response = RedirectResponse("/", status_code=303)
    response.set_cookie(
        COOKIE,
        _cookie(expected),
        httponly=True,
        samesite="lax",
        # the pages listener is plain HTTP on loopback, where browsers keep no secure cookie
        secure=request.url.scheme == "https",
        max_age=30 * 86400,
    )
    return response


def _token(request: Request) -> str:
    home: Home = request.app.state.plane.home
    return home.operator_token()


def _cookie(token: str) -> str:
    return hmac.new(token.encode(), b"skerry pages", "sha256").hexdigest()


def _same(shown: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(expected.encode(), shown.encode())
