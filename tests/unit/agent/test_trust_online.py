"""The trust decision on roles that sign online: what they may list, and that what leaves a device is not theirs."""

import hashlib
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations

from agent.trust.assignment import ask_child
from agent.trust.question import Held
from skerry.wire.manifest import GRANTED_UNTIL, NO_SAMPLES, SamplePolicy
from tests.unit.agent.trust_case import NOW, OTHER, PATH, Case, automatic, held_of, refused


def test_an_automatic_release_of_its_model_is_trusted(case: Case) -> None:
    automatic(case)
    assert case.ask().ok


@pytest.mark.parametrize(("ends", "trusted"), [(timedelta(hours=1), True), (timedelta(0), False)])
def test_a_grant_ends_when_the_offline_keys_said_whatever_its_own_key_signs(
    case: Case, ends: timedelta, trusted: bool
) -> None:
    automatic(case, expires=NOW + timedelta(days=300))
    until = (NOW + ends).strftime("%Y-%m-%dT%H:%M:%SZ")
    case.image.delegations[-1].unrecognized_fields[GRANTED_UNTIL] = until
    case.image.publish()
    case.assign(path=PATH)
    case.held = (Held(PATH, hashlib.sha256(b"manifest").hexdigest()),)

    verdict = case.ask()

    # it says nothing about what was installed while it lasted
    assert (verdict.ok, verdict.later, verdict.revoked) == (trusted, not trusted, ())
    assert trusted or f"got one that ended {until}" in verdict.reason


def test_a_device_may_refuse_automatic_releases(case: Case) -> None:
    automatic(case)
    case.refuse_automatic = True
    refused(case, "which this device refuses")


def test_an_automatic_role_lists_nothing_of_another_model_even_where_it_was_granted_too_much(case: Case) -> None:
    automatic(case, paths=("models/*/*/*/*",), lists=OTHER)
    refused(case, "to list models/strokes/ alone")


def test_an_automatic_role_lists_nothing_outside_its_paths(case: Case) -> None:
    automatic(case, lists=OTHER)
    refused(case, "among its targets, got none")


def test_an_automatic_role_cannot_pass_its_right_on(case: Case) -> None:
    automatic(case)
    mine = case.image.delegated["automatic-strokes"]
    mine.targets.clear()
    helper = CryptoSigner.generate_ed25519()
    further = DelegatedRole("helper", [helper.public_key.keyid], 1, True, paths=["models/strokes/*/*/*"])
    mine.delegations = Delegations({helper.public_key.keyid: helper.public_key}, roles={"helper": further})
    case.image.delegate("helper", ["nothing"])
    case.image.delegated["helper"].signers = [helper]
    case.image.delegations.pop()
    case.image.add(PATH, b"manifest", role="helper")
    case.image.publish()
    refused(case, "got it from helper")


def test_an_expired_delegation_is_waited_for_and_revokes_nothing(case: Case) -> None:
    automatic(case)
    digest = case.ask().sha256
    case.held = (Held(path=PATH, sha256=digest),)
    case.image.delegated["automatic-strokes"].expires = NOW - timedelta(days=1)
    case.image.publish()

    verdict = case.ask()

    assert (verdict.later, verdict.revoked, verdict.listed) == (True, (), ())


def test_the_offline_targets_come_before_a_delegated_role(case: Case) -> None:
    automatic(case)
    case.image.add(PATH, b"manifest")
    case.image.publish()
    case.refuse_automatic = True

    assert case.ask().ok


# -- what may leave the device


LEAVES = {"samples": {"rows_per_window": 2, "inputs": ["window"], "max_bytes": 100}}
POLICY = SamplePolicy(2, ("window",), 100)


def test_what_the_offline_targets_let_leave_the_device_comes_with_the_verdict(case: Case) -> None:
    assert case.ask().samples == NO_SAMPLES
    case.image.add(PATH, b"manifest", custom=LEAVES)
    case.image.publish()
    digest = case.ask().sha256
    case.held = (Held(path=PATH, sha256=digest),)

    verdict = case.ask()

    assert (verdict.samples, verdict.allowed) == (POLICY, {digest: POLICY})
    assert ask_child(case.question, held_of(case)) == case.judge()


def test_what_an_online_key_lets_leave_the_device_counts_for_nothing(case: Case) -> None:
    automatic(case)
    case.image.add(PATH, b"manifest", role="automatic-strokes", custom=LEAVES)
    case.image.publish()
    case.held = (Held(path=PATH, sha256=case.ask().sha256),)

    verdict = case.ask()

    assert (verdict.ok, verdict.samples, verdict.allowed) == (True, NO_SAMPLES, {})


@pytest.mark.parametrize("said", [7, {"rows_per_window": -1}, {"inputs": "window"}, {"max_bytes": 1 << 40}])
def test_a_policy_that_cannot_be_read_lets_nothing_leave(case: Case, said: object) -> None:
    case.image.add(PATH, b"manifest", custom={"samples": said})
    case.image.publish()
    assert (case.ask().ok, case.ask().samples) == (True, NO_SAMPLES)
