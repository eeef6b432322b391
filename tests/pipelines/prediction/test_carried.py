"""What one process has opened, opened by another from what travels."""

import numpy as np
import pytest

from pipelines.prediction.carried import carry
from pipelines.prediction.opening import Asked, open_model
from tests.pipelines.prediction.far import make_model
from unetpp.engines.family import find_family


@pytest.mark.parametrize(
    "asked", [Asked(), Asked(1), Asked(heads="mean"), Asked(tta="flips"), Asked("auto", max_latency_ms=1e6)]
)
def test_a_model_is_opened_elsewhere_as_it_was_chosen_here(asked, tmp_path):
    family, size = find_family(make_model(tmp_path / "model")), (24, 24)
    here = open_model(family, asked, size, 1)
    carried = carry(family, asked, here, size)
    assert carried.asked.engine == here.how["engine"]  # nobody chooses again
    assert carried.asked.max_latency_ms is None
    there = carried.open(tmp_path, 1)
    assert there.how == here.how
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    assert np.array_equal(there.predictor.probs(image), here.predictor.probs(image))
