"""The face that tests of it ask."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serving.fake import FakeModels
from tests.integration.serving.served import Served


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    faces: list[Served] = []

    def make(models: FakeModels | None = None, **settings: Any) -> Served:
        faces.append(Served(models or FakeModels(), tmp_path / f"serve{len(faces)}.sock", **settings))
        return faces[-1]

    yield make
    for each in faces:
        each.face.stop()
