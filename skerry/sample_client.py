"""The endpoints of samples: what may leave devices, and what did. `skerry.client.Client` has them."""

from collections.abc import Iterator, Sequence

from skerry.api import Api, Json, segment

SAMPLES_A_PAGE = 100


class SamplesApi(Api):
    """What a client asks about inputs that leave devices."""

    def model_samples(self, model: str) -> dict[str, Json]:
        """Return which inputs of a model its next release lets leave devices."""
        return self._object("GET", f"/v1/models/{segment(model)}/samples")

    def set_model_samples(
        self, model: str, *, rows_per_window: int = 0, inputs: Sequence[str] = (), max_bytes: int = 0
    ) -> dict[str, Json]:
        """Let so many rows of a window leave devices, with these inputs, from the model's next release on; or none."""
        body: dict[str, Json] = {"rows_per_window": rows_per_window, "inputs": list(inputs), "max_bytes": max_bytes}
        return self._object("PUT", f"/v1/models/{segment(model)}/samples", json=body)

    def device_samples(
        self, name: str, *, model: str = "", version: int | None = None, after: int = -1, most: int = 1000
    ) -> Iterator[dict[str, Json]]:
        """Yield `most` of a device's stored samples, oldest first; tensors are in base64. No other is read."""
        asked: dict[str, Json] = {"model": model} | ({} if version is None else {"version": version})
        while most > 0:
            asked |= {"after": after, "limit": min(most, SAMPLES_A_PAGE)}
            rows = self._list("GET", f"/v1/devices/{segment(name)}/samples", params=asked)
            if not rows:
                return
            yield from rows
            after, most = rows[-1]["id"], most - len(rows)

    def list_samples(self, name: str, *, after: int = -1, most: int = 1000) -> dict[str, Json]:
        """Return what is known of up to 1000 of a device's samples without their content, and the limits they have."""
        asked = {"after": after, "limit": most}
        return self._object("GET", f"/v1/devices/{segment(name)}/samples/list", params=asked)

    def delete_samples(self, name: str, numbers: Sequence[int] = (), *, every: bool = False) -> dict[str, Json]:
        """Delete samples of a device for good: those of these numbers, or `every` one, a thousand with each request."""
        body = {"numbers": list(numbers), "every": every}
        gone: dict[str, Json] = {}
        while True:
            said = self._object("POST", f"/v1/devices/{segment(name)}/samples/delete", json=body)
            gone = {
                key: value if key in ("device", "left") else gone.get(key, 0) + value for key, value in said.items()
            }
            if not (every and said.get("left")):
                return gone
