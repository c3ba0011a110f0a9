"""What another project's client says of a server: run by itself, because tritonclient brings gevent into its process.

    python triton_story.py PORT MODEL            (a model of one FP32 input and FP32 outputs, or the fake's)

Prints one JSON object; the test that runs it judges.
"""

import json
import sys
from typing import Any

import numpy as np
from tritonclient.http import (  # type: ignore[import-untyped]
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
)
from tritonclient.utils import (  # type: ignore[import-untyped]
    InferenceServerException,
    np_to_triton_dtype,
    triton_to_np_dtype,
)


def inputs_of(metadata: dict[str, Any], *, batch: int, binary: bool) -> list[Any]:
    """Return inputs as the metadata asks for them, open dimensions as a batch, of ones."""
    made = []
    for spec in metadata["inputs"]:
        shape = [batch if size == -1 else size for size in spec["shape"]]
        array = np.ones(shape, dtype=triton_to_np_dtype(spec["datatype"]))
        made.append(InferInput(spec["name"], shape, np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array, binary_data=binary)
    return made


def read(result: Any) -> dict[str, Any]:
    response = result.get_response()
    arrays = {output["name"]: result.as_numpy(output["name"]) for output in response["outputs"]}
    return {
        "version": response["model_version"],
        "id": response.get("id", ""),
        "outputs": {
            name: [str(array.dtype), list(array.shape), [_text(each) for each in array.ravel()[:4]]]
            for name, array in arrays.items()
        },
    }


def _text(element: Any) -> str:
    # strings come as bytes from binary tensors, and as text from JSON
    return element.decode() if isinstance(element, bytes) else str(element)


def refusal(what: Any) -> list[str]:
    try:
        what()
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["none", ""]


def tell(port: str, model: str) -> dict[str, Any]:
    client = InferenceServerClient(f"127.0.0.1:{port}", concurrency=4)
    metadata = client.get_model_metadata(model)
    names = [output["name"] for output in metadata["outputs"]]
    text, binary = (inputs_of(metadata, batch=1, binary=each) for each in (False, True))
    in_turn = [InferRequestedOutput(name, binary_data=not place % 2) for place, name in enumerate(names)]
    wrong = InferInput(metadata["inputs"][0]["name"], [1, 1], "INT8")
    wrong.set_data_from_numpy(np.ones((1, 1), np.int8))
    story = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata(),
        "model_ready": client.is_model_ready(model),
        "version_ready": client.is_model_ready(model, metadata["versions"][0]),
        "other_ready": client.is_model_ready("nobody"),
        "metadata": metadata,
        "json": read(client.infer(model, text, outputs=[InferRequestedOutput(n, binary_data=False) for n in names])),
        "binary": read(client.infer(model, binary)),
        "mixed": read(client.infer(model, [*text[:1], *binary[1:]], outputs=in_turn, request_id="r-1")),
        "one": read(client.infer(model, binary, outputs=in_turn[-1:], model_version=metadata["versions"][0])),
        "gzip": read(client.infer(model, binary, request_compression_algorithm="gzip")),
        "deflate": read(
            client.infer(model, text, request_compression_algorithm="deflate", response_compression_algorithm="deflate")
        ),
        "async": [read(each.get_result()) for each in [client.async_infer(model, binary) for _ in range(20)]],
        "errors": {
            "model": refusal(lambda: client.infer("nobody", binary)),
            "version": refusal(lambda: client.infer(model, binary, model_version="999")),
            "datatype": refusal(lambda: client.infer(model, [wrong])),
            "output": refusal(lambda: client.infer(model, binary, outputs=[InferRequestedOutput("nothing")])),
            "classes": refusal(
                lambda: client.infer(model, binary, outputs=[InferRequestedOutput(names[0], class_count=2)])
            ),
            "sequence": refusal(lambda: client.infer(model, binary, sequence_id=3, sequence_start=True)),
            "extension": refusal(lambda: client.get_model_config(model)),
        },
    }
    if all(spec["shape"][0] == -1 for spec in metadata["inputs"][:1]):
        story["batch"] = read(client.infer(model, inputs_of(metadata, batch=5, binary=True)))
    client.close()
    return story


if __name__ == "__main__":
    sys.stdout.write(json.dumps(tell(*sys.argv[1:])))
