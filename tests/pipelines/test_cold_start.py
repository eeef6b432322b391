"""Laws of the cold start. No test looks at a time."""

import pytest
import torch

from pipelines.cold_start import measure_cold_start
from unetpp.inference import Trained
from unetpp.model import NestedUNet


def test_every_file_is_loaded_by_a_process_of_its_own(tmp_path):
    files = {}
    for name in ("L1", "mean"):
        files[name] = tmp_path / f"a file of {name}.pt"
        Trained(NestedUNet([2, 4, 8]).eval(), None).save(files[name])
    found = measure_cold_start(files, {"mean"}, 24, "cpu")
    assert set(found) == {"L1", "mean"}
    assert min(found.values()) > 0


def test_a_file_that_cannot_be_loaded_is_an_error_that_says_so(tmp_path):
    torch.save({}, tmp_path / "L1.pt")
    with pytest.raises(RuntimeError, match="not a model of this project"):
        measure_cold_start({"L1": tmp_path / "L1.pt"}, set(), 24, "cpu")
