"""A cold start is that of the engine, and one that fails says why; test_evaluate has one by torch."""

import pytest
import torch

from pipelines.evaluation.cold_start import measure_cold_start
from tests.pipelines.evaluation.exported import write_exports
from tests.pipelines.test_evaluate import write_model
from unetpp.models.model_file import load_model


def test_a_file_that_cannot_be_loaded_is_an_error_that_says_so(tmp_path):
    torch.save({}, tmp_path / "L1.pt")
    with pytest.raises(RuntimeError, match="not a model of this project"):
        measure_cold_start({"L1": tmp_path / "L1.pt"}, set(), (24, 24), "cpu", 60)


@pytest.mark.slow  # a process
def test_an_export_starts_without_torch(tmp_path):
    trained = load_model(write_model(tmp_path / "model", (2, 4)))
    exports = write_exports(tmp_path / "exports", trained)
    files = {"L1": tmp_path / "model/model.safetensors"}
    by_torch, exported = (
        measure_cold_start(files, set(), (24, 24), "cpu", 0, name, exports)["L1"] for name in ("torch", "onnxruntime")
    )
    assert 0 < exported < by_torch
