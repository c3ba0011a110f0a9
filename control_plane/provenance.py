"""Writes the provenance of a build: an in-toto Statement v1 with a SLSA provenance v1 predicate, as plain JSON.

It says which files came out (each a subject with its digest), and what they were made from: data, recipe, code, tools.
The bytes depend on the database's rows alone. Signed it is by being a target: the approval of the release covers it.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance
"""

import json
from typing import Any

from control_plane.making import Making

FILE = "provenance.intoto.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:skerry:compile:1"
BUILDER = "urn:skerry:control-plane"
_GIT_HASH = 40


def provenance(making: Making) -> bytes:
    """Return the provenance of a build."""
    statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": making.path(name), "digest": {"sha256": sha256}} for name, sha256 in sorted(making.files.items())
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "model": making.model,
                    "version": making.version,
                    "profile": making.profile,
                    "recipe": making.recipe,
                },
                "internalParameters": {
                    "chosen": making.precision,
                    "candidateRecipe": making.chosen.get("recipe", {}),
                },
                "resolvedDependencies": _dependencies(making),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {name: making.tools[name] for name in sorted(making.tools)}},
                "metadata": {"invocationId": f"{making.bundle}/{making.profile}"},
            },
        },
    }
    return json.dumps(statement, sort_keys=True, indent=1).encode()


def _dependencies(making: Making) -> list[dict[str, Any]]:
    data = [
        {
            "name": f"data/{part.name}",
            "digest": {"sha256": part.sha256},
            **({} if part.rows is None else {"annotations": {"rows": part.rows}}),
        }
        for part in making.parts
    ]
    if "file_sha256" in making.lineage:
        data.append({"name": "imported model", "digest": {"sha256": making.lineage["file_sha256"]}})
    bundle = {"name": "trained model", "digest": {"sha256": making.bundle}}
    return [*data, bundle, *_code(making.tools), *_packages("training", making.lineage), *_packages("", making.tools)]


def _code(tools: dict[str, str]) -> list[dict[str, Any]]:
    """Our own code: by its commit where it ran from a checkout, by its version alone where it was installed."""
    if "skerry" not in tools:
        return []
    named = {"name": "skerry", "uri": f"pkg:pypi/skerry@{tools['skerry']}"}
    commit, _, dirty = tools.get("revision", "").partition("-")
    if len(commit) != _GIT_HASH:
        return [named]
    changed = {"annotations": {"changed": True}} if dirty else {}
    return [{**named, "digest": {"gitCommit": commit}, **changed}]


def _packages(stage: str, versions: dict[str, str]) -> list[dict[str, Any]]:
    ours = ("skerry", "revision", "python")
    packages = {name: text for name, text in versions.items() if name not in ours and not name.endswith("_sha256")}
    return [
        {
            "name": name,
            "uri": f"pkg:pypi/{name}@{packages[name]}",
            "annotations": {"stage": stage or "compiling"},
        }
        for name in sorted(packages)
    ]
