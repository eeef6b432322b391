"""docs/data.md quotes what the code says."""

import re

from tests.conftest import REPOSITORY


def test_every_message_in_the_guides_table_is_one_that_the_code_says():
    rows = re.findall(r"^\| `([^`]+)` \|", (REPOSITORY / "docs/data.md").read_text(), re.MULTILINE)
    # Messages are broken over lines of code; the joints go.
    files = sorted(path for package in ("pipelines", "unetpp") for path in (REPOSITORY / package).rglob("*.py"))
    code = "".join(path.read_text() for path in files)
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    assert len(rows) > 20
    for words in rows:
        assert words in code, words
