"""The manifest of prepared data: it is read as it was written, or refused with the command that makes it anew."""

import json

import pytest

from unetpp.data.manifest import Manifest, SplitFacts, read_manifest
from unetpp.errors import UserError

LEAST = {"size": None, "channels": 3, "num_classes": 1, "splits": {"train": {"num_images": 4, "sha256": "ab"}}}


def test_what_is_written_is_read(tmp_path):
    split = SplitFacts(3, "ab", {"tissue": 2, "": 1})
    manifest = Manifest(size=96, channels=1, num_classes=2, classes=["a", "b"], splits={"val": split}, num_groups=2)
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest


def test_what_data_made_by_other_means_do_not_say_is_not_known(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(LEAST))
    found = read_manifest(tmp_path)
    assert not found.multilabel
    assert found.num_groups is found.raw_sha256 is found.class_pixels is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ('{"size": 96', "not JSON"),
        ("[]", "found list"),
        (json.dumps(LEAST | {"colour": 1}), "another version.*colour"),
        *((json.dumps({k: v for k, v in LEAST.items() if k != key}), key) for key in LEAST),
        (json.dumps(LEAST | {"splits": {"train": {"num_images": 4}}}), "another version.*sha256"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused_with_the_command_that_makes_it(tmp_path, content, said):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"manifest\.json: .*{said}.*dvc repro prepare"):
        read_manifest(tmp_path)
