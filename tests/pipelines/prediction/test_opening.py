import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.predict import predict
from pipelines.prediction import opening
from pipelines.prediction.opening import Asked
from tests.conftest import REPOSITORY
from tests.pipelines.prediction.models import save, write
from unetpp import NestedUNet, UserError
from unetpp.models.model_file import Trained


@pytest.fixture
def deep(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "deep").mkdir()
    Trained(NestedUNet((2, 3, 4), in_channels=1).eval(), None).save(tmp_path / "deep/model.safetensors")
    return tmp_path / "deep"


def test_the_deepest_depth_that_fits_the_budget_is_taken_and_said(tmp_path, deep, monkeypatch, capsys):
    write(tmp_path / "a.png")
    monkeypatch.setattr(opening, "measure_times", lambda engines, _size: dict.fromkeys(engines, 2.0) | {2: 5.0})
    for budget, depth in ((4, 1), (5, 2)):
        predict([str(tmp_path / "a.png")], str(deep), "auto", tmp_path / f"{budget}", max_latency_ms=budget)
        said = capsys.readouterr().out
        assert f"predicting with L{depth}, engine torch: the deepest within {budget} ms at 30 x 45 px" in said
        assert "L1 2.0 ms with torch, L2 5.0 ms with torch" in said
    with pytest.raises(UserError, match=r"found L1 2\.0 ms with torch, L2 5\.0 ms .*expected a depth within"):
        predict([str(tmp_path / "a.png")], str(deep), None, tmp_path / "out", max_latency_ms=1)
    for wrong in (
        Asked(1, max_latency_ms=1),
        Asked("auto"),
        Asked(1, heads="mean"),
        Asked(None, "2", max_latency_ms=1),
    ):
        with pytest.raises(UserError, match=r"pass only one of them|expected --max-latency-ms"):
            wrong.check()
    with pytest.raises(UserError, match="engine quick: no such engine; expected auto or one of torch"):
        predict([str(tmp_path / "a.png")], str(deep), None, tmp_path / "out", engine="quick")
    assert not (tmp_path / "out").exists()


def test_a_projects_exports_and_what_was_measured_of_them_are_found_by_its_dvc_yaml(tmp_path, monkeypatch):
    model = save(tmp_path / "models/train")
    asked = []
    monkeypatch.setattr(opening, "find_family", lambda *arguments: asked.append(arguments[1:]))
    monkeypatch.chdir(tmp_path)
    opening.find_model(str(model))
    (tmp_path / "dvc.yaml").write_text("stages: {other: {cmd: ls}}\n")
    opening.find_model(str(model))
    (tmp_path / "dvc.yaml").write_text((REPOSITORY / "dvc.yaml").read_text())
    opening.find_model(str(model))
    assert asked[:2] == [(None, None)] * 2
    assert list(map(str, asked[2])) == ["models/export", "reports/evaluate/engines.json"]


def test_augmented_predictions_are_the_same_where_the_network_sees_no_direction(tmp_path, capsys):
    model = save(tmp_path / "model")
    image = write(tmp_path / "a.png")
    for tta in ("flips", "all"):
        predict([str(tmp_path / "a.png")], str(model), None, tmp_path / tta, tta=tta)
        assert f"the mean over {tta}" in capsys.readouterr().out
        assert np.array_equal(np.array(Image.open(tmp_path / tta / "a.png")), image)


def test_the_command_needs_no_torch_until_an_engine_does():
    code = (
        "import sys\n"
        "for name in 'torch mlflow pydantic boto3 yaml scipy'.split():\n"
        "    sys.modules[name] = None\n"  # an import of it fails
        "import pipelines.predict, unetpp.engines.runtimes, unetpp.inference.symmetric\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr


def test_an_image_that_is_reduced_a_lot_is_told_with_what_to_train_by(tmp_path, capsys):
    Trained(NestedUNet((2, 3, 4), in_channels=1).eval(), 16).save(tmp_path / "model.safetensors")
    for side, told in ((320, True), (64, False)):
        Image.new("L", (side, 40)).save(tmp_path / f"{side}.png")
        predict([str(tmp_path / f"{side}.png")], str(tmp_path / "model.safetensors"), None, tmp_path / f"to_{side}")
        said = f"warning: {tmp_path / f'{side}.png'}: found 40 x {side} px, which is reduced 20 times, to 16 x 16 px"
        assert (said in capsys.readouterr().out) == told
