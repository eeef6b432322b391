"""The examples of the library, run as their reader runs them, without network."""

import contextlib
import io
import json
import runpy

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples/notebook.ipynb"


def test_the_notebook_runs_from_top_to_bottom_and_holds_no_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for number, cell in enumerate(cells):
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
    text = printed.getvalue()
    assert "epoch 6 of 6: loss " in text
    assert "L3: IoU 0." in text
    assert "new heads: [1, 2, 3]" in text
    assert names["trained"].depths == (1, 2, 3)
    assert names["by_kind"].classes == ["round", "oblong"]
    mask = names["unetpp"].Predictor(names["loaded"]).mask(names["image"])
    assert names["iou"](mask > 0, names["mask"] > 0) > 0.6  # it has learnt


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "a folder"])
def test_the_script_trains_compares_and_predicts(tmp_path, monkeypatch, capsys, given):
    words = []
    if given:
        rng = np.random.default_rng(0)
        for name, high, suffix in (("images", 256, "jpg"), ("masks", 2, "png")):
            (tmp_path / "set" / name).mkdir(parents=True)
            for number in range(16):
                pixels = rng.integers(0, high, (40, 50), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.{suffix}")
        words = ["--data", "set"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_and_compare.py", "--epochs", "1", *words])
    runpy.run_path(str(REPOSITORY / "examples/train_and_compare.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[1:4]] == ["L1", "L2", "L3"]
    assert (tmp_path / "nuclei.safetensors").is_file()
    with Image.open(tmp_path / "nuclei.png") as overlay:
        assert overlay.mode == "RGB"
