"""Errors as problem+json (RFC 9457): one mapping from who must act to a status, and one shape for all."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from control_plane.refusals import Conflict, Forbidden, TooMany, Unknown
from skerry.errors import Rejected, SkerryError, Unavailable

log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[SkerryError], int], ...] = (
    (Forbidden, 403),
    (Unknown, 404),
    (Conflict, 409),
    (TooMany, 429),
    (Rejected, 422),
    (Unavailable, 503),
)


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the answer that says what is wrong."""
    # half of a surrogate pair, which a JSON body may hold, is no text that an answer could carry back
    line = detail.encode(errors="backslashreplace").decode()
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": line}
    return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem."""
    app.add_exception_handler(SkerryError, _skerry_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(Exception, _unexpected)


def status_of(error: SkerryError) -> int:
    """Return the status that says who must act: 4xx the sender, 503 the network, 500 this machine."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


async def _skerry_error(_request: Request, error: Exception) -> JSONResponse:
    status = status_of(error) if isinstance(error, SkerryError) else 500
    if status >= 500:
        log.error("%s", error)
    return problem(status, str(error))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        return problem(500, str(error))
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        # the router's own word: say what was asked for
        detail = f"{detail}: expected a path and method of this API, got {request.method} {request.url.path[:200]}"
    return problem(error.status_code, detail, dict(error.headers or {}))


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError) or not error.errors():
        return problem(422, "request: expected another form")
    first = error.errors()[0]
    # what came is not repeated: it may be a token
    return problem(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")


async def _database(_request: Request, error: Exception) -> JSONResponse:
    reason = error.orig if isinstance(error, OperationalError) else error
    log.error("database: %s", reason)
    return problem(503, f"database: expected it to answer, got: {reason}; try again, and look at the server's disk")


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, f"the server failed ({type(error).__name__}); its log says more")
