"""What a device may fetch over HTTPS: ranges of the sealed blobs that it is assigned, and nothing else."""

import asyncio
import hashlib
import random
from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest

from control_plane.api.app import create_app
from control_plane.schema.devices import DeviceToken
from skerry.wire.manifest import CHUNK_BYTES, SEALED_CHUNK_BYTES
from tests.unit.trust.delivering import FIRST, World


@pytest.fixture
def fetch(world: World) -> Callable[..., httpx.Response]:
    """Return a function that asks for a blob as the device does."""
    with world.plane.sessions.begin() as session:
        digest = hashlib.sha256(b"let me in").hexdigest()
        session.add(DeviceToken(sha256=digest, device="gull", expires=world.plane.clock() + timedelta(hours=1)))
    transport = httpx.ASGITransport(create_app(world.plane))

    async def get(path: str, headers: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="https://server") as client:
            return await client.get(path, headers=headers)

    def ask(sha256: str, span: str = "", *, shown: str = "let me in") -> httpx.Response:
        headers = {"Authorization": f"Bearer {shown}", **({"Range": span} if span else {})}
        return asyncio.run(get(f"/v1/blob/{sha256}", headers))

    return ask


def test_ranges_are_the_sealed_chunks_of_what_the_asker_is_assigned(
    world: World, fetch: Callable[..., httpx.Response]
) -> None:
    world.release(1, FIRST)
    name = world.assign(1).files["model.onnx"]
    start, end = SEALED_CHUNK_BYTES, 3 * SEALED_CHUNK_BYTES - 1

    answer = fetch(name, f"bytes={start}-{end}")

    assert answer.status_code == 206
    assert answer.content == world.broker.blob(name)[start : end + 1]
    assert answer.headers["content-range"] == f"bytes {start}-{end}/{5 * SEALED_CHUNK_BYTES}"


def test_an_answer_is_bounded_and_the_last_range_ends_with_the_blob(
    world: World, fetch: Callable[..., httpx.Response]
) -> None:
    world.release(1, random.Random(8).randbytes(20 * CHUNK_BYTES))
    name = world.assign(1).files["model.onnx"]

    whole, end = fetch(name), fetch(name, f"bytes={19 * SEALED_CHUNK_BYTES}-")

    assert len(whole.content) == 16 * SEALED_CHUNK_BYTES
    assert len(end.content) == SEALED_CHUNK_BYTES


@pytest.mark.parametrize("span", ["bytes=99999999-", "bytes=5-4", "bytes=0-1,5-6", "bytes=-5", "chunks=1-2"])
def test_a_range_that_is_none_is_refused_with_the_length(
    world: World, fetch: Callable[..., httpx.Response], span: str
) -> None:
    world.release(1, FIRST)
    answer = fetch(world.assign(1).files["model.onnx"], span)

    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{5 * SEALED_CHUNK_BYTES}"


def test_nothing_in_the_clear_and_nothing_unassigned_is_served(
    world: World, fetch: Callable[..., httpx.Response]
) -> None:
    world.release(1, FIRST)
    sealed = world.broker.chunks()
    assert {fetch(sha256).status_code for sha256 in sealed} == {404}

    world.assign(1)

    assert {fetch(sha256).status_code for sha256 in sealed} == {206}
    assert fetch(hashlib.sha256(FIRST).hexdigest()).status_code == 404
    assert fetch("../operator.token").status_code == 404
    assert fetch(next(iter(sealed)), shown="let me in too").status_code == 401
