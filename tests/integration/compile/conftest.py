"""A whole control plane, as the fleet's tests have it."""

from tests.integration.fleet.conftest import coast

__all__ = ["coast"]
