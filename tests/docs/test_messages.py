"""Tables of messages quote what the code says."""

import re

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.parametrize(("page", "least"), [("data", 40), ("troubleshooting", 15), ("promote", 4)])
def test_every_message_in_a_guides_tables_is_one_that_the_code_says(page, least):
    text = (REPOSITORY / f"docs/{page}.md").read_text()
    found = re.findall(r"^\| message \|.*\n\|[ -|]*\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = re.findall(r"^\| `([^`]+)` \|", "".join(found), re.MULTILINE)
    # Messages are broken over lines of code; the joints go.
    files = sorted(path for package in ("pipelines", "unetpp") for path in (REPOSITORY / package).rglob("*.py"))
    code = "".join(path.read_text() for path in files)
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    assert len(rows) >= least
    assert [words for words in rows if words not in code] == []
