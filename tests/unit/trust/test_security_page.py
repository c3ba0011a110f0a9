"""The threat table names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
PAGE = TESTS.parent / "docs" / "security.md"
# a file, a test in the file named before it, or a case of it
NAMED = re.compile(r"`(?:([\w/]+\.py)|::(test_\w+)|\[(\w+)\])`")


def named_tests() -> list[tuple[str, str]]:
    """Return (file, function) of all tests and cases in the rows of the page's tables."""
    found: list[tuple[str, str]] = []
    for row in PAGE.read_text().splitlines():
        file = ""
        for path, test, case in NAMED.findall(row) if row.startswith("| ") else ():
            file = path or file
            if test or case:
                found.append((file, test or case))
    return found


def test_every_row_of_the_threat_table_names_tests_that_exist() -> None:
    rows = [
        row for row in PAGE.read_text().splitlines() if row.startswith("| ") and not row.startswith(("| -", "| att"))
    ]

    assert len(rows) > 50
    assert [row for row in rows if not NAMED.search(row)] == []
    missing = [
        f"{file}::{name}" for file, name in named_tests() if not re.search(rf"^def {name}\(", read(file), re.MULTILINE)
    ]
    assert missing == []


def read(file: str) -> str:
    """Return the text of a file of tests, empty where there is none."""
    path = TESTS / file
    return path.read_text() if file and path.exists() else ""
