"""Completes the reported half of the twin: what this device knows of itself beside its lifecycle, and how well it is.

The message is retained and small: every text in it is cut, so that it stays below `MAX_BYTES`, components not counted,
whatever went wrong. What the system tells is read once a minute at most, for it changes all the time.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from agent.deployment.lifecycle import Phase
from agent.fetching.desired import DesiredFile
from agent.identity.life import Life
from agent.telling.health import Facts, judge
from agent.telling.skew import Skew
from agent.telling.vitals import read_vitals
from agent.trust.floor import read_floor
from skerry.delivery.slots import NAMES, Pointer
from skerry.wire.messages import Reported, RunsReport, SlotReport, Vitals

MAX_BYTES = 2048
VITALS_EVERY_S = 60.0
# of JSON, the quotation marks not counted
_ERROR_BYTES, _REASON_BYTES, _REASONS_BYTES, _NAME_BYTES = 160, 90, 180, 80


class Twin:
    """What one device says of itself; `life` is its certificate's, once known, None where it has none."""

    def __init__(
        self,
        folder: Path,
        *,
        trust: Path,
        restarts: int,
        slots: Callable[[], Pointer],
        life: Callable[[], Life | None],
        desired: DesiredFile,
        outbox_budget: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._trust = trust
        self._restarts = restarts
        self._slots = slots
        self._life = life
        self._desired = desired
        self._outbox_budget = outbox_budget
        self._clock = clock
        self._began = self._runs_since = time.monotonic()
        self._word = ""
        self._vitals = Vitals()
        self._floor = 0.0
        self._look_again = 0.0
        self.skew = Skew()

    def complete(self, reported: Reported, *, runs: str, crashes: int = 0, refusal: str = "") -> Reported:
        """Return the message with everything in it; `runs` is how the model does, `refusal` the disk's last."""
        monotonic, now = time.monotonic(), self._clock()
        if monotonic >= self._look_again:
            self._vitals, self._floor = read_vitals(self._folder), read_floor(self._trust)
            self._look_again = monotonic + VITALS_EVERY_S
        if runs != self._word:
            self._word, self._runs_since = runs, monotonic
        life, pointer = self._life(), self._slots()
        ahead = self.skew.ahead_s(now=now, floor=self._floor)
        beside = {
            name: replace(each, release=cut(each.release, _NAME_BYTES), last_error=cut(each.last_error, _ERROR_BYTES))
            for name, each in (reported.components or {}).items()
        }
        health, reasons = judge(
            Facts(
                committed=bool(reported.manifest),
                runs=RunsReport(word=runs),
                vitals=self._vitals,
                certificate_left_s=life.ends - max(now, self._floor) if life else None,
                certificate_life_s=life.ends - life.begins if life else 0.0,
                clock_ahead_s=ahead,
                outbox_share=reported.outbox_bytes / max(self._outbox_budget, 1),
                desired_refused=self._desired.refused,
                refusal=refusal,
                problem=reported.last_error,
                failed=reported.state == Phase.FAILED.value,
                beside=beside,
            )
        )
        return replace(
            reported,
            runtime=cut(reported.runtime, _NAME_BYTES),
            release=cut(reported.release, _NAME_BYTES),
            deployment=cut(reported.deployment, _NAME_BYTES),
            last_error=cut(reported.last_error, _ERROR_BYTES),
            waiting=cut(reported.waiting, _REASON_BYTES),
            active=pointer.active,
            slots={name: _slot(pointer, name) for name in NAMES},
            runs=RunsReport(word=runs, since_s=int(monotonic - self._runs_since), crashes=crashes),
            vitals=self._vitals,
            certificate_expires=_moment(life.ends) if life else "",
            clock_ahead_s=ahead,
            uptime_s=int(monotonic - self._began),
            restarts=self._restarts,
            desired_refused=cut(self._desired.refused, _REASON_BYTES),
            health=health,
            reasons=_few(reasons),
            components=beside if reported.components is not None else None,
        )


def cut(text: str, most: int) -> str:
    """Return the start of a text that takes at most so many bytes as JSON."""
    while len(json.dumps(text, ensure_ascii=False).encode(errors="replace")) - 2 > most:
        # a text of escapes is up to six times as long in JSON: a few turns come to an end all the same
        text = text[: min(len(text) * 7 // 8, most)]
    return text


def _few(reasons: tuple[str, ...]) -> tuple[str, ...]:
    kept: list[str] = []
    left = _REASONS_BYTES
    for reason in reasons:
        short = cut(reason, min(_REASON_BYTES, left))
        left -= len(json.dumps(short, ensure_ascii=False).encode(errors="replace")) + 1
        if short:
            kept.append(short)
        if left <= 0:
            break
    return tuple(kept)


def _slot(pointer: Pointer, name: str) -> SlotReport:
    slot = pointer.slot(name)
    return SlotReport(
        mark=slot.mark, release=cut(slot.release, _NAME_BYTES), manifest=slot.manifest[:16], revoked=slot.revoked
    )


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return ""
