"""The HTTP API of a control plane as a Python client: one method for each thing an operator does.

Answers are the API's JSON as dictionaries and lists. A refusal (problem+json) is `Rejected` with the server's own
line; a server that is not there, too slow or failing is `Unavailable`. Needs `pip install 'skerry[cli]'`.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import quote

from skerry.api import Api, Json
from skerry.delivery import bundle
from skerry.errors import Rejected, Unavailable


class Client(Api):
    """Talk to one control plane.

    Args:
        url: address of the API, such as `http://127.0.0.1:8080`.
        token: the operator's token.
        ca: path of the server's CA certificate (PEM) where `url` is https and the CA is a private one.
        timeout_s: for each request, in seconds.

    Raises:
        Rejected: the address, the token or the CA file cannot be used.
    """

    # -- the server and its trust --

    def health(self) -> dict[str, Json]:
        """Return the server's health; needs no token."""
        return self._object("GET", "/v1/health")

    def online_keys(self) -> dict[str, Json]:
        """Return the public halves of the server's online keys, for the key ceremony."""
        return self._object("GET", "/v1/trust/online-keys")

    def init_trust(self, *, image_root: str, director_root: str, targets: str) -> dict[str, Json]:
        """Hand over the signed first metadata of both repositories; return the anchor's SHA-256."""
        body = {"image_root": image_root, "director_root": director_root, "targets": targets}
        return self._object("POST", "/v1/trust/init", json=body)

    def trust(self) -> dict[str, Json]:
        """Return the versions, expiry and keys of the metadata, and the alarms."""
        return self._object("GET", "/v1/trust")

    def trust_roots(self) -> dict[str, Json]:
        """Return the newest roots and the published targets, as JSON text: what a rotation starts from."""
        return self._object("GET", "/v1/trust/roots")

    def next_online_key(self, role: str) -> dict[str, Json]:
        """Make the next online key of a role (snapshot, timestamp, director); return its public half."""
        return self._object("POST", f"/v1/trust/online-keys/{_segment(role)}")

    def follow_roots(self, *, image_root: str = "", director_root: str = "", targets: str = "") -> dict[str, Json]:
        """Hand in signed next roots, and the published targets where they were signed by new keys."""
        body = {"image_root": image_root, "director_root": director_root, "targets": targets}
        return self._object("POST", "/v1/trust/root", json=body)

    def grant(self, model: str, *, days: int = 30) -> dict[str, Json]:
        """Stage a grant to sign a model's releases online; return what is to be signed offline."""
        return self._object("POST", f"/v1/trust/grants/{_segment(model)}", json={"days": days})

    def withdraw_grant(self, model: str) -> dict[str, Json]:
        """Stage the end of a model's grant; return what is to be signed offline."""
        return self._object("DELETE", f"/v1/trust/grants/{_segment(model)}")

    def renew_targets(self) -> dict[str, Json]:
        """Stage the published targets with a new expiry; return what is to be signed offline."""
        return self._object("POST", "/v1/trust/renewal")

    def sign_staged(self, kind: str, name: str, *, keyid: str, sig: str) -> dict[str, Json]:
        """Add one signature to a staged grant, withdrawal or renewal; the one that meets the threshold publishes it."""
        path = f"/v1/trust/staged/{_segment(kind)}/{_segment(name)}/signatures"
        return self._object("POST", path, json={"keyid": keyid, "sig": sig})

    # -- data, models, builds --

    def profiles(self) -> list[Json]:
        """Return the profiles that the server knows."""
        return self._list("GET", "/v1/profiles")

    def add_data(self, dataset: str, npz: bytes, *, role: str = "train") -> dict[str, Json]:
        """Add a part to a data set; `role` is train or gate."""
        path = f"/v1/datasets/{_segment(dataset)}/parts"
        return self._object("POST", path, params={"role": role}, content=npz)

    def datasets(self) -> list[Json]:
        """Return the data sets with their parts."""
        return self._list("GET", "/v1/datasets")

    def train(self, model: str, *, dataset: str, recipe: Mapping[str, Json]) -> dict[str, Json]:
        """Start training; return the job."""
        body = {"dataset": dataset, "recipe": dict(recipe)}
        return self._object("POST", f"/v1/models/{_segment(model)}/train", json=body)

    def import_model(
        self, model: str, file: bytes, samples: bytes, *, options: Mapping[str, Json] | None = None, dataset: str = ""
    ) -> dict[str, Json]:
        """Start the import of an ONNX or TFLite file with its samples (.npz); return the job.

        `options` may have `labels` and `feature_names` (lists of texts), and `probabilities`, `features` and `boundary`
        (names of tensors) where they cannot be told from the file; `shapes` gives whole shapes of inputs, by name,
        where the file leaves more than the batch open. The labelled windows from the field (role gate) of `dataset`
        gate the version against the one before it.
        """
        import numpy as np

        from skerry.runtimes.arrays import pack

        members = {"model": file, "samples": samples, "options": json.dumps(dict(options or {})).encode()}
        body = pack({name: np.frombuffer(data, dtype=np.uint8) for name, data in members.items()})
        asked = {"dataset": dataset} if dataset else {}
        return self._object("POST", f"/v1/models/{_segment(model)}/import", params=asked, content=body)

    def compile(
        self, model: str, version: int, *, profiles: Sequence[str], budget_s: float | None = None
    ) -> dict[str, Json]:
        """Start compiling for the profiles, within `budget_s` seconds for each of them; return the job."""
        path = f"/v1/models/{_segment(model)}/versions/{version}/compile"
        body: dict[str, Json] = {"profiles": list(profiles)}
        if budget_s is not None:
            body["budget_s"] = budget_s
        return self._object("POST", path, json=body)

    def job(self, job: int) -> dict[str, Json]:
        """Return a job with its log, result and error."""
        return self._object("GET", f"/v1/jobs/{job}")

    def wait_for_job(
        self, job: int, *, on_log: Callable[[str], None] | None = None, timeout_s: float = 3600.0
    ) -> dict[str, Json]:
        """Poll a job until it ends, handing new log lines to `on_log`; return it.

        Raises:
            Rejected: the job failed, with its own reason.
            Unavailable: it did not end within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        printed = 0
        while time.monotonic() < deadline:
            state = self.job(job)
            lines = state["log"].splitlines()
            for line in lines[printed:]:
                if on_log:
                    on_log(line)
            printed = len(lines)
            if state["state"] == "failed":
                raise Rejected(f"job {job}: {state['error']}")
            if state["state"] == "done":
                return state
            time.sleep(0.2)
        raise Unavailable(f"job {job}: expected its end within {timeout_s:g} s; look with: skerry job show {job}")

    def models(self) -> list[Json]:
        """Return all model versions."""
        return self._list("GET", "/v1/models")

    def model(self, model: str, version: int) -> dict[str, Json]:
        """Return one model version with its metrics and builds."""
        return self._object("GET", f"/v1/models/{_segment(model)}/versions/{version}")

    def add_agent_version(self, wheels: bytes, *, profiles: Sequence[str], version: int = 0) -> dict[str, Json]:
        """Keep a zip file of wheels as the next version of the agent itself, or for more profiles of `version`."""
        asked: dict[str, Json] = {"profile": list(profiles), "version": version}
        return self._object("POST", "/v1/agent/versions", params=asked, content=wheels)

    # -- releases and rollouts --

    def create_release(self, model: str, version: int) -> dict[str, Json]:
        """Stage a release of the passed builds of a model version."""
        return self._object("POST", "/v1/releases", json={"model": model, "version": version})

    def releases(self) -> list[Json]:
        """Return all releases."""
        return self._list("GET", "/v1/releases")

    def release(self, name: str) -> dict[str, Json]:
        """Return one release."""
        return self._object("GET", f"/v1/releases/{_segment(name)}")

    def release_payload(self, name: str) -> bytes:
        """Return the bytes that the targets keys sign to approve a release."""
        return self._send("GET", f"/v1/releases/{_segment(name)}/payload").content

    def add_signature(self, name: str, *, keyid: str, sig: str) -> dict[str, Json]:
        """Add one signature to a staged release; it goes live when the threshold is met."""
        path = f"/v1/releases/{_segment(name)}/signatures"
        return self._object("POST", path, json={"keyid": keyid, "sig": sig})

    def release_approval(self, name: str) -> dict[str, Json]:
        """Return what of a release waits for signatures, as a file that can be signed without a network."""
        return self._object("GET", f"/v1/releases/{_segment(name)}/approval")

    def revoke_release(self, name: str) -> dict[str, Json]:
        """Stage the revocation of a release, to be signed like one."""
        return self._object("POST", f"/v1/releases/{_segment(name)}/revoke")

    def release_document(self, name: str, *, profile: str, kind: str) -> dict[str, Json]:
        """Return a document of a build as JSON: its bill of materials (`bom`) or its `provenance`."""
        path = f"/v1/releases/{_segment(name)}/documents/{_segment(profile)}/{_segment(kind)}"
        return self._object("GET", path)

    def model_policy(self, model: str) -> dict[str, Json]:
        """Return who signs the releases of a model."""
        return self._object("GET", f"/v1/models/{_segment(model)}/policy")

    def set_model_policy(self, model: str, policy: str) -> dict[str, Json]:
        """Let the releases of a model be signed by the offline keys (`manual`) or online at once (`automatic`)."""
        return self._object("PUT", f"/v1/models/{_segment(model)}/policy", json={"policy": policy})

    def model_samples(self, model: str) -> dict[str, Json]:
        """Return which inputs of a model its next release lets leave devices."""
        return self._object("GET", f"/v1/models/{_segment(model)}/samples")

    def set_model_samples(
        self, model: str, *, rows_per_window: int = 0, inputs: Sequence[str] = (), max_bytes: int = 0
    ) -> dict[str, Json]:
        """Let so many rows of a window leave devices, with these inputs, from the model's next release on; or none."""
        body: dict[str, Json] = {"rows_per_window": rows_per_window, "inputs": list(inputs), "max_bytes": max_bytes}
        return self._object("PUT", f"/v1/models/{_segment(model)}/samples", json=body)

    def create_rollout(self, release: str, waves: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
        """Start a rollout; each wave has a name and one of devices, share or rest."""
        return self._object("POST", "/v1/rollouts", json={"release": release, "waves": [dict(wave) for wave in waves]})

    def rollouts(self) -> list[Json]:
        """Return all rollouts."""
        return self._list("GET", "/v1/rollouts")

    def rollout(self, rollout: int) -> dict[str, Json]:
        """Return a rollout with its waves and deployments."""
        return self._object("GET", f"/v1/rollouts/{rollout}")

    def cancel_rollout(self, rollout: int) -> dict[str, Json]:
        """Cancel a rollout: no further device is assigned."""
        return self._object("POST", f"/v1/rollouts/{rollout}/cancel")

    def create_bundle(self, device: str, release: str, *, request: str = "", days: int = 14) -> bytes:
        """Assign a release to a device and return the offline bundle that installs it within so many days.

        `request` is the text that `skerry-agent request` wrote, for the first install of a device.
        """
        body = {"device": device, "release": release, "request": request, "days": days}
        return self._send("POST", "/v1/bundles", json=body, limit=bundle.MAX_BYTES).content

    def publications(self) -> list[Json]:
        """Return what the control plane sent to the broker, in bytes by release."""
        return self._list("GET", "/v1/publications")

    # -- the fleet --

    def invite(
        self,
        *,
        profile: str,
        name: str = "",
        group: str = "default",
        uses: int = 1,
        ttl_s: int = 86400,
        approve: str = "",
    ) -> dict[str, Json]:
        """Make a claim token; return its join string. `approve` is automatic, pending, or empty: the group's rule."""
        body = {"profile": profile, "name": name, "group": group, "uses": uses, "ttl_s": ttl_s, "approve": approve}
        return self._object("POST", "/v1/devices/invite", json=body)

    def claims(self) -> list[Json]:
        """Return the devices that wait for an operator."""
        return self._list("GET", "/v1/claims")

    def accept(self, device: str) -> dict[str, Json]:
        """Enrol a device that waits."""
        return self._object("POST", f"/v1/claims/{_segment(device)}/accept")

    def reject(self, device: str) -> dict[str, Json]:
        """Turn a device that waits away."""
        return self._object("POST", f"/v1/claims/{_segment(device)}/reject")

    def create_device(self, name: str, *, profile: str, group: str = "default") -> dict[str, Json]:
        """Name a device that is installed from a file."""
        return self._object("POST", "/v1/devices", json={"name": name, "profile": profile, "group": group})

    def add_component(self, device: str, model: str) -> dict[str, Json]:
        """Let a device run a model beside what it runs; releases of that model go there from then on."""
        return self._object("POST", f"/v1/devices/{_segment(device)}/components", json={"model": model})

    def remove_component(self, device: str, name: str) -> dict[str, Json]:
        """Take a model away that a device runs beside its own."""
        return self._object("DELETE", f"/v1/devices/{_segment(device)}/components/{_segment(name)}")

    def revoke(self, device: str) -> dict[str, Json]:
        """End a device's identity at once; return what was done."""
        return self._object("POST", f"/v1/devices/{_segment(device)}/revoke")

    def decommission(self, device: str, *, now: bool = False) -> dict[str, Json]:
        """Order a device to wipe itself; with `now`, do not wait for it to say so."""
        return self._object("POST", f"/v1/devices/{_segment(device)}/decommission", json={"now": now})

    def groups(self) -> list[Json]:
        """Return the groups that have a rule or a device."""
        return self._list("GET", "/v1/groups")

    def set_group(
        self, name: str, *, approve: str | None = None, refuse_automatic: bool | None = None
    ) -> dict[str, Json]:
        """Set the rules of a group that are given."""
        body = {"approve": approve, "refuse_automatic": refuse_automatic}
        return self._object("PUT", f"/v1/groups/{_segment(name)}", json=body)

    def configure_group(self, name: str, changes: Mapping[str, str]) -> dict[str, Json]:
        """Set keys of the desired configuration of a group's devices; an empty value takes a key away."""
        return self._object("PUT", f"/v1/groups/{_segment(name)}/config", json={"set": dict(changes)})

    def configure_device(self, name: str, changes: Mapping[str, str]) -> dict[str, Json]:
        """Set keys of the desired configuration of one device, over those of its group."""
        return self._object("PUT", f"/v1/devices/{_segment(name)}/config", json={"set": dict(changes)})

    def device_config(self, name: str) -> dict[str, Json]:
        """Return what a device is told to keep to, and which version of it the device reports."""
        return self._object("GET", f"/v1/devices/{_segment(name)}/config")

    def ask_device(
        self, name: str, verb: str, *, args: Mapping[str, str] | None = None, expires_s: int = 3600
    ) -> dict[str, Json]:
        """Ask a device for something of its allow-list (`skerry.wire.requests`); return the request with its id."""
        body = {"verb": verb, "args": dict(args or {}), "expires_s": expires_s}
        return self._object("POST", f"/v1/devices/{_segment(name)}/requests", json=body)

    def device_requests(self, name: str) -> list[Json]:
        """Return what a device was asked, newest first, without the results."""
        return self._list("GET", f"/v1/devices/{_segment(name)}/requests")

    def device_request(self, name: str, request: str) -> dict[str, Json]:
        """Return one request to a device, with its result."""
        return self._object("GET", f"/v1/devices/{_segment(name)}/requests/{_segment(request)}")

    def device_samples(
        self, name: str, *, model: str = "", version: int | None = None, after: int = -1
    ) -> Iterator[dict[str, Json]]:
        """Yield a device's stored samples, page by page, oldest first; tensors are in base64."""
        asked: dict[str, Json] = {"model": model} | ({} if version is None else {"version": version})
        while rows := self._list("GET", f"/v1/devices/{_segment(name)}/samples", params={**asked, "after": after}):
            yield from rows
            after = rows[-1]["id"]

    def list_samples(self, name: str, *, after: int = -1) -> dict[str, Json]:
        """Return what is known of up to 1000 of a device's samples without their content, and the limits they have."""
        return self._object("GET", f"/v1/devices/{_segment(name)}/samples/list", params={"after": after})

    def delete_samples(self, name: str, numbers: Sequence[int] = (), *, every: bool = False) -> dict[str, Json]:
        """Delete samples of a device for good: those of these numbers, or `every` one."""
        body = {"numbers": list(numbers), "every": every}
        return self._object("POST", f"/v1/devices/{_segment(name)}/samples/delete", json=body)

    def alarms(self, *, device: str = "", cleared: bool = False) -> list[Json]:
        """Return the alarms of devices that stand, newest first; with `cleared` all of them."""
        return self._list("GET", "/v1/alarms", params={"device": device, "cleared": cleared})

    def acknowledge_alarm(self, number: int) -> dict[str, Json]:
        """Clear an alarm that was seen to."""
        return self._object("POST", f"/v1/alarms/{number}/acknowledge")

    def devices(self) -> list[Json]:
        """Return all devices."""
        return self._list("GET", "/v1/devices")

    def device(self, name: str) -> dict[str, Json]:
        """Return one device."""
        return self._object("GET", f"/v1/devices/{_segment(name)}")

    def windows(self, *, device: str = "", after: int = -1) -> Iterator[dict[str, Json]]:
        """Yield every merged window (without its tables), of one device or of all."""
        limit = 1000
        while True:
            rows = self._list("GET", "/v1/windows", params={"device": device, "after": after, "limit": limit})
            yield from rows
            if len(rows) < limit:
                return
            after = rows[-1]["id"]

    def outbox(self) -> list[Json]:
        """Return, by device and epoch, what was merged, repeated, in conflict, and given up."""
        return self._list("GET", "/v1/outbox")

    def drift(self) -> dict[str, Json]:
        """Return the findings, and the current evidence of each device and of the fleet."""
        return self._object("GET", "/v1/drift")

    def events(self, *, after: int = 0) -> list[Json]:
        """Return the timeline after an event's id."""
        return self._list("GET", "/v1/events", params={"after": after})


def _segment(name: str) -> str:
    """One segment of a path, whatever is in the name: bytes of the command line that are no text name nothing."""
    return quote(name, safe="", errors="replace")
