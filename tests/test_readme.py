"""README is short, and shows what the program prints."""

from pipelines.evaluation.depth_table import NEXT
from tests.conftest import REPOSITORY


def test_readme_is_short_and_its_beginning_says_what_for_whom_how_and_on_what():
    text = (REPOSITORY / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 150
    beginning = "\n".join(lines[:60])
    for word in ("images and masks", "For whom", "nnU-Net", "segmentation_models", "make demo", "unetpp init", "GPU"):
        assert word in beginning, word
    assert NEXT in text.replace("\n    ", "\n")
