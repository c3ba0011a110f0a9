"""What a device says of itself: true or absent, small, and not too often."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.fetching.desired import DesiredFile
from agent.identity.life import Life
from agent.telling.health import DEGRADED, FAILING, OK, Facts, judge
from agent.telling.reporter import VITALS_EVERY_S, Reporter
from agent.telling.skew import Skew
from agent.telling.twin import MAX_BYTES, Twin, cut
from agent.telling.vitals import read_vitals
from skerry.delivery.slots import Pointer, Slot
from skerry.wire import codec
from skerry.wire.messages import Component, Desired, Reported, RunsReport, Vitals

GOOD = Reported(
    version=1,
    online=True,
    state="committed",
    agent="0.1.0",
    profile="gateway",
    runtime="onnxruntime 1.27.0",
    architecture="x86_64",
    release="watch-1",
    manifest="a" * 64,
)
MEMINFO = "MemTotal:        1000 kB\nMemFree:  3 kB\nMemAvailable:    250 kB\nHugePages_Total:  0\n"


def make_twin(folder: Path, *, pointer: Pointer = Pointer(), life: Life | None = None, now: float = 1000.0) -> Twin:  # noqa: B008 -- it is frozen
    return Twin(
        folder,
        trust=folder / "trust",
        restarts=3,
        slots=lambda: pointer,
        life=lambda: life,
        desired=DesiredFile(folder),
        outbox_budget=1000,
        clock=lambda: now,
    )


# --- vitals


def test_what_the_system_tells_is_read(tmp_path: Path) -> None:
    for number, text in enumerate(("41250\n", "55500\n", "-274000\n", "no number\n")):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "temp").write_text(text)
    (tmp_path / "meminfo").write_text(MEMINFO)

    vitals = read_vitals(tmp_path, thermal=tmp_path, meminfo=tmp_path / "meminfo")

    assert (vitals.temperature_c, vitals.memory_available_bytes, vitals.memory_total_bytes) == (
        55.5,
        256_000,
        1_024_000,
    )
    assert vitals.disk_free_bytes is not None
    assert vitals.disk_free_bytes > 0


def test_what_it_does_not_tell_is_absent(tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    assert read_vitals(gone, thermal=gone, meminfo=gone) == Vitals()


# --- health


def facts(**values: object) -> Facts:
    return replace(Facts(committed=True, runs=RunsReport(word="up"), vitals=Vitals()), **values)  # type: ignore[arg-type] # by name


def beside(**values: str) -> Facts:
    return facts(beside={"lamps": Component(**{"state": "committed", "manifest": "ab" * 32, **values})})  # type: ignore[arg-type] # by name


@pytest.mark.parametrize(
    ("known", "word", "reason"),
    [
        (facts(), OK, ""),
        (facts(committed=False, runs=RunsReport(word="none")), OK, ""),
        (facts(runs=RunsReport(word="down")), FAILING, "what was committed does not run"),
        (facts(refusal="disk full", problem="disk full"), FAILING, "disk full"),
        (facts(certificate_left_s=-1.0, certificate_life_s=90.0), FAILING, "the certificate has ended"),
        (facts(certificate_left_s=14.0, certificate_life_s=90.0), DEGRADED, "the certificate ends soon"),
        (facts(certificate_left_s=31.0, certificate_life_s=90.0), OK, ""),
        (facts(vitals=Vitals(disk_free_bytes=1000)), FAILING, "the disk is full"),
        (facts(vitals=Vitals(disk_free_bytes=32 << 20)), DEGRADED, "the disk is nearly full"),
        (facts(vitals=Vitals(temperature_c=90.0)), DEGRADED, "above 85 degrees C"),
        (facts(vitals=Vitals(temperature_c=101.0)), FAILING, "above 100 degrees C"),
        (facts(vitals=Vitals(memory_available_bytes=4, memory_total_bytes=100)), DEGRADED, "memory is short"),
        (facts(vitals=Vitals(memory_available_bytes=4)), OK, ""),
        (facts(clock_ahead_s=400.0), DEGRADED, "the clock is ahead"),
        (facts(clock_ahead_s=-400.0), DEGRADED, "the clock is behind"),
        (facts(clock_ahead_s=30.0), OK, ""),
        (facts(outbox_share=0.95), DEGRADED, "the outbox is nearly full"),
        (facts(failed=True), DEGRADED, "the last deployment failed"),
        (facts(desired_refused="metered: ..."), DEGRADED, "desired configuration: metered"),
        (facts(runs=RunsReport(word="restarting")), DEGRADED, "the model is being restarted"),
        (beside(runs="up"), OK, ""),
        (beside(runs="down"), FAILING, "lamps: what was committed does not run"),
        (beside(runs="restarting"), DEGRADED, "lamps: the model is being restarted"),
        (beside(state="failed"), DEGRADED, "lamps: the last deployment failed"),
        (beside(state="failed", last_error="too slow"), DEGRADED, "lamps: too slow"),
    ],
)
def test_health_has_a_word_and_its_reason(known: Facts, word: str, reason: str) -> None:
    judged, reasons = judge(known)

    assert judged == word
    assert "; ".join(reasons).startswith(reason)
    assert bool(reasons) == bool(reason)


def test_the_worst_comes_first_and_is_said_once() -> None:
    word, reasons = judge(facts(failed=True, refusal="disk full", problem="disk full", clock_ahead_s=999.0))

    assert (word, reasons) == (FAILING, ("disk full", "the last deployment failed", "the clock is ahead"))


# --- the clock


def test_one_acknowledgement_that_waited_in_the_broker_does_not_make_a_clock_ahead() -> None:
    skew = Skew()
    skew.heard(1000.0, now=90_000.0)
    assert skew.ahead_s(now=90_000.0, floor=0.0) is None

    skew.heard(90_001.0, now=90_001.5)

    assert skew.ahead_s(now=90_001.5, floor=0.0) == 0.0


def test_a_clock_is_found_ahead_and_behind() -> None:
    ahead, behind = Skew(), Skew()
    for second in range(3):
        ahead.heard(1000.0 + second, now=8200.0 + second)
        behind.heard(9000.0 + second, now=1800.0 + second)

    assert ahead.ahead_s(now=8203.0, floor=0.0) == 7200.0
    assert behind.ahead_s(now=1803.0, floor=0.0) == -7200.0
    # what the newest assignment proves needs nobody's word
    assert Skew().ahead_s(now=0.0, floor=5000.0) == -5000.0
    assert Skew().ahead_s(now=6000.0, floor=5000.0) is None


# --- the message


def test_the_twin_says_slots_certificate_and_restarts(tmp_path: Path) -> None:
    pointer = Pointer(active="a", a=Slot(mark="good", release="watch-1", manifest="a" * 64), b=Slot(mark="bad"))
    twin = make_twin(tmp_path, pointer=pointer, life=Life(begins=0.0, ends=90_000.0))

    said = twin.complete(GOOD, runs="up", crashes=2)

    assert (said.active, said.slots["a"].mark, said.slots["a"].release, said.slots["b"].mark) == (
        *("a", "good", "watch-1", "bad"),
    )
    assert (said.certificate_expires, said.restarts, said.runs.crashes) == ("1970-01-02T01:00:00Z", 3, 2)
    assert (said.runs.word, said.uptime_s) == ("up", 0)
    assert codec.decode(Reported, codec.encode(said)) == said


def test_without_a_certificate_none_is_said(tmp_path: Path) -> None:
    said = make_twin(tmp_path).complete(GOOD, runs="none")

    assert (said.certificate_expires, said.clock_ahead_s) == ("", None)
    assert said.health in (OK, DEGRADED, FAILING)


def test_the_retained_message_is_small_whatever_went_wrong(tmp_path: Path) -> None:
    hostile = "\x00ü\\" * 4000
    release = "r" * 63 + "-" + "9" * 18
    slot = Slot(mark="pending", release=release, manifest="f" * 64, revoked=True)
    twin = make_twin(tmp_path, pointer=Pointer(active="b", a=slot, b=slot), life=Life(begins=0.0, ends=1.0))
    small = len(codec.encode(twin.complete(GOOD, runs="up")))
    twin._desired.refused = hostile
    worst = replace(
        GOOD,
        version=1 << 62,
        state="rolling_back",
        profile="p" * 63,
        runtime=hostile,
        release=release,
        deployment="d" * 63,
        last_error=hostile,
        waiting=hostile,
        stalled="e" * 64,
        outbox_depth=1 << 40,
        outbox_bytes=1 << 40,
        event_time=1_767_225_600.123456,
        inferences=1 << 62,
        received=1 << 40,
        progress=0.123,
    )

    large = len(codec.encode(twin.complete(worst, runs="down", refusal=hostile)))

    print(f"Reported: {small} bytes, {large} at worst")
    assert small < 1400
    assert large < MAX_BYTES


def test_texts_are_cut_by_what_they_take_in_json() -> None:
    assert cut("plain", 100) == "plain"
    assert len(codec.encode(Desired(version=1, config={"a": cut('"' * 1000, 50)}))) < 120


# --- how often


def test_vitals_alone_are_said_every_few_minutes_at_most() -> None:
    reporter = Reporter(every_s=2.0).sent(GOOD, now=0.0)
    hotter = replace(
        GOOD, vitals=Vitals(temperature_c=70.0), uptime_s=50, runs=RunsReport(since_s=9), clock_ahead_s=20.0
    )

    assert VITALS_EVERY_S >= 60
    assert not any(reporter.due(hotter, now=float(second)) for second in range(int(VITALS_EVERY_S)))
    assert reporter.due(hotter, now=VITALS_EVERY_S)


def test_health_is_news_at_once() -> None:
    reporter = Reporter(every_s=2.0).sent(GOOD, now=0.0)

    assert reporter.due(replace(GOOD, health=DEGRADED), now=0.1)
    assert reporter.due(replace(GOOD, runs=RunsReport(word="down")), now=0.1)
    assert reporter.due(replace(GOOD, desired_refused="metered"), now=0.1)
    assert not reporter.due(replace(GOOD, inferences=5), now=0.1)
    assert reporter.due(replace(GOOD, inferences=5), now=2.0)


def test_the_system_is_looked_at_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []

    def look(folder: Path) -> Vitals:
        looks.append(folder)
        return Vitals()

    monkeypatch.setattr("agent.telling.twin.read_vitals", look)
    moment = [0.0]
    monkeypatch.setattr("agent.telling.twin.time", SimpleNamespace(monotonic=lambda: moment[0], time=time.time))
    twin = make_twin(tmp_path)
    for second in range(0, 180, 1):
        moment[0] = float(second)
        twin.complete(GOOD, runs="up")

    assert len(looks) == 3


# --- the desired half


def test_what_of_the_desired_configuration_is_not_followed_is_said(tmp_path: Path) -> None:
    desired = DesiredFile(tmp_path)

    assert desired.offer(codec.encode(Desired(version=4, config={"metered": "pause", "colour": "red"})))
    assert desired.refused == "version 4: colour is not known to this agent"
    assert not desired.offer(codec.encode(Desired(version=5, config={"metered": "perhaps"})))
    assert "metered: expected allow or pause" in desired.refused
    assert (desired.version, DesiredFile(tmp_path).refused) == (4, "version 4: colour is not known to this agent")
    assert desired.offer(codec.encode(Desired(version=6, config={})))
    assert desired.refused == ""


def test_what_went_wrong_with_a_component_is_short_too(tmp_path: Path) -> None:
    worst = Component(state="failed", release="r" * 500, last_error="\x00ü\\" * 4000, runs="down")

    said = make_twin(tmp_path).complete(replace(GOOD, components={"lamps": worst}), runs="up")

    assert said.components is not None
    assert len(codec.encode(said.components["lamps"])) < 600
    assert (said.health, said.reasons[0]) == (FAILING, "lamps: what was committed does not run")
    # an agent that knows of no components says nothing of any
    assert make_twin(tmp_path).complete(GOOD, runs="up").components is None


def test_components_have_room_beside_it(tmp_path: Path) -> None:
    said = make_twin(tmp_path).complete(GOOD, runs="up")

    more = replace(said, components={"agent": Component(state="committed", release="agent-2", manifest="b" * 64)})

    assert len(codec.encode(more)) < MAX_BYTES
