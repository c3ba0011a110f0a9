"""The Open Inference Protocol v2 on the side that holds the arrays: a request in, the model run, a response out.

    answer_request(signature, run, name="watch", version="7", head=head, body=body) -> Answer(status, headers, body)
    Codec(signature, name="watch", version="7").answer(run, head=head, body=body)   # the same, for many requests

- `signature` is what `Described.signature()` says of the loaded session, or a manifest: anything with `inputs` and
  `outputs` of name, shape (-1 where open) and dtype. A dimension that is not open is held to.
- `run` takes arrays by input name and returns arrays by output name. It is called once per request, after everything
  was checked, with arrays that are aligned, contiguous, of the model's own dtypes and owned by nobody else. Whoever
  calls wraps the session in it to time and count.
- `head` has the request's header `inference-header-content-length` (lower case) when it had one, and nothing else that
  is looked at; `body` is the request's body, already free of content codings.
- A `Rejected`, of ours or of `run`, becomes status 400 and `{"error": ...}`. Anything else that `run` raises passes.
- `Answer.headers` has `content-type` and, with binary outputs, `inference-header-content-length`.

The specification: https://github.com/kserve/open-inference-protocol (REST), and the binary tensor data extension of
https://github.com/triton-inference-server/server (docs/protocol/extension_binary_data.md). Of the other extensions none
is taken: shared memory, sequences and classification change what an answer means, so they are refused, not ignored.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from skerry.errors import Rejected
from skerry.inference.reading import HEADER_LENGTH, Form, SignatureLike, Wanted, read_places, read_request
from skerry.inference.tensors import datatype_of_array, to_binary, to_json

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]

MAX_ANSWER_BYTES = 64 << 20
_KEPT_BYTES = 64 << 10
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class Answer(NamedTuple):
    """An HTTP answer: headers have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Read(NamedTuple):
    """What stood before the tensors of a request, and what it said; all of its tensors were behind it."""

    text: bytes
    size: int
    form: Form


class _Written(NamedTuple):
    """What stood before the tensors of an answer, and for which form and tensors it is right."""

    form: Form
    tensors: "list[tuple[np.dtype[Any], tuple[int, ...], int]]"
    text: bytes


class Codec:
    """Answers the requests for one model, in one thread.

    A program that sends tensors as bytes writes the same JSON before them, request after request. The last one, and
    that of its answer, are kept with what they said, and are not read, checked or written again while they are equal.
    """

    def __init__(self, signature: SignatureLike, *, name: str, version: str) -> None:
        self._signature = signature
        self._name = name
        self._version = version
        self._read: _Read | None = None
        self._written: _Written | None = None

    def answer(self, run: "Callable[[Arrays], Arrays]", *, head: Mapping[str, str], body: bytes | memoryview) -> Answer:
        """Answer one request; the module's docstring says what the arguments are."""
        try:
            form, arrays = self._understand(head, memoryview(body))
            return self._write(form, run(arrays))
        except Rejected as error:
            return refusal(400, str(error))

    def _understand(self, head: Mapping[str, str], body: memoryview) -> "tuple[Form, Arrays]":
        last = self._read
        if last is not None and last.size == len(body) and head.get(HEADER_LENGTH) == str(len(last.text)):
            length = len(last.text)
            if body[:length] == last.text:
                return last.form, read_places(last.form.places, body[length:])
        request = read_request(self._signature, head=head, body=body)
        places = request.form.places
        if places and len(places) == len(request.arrays) and len(body) - places[-1].end <= _KEPT_BYTES:
            text = bytes(body[: len(body) - places[-1].end])
            self._read = _Read(text, len(body), request.form)
        return request.form, request.arrays

    def _write(self, form: Form, arrays: "Arrays") -> Answer:
        """Write the wanted ones of a model's outputs; raises `Rejected` for what cannot be written so."""
        wanted = [(each, arrays[each.name]) for each in form.wanted]
        if sum(array.nbytes for _, array in wanted) > MAX_ANSWER_BYTES:
            raise Rejected(f"outputs: expected at most {MAX_ANSWER_BYTES} bytes, got more: ask for fewer rows at once")
        blobs = [to_binary(array) for each, array in wanted if each.binary]
        if len(blobs) < len(wanted):
            text = self._text(form, wanted, blobs)
        else:
            tensors = [(array.dtype, array.shape, len(blob)) for (_, array), blob in zip(wanted, blobs, strict=True)]
            last = self._written
            if last is None or last.form is not form or last.tensors != tensors:
                last = self._written = _Written(form, tensors, self._text(form, wanted, blobs))
            text = last.text
        size = len(text) + sum(map(len, blobs))
        if size > MAX_ANSWER_BYTES:
            raise Rejected(
                f"outputs: expected at most {MAX_ANSWER_BYTES} bytes, got {size}: ask for fewer rows at once"
            )
        if not blobs:
            return Answer(200, {"content-type": "application/json"}, text)
        headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
        return Answer(200, headers, b"".join((text, *blobs)))

    def _text(self, form: Form, wanted: "list[tuple[Wanted, np.ndarray[Any, Any]]]", blobs: list[bytes]) -> bytes:
        sizes = iter(map(len, blobs))
        outputs = []
        for each, array in wanted:
            output: dict[str, Any] = {
                "name": each.name,
                "datatype": datatype_of_array(array),
                "shape": list(array.shape),
            }
            if each.binary:
                output["parameters"] = {"binary_data_size": next(sizes)}
            else:
                output["data"] = to_json(array, what=f"output {each.name}")
            outputs.append(output)
        tree: dict[str, Any] = {"model_name": self._name, "model_version": self._version, "outputs": outputs}
        if form.id:
            tree["id"] = form.id
        if form.parameters:
            tree["parameters"] = form.parameters
        return _ENCODER.encode(tree).encode()


def answer_request(
    signature: SignatureLike,
    run: "Callable[[Arrays], Arrays]",
    *,
    name: str,
    version: str,
    head: Mapping[str, str],
    body: bytes | memoryview,
) -> Answer:
    """Answer one request; the module's docstring says what the arguments are."""
    return Codec(signature, name=name, version=version).answer(run, head=head, body=body)


def refusal(status: int, problem: str) -> Answer:
    """Return an error as the protocol writes it."""
    return Answer(status, {"content-type": "application/json"}, json.dumps({"error": problem}).encode())
