"""Sources of metadata: each by its own road, and none beyond its bounds."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.trust.floor import Floor, advance, parse_moment, read_floor, show_moment
from agent.trust.metadata import Bounded, Bounds, Either, HeldMetadata, MetadataSource, RetainedMetadata, by_road
from agent.trust.question import DIRECTOR, IMAGE
from skerry.errors import Rejected, Unavailable
from skerry.wire import codec, topics
from skerry.wire.messages import Index


class Broker:
    """A broker that retains a few messages and counts what it was asked for."""

    def __init__(self, **retained: bytes) -> None:
        self.retained = {topics.tuf("watch", name): data for name, data in retained.items()}
        self.asked: list[str] = []

    def fetch_retained(self, wanted: Sequence[str], *, timeout_s: float) -> dict[str, bytes]:
        assert timeout_s > 0
        self.asked += wanted
        return {topic: self.retained[topic] for topic in wanted if topic in self.retained}


def retained(index: int = 1, **files: bytes) -> tuple[Broker, RetainedMetadata]:
    """Return a broker with an index, and the source on it."""
    listing = codec.encode(Index(root=index, timestamp=1, snapshot=1, targets=1))
    broker = Broker(index=listing, **files)
    return broker, RetainedMetadata(broker, project="watch", timeout_s=1.0)


def test_a_root_that_the_index_does_not_name_is_not_waited_for() -> None:
    broker, source = retained(index=3)
    broker.retained[topics.tuf("watch", "3.root")] = b"three"

    assert source.fetch(IMAGE, "3.root.json", limit=9) == b"three"
    assert source.fetch(IMAGE, "4.root.json", limit=9) is None
    assert [topic.rsplit("/", 1)[-1] for topic in broker.asked] == ["index", "3.root"]


def test_the_notice_of_a_deleted_file_is_no_file() -> None:
    _, source = retained(timestamp=b"")
    assert source.fetch(IMAGE, "timestamp.json", limit=9) is None


def test_the_broker_has_no_word_in_what_the_director_says() -> None:
    _, source = retained(timestamp=b"x")
    assert source.fetch(DIRECTOR, "timestamp.json", limit=9) is None


def test_an_assignment_has_its_roles_without_versions_and_its_roots_with() -> None:
    held = HeldMetadata(
        {(DIRECTOR, "targets.json"): b"t", (DIRECTOR, "2.root.json"): b"r", (DIRECTOR, "root.json"): b"x"}
    )

    assert held.fetch(DIRECTOR, "7.targets.json", limit=9) == b"t"
    assert held.fetch(DIRECTOR, "2.root.json", limit=9) == b"r"
    assert held.fetch(DIRECTOR, "3.root.json", limit=9) is None
    assert held.fetch(IMAGE, "7.targets.json", limit=9) is None


class Silent:
    """A road on which nothing comes."""

    def fetch(self, repository: str, name: str, *, limit: int) -> bytes | None:
        raise Unavailable(f"{repository} {name}: expected {limit} bytes or fewer, got no answer")


HERE = HeldMetadata({(IMAGE, "timestamp.json"): b"second", (IMAGE, "2.root.json"): b"root"})


@pytest.mark.parametrize("first", [Silent(), HeldMetadata({})])
def test_the_second_road_has_what_the_first_has_not(first: MetadataSource) -> None:
    assert Either(first, HERE).fetch(IMAGE, "timestamp.json", limit=9) == b"second"


def test_the_first_roads_word_that_there_is_no_newer_root_is_final() -> None:
    assert Either(HeldMetadata({}), HERE).fetch(IMAGE, "2.root.json", limit=9) is None
    assert Either(Silent(), HERE).fetch(IMAGE, "2.root.json", limit=9) == b"root"


def test_each_road_asks_where_it_leads() -> None:
    mqtt, https = HeldMetadata({(IMAGE, "a.json"): b"mqtt"}), HeldMetadata({(IMAGE, "a.json"): b"https"})
    assignment = HeldMetadata({(DIRECTOR, "a.json"): b"assignment"})

    def asked(road: str) -> list[bytes | None]:
        source = by_road(road, mqtt=mqtt, director=assignment, https=https)
        return [source.fetch(which, "a.json", limit=99) for which in (IMAGE, DIRECTOR)]

    assert asked("mqtt") == [b"mqtt", b"assignment"]
    assert asked("https") == [b"https", None]
    assert asked("both") == [b"mqtt", b"assignment"]


class Ticking:
    """A source of ten bytes each that takes a second each."""

    def __init__(self) -> None:
        self.now = 0.0

    def fetch(self, repository: str, name: str, *, limit: int) -> bytes | None:
        assert limit >= 0, (repository, name)
        self.now += 1.0
        return b"0123456789"


@pytest.mark.parametrize(
    ("bounds", "fits", "reason"),
    [
        (Bounds(file_bytes=9), 0, "expected at most 9 bytes"),
        (Bounds(total_bytes=25), 2, "expected at most 5 bytes"),
        (Bounds(total_s=2.5), 2, "within 2.5 s"),
        (Bounds(requests=3), 3, "expected at most 3 files"),
    ],
)
def test_every_bound_ends_a_decision(bounds: Bounds, fits: int, reason: str) -> None:
    ticking = Ticking()
    source = Bounded(ticking, bounds, clock=lambda: ticking.now)
    for _ in range(fits):
        assert source.fetch(IMAGE, "timestamp.json", limit=100)
    with pytest.raises(Unavailable, match=reason):
        source.fetch(IMAGE, "timestamp.json", limit=100)


@pytest.mark.parametrize("name", ["../x.json", "a/b.json", "+.json", "#", "", "x" * 300 + ".json", "a\nb.json"])
def test_a_name_that_no_file_can_have_is_never_asked_for(name: str) -> None:
    with pytest.raises(Unavailable, match="expected a name"):
        Bounded(Ticking()).fetch(IMAGE, name, limit=100)


# -- the floor


def test_a_floor_never_sinks(tmp_path: Path) -> None:
    assert read_floor(tmp_path) == 0.0
    assert advance(tmp_path, 500.0, witness=["k"]) == 500.0
    assert advance(tmp_path, 400.0, witness=["k"]) == 500.0
    assert read_floor(tmp_path) == read_floor(tmp_path, witness=["other", "k"]) == 500.0


def test_a_floor_of_other_witnesses_counts_no_longer(tmp_path: Path) -> None:
    advance(tmp_path, 500.0, witness=["k"])
    assert read_floor(tmp_path, witness=["other"]) == 0.0
    assert advance(tmp_path, 300.0, witness=["other"]) == 300.0
    assert read_floor(tmp_path) == 300.0


def test_a_damaged_floor_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "floor.json").write_bytes(b"\0\0\0")
    assert read_floor(tmp_path) == 0.0
    assert advance(tmp_path, 300.0) == 300.0
    assert codec.decode(Floor, (tmp_path / "floor.json").read_bytes()).issued == 300.0


def test_moments_are_read_strictly_and_shown_to_the_minute() -> None:
    assert show_moment(parse_moment("2026-01-31T12:00:59Z")) == "2026-01-31 12:00 UTC"
    assert show_moment(1e30).endswith("s after 1970")
    for text in ("2026-01-31", "2026-01-31T12:00:00+01:00", "now", ""):
        with pytest.raises(Rejected, match="expected a moment"):
            parse_moment(text)
