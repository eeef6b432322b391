"""The facts of a sample: in the units of its files, whatever they are, and the same again from samples.csv."""

import numpy as np
import pytest
from PIL import Image

from pipelines.core.params import load_params
from pipelines.dataset.layouts import Sample, find_samples
from pipelines.dataset.loading import load_sample
from pipelines.dataset.mask_files import Labels
from pipelines.dataset.sample_stats import Facts, check_foreground, describe, read_samples, write_samples
from pipelines.ingest import ingest
from tests.conftest import REPOSITORY
from unetpp.errors import UserError
from unetpp.images.pictures import Header

ALL = load_params(REPOSITORY / "params.yaml")
PARAMS = ALL.prepare
HEADER = Header("PNG", "L", 8, 1)
LEVELS = slice(Facts._fields.index("low"), Facts._fields.index("high") + 1)


def facts_of(image, mask=None, prepared=None):
    mask = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
    return describe(HEADER, image, Labels(mask, mask, one_each=False), mask if prepared is None else prepared)


@pytest.mark.parametrize(("kind", "limit"), [(np.uint8, 256), (np.uint16, 4096), (np.float32, 1000)])
def test_percentiles_are_values_of_the_image(kind, limit):
    image = np.random.default_rng(0).integers(0, limit, (40, 50, 3)).astype(kind)
    facts = facts_of(image)
    wanted = np.quantile(image, (0, 0.01, 0.5, 0.99, 1), method="inverted_cdf")
    assert list(facts[LEVELS]) == wanted.tolist()


def test_what_is_not_finite_is_no_intensity():
    image = np.full((4, 4, 3), 0.25, np.float32)
    image[0, 0], image[1, 1] = np.nan, np.inf
    facts = facts_of(image)
    assert facts.low == facts.high == 0.25
    assert facts_of(np.full((4, 4, 3), np.nan, np.float32)).high == 0


def test_grey_is_told_by_the_pixels():
    grey = np.repeat(np.arange(100, dtype=np.uint8).reshape(10, 10, 1), 3, axis=2)
    coloured = grey.copy()
    coloured[3, 3, 2] += 1
    assert (facts_of(grey).grey, facts_of(coloured).grey) == (1, 0)


def test_sizes_shrink_with_the_image_and_lost_foreground_is_told():
    mask = np.zeros((100, 100), np.uint8)
    mask[10:30, 10:30] = 1
    image = np.zeros((100, 100, 3), np.uint8)
    facts = facts_of(image, mask, np.zeros((25, 25), np.uint8))
    assert facts.scale == 0.25
    assert facts.object_px_median == pytest.approx(2 * np.sqrt(400 / np.pi), abs=1e-3)
    assert (facts.sizes, facts.prepared_sizes) == ("17:1", "9:1")  # two octaves, eight bins
    assert (facts.foreground_px, facts.prepared_foreground_px) == (400, 0)
    assert facts.foreground_share == 0.04
    assert facts.classes == "1:400"


def test_a_sample_is_described_as_it_is_stored_and_not_as_it_is_prepared(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
    numbers = np.zeros((60, 80), np.uint16)
    numbers[5:15, 5:15], numbers[5:15, 15:25], numbers[40:50, 40:50] = 300, 7, 9
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(numbers).save(tmp_path / "mask.png")
    sample = Sample("s", tmp_path / "image.png", (tmp_path / "mask.png",))
    loaded = load_sample(sample, PARAMS.model_copy(update={"size": 20}))
    assert loaded.image.shape == (20, 20, 3)
    facts = loaded.facts
    assert (facts.height, facts.width, facts.bits, facts.mode) == (60, 80, 8, "L")
    assert (facts.num_objects, facts.objects_by, facts.foreground_px) == (3, "values", 300)
    assert (facts.low, facts.high) == (image.min(), image.max())
    assert facts.scale == pytest.approx(np.sqrt(20 * 20 / (60 * 80)), abs=1e-5)
    assert facts.prepared_foreground_px == np.count_nonzero(loaded.mask)


def test_an_ignore_value_that_is_the_foregrounds_is_refused():
    image, nothing = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    ignored, drawn = nothing.copy(), nothing.copy()
    ignored[2:5, 2:5], drawn[2:5, 2:5] = 255, 1
    check_foreground({"train": [facts_of(image, ignored), facts_of(image, drawn)]}, 255, "refuse")
    check_foreground({"train": [facts_of(image, nothing)]}, 255, "allow")
    with pytest.raises(UserError, match=r"prepare\.ignore, 255: found 18 ignored pixels and no other foreground"):
        check_foreground({"train": [facts_of(image, ignored)] * 2}, 255, "allow")
    with pytest.raises(UserError, match=r"prepare\.values: found 18 ignored pixels"):
        check_foreground({"train": [facts_of(image, ignored)] * 2}, None, "allow")


def test_a_split_with_nothing_to_find_is_refused_also_where_resizing_lost_it_or_nobody_annotated_it(params):
    image, drawn, ignored = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    drawn[2:5, 2:5] = 1
    good, lost = facts_of(image, drawn), facts_of(image, drawn, drawn[:2, :2])
    unknown, empty = facts_of(image, ignored), facts_of(image)
    assert params.prepare.no_foreground == "refuse"
    for bare in (lost, unknown, empty):
        check_foreground({"train": [good], "val": [bare, good], "test": [good]}, None, "refuse")
        for split in ("train", "val", "test"):
            with pytest.raises(UserError, match=rf"found no foreground pixel in {split} \(2 images\); expected some"):
                check_foreground({"train": [good], "val": [good], "test": [good]} | {split: [bare] * 2}, None, "refuse")


def test_samples_csv_gives_back_what_was_written(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    mask = np.zeros((9, 9), np.uint8)
    mask[2:5, 2:5] = 1
    facts = facts_of(image, mask)
    ids = ["plain", 'with "quotes", commas', "<img src=x onerror=alert(1)>", "line\nbreak", "=1+1"]
    write_samples(tmp_path / "samples.csv", [(id, "train", "tissue", *facts) for id in ids])
    samples = read_samples(tmp_path / "samples.csv")
    assert samples["id"].tolist() == ids
    for name, value in facts._asdict().items():
        assert samples[name].tolist() == [value] * len(ids), name


@pytest.mark.shared_data
def test_real_objects_are_as_many_as_there_are_files_or_numbers(shared_data, tmp_path):
    """The same images twice: a file a nucleus, and numbered masks with some labels corrected."""
    archive = {"kind": "zip", "location": str(shared_data / "bbbc038_sample.zip")}
    ingest(ALL.ingest.model_copy(update=archive), tmp_path / "raw")
    samples, _ = find_samples(tmp_path / "raw")
    assert len(samples) == 31
    for sample in samples[::3]:
        facts = load_sample(sample, PARAMS).facts
        assert (facts.objects_by, facts.num_objects, facts.mode) == ("each", len(sample.masks), "RGBA")
        folder, file = shared_data / "dsb2018", f"{sample.id[:16]}.png"
        numbered = load_sample(Sample("s", folder / "images" / file, (folder / "masks" / file,)), PARAMS).facts
        values = np.unique(np.asarray(Image.open(folder / "masks" / file)))
        assert (numbered.objects_by, numbered.num_objects) == ("values", len(values) - 1)
        assert numbered.object_px_median == pytest.approx(facts.object_px_median, rel=0.15)
        assert numbered[LEVELS] == facts[LEVELS]
