"""Requests and answers pass the rules of the generated configuration, each between the two that they are for."""

import pytest

from skerry.wire import topics
from tests.integration.agent.shore import wait_for
from tests.integration.broker.conftest import Shop

pytestmark = pytest.mark.broker
A, B = "watch.a", "watch.b"
NOT_AUTHORISED = 0x87


def test_a_device_hears_its_requests_and_answers_for_itself_alone(shop: Shop) -> None:
    control, a, b = shop.control(), shop.come(shop.papers("a")), shop.come(shop.papers("b"))
    control.subscribe(*topics.UP_FILTERS)
    a.subscribe(topics.down(A, "request"))
    b.subscribe(topics.down(A, "request"), topics.down(B, "request"))

    assert control.say(topics.down(A, "request"), b"asked") == 0
    assert a.say(topics.up(A, "answer"), b"answered") == 0
    assert b.say(topics.up(A, "answer"), b"forged") == NOT_AUTHORISED
    assert a.say(topics.down(B, "request"), b"forged") == NOT_AUTHORISED
    assert control.say(topics.down(B, "request"), b"asked too") == 0

    wait_for(lambda: a.heard and b.heard and control.heard, why="what is meant for each")
    assert a.heard == [(topics.down(A, "request"), b"asked")]
    assert b.heard == [(topics.down(B, "request"), b"asked too")]
    assert control.heard == [(topics.up(A, "answer"), b"answered")]
