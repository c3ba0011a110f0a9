"""The local face of the models on this device: the Open Inference Protocol v2, and what programs here have to tell.

For any client, on the unix socket `serve.sock` of the state folder (mode 0660; where else it may be:
`skerry.inference.local_socket`) and, if wanted, on a port of loopback:

    GET  /v2                                          name, version and extensions
    GET  /v2/health/live, /v2/health/ready            200 or 503
    GET  /v2/models/NAME[/versions/V]                 metadata
    GET  /v2/models/NAME[/versions/V]/ready           200 or 503
    POST /v2/models/NAME[/versions/V]/infer           see `skerry.inference.oip`

For `skerry.Model`, on the unix socket alone, because whoever may say this can roll a model back:

    POST /skerry/v1/observations
        Body: one line of JSON, `{"manifest": "64 hexadecimal digits of SHA-256", "width": 20, "dropped": 0}`, a
        newline, then rows of `width` little-endian float64 each: `features..., prediction, confidence, truth,
        latency_us` (`agent.local.serving_port.Rows`; at most 1 MiB of rows). `dropped` is optional.
        204: counted. 409: this manifest is not what is committed here; forget the rows. 400: malformed, or not of the
        width that the manifest's monitor has; forget the rows. 503 and no answer: try again later.
    POST /skerry/v1/crashed
        Body: JSON, `{"manifest": "SHA-256 ...", "reason": "one line, at most 500 characters"}`.
        204: heard, and the marker may be removed. 400: malformed; remove it too.

Every refusal is `{"error": "one line"}`. What a model answered names its manifest in the header `Skerry-Manifest`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from agent.local.answers import Answers, key_of
from agent.local.listener import Listener
from agent.local.local_body import Bounds, Refusal
from agent.local.local_http import Request
from agent.local.serving_port import Models, Reply, Rows, Served
from skerry import __version__
from skerry.errors import Rejected, SkerryError
from skerry.inference.datatypes import datatype_of
from skerry.inference.local_socket import SOCKET
from skerry.wire import codec
from skerry.wire.manifest import TensorSpec

MAX_REASON = 500
_LINE_BYTES = 4096
_HEADER_LENGTH = "inference-header-content-length"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<verb>|/ready|/infer)")


@dataclass(frozen=True, slots=True)
class ObservationsHead:
    """The first line of a body of observations."""

    manifest: str
    width: int
    dropped: int = 0

    def __post_init__(self) -> None:
        _check_digest(self.manifest)


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What a program says that found the marker of one that died inside a model."""

    manifest: str
    reason: str

    def __post_init__(self) -> None:
        _check_digest(self.manifest)
        if len(self.reason) > MAX_REASON:
            raise ValueError(f"reason: expected at most {MAX_REASON} characters, got {len(self.reason)}")


def parse_serve(serve: str) -> int | None:
    """Return the port that `serve` in the configuration asks for beside the unix socket, None for `unix`.

    Raises:
        ValueError: it is neither `unix` nor HOST:PORT of loopback.
    """
    if serve == "unix":
        return None
    host, _, port = serve.rpartition(":")
    # digits alone: `int` would also take signs, spaces and underscores
    if host not in ("127.0.0.1", "localhost") or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise ValueError(f"serve: expected unix, off or 127.0.0.1:PORT, got {serve!r}; put a proxy before the network")
    return int(port)


class Face:
    """Answers requests with what `models` say; `start` listens, `answer` is the whole of its logic.

        face = Face(engine)
        face.start(folder.path / SOCKET, port=parse_serve(config.serve))

    `keep_bytes` is the room for results of equal inputs; 0 keeps none.
    """

    def __init__(self, models: Models, *, keep_bytes: int = 0, bounds: Bounds | None = None) -> None:
        self._models = models
        self._answers = Answers(keep_bytes) if keep_bytes else None
        self._listener = Listener(self.answer, bounds=bounds)

    def start(self, socket_path: Path | None, *, port: int | None = None) -> int | None:
        """Listen on a unix socket and, if there is a `port`, on that of 127.0.0.1 (0: any); return which.

        Without a `socket_path` programs can ask, and `skerry.Model` has nobody to tell.

        Raises:
            Broken: the path or the port cannot be had.
        """
        try:
            if socket_path is not None:
                self._listener.listen_unix(socket_path)
            taken = None if port is None else self._listener.listen_loopback(port)
        except SkerryError:
            self._listener.stop()
            raise
        self._listener.start()
        return taken

    def stop(self) -> None:
        """Stop listening, after requests under way were answered."""
        self._listener.stop()

    def answer(self, request: Request) -> Reply:
        """Answer one request; raises as `Models` does, and `Refusal` where a status says more than 400."""
        path = request.path.partition("?")[0].rstrip("/")
        model = _MODEL.fullmatch(path)
        if model is not None:
            version = unquote(model["version"] or "")
            return self._answer_model(request, unquote(model["name"]), version, verb=model["verb"])
        if path == "/v2":
            _expect(request, "GET")
            return _json(200, {"name": "skerry", "version": __version__, "extensions": ["binary_tensor_data"]})
        if path == "/v2/health/live":
            _expect(request, "GET")
            return _json(200, {"live": True})
        if path == "/v2/health/ready":
            _expect(request, "GET")
            served = self._models.serving()
            return _readiness({"ready": bool(served) and all(each.ready for each in served)})
        if path == "/skerry/v1/observations":
            _expect_private(request)
            return self._observe(request.body)
        if path == "/skerry/v1/crashed":
            _expect_private(request)
            report = codec.decode(CrashReport, request.body, limit=_LINE_BYTES)
            self._models.crashed(report.manifest, reason=report.reason)
            return Reply(204, {}, b"")
        raise Refusal(404, f"expected a path of the Open Inference Protocol v2, got {request.path[:100]!r}")

    def _answer_model(self, request: Request, name: str, version: str, *, verb: str) -> Reply:
        _expect(request, "POST" if verb == "/infer" else "GET")
        served = _find(self._models.serving(), name, version)
        if verb == "/infer":
            return self._infer(served, version, request)
        if verb == "/ready":
            return _readiness({"name": name, "ready": served.ready})
        return _json(200, _metadata(served, self._models.serving()), manifest=served.manifest)

    def _infer(self, served: Served, version: str, request: Request) -> Reply:
        head = {}
        length = request.headers.get(_HEADER_LENGTH)
        if length is not None:
            head[_HEADER_LENGTH] = length
        if self._answers is None or served.stateful:
            return _named(self._models.infer(served.name, version, head=head, body=request.body))
        key = key_of(served.manifest, head=head, body=request.body)
        kept = self._answers.get(key)
        # an input that comes again is one more observation of the world; a model on trial has to be run
        if kept is not None and self._models.observe(kept.manifest, kept.rows):
            return _named(kept)
        reply = self._models.infer(served.name, version, head=head, body=request.body)
        # the models may have been swapped meanwhile
        if reply.status == 200 and reply.manifest == served.manifest:
            self._answers.put(key, reply)
        return _named(reply)

    def _observe(self, body: bytes) -> Reply:
        # found before it is cut off: the line of a body without one would be the whole of it
        end = body.find(b"\n", 0, _LINE_BYTES)
        if end < 0:
            raise Rejected("observations: expected a line of JSON and then rows, got no line's end")
        head = codec.decode(ObservationsHead, body[:end])
        try:
            rows = Rows(width=head.width, data=body[end + 1 :], dropped=head.dropped)
        except ValueError as error:
            raise Rejected(str(error)) from error
        if not self._models.observe(head.manifest, rows):
            raise Refusal(409, f"expected the manifest that is committed here, got {head.manifest}: open it anew")
        return Reply(204, {}, b"")


def _find(served: Sequence[Served], name: str, version: str) -> Served:
    for each in served:
        if each.name == name and version in ("", each.version):
            return each
    there = ", ".join(f"{each.name} {each.version}" for each in served) or "none"
    raise Refusal(404, f"expected a model that is here ({there[:200]}), got {name[:60]!r} {version[:20]}".rstrip())


def _metadata(served: Served, everything: Sequence[Served]) -> dict[str, Any]:
    return {
        "name": served.name,
        "versions": sorted({each.version for each in everything if each.name == served.name} | {served.version}),
        "platform": served.runtime,
        "inputs": [_tensor(spec) for spec in served.inputs],
        "outputs": [_tensor(spec) for spec in served.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": list(spec.shape)}


def _expect(request: Request, method: str) -> None:
    # who may GET may ask for the head alone (RFC 9110, 9.1)
    allowed = ("GET", "HEAD") if method == "GET" else (method,)
    if request.method not in allowed:
        problem = f"expected {method} {request.path[:100]}, got {request.method[:20]}"
        raise Refusal(405, problem, allow=", ".join(allowed))


def _expect_private(request: Request) -> None:
    _expect(request, "POST")
    # a port of loopback is open to every user of this machine, the socket to those whom its mode lets in
    if not request.is_private:
        raise Refusal(403, f"expected {request.path} over the unix socket, got it over TCP: use {SOCKET}")


def _check_digest(manifest: str) -> None:
    if not _DIGEST.fullmatch(manifest):
        raise ValueError(f"manifest: expected a SHA-256 of 64 hexadecimal digits, got {manifest[:80]!r}")


def _readiness(fields: Mapping[str, Any]) -> Reply:
    return _json(200 if fields["ready"] else 503, fields)


def _json(status: int, fields: Mapping[str, Any], *, manifest: str = "") -> Reply:
    body = json.dumps(fields, separators=(",", ":")).encode()
    return _named(Reply(status, {"content-type": "application/json"}, body, manifest))


def _named(reply: Reply) -> Reply:
    """Return a reply that says in its head which manifest made it."""
    if not reply.manifest:
        return reply
    headers = {**reply.headers, "skerry-manifest": reply.manifest}
    return Reply(reply.status, headers, reply.body, reply.manifest, reply.rows)
