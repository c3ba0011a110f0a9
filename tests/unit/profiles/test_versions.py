"""Version ranges are compared by number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.wire.profile import accepts_version, clauses


@pytest.mark.parametrize(
    ("wanted", "version", "accepted"),
    [
        ("any", "unknown", True),
        ("any", "0.dev20261023182759", True),
        (">=1.20", "1.20", True),
        (">=1.20", "1.20.0", True),
        (">=1.20", "1.9.9", False),
        (">=1.20", "1.31.1", True),
        (">=1.20", "1.20.1+cu12", True),
        (">=1.20", "unknown", False),
        (">=1.20", "", False),
        (">=2.1,<2.4", "2.3.0", True),
        (">=2.1,<2.4", "2.4", False),
        (">=2.1, <2.4", "2.0.9", False),
        ("==2.14", "2.14.0", True),
        ("==2.14", "2.14", True),
        ("==2.14.0", "2.14", True),
        ("==2.14", "2.140", False),
        ("!=2.3", "2.3.1", False),
        (">2.3", "2.3.0", False),
        ("<=2.3", "2.3.0", True),
        (">=2.3", "2.3rc1", True),
    ],
)
def test_named_cases(wanted: str, version: str, accepted: bool) -> None:
    assert accepts_version(wanted, version) is accepted


@pytest.mark.parametrize("wanted", ["", "2.1", "~=2.1", ">=2.1,", ">=x", ">= 2.1 < 3", "==2.*"])
def test_what_is_no_range_says_so(wanted: str) -> None:
    with pytest.raises(ValueError, match="expected 'any' or a range such as"):
        clauses(wanted)


numbers = st.lists(st.integers(0, 30), min_size=1, max_size=4).map(lambda each: ".".join(map(str, each)))


@given(numbers, numbers)
def test_a_version_is_below_a_bound_or_reaches_it(version: str, bound: str) -> None:
    assert accepts_version(f">={bound}", version) != accepts_version(f"<{bound}", version)
    assert accepts_version(f">{bound}", version) != accepts_version(f"<={bound}", version)
    assert accepts_version(f"=={bound}", version) != accepts_version(f"!={bound}", version)
