"""The pages over HTTP: who may see them, what they hold, and what they forbid the browser."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

FRAGMENTS = ("badges", "fleet", "devices", "drift", "rollouts", "builds", "events")


@pytest.fixture
def visitor(served: Any) -> Iterator[httpx.Client]:
    """Open a client without a cookie."""
    with httpx.Client(base_url=served.url, follow_redirects=True) as client:
        yield client


@pytest.fixture
def operator(served: Any, visitor: httpx.Client) -> httpx.Client:
    """Return a client that has opened the printed address."""
    assert visitor.get("/login", params={"token": served.token}).status_code == 200
    return visitor


def test_a_visitor_without_the_cookie_is_told_where_to_get_it(visitor: httpx.Client) -> None:
    answer = visitor.get("/")
    assert answer.status_code == 401
    assert "skerry-server run" in answer.text
    assert "watch-08" not in answer.text


@pytest.mark.parametrize("name", FRAGMENTS)
def test_a_fragment_is_for_operators_alone(visitor: httpx.Client, name: str) -> None:
    assert visitor.get(f"/fragments/{name}").status_code == 401


@pytest.mark.parametrize("name", FRAGMENTS)
def test_a_fragment_is_what_the_page_holds_there(operator: httpx.Client, name: str) -> None:
    def settled(text: str) -> str:
        """Leave out what time changes."""
        return re.sub(r"just now|\d+ s ago", "then", "".join(text.split()))

    assert settled(operator.get(f"/fragments/{name}").text) in settled(operator.get("/").text)


def test_an_unknown_fragment_is_not_found(operator: httpx.Client) -> None:
    assert operator.get("/fragments/secrets").status_code == 404
    assert operator.get("/static/../routes.py").status_code == 404


def test_the_page_says_that_the_embedded_broker_knows_no_identities(operator: httpx.Client) -> None:
    assert "identity: none" in operator.get("/").text


def test_the_page_forbids_everything_but_its_own_files(operator: httpx.Client) -> None:
    answer = operator.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", answer.text)


def test_the_page_s_files_are_cached_by_content(operator: httpx.Client) -> None:
    links = re.findall(r'(?:href|src)="(/static/[^"]+)"', operator.get("/").text)
    assert len(links) == 3
    for link in links:
        answer = operator.get(link)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
