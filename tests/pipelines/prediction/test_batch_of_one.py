"""Which images stand together in a batch changes from one call to the next, and from one machine to another."""

import numpy as np
import torch
from PIL import Image

from pipelines.prediction.flow import write_all
from pipelines.prediction.outputs import Outputs
from unetpp import NestedUNet
from unetpp.engines.family import as_family, open_engine
from unetpp.inference.predictor import Predictor
from unetpp.models.model_file import Trained


class Kept:
    """An engine whose answers are kept."""

    takes_parts = True

    def __init__(self, engine):
        self._engine, self.name, self.about, self.kept = engine, engine.name, engine.about, []

    def __call__(self, images, statistics=None):
        self.kept.append(self._engine(images, statistics))
        return self.kept[-1]


def test_an_image_that_is_computed_alone_has_the_bits_of_one_in_a_batch(tmp_path):
    torch.manual_seed(0)
    network = NestedUNet((32, 64, 128, 256, 512)).eval()
    engine = Kept(open_engine(as_family(Trained(network, None)), 4, "torch", device="cpu"))
    random, images = np.random.default_rng(0), {}
    for name in "abc":
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
        images[tmp_path / f"{name}.png"] = name
    for some in (images, {path: name for path, name in images.items() if name == "a"}):
        assert len(list(write_all(Predictor(engine), some, tmp_path / "out", Outputs()))) == len(some)
    together, alone = engine.kept
    assert len(together) == 3
    assert np.array_equal(together[0], alone[0])
