"""Judges a device's health from what it knows of itself: one word, and the reasons. A pure function of its facts.

    failing   it does not do what it is for, or will not for long: a person is needed
    degraded  it does, and something wants to be looked at
    ok        neither

A reason has no number that changes from moment to moment: those are beside it in the report, and a reason that is
never twice the same would be news each time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from skerry.wire.messages import Component, RunsReport, Vitals

OK, DEGRADED, FAILING = "ok", "degraded", "failing"
HOT_C, TOO_HOT_C = 85.0, 100.0
LITTLE_MEMORY, LITTLE_DISK_BYTES, NO_DISK_BYTES = 0.05, 64 << 20, 4 << 20
CLOCK_OFF_S = 300.0
FULL_SHARE = 0.9
MAX_REASONS = 6


@dataclass(frozen=True, slots=True)
class Facts:
    """What is judged. `problem` is what the agent says is wrong, `refusal` what its disk refused last.

    `certificate_left_s` is None where there is no certificate or its end is not known, `certificate_life_s` how long it
    lives; `outbox_share` is how much of its budget the outbox holds. `beside` are the named components.
    """

    committed: bool
    runs: RunsReport
    vitals: Vitals
    certificate_left_s: float | None = None
    certificate_life_s: float = 0.0
    clock_ahead_s: float | None = None
    outbox_share: float = 0.0
    desired_refused: str = ""
    refusal: str = ""
    problem: str = ""
    failed: bool = False
    beside: Mapping[str, Component] = field(default_factory=dict)


def judge(facts: Facts) -> tuple[str, tuple[str, ...]]:
    """Return the word for a device's health and the reasons for it, the worst first."""
    failing, degraded = list(_failing(facts)), list(_degraded(facts))
    word = FAILING if failing else DEGRADED if degraded else OK
    return word, tuple(dict.fromkeys([*failing, *degraded]))[:MAX_REASONS]


def _failing(facts: Facts) -> list[str]:
    vitals = facts.vitals
    checks = (
        (facts.committed and facts.runs.word in ("down", "none"), "what was committed does not run"),
        (bool(facts.refusal), facts.refusal),
        (facts.certificate_left_s is not None and facts.certificate_left_s <= 0, "the certificate has ended"),
        (vitals.disk_free_bytes is not None and vitals.disk_free_bytes < NO_DISK_BYTES, "the disk is full"),
        (vitals.temperature_c is not None and vitals.temperature_c >= TOO_HOT_C, f"above {TOO_HOT_C:.0f} degrees C"),
        *((each.runs == "down", f"{name}: what was committed does not run") for name, each in facts.beside.items()),
    )
    return [reason for found, reason in checks if found]


def _degraded(facts: Facts) -> list[str]:
    vitals, ahead = facts.vitals, facts.clock_ahead_s
    memory, total = vitals.memory_available_bytes, vitals.memory_total_bytes
    disk, heat, left = vitals.disk_free_bytes, vitals.temperature_c, facts.certificate_left_s
    checks = (
        (facts.failed, "the last deployment failed"),
        (bool(facts.problem) and facts.problem != facts.refusal, facts.problem),
        (facts.committed and facts.runs.word == "restarting", "the model is being restarted"),
        # it renews at two thirds of its life: so late, it has tried for a while
        (left is not None and 0 < left < facts.certificate_life_s / 6, "the certificate ends soon and was not renewed"),
        (ahead is not None and ahead > CLOCK_OFF_S, "the clock is ahead"),
        (ahead is not None and ahead < -CLOCK_OFF_S, "the clock is behind"),
        (facts.outbox_share >= FULL_SHARE, "the outbox is nearly full"),
        (memory is not None and bool(total) and memory < (total or 0) * LITTLE_MEMORY, "memory is short"),
        (disk is not None and NO_DISK_BYTES <= disk < LITTLE_DISK_BYTES, "the disk is nearly full"),
        (heat is not None and HOT_C <= heat < TOO_HOT_C, f"above {HOT_C:.0f} degrees C"),
        (bool(facts.desired_refused), f"desired configuration: {facts.desired_refused}"),
        *((bool(said), f"{name}: {said}") for name, each in facts.beside.items() for said in [_said_of(each)]),
    )
    return [reason for found, reason in checks if found]


def _said_of(component: Component) -> str:
    if component.last_error or component.state == "failed":
        return component.last_error or "the last deployment failed"
    return "the model is being restarted" if component.manifest and component.runs == "restarting" else ""
