"""States of a lifecycle, for tests of its table."""

from agent.deployment.lifecycle import Good, Grant, Phase, State

OLD = Good(manifest="old", release="strokes-1", deployment="d1")
GRANT = Grant(deployment="d2", release="strokes-2", manifest="new")
OTHER = Grant(deployment="d3", release="strokes-3", manifest="newer")
# until here a deployment can be called off as if it had never been
BEFORE_ACTIVATION = (Phase.ASSIGNED, Phase.FETCHING, Phase.VERIFIED, Phase.STAGED, Phase.REPLAYING)


def in_phase(phase: Phase, *, good: Good = OLD) -> State:
    """Return a state in the phase, with a deployment where there is one."""
    undo = GRANT.manifest if phase is Phase.ROLLING_BACK else ""
    return State(phase=phase.value, grant=None if phase is Phase.IDLE else GRANT, good=good, undo=undo)
