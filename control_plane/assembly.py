"""Names the parts that make a control plane: routers, duties, kinds of jobs. Nothing else knows all of them."""

import contextlib
from collections.abc import Iterator

from fastapi import APIRouter

from control_plane import fleet_drift, replacements, rollouts
from control_plane.api import (
    agent,
    alarms,
    bundles,
    configuration,
    datasets,
    devices,
    drift,
    events,
    jobs,
    models,
    releases,
    samples,
)
from control_plane.api import requests as request_routes
from control_plane.api import rollouts as rollout_routes
from control_plane.background import Duties
from control_plane.ingest import handle
from control_plane.job_kinds import KINDS
from control_plane.jobs import Runner
from control_plane.pages import routes as pages
from control_plane.plane import Plane


def routers() -> list[APIRouter]:
    """Return the routers of the fleet's nouns and of the pages."""
    fleet = (rollout_routes, devices, samples, alarms, configuration, request_routes, drift, events)
    modules = (datasets, bundles, models, agent, jobs, releases, *fleet, pages)
    return [module.router for module in modules]


def duties() -> Duties:
    """Return what is called for each message and at each tick."""
    return Duties(handle=handle, ticks=(_reconcile, _replace_revoked, fleet_drift.tick))


@contextlib.contextmanager
def job_runner(plane: Plane) -> Iterator[None]:
    """Run jobs while the body runs; those under way at its end are taken up by the next server."""
    runner = Runner(plane, KINDS)
    runner.start()
    try:
        yield
    finally:
        runner.close()


def _reconcile(plane: Plane) -> int:
    return rollouts.reconcile(plane, plane.clock())


def _replace_revoked(plane: Plane) -> int:
    return replacements.reconcile(plane, plane.clock())
