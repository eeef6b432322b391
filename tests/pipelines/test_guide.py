"""docs/data.md quotes what the code says, and README says it briefly."""

import re

from pipelines.evaluation.depth_table import NEXT
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


def test_readme_is_short_and_its_beginning_says_what_for_whom_how_and_on_what():
    text = (REPOSITORY / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 150
    beginning = "\n".join(lines[:60])
    for word in ("images and masks", "For whom", "nnU-Net", "segmentation_models", "make demo", "unetpp init", "GPU"):
        assert word in beginning, word
    assert NEXT in text.replace("\n    ", "\n")
