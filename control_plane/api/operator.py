"""Operator authentication: the token of the home folder, as a bearer or as the cookie that /login sets."""

import hmac
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response

from control_plane.home import Home

COOKIE = "skerry_operator"
router = APIRouter()


def require_operator(request: Request) -> None:
    """Let the request pass if it carries the operator's token; 401 otherwise."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    shown = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    if not is_operator_token(request.app.state.plane.home, shown):
        raise HTTPException(
            401,
            "operator token: expected the one in operator.token of the server's home folder, got "
            + ("another" if shown else "none"),
            headers={"WWW-Authenticate": "Bearer"},
        )


@router.get("/login", include_in_schema=False)
def log_in(request: Request, token: Annotated[str, Query(max_length=200)]) -> Response:
    """Exchange the token of the printed link for a cookie, and go to the first page."""
    if not is_operator_token(request.app.state.plane.home, token):
        raise HTTPException(
            401, "login: expected the token that skerry-server printed, got another; copy the link whole"
        )
    response = RedirectResponse("/", status_code=303)
    response.set_cookie(
        COOKIE,
        token,
        httponly=True,
        samesite="lax",
        # the pages listener is plain HTTP on loopback, where browsers keep no secure cookie
        secure=request.url.scheme == "https",
        max_age=30 * 86400,
    )
    return response


def is_operator_token(home: Home, shown: str) -> bool:
    """Say whether `shown` is the operator's token, in constant time."""
    expected = home.operator_token()
    return bool(expected) and hmac.compare_digest(expected.encode(), shown.encode())
