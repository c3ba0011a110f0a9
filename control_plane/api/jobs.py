"""Endpoints of jobs: look at long work."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from sqlalchemy import select

from control_plane.api.context import Number, SessionDep
from control_plane.api.operator import require_operator
from control_plane.refusals import Unknown
from control_plane.schema.work import Job

router = APIRouter(tags=["jobs"], dependencies=[Depends(require_operator)])


@router.get("/v1/jobs")
def get_jobs(session: SessionDep, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> list[dict[str, Any]]:
    """Return the newest jobs, newest first."""
    return [job_tree(job) for job in session.scalars(select(Job).order_by(Job.id.desc()).limit(limit))]


@router.get("/v1/jobs/{job}")
def get_job(job: Number, session: SessionDep) -> dict[str, Any]:
    """Return a job with its log, and its result or error."""
    row = session.get(Job, job)
    if row is None:
        raise Unknown(f"job: expected one that was asked for, got {job}")
    return job_tree(row)


def job_tree(job: Job) -> dict[str, Any]:
    """Return a job as JSON; its parameters are left out, they can be long."""
    return {
        "id": job.id,
        "job": job.id,
        "kind": job.kind,
        "state": job.state,
        "log": job.log,
        "result": job.result,
        "error": job.error,
        "created_at": job.created_at.isoformat(),
        "ended_at": job.ended_at.isoformat() if job.ended_at else None,
    }
