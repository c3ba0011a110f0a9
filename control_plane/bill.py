"""Writes the bill of materials of a build: CycloneDX 1.6 as JSON, a machine-learning model with its card.

The component is the artifact, with its files; data sets and tools are components that it depends on; the model card
has the parameters and the measured figures. The bytes depend on the database's rows alone.

`cyclonedx-python-lib` writes all but the card, which it does not know yet: the card is put into its JSON.
https://cyclonedx.org/docs/1.6/json/#metadata_component_modelCard
"""

import json
import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from control_plane.making import Making, Part

FILE = "bom.cdx.json"
_OURS = ("skerry", "revision")
_FIGURES = ("agreement", "size_bytes", "ram_bytes", "latency_p50_us", "latency_p99_us")


def bill_of_materials(making: Making) -> bytes:
    """Return the bill of materials of a build."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6

    artifact = _artifact(making)
    data = [_data(part) for part in making.parts]
    tools = _tools(making)
    bom = Bom(
        # a name of the content: the same build has the same serial number
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"urn:skerry:manifest:{making.files['manifest.json']}"),
        components=[*data, *tools],
        metadata=BomMetaData(
            component=artifact,
            timestamp=datetime.fromisoformat(making.created),
            tools=ToolRepository(components=[_skerry(making)]),
        ),
    )
    bom.register_dependency(artifact, [*data, *tools])
    tree = json.loads(JsonV1Dot6(bom).output_as_string())
    tree["metadata"]["component"]["modelCard"] = _card(making)
    return json.dumps(tree, sort_keys=True, indent=1).encode()


def _artifact(making: Making) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    files = [
        Component(
            name=name, type=ComponentType.FILE, bom_ref=f"file:{making.path(name)}", hashes=[_hash(making.files[name])]
        )
        for name in sorted(making.files)
    ]
    return Component(
        name=making.model,
        version=str(making.version),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{making.path('')}",
        description=f"built for {making.profile}; the hash is of its manifest, which names every file by digest",
        hashes=[_hash(making.files["manifest.json"])],
        components=files,
    )


def _data(part: Part) -> Any:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    rows = [] if part.rows is None else [Property(name="skerry:rows", value=str(part.rows))]
    return Component(
        name=part.name, type=ComponentType.DATA, bom_ref=_data_ref(part), hashes=[_hash(part.sha256)], properties=rows
    )


def _data_ref(part: Part) -> str:
    return f"data:{part.sha256}"


def _tools(making: Making) -> list[Any]:
    """What trained and what converted: one component for each version, also where the two differ."""
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    trained = {name: text for name, text in making.lineage.items() if not name.endswith("_sha256")}
    pairs = sorted({*_pairs(trained), *_pairs(making.tools)})
    return [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"pkg:pypi/{name}@{version}",
            # python itself is no package of the index
            purl=None if name == "python" else PackageURL("pypi", None, name, version),
            scope=ComponentScope.EXCLUDED,  # made with, not shipped with
        )
        for name, version in pairs
    ]


def _pairs(versions: dict[str, str]) -> Iterable[tuple[str, str]]:
    return ((name, text) for name, text in versions.items() if name not in _OURS)


def _skerry(making: Making) -> Any:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    revision = making.tools.get("revision", "")
    return Component(
        name="skerry",
        version=making.tools.get("skerry") or None,
        type=ComponentType.APPLICATION,
        bom_ref="tool:skerry",
        properties=[Property(name="skerry:revision", value=revision)] if revision else [],
    )


def _hash(sha256: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=sha256)


def _card(making: Making) -> dict[str, Any]:
    recipe = making.recipe
    parameters: dict[str, Any] = {"datasets": [{"ref": _data_ref(part)} for part in making.parts]}
    if kind := recipe.get("kind"):
        parameters["architectureFamily"] = str(kind)
    if "accuracy" in making.metrics:
        # a label per row was learnt, whatever the network looks like
        parameters |= {"approach": {"type": "supervised"}, "task": "classification"}
    card: dict[str, Any] = {
        "modelParameters": parameters,
        "properties": [
            {"name": f"skerry:recipe:{key}", "value": json.dumps(recipe[key], sort_keys=True)} for key in sorted(recipe)
        ],
    }
    if figures := [*_held_out(making), *_gated(making)]:
        card["quantitativeAnalysis"] = {"performanceMetrics": figures}
    return card


def _held_out(making: Making) -> list[dict[str, str]]:
    """The figures of the float model, before it was converted."""
    metrics = making.metrics
    whole = [("accuracy", "held out, before conversion"), ("accuracy_learnt", "learnt, before conversion")]
    shown = [
        _figure(name.partition("_")[0], metrics[name], where) for name, where in whole if metrics.get(name) is not None
    ]
    by_group = metrics.get("accuracy_by_group", {})
    return shown + [_figure("accuracy", by_group[key], f"group {key}, before conversion") for key in sorted(by_group)]


def _gated(making: Making) -> list[dict[str, str]]:
    """The figures of the artifact itself, as the gate measured them on the profile's runtime."""
    chosen = making.chosen
    where = f"{making.profile}, held out"
    shown = [] if chosen.get("accuracy") is None else [_figure("accuracy", chosen["accuracy"], where)]
    return shown + [_figure(name, chosen[name], where) for name in _FIGURES if chosen.get(name) is not None]


def _figure(name: str, value: Any, where: str) -> dict[str, str]:
    return {"type": name, "value": f"{value:.6g}" if isinstance(value, float) else str(value), "slice": where}
