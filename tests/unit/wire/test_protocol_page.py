"""The protocol page says what the wire says."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_protocol_page_is_generated_from_the_wire_as_it_is() -> None:
    page = runpy.run_path(str(DOCS / "generate_protocol.py"))["page"]
    assert (DOCS / "protocol.md").read_text() == page(), "run `make protocol`"
