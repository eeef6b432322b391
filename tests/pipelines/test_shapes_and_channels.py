"""Rectangles, padding and several channels from the files to the masks that prediction writes."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pipelines.core.params import load_params
from pipelines.evaluation.predictor import Predictor as Depths
from pipelines.export import calibration_images
from pipelines.predict import predict
from pipelines.prepare import prepare
from pipelines.served import Served
from pipelines.training.epochs import Training
from pipelines.training.results import write_results
from tests.conftest import REPOSITORY
from tests.pipelines.training.small import CPU, last, spec_of
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import read_manifest
from unetpp.errors import FileError, UserError
from unetpp.inference.predictor import Predictor
from unetpp.models.model_file import load_model
from unetpp.network.masks import IGNORE

SHAPES = [(40, 64), (64, 40), (30, 30)]
FITTED = {(40, 64): (30, 48), (64, 40): (32, 20), (30, 30): (32, 32)}  # in 32 x 48
WATCHED = {"flips": "horizontal", "quarter_turns": False}


def write_raw(raw, channels: int, num: int = 24) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (raw / name).mkdir(parents=True)
    (raw / "manifest.json").write_text("{}")
    for number in range(num):
        height, width = SHAPES[number % 3]
        mask = np.zeros((height, width), np.uint8)
        mask[5 + number % 7 : 25, 6:22] = 255
        image = rng.integers(0, 500, (height, width, channels)) + 3000 * (mask[..., None] > 0)
        path = raw / f"images/{number:02}.tif"
        tifffile.imwrite(path, image.astype(np.uint16), photometric="minisblack", planarconfig="contig")
        Image.fromarray(mask).save(raw / f"masks/{number:02}.png")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    params = load_params(REPOSITORY / "params.yaml")
    folder = tmp_path_factory.mktemp("bands")
    write_raw(folder / "raw", 4)
    changes = {"size": [32, 48], "fit": "pad", "channels": 4, "near_duplicates": None, "num_workers": 1}
    settings = params.prepare.model_copy(update=changes)
    prepare(settings, folder / "raw", folder / "prepared")
    spec = spec_of(params, folder / "prepared", None, WATCHED, epochs=2)
    write_results(last(spec), spec, "run", folder / "model", folder / "reports")
    return folder


def test_images_are_kept_in_their_proportions_and_without_padding(project):
    manifest, own = read_manifest(project / "prepared"), {}
    assert (manifest.size, manifest.fit, manifest.channels) == ((32, 48), "pad", 4)
    for name in ("train", "val"):
        split = Split(project / f"prepared/{name}.arrow")
        for index in range(len(split)):
            image, mask = split[index]
            assert image.shape == (*FITTED[SHAPES[int(split.id(index)) % 3]], 4)
            assert not (mask == IGNORE).any()
            own[split.id(index)] = split.moments(index)[0]
    assert manifest.ignored_share == 0
    assert all(shape.shape[0] == 4 for shape in calibration_images(project / "prepared", 3))


def test_a_training_sees_them_padded_and_the_padding_counts_nowhere(project, params):
    training = Training(spec_of(params, project / "prepared", None, WATCHED), CPU)
    split = training.train_split
    for shard, (image, mask) in zip(training.batches.shards(0), training.batches.begin(0), strict=True):
        assert image.shape[1:] == (4, 32, 48)
        for number, index in enumerate(shard):
            height, width, _ = split.shape(index)
            assert int((mask[number] != IGNORE).sum()) == height * width
    training.batches.close()


def test_every_way_to_predict_gives_the_same_mask_at_the_images_own_size(project):
    trained, tif = load_model(project / "model"), project / "raw/images/00.tif"
    assert (trained.size, trained.fit, trained.network.in_channels) == ((32, 48), "pad", 4)
    image = tifffile.imread(tif)
    probs = Predictor(trained, 1).probs(image)
    assert probs.shape == (1, 40, 64)
    answers = {one.name: one for one in Depths(trained, torch.device("cpu")).answers([image])}
    assert answers["L1"].seen.shape == (1, 1, 30, 48)
    assert np.array_equal(answers["L1"].probs[0].numpy(), probs)  # the head of the whole is the pruned network
    predict([str(tif)], str(project / "model"), 1, project / "masks")
    assert np.array_equal(np.asarray(Image.open(project / "masks/00.png")) > 0, probs[0] >= 0.5)
    served = Served(trained)
    assert np.array_equal(served.predict(tif.read_bytes(), {"depth": 1}), probs[0] >= 0.5)
    small = (image >> 4).astype(np.uint8)
    assert np.array_equal(served.predict(small, {"depth": 1}), Predictor(trained, 1).mask(small))
    for wrong in (small[..., :3], small[..., 0]):
        with pytest.raises(UserError, match="channels"):
            Predictor(trained).probs(wrong)
        with pytest.raises(Exception, match=r"expected \(H, W, 4\)"):
            served.predict([wrong.tolist()])


def test_files_of_another_number_of_channels_are_set_aside_with_the_number_they_have(params, tmp_path):
    write_raw(tmp_path / "raw", 5, num=3)
    settings = params.prepare.model_copy(update={"channels": 3, "num_workers": 1})
    with pytest.raises(UserError, match=r"found 5 channels; expected 3.*set prepare\.channels to 5"):
        prepare(settings, tmp_path / "raw", tmp_path / "prepared")
    assert issubclass(FileError, UserError)
