"""A cold start that fails says why; test_evaluate has one that succeeds."""

import pytest
import torch

from pipelines.evaluation.cold_start import measure_cold_start


def test_a_file_that_cannot_be_loaded_is_an_error_that_says_so(tmp_path):
    torch.save({}, tmp_path / "L1.pt")
    with pytest.raises(RuntimeError, match="not a model of this project"):
        measure_cold_start({"L1": tmp_path / "L1.pt"}, set(), (24, 24), "cpu", 60)
