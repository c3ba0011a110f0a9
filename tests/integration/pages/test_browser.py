"""The overview in a real Chromium: it shows the fleet, follows what happens, and speaks to its own server alone."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright
from sqlalchemy import update

from control_plane import alarms
from control_plane.schema.devices import Device, DeviceRequest
from control_plane.schema.work import Event

pytestmark = pytest.mark.browser
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Start one Chromium for all tests."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """Collect what the browser complained about, and every request to another host."""
    return []


@pytest.fixture
def page(browser: Browser, served: Any, complaints: list[str]) -> Iterator[Page]:
    """Open the address that the server prints; whatever the test, the browser had nothing to complain about."""

    def note_foreign(request: Request) -> None:
        if not request.url.startswith(served.url):
            complaints.append(request.url)

    page = browser.new_page()
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", note_foreign)
    page.goto(f"{served.url}/login?token={served.token}")
    expect(page.get_by_role("status")).to_have_text("live")
    yield page
    page.close()
    assert complaints == []


def test_the_page_shows_devices_drift_rollouts_builds_and_events(page: Page) -> None:
    expect(page).to_have_url(re.compile(r":\d+/$"))
    expect(page.get_by_role("heading", level=1)).to_have_text("4 devices, 3 in reach. All run watch-1.")
    row = page.get_by_role("row").filter(has_text="bench-1")
    expect(row).to_contain_text("out of reach")
    expect(page.get_by_role("region", name="Drift")).to_contain_text("watch-09 has drifted on its own")
    expect(page.get_by_role("region", name="Rollouts")).to_contain_text("1 of 1 committed")
    expect(page.get_by_role("region", name="Builds")).to_contain_text("41.2 kB")
    expect(page.get_by_role("complementary", name="Events")).to_contain_text("rollout 1 began")


def test_an_event_changes_the_page_without_a_reload(page: Page, served: Any) -> None:
    page.evaluate("window.notReloaded = true")
    with served.plane.sessions.begin() as session:
        session.execute(update(Device).where(Device.name == "bench-1").values(online=True))
        session.add(Event(at=datetime.now(UTC), kind="device", subject="bench-1", text="bench-1 is online", data={}))
    expect(page.get_by_role("complementary", name="Events")).to_contain_text("bench-1 is online")
    expect(page.get_by_role("heading", level=1)).to_have_text("4 devices, in reach. All run watch-1.")
    assert page.evaluate("window.notReloaded")


def test_an_update_keeps_focus_and_what_was_folded_open(page: Page, served: Any) -> None:
    fold = page.locator("#build-watch-1-board")
    fold.locator("summary").click()
    page.locator("#timeline").focus()
    served.add(Event(at=datetime.now(UTC), kind="job", subject="x", text="something else happened", data={}))
    expect(page.get_by_role("complementary", name="Events")).to_contain_text("something else happened")
    expect(page.locator("#timeline")).to_be_focused()
    expect(fold).to_have_attribute("open", "")


def test_markup_in_what_devices_say_stays_text(page: Page, served: Any) -> None:
    text = "<img src=x onerror=alert(1)><b id=injected>"
    served.add(Event(at=datetime.now(UTC), kind="device", subject="x", text=text, data={}))
    expect(page.get_by_text(text)).to_be_visible()
    expect(page.locator("#injected")).to_have_count(0)


def test_a_phone_sees_the_page_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_lost_server_is_shown_as_offline(page: Page, complaints: list[str]) -> None:
    page.context.set_offline(True)
    page.evaluate("refresh()")
    expect(page.get_by_role("status")).to_have_text("offline")
    page.context.set_offline(False)
    complaints.clear()  # that Chromium tells of the broken connection is right


def test_an_alarm_is_on_the_overview_and_the_devices_page_until_it_is_cleared(page: Page, served: Any) -> None:
    now = datetime.now(UTC)
    with served.plane.sessions.begin() as session:
        alarms.sound(session, alarms.CLONE, "watch-09", f"watch-09 may be cloned: {'0123456789abcdef' * 2}", now=now)
    expect(page.get_by_text("1 alarm: watch-09")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="watch-09").first).to_contain_text("it may be cloned")
    page.get_by_role("link", name="watch-09").click()
    told = page.get_by_role("region", name="Alarms")
    expect(told).to_contain_text("watch-09 may be cloned")
    expect(told).to_contain_text("skerry alarm acknowledge 1")
    expect(page.get_by_role("status")).to_have_text("live")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    with served.plane.sessions.begin() as session:
        alarms.acknowledge(session, 1, by="operator at 127.0.0.1", now=now)
    expect(told).to_have_count(0)


def test_a_device_has_a_page_that_follows_what_it_is_asked(page: Page, served: Any) -> None:
    said = {
        "release": "watch-1",
        "state": "committed",
        "active": "a",
        "health": "degraded",
        "reasons": ["the clock is behind"],
        "clock_ahead_s": -480.0,
        "uptime_s": 90_000,
        "vitals": {"temperature_c": 61.5, "memory_available_bytes": 300 << 20, "memory_total_bytes": 1 << 30},
        "slots": {"a": {"mark": "good", "release": "watch-1", "manifest": "ab" * 8}, "b": {"mark": "empty"}},
        "runs": {"word": "up", "since_s": 7300, "crashes": 0},
    }
    with served.plane.sessions.begin() as session:
        session.execute(update(Device).where(Device.name == "watch-08").values(reported=said))
    page.get_by_role("link", name="watch-08").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("watch-08, in reach. It runs watch-1.")
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_role("region", name="Health")).to_contain_text("the clock is behind")
    expect(page.get_by_role("region", name="Health")).to_contain_text("61.5 °C")
    expect(page.get_by_role("region", name="Slots")).to_contain_text("abababababababab")

    now = datetime.now(UTC)
    checks = [{"check": "golden", "ok": False, "detail": "expected y within 1e-05, got a difference of 0.5"}]
    asked = {"asked_by": "operator at 127.0.0.1", "asked_at": now, "expires": now + timedelta(hours=1)}
    done = {"answered_at": now, "ok": True}
    log = {"lines": 1, "left_out": 0, "text": "2026-01-01T00:00:00Z info connected to the broker"}
    served.add(
        DeviceRequest(
            id="1" * 16, device="watch-08", verb="collect-logs", args={"lines": 5}, result=log, **asked, **done
        ),
        DeviceRequest(
            id="2" * 16, device="watch-08", verb="self-test", args={}, result={"checks": checks}, **asked, **done
        ),
        Event(at=now, kind="answer", subject="watch-08", text="watch-08: self-test: done", data={}),
    )
    requests = page.get_by_role("region", name="Requests")
    expect(requests).to_contain_text("expected y within 1e-05")
    requests.get_by_text("its log").click()
    expect(requests.get_by_text("connected to the broker")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
