"""What a component makes of assignments, and that one judgement serves all of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import Config
from agent.deployment.decisions import Decisions, grant_of
from agent.deployment.lifecycle import Kind, Phase, State
from agent.identity.folder import Identity, StateFolder
from agent.trust import judging
from agent.trust.assignment import Inbox, Mailbox
from agent.trust.judging import Judge
from agent.trust.question import Judgement, Verdict
from skerry.delivery.slots import Slots
from skerry.errors import Broken, Unavailable
from skerry.wire import codec
from skerry.wire.enrolment import Anchor
from skerry.wire.messages import Terms

GOOD = Verdict(
    ok=True,
    terms=Terms(device="watch-1", counter=1, issued="", deployment="d1", release="lamps-1", component="lamps"),
    path="models/lamps/1/gateway/manifest.json",
    length=5,
    sha256="ab" * 32,
)
IDLE = State()


class Case:
    """A component with its inbox, and a judge that says what a test wants."""

    def __init__(self, folder: Path, component: str = "lamps") -> None:
        self.folder = folder
        self.says: Verdict | Exception = GOOD
        self.absent = False
        self.dropped = 0
        self.mailbox = Mailbox(folder)
        self.decisions = Decisions(
            component, inbox=Inbox(folder, self.mailbox), judge=self.judge, slots=Slots(folder / "slots")
        )
        self.decisions.dropped = self.drop

    def judge(self, _payload: bytes, _component: str) -> tuple[Verdict, bool]:
        """Say it."""
        if isinstance(self.says, Exception):
            raise self.says
        return self.says, self.absent

    def drop(self) -> None:
        """Count."""
        self.dropped += 1


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Return a component with an assignment that waits."""
    made = Case(tmp_path)
    made.mailbox.offer(b"assignment")
    return made


def test_a_trusted_assignment_is_an_event_once(case: Case) -> None:
    event = case.decisions.decide(IDLE)

    assert event is not None
    assert (event.kind, event.grant) == (Kind.ASSIGN, grant_of(GOOD))
    # until what came of it is durable it would be decided again
    assert case.decisions.pending()
    case.decisions.decided()
    assert not case.decisions.pending()
    assert not Case(case.folder).decisions.pending()


def test_the_same_deployment_again_changes_nothing(case: Case) -> None:
    state = State(phase=Phase.COMMITTED.value, grant=grant_of(GOOD))
    assert case.decisions.decide(state) is None
    case.decisions.decided()
    assert not case.decisions.pending()


def test_later_is_tried_again_and_a_refusal_is_reported_after_the_third(case: Case) -> None:
    case.says = replace(GOOD, ok=False, later=True, reason="no road")
    with pytest.raises(Unavailable, match="no road"):
        case.decisions.decide(IDLE)
    case.says = replace(GOOD, ok=False, reason="not listed")
    for _ in range(2):
        with pytest.raises(Unavailable, match="not listed"):
            case.decisions.decide(IDLE)
    event = case.decisions.decide(IDLE)
    assert event is not None
    assert (event.kind, event.reason) == (Kind.DENY, "not listed")
    assert case.decisions.refusal == "not listed"


def test_a_judge_that_breaks_is_told_and_nothing_is_decided(case: Case) -> None:
    case.says = Broken("no process")
    with pytest.raises(Broken, match="no process"):
        case.decisions.decide(IDLE)
    assert (case.decisions.refusal, case.decisions.pending()) == ("no process", True)


def test_a_component_that_the_director_names_no_more_ends(case: Case) -> None:
    case.says, case.absent = Verdict(ok=False), True

    assert case.decisions.decide(IDLE) is None

    # nothing is noted: after a power cut it is found out again, until nothing of it is left
    case.decisions.decided()
    assert (case.dropped, case.decisions.pending()) == (1, False)
    assert Case(case.folder).decisions.pending()


@pytest.mark.parametrize("component", ["", "agent"])
def test_the_one_without_a_name_and_the_agent_run_on_when_others_are_assigned(tmp_path: Path, component: str) -> None:
    case = Case(tmp_path, component)
    case.mailbox.offer(b"assignment")
    case.says, case.absent = Verdict(ok=False), True

    assert case.decisions.decide(IDLE) is None
    case.decisions.decided()

    assert (case.dropped, case.decisions.pending()) == (0, False)


# -- one judgement for all


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Judge, list[Judgement], Callable[[], int]]:
    """Return a judge, what it is to say (in turn), and how often the process behind it was asked."""
    folder = StateFolder(tmp_path)
    folder.anchor_file.write_bytes(codec.encode(Anchor("watch", "", "", "")))
    identity = Identity("watch", "watch-1", "gateway", "onnxruntime", "x86_64", "mqtt://127.0.0.1", "")
    folder.identity_file.write_bytes(codec.encode(identity))
    says: list[Judgement] = []
    asked = 0

    def answer(*_args: object, **_more: object) -> Judgement:
        nonlocal asked
        asked += 1
        return says[min(asked, len(says)) - 1]

    monkeypatch.setattr(judging, "judge_all", answer)
    link = type("Link", (), {"fetch_retained": lambda *_a, **_m: {}})()
    made = Judge(folder=folder, config=Config(), link=link, held=tuple, token=str)
    return made, says, lambda: asked


def test_one_judgement_is_for_all_components_and_another_when_one_asks_again(
    judge: tuple[Judge, list[Judgement], Callable[[], int]],
) -> None:
    made, says, asked = judge
    heard: list[Judgement] = []
    made.judged = heard.append
    later = replace(GOOD, ok=False, later=True)
    says += [Judgement((later,), whole=True), Judgement((GOOD,), whole=True)]

    assert made.decide(b"one", "") == (Verdict(ok=False), True)
    assert made.decide(b"one", "lamps") == (later, False)
    assert (asked(), heard) == (1, [says[0]])
    assert made.decide(b"one", "lamps") == (GOOD, False)
    assert made.decide(b"one", "") == (Verdict(ok=False), True)
    assert asked() == 2
    made.decide(b"two", "")
    assert asked() == 3


def test_a_refusal_that_a_renewal_brings_holds_at_once(
    judge: tuple[Judge, list[Judgement], Callable[[], int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, _ = judge
    heard: list[bool] = []

    def answer(*_args: object, identity: Identity, **_more: object) -> Judgement:
        heard.append(identity.refuse_automatic)
        return Judgement()

    monkeypatch.setattr(judging, "judge_all", answer)
    made.decide(b"one", "")
    StateFolder(tmp_path).keep_refusal()
    made.decide(b"two", "")

    assert heard == [False, True]


def test_what_could_not_be_read_ends_nothing(judge: tuple[Judge, list[Judgement], Callable[[], int]]) -> None:
    made, says, _ = judge
    says.append(Judgement((GOOD,), whole=False, reason="one that cannot be read"))

    assert made.decide(b"one", "") == (Verdict(ok=False, reason="one that cannot be read"), False)
