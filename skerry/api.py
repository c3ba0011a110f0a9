"""One connection to the HTTP API of a control plane: JSON goes in; JSON, or the server's own refusal, comes out.

It knows no endpoint; `skerry.client` has those. Needs `pip install 'skerry[cli]'`.
"""

import contextlib
import ssl
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from skerry.errors import Rejected, Unavailable

MAX_ANSWER_BYTES = 64 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")
Json = Any


class Api:
    """What a client of one control plane sends with, for an operator; whoever derives from it adds the endpoints."""

    def __init__(self, url: str, token: str, *, ca: str | None = None, timeout_s: float = 30.0) -> None:
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {token}"},
                timeout=timeout_s,
                verify=ssl.create_default_context(cafile=ca) if ca else True,
                # a proxy of the environment is for the world outside: it must not see the token of a local server
                trust_env=urlsplit(url).hostname not in LOOPBACK,
            )
        except OSError as error:
            raise Rejected(f"ca: expected a file of CA certificates, got {ca}: {error}") from error
        except (httpx.InvalidURL, ValueError) as error:
            # a ValueError of the header could hold the token: it is not shown
            raise Rejected(
                f"expected an address such as http://127.0.0.1:8080 and a token, got {url!r:.200}"
            ) from error
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Json]:
        body = self._json(method, path, **options)
        if not isinstance(body, dict):
            raise Unavailable(f"{self._url}{path}: expected a JSON object, got {type(body).__name__}")
        return body

    def _list(self, method: str, path: str, **options: Any) -> list[Json]:
        body = self._json(method, path, **options)
        if not isinstance(body, list):
            raise Unavailable(f"{self._url}{path}: expected a JSON list, got {type(body).__name__}")
        return body

    def _json(self, method: str, path: str, **options: Any) -> Json:
        answer = self._send(method, path, **options)
        try:
            return answer.json()
        except ValueError as error:
            raise Unavailable(f"{self._url}{path}: expected a control plane, got an answer that is not JSON") from error

    def _send(self, method: str, path: str, *, limit: int = MAX_ANSWER_BYTES, **options: Any) -> httpx.Response:
        try:
            request = self._http.build_request(method, path, **options)
        except (TypeError, ValueError) as error:
            # a date or an infinity of a recipe, or bytes of the command line that are no text
            raise Rejected(f"{method} {path}: expected what JSON can hold, got: {error}") from error
        try:
            with contextlib.closing(self._http.send(request, stream=True)) as response:
                body = bytearray()
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > limit:
                        raise Unavailable(f"{self._url}{path}: expected at most {limit} bytes, got more")
        except httpx.HTTPError as error:
            raise Unavailable(
                f"{self._url}: expected a control plane, got {error}; is `skerry-server run` up, and at this address?"
            ) from error
        answer = httpx.Response(response.status_code, headers=_plain(response.headers), content=bytes(body))
        if answer.is_success:
            return answer
        line = _problem(answer) or f"{method} {path} answered {answer.status_code}"
        if answer.status_code >= 500:
            raise Unavailable(f"{self._url}: {line}")
        raise Rejected(line)


def _plain(headers: httpx.Headers) -> dict[str, str]:
    """The headers of a body that is already decoded."""
    return {key: value for key, value in headers.items() if key not in ("content-encoding", "content-length")}


def _problem(answer: httpx.Response) -> str:
    """The one line of a problem+json (RFC 9457), or nothing."""
    try:
        problem = answer.json()
    except ValueError:
        return ""
    return str(problem.get("detail") or problem.get("title") or "") if isinstance(problem, dict) else ""


def segment(name: str) -> str:
    """One segment of a path, whatever is in the name: bytes of the command line that are no text name nothing."""
    return quote(name, safe="", errors="replace")
