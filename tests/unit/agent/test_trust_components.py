"""Trust in several models on one device: a verdict on each, from one signed set, and none that depends on another."""

from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.trust.assignment import ask_child
from agent.trust.decision import DECOMMISSION
from agent.trust.floor import read_floor
from skerry.wire.messages import Terms
from tests.unit.agent.trust_case import ISSUED, NOW, OTHER, PATH, TERMS, Case, held_of

LAMPS = Terms(device="watch-1", counter=1, issued=ISSUED, deployment="d2", release="lamps-1", component="lamps")


class Two(Case):
    """A device that is assigned strokes as its one model, and whatever else a test lists."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.image.add(OTHER, b"another manifest")
        self.image.publish()
        self.listed: dict[str, tuple[bytes, dict[str, Any] | None]] = {PATH: (b"manifest", asdict(TERMS))}

    def also(self, path: str, data: bytes, terms: Terms | None, **changed: Any) -> None:
        """Let the director list one more."""
        self.listed[path] = data, asdict(replace(terms, **changed)) if terms else None

    def publish(self, **changed: Any) -> None:
        """Sign all that is listed under the next counter."""
        self.director.targets.clear()
        for path, (data, custom) in self.listed.items():
            counted = {**custom, "counter": self.director.targets_version + 1, **changed} if custom else None
            self.director.add(path, data, custom=counted)
        self.director.publish()


@pytest.fixture
def case(tmp_path: Path) -> Two:
    """Return two repositories that agree on strokes."""
    return Two(tmp_path / "trust")


def test_each_component_has_a_verdict_of_its_own(case: Two) -> None:
    case.also(OTHER, b"another manifest", LAMPS)
    case.publish()

    judgement = case.judge()

    assert judgement.whole
    assert set(judgement.components) == {"", "lamps"}
    assert [judgement.of(name).path for name in ("", "lamps")] == [PATH, OTHER]
    assert all(each.ok for each in judgement.verdicts)
    assert ask_child(case.question, held_of(case)) == judgement


def test_metadata_that_knows_no_components_is_for_the_one_model(case: Two) -> None:
    case.listed[PATH][1].pop("component")  # type: ignore[union-attr]
    case.publish()

    assert case.judge().components == ("",)
    assert case.ask().ok


@pytest.mark.parametrize(
    ("data", "changed", "reason"),
    [
        (b"other bytes", {}, "agree on length and hashes"),
        (b"another manifest", {"component": "strokes"}, "expected models/strokes/ for the component of that name"),
        (b"another manifest", {"measure": "models/x/1/y/manifest.json"}, "other build"),
    ],
)
def test_one_that_is_refused_stops_no_other(case: Two, data: bytes, changed: dict[str, Any], reason: str) -> None:
    case.also(OTHER, data, LAMPS, **changed)
    case.publish()

    judgement = case.judge()

    assert judgement.whole
    assert judgement.of("").ok
    refused = judgement.of(changed.get("component", "lamps"))
    assert (refused.ok, refused.later) == (False, False)
    assert reason in refused.reason
    assert refused.terms is not None


@pytest.mark.parametrize("changed", [{"device": "watch-2"}, {"counter": 9}, {"component": "../x"}, {"issued": "now"}])
def test_what_cannot_be_told_apart_is_nobodys_and_stops_no_other(case: Two, changed: dict[str, Any]) -> None:
    case.also(OTHER, b"another manifest", LAMPS)
    case.publish()
    data, custom = case.listed[OTHER]
    case.director.targets.clear()
    for path, (body, terms) in {PATH: case.listed[PATH], OTHER: (data, custom)}.items():
        more = changed if path == OTHER else {}
        assert terms is not None
        case.director.add(path, body, custom={**terms, "counter": case.director.targets_version + 1, **more})
    case.director.publish()

    judgement = case.judge()

    assert judgement.components == ("",)
    assert judgement.of("").ok
    assert not judgement.whole
    assert judgement.of("lamps").terms is None
    assert "expected" in judgement.of("lamps").reason


def test_a_target_without_terms_stops_no_other(case: Two) -> None:
    case.also(OTHER, b"another manifest", None)
    case.publish()

    judgement = case.judge()

    assert judgement.of("").ok
    assert (judgement.whole, "Terms" in judgement.reason) == (False, True)


def test_a_component_that_is_listed_twice_gets_neither(case: Two) -> None:
    second = "models/lamps/2/gateway/manifest.json"
    case.image.add(second, b"second")
    case.image.publish()
    case.also(OTHER, b"another manifest", LAMPS)
    case.also(second, b"second", LAMPS)
    case.publish()

    judgement = case.judge()

    assert judgement.of("").ok
    assert not judgement.of("lamps").ok
    assert "expected one target for each component, got two for lamps" in judgement.of("lamps").reason


def test_two_for_the_component_without_a_name_are_refused(case: Two) -> None:
    case.also(OTHER, b"another manifest", LAMPS, component="")
    case.publish()

    assert "got two for the one without a name" in case.ask().reason


@pytest.mark.parametrize(("count", "good"), [(8, True), (9, False)])
def test_there_are_at_most_eight(case: Two, count: int, *, good: bool) -> None:
    for number in range(count - 1):
        path = f"models/m{number}/1/gateway/manifest.json"
        case.image.add(path, b"m")
        case.also(path, b"m", LAMPS, component=f"m{number}", deployment=f"m{number}")
    case.image.publish()
    case.publish()

    judgement = case.judge()

    assert len(judgement.verdicts) == (count if good else 0)
    assert all(each.ok for each in judgement.verdicts)
    assert ("expected at most 8 targets, got 9" in judgement.reason) is not good


def test_nothing_assigned_is_no_refusal(case: Two) -> None:
    case.listed.clear()
    case.publish()

    judgement = case.judge()

    assert (judgement.whole, judgement.verdicts, judgement.reason) == (True, (), "")


def test_the_agent_is_no_model_and_a_model_is_not_the_agent(case: Two) -> None:
    agent = "models/agent/2/gateway/manifest.json"
    case.image.add(agent, b"wheels")
    case.image.publish()
    case.listed = {agent: (b"wheels", asdict(TERMS))}
    case.publish()
    assert "the agent itself" in case.ask().reason

    case.listed = {agent: (b"wheels", asdict(replace(LAMPS, component="agent")))}
    case.publish()
    assert case.judge().of("agent").ok


def test_an_online_key_signs_no_code_of_the_agent(case: Two) -> None:
    agent = "models/agent/2/gateway/manifest.json"
    role = case.image.delegate("automatic-agent", ["models/agent/*/*/*"])
    case.image.add(agent, b"wheels", role="automatic-agent")
    case.image.publish()
    assert role
    case.listed = {agent: (b"wheels", asdict(replace(LAMPS, component="agent")))}
    case.publish()

    assert "expected an offline signature on the agent's own code" in case.judge().of("agent").reason


def test_an_image_repository_that_does_not_answer_is_later_for_all(case: Two) -> None:
    case.also(OTHER, b"another manifest", LAMPS)
    case.publish()
    case.image.files.clear()

    judgement = case.judge()

    assert [(each.ok, each.later) for each in judgement.verdicts] == [(False, True), (False, True)]


def test_an_order_to_wipe_stands_alone(case: Two) -> None:
    case.also(DECOMMISSION, b"", replace(TERMS, deployment=""), component="lamps")
    case.publish()
    assert "expected nothing beside an order to wipe" in case.ask().reason

    case.listed = {DECOMMISSION: (b"", asdict(replace(TERMS, component="lamps")))}
    case.publish()
    assert not case.judge().of("lamps").ok


def test_the_floor_is_the_newest_that_any_of_them_proves(case: Two) -> None:
    case.clock = (NOW - timedelta(days=3)).timestamp()
    later = (NOW + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    case.also(OTHER, b"another manifest", LAMPS, issued=later)
    case.publish()

    assert case.ask().ok
    assert read_floor(case.folder) == (NOW + timedelta(hours=1)).timestamp()
