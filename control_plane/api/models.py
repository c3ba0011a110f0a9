"""Endpoints of models: train, import, compile, look at what came of it; and the profiles to compile for."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from control_plane import builds, compile_job, imports, train_job
from control_plane.api.context import Number, PlaneDep, SessionDep
from control_plane.api.datasets import read_upload
from control_plane.api.jobs import job_tree
from control_plane.api.operator import require_operator
from firmware_profiles import list_profiles, load_profile

router = APIRouter(tags=["models"], dependencies=[Depends(require_operator)])


class Training(BaseModel):
    """What to train on, and how; a recipe that is left out has its defaults."""

    model_config = ConfigDict(extra="forbid")
    dataset: str = Field(max_length=63)
    recipe: dict[str, Any] = Field(default_factory=dict)


class Compilation(BaseModel):
    """What to compile for; `window_n` is the number of inferences in a window of the artifact's monitor.

    `budget_s` bounds the search for each profile: candidates that it does not reach are reported as not run.
    """

    model_config = ConfigDict(extra="forbid")
    profiles: list[Annotated[str, Field(max_length=63)]] = Field(min_length=1, max_length=64)
    window_n: int = Field(default=100, ge=10, le=100_000)
    budget_s: float = Field(default=600.0, gt=0, le=86_400)


@router.get("/v1/profiles")
def get_profiles() -> list[dict[str, Any]]:
    """Return the profiles with their budgets."""
    return [asdict(load_profile(name)) for name in list_profiles()]


@router.post("/v1/models/{model}/train")
def train(model: str, training: Training, plane: PlaneDep, session: SessionDep) -> dict[str, Any]:
    """Ask for a training; the job's result names the version."""
    now = plane.clock()
    return job_tree(train_job.ask(session, model=model, dataset=training.dataset, recipe=training.recipe, now=now))


@router.post("/v1/models/{model}/import")
def import_model(
    model: str,
    plane: PlaneDep,
    session: SessionDep,
    upload: Annotated[bytes, Depends(read_upload)],
    dataset: Annotated[str, Query(max_length=63)] = "",
) -> dict[str, Any]:
    """Ask for the import of an ONNX or TFLite file (`control_plane.imports`); the job's result names the version.

    `dataset` has the labelled windows from the field that versions are held against each other on.
    """
    now = plane.clock()
    return job_tree(imports.ask(session, plane.blobs, model=model, upload=upload, dataset=dataset, now=now))


@router.post("/v1/models/{model}/versions/{version}/compile")
def compile_version(
    model: str, version: Number, compilation: Compilation, plane: PlaneDep, session: SessionDep
) -> dict[str, Any]:
    """Ask for the builds of a version."""
    job = compile_job.ask(
        session,
        model=model,
        version=version,
        profiles=compilation.profiles,
        window_n=compilation.window_n,
        budget_s=compilation.budget_s,
        now=plane.clock(),
    )
    return job_tree(job)


@router.get("/v1/models")
def get_models(session: SessionDep) -> list[dict[str, Any]]:
    """Return all versions of all models."""
    return builds.list_models(session)


@router.get("/v1/models/{model}/versions/{version}")
def get_model(model: str, version: Number, session: SessionDep) -> dict[str, Any]:
    """Return one version with its metrics, its builds and their gate reports."""
    return builds.show_model(session, model, version)
