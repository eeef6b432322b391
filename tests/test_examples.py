"""The notebook of the library, run as its reader runs it: cell after cell, without network."""

import contextlib
import io
import json

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
