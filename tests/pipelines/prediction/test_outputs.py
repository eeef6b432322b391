import csv

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipelines.predict import predict
from pipelines.prediction import large
from pipelines.prediction import outputs as module
from pipelines.prediction.opening import find_model
from pipelines.prediction.outputs import KINDS, Outputs, write_outputs
from tests.pipelines.prediction.models import parting_network, save, write, write_touching
from unetpp import Predictor, UserError
from unetpp.images.decode import decode_image
from unetpp.models.model_file import Trained

TWO = {"#000000": "background", "#ff8000": "nucleus", "#00ff00": "rim", "#ffffff": "ignore"}


def read(path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.array(Image.open(path))


def table(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def two_squares(path):
    image = write(path)
    image[25:30, 40:45] = 255
    Image.fromarray(image).save(path)
    return image


def test_all_that_can_be_asked_for_is_written_of_an_image(tmp_path, capsys):
    model = save(tmp_path / "model", {"classes": ["nucleus"], "values": TWO})
    image, out = two_squares(tmp_path / "in/a.png"), tmp_path / "out"
    write(tmp_path / "in/none.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "in/none.png")
    predict([str(tmp_path / "in")], str(model), None, out, outputs=Outputs(KINDS))
    assert np.array_equal(read(out / "a.png"), image)
    found = {kind: read(out / kind / f"a{'.npy' if kind == 'probs' else '.png'}") for kind in KINDS[1:-1]}
    assert (found["probs"].shape, found["probs"].dtype) == ((1, 30, 45), np.float16)
    assert np.array_equal(found["probs"][0] >= 0.5, image > 0)
    assert np.abs(found["probs8"] / 255 - found["probs"][0].astype(float)).max() < 0.004
    assert np.array_equal(found["values"], np.where(image[..., None] > 0, [255, 128, 0], [0, 0, 0]))
    assert found["overlay"].shape == (30, 45, 3)
    assert (found["overlay"][image > 0] != 255).any()
    assert found["labels"].dtype == np.uint16 or found["labels"].max() == 2
    assert (found["labels"][5, 10], found["labels"][29, 44], found["labels"].max()) == (1, 2, 2)
    rows = table(out / "measurements.csv")
    assert [row["image"] for row in rows] == ["a", "a"]
    assert rows[0] == {
        "image": "a", "object": "1", "class": "nucleus", "area_px": "300", "centroid_x": "19.5", "centroid_y": "12.0",
        "left": "10", "top": "5", "width": "20", "height": "15",
    }  # fmt: skip
    counts = [(row["image"], row["num_objects"], row["area_px"]) for row in table(out / "counts.csv")]
    assert counts == [("a", "2", "325"), ("none", "0", "0")]
    assert "wrote values, probs, probs8, overlay, labels, measurements for 2 images" in capsys.readouterr().out


def test_files_of_classes_and_of_labels_have_their_places(tmp_path):
    image = write(tmp_path / "a.png")
    classes = save(tmp_path / "classes", {"classes": ["cell", "rim"]}, num_classes=3)
    kinds = Outputs(("mask", "probs8", "labels", "measurements"))
    predict([str(tmp_path / "a.png")], str(classes), None, tmp_path / "out", outputs=kinds)
    assert np.array_equal(read(tmp_path / "out/a.png"), image // 255 * 2)
    planes = [read(tmp_path / f"out/probs8/{name}/a.png").astype(int) for name in ("background", "cell", "rim")]
    assert np.abs(sum(planes) - 255).max() <= 2
    assert table(tmp_path / "out/measurements.csv")[0]["class"] == "rim"
    labels = save(tmp_path / "labels", {"classes": ["cell", "nucleus"]}, num_classes=2, multilabel=True)
    predict([str(tmp_path / "a.png")], str(labels), None, tmp_path / "two", outputs=kinds)
    assert np.array_equal(read(tmp_path / "two/nucleus/a.png"), image)
    assert read(tmp_path / "two/labels/nucleus/a.png").max() == 1
    with pytest.raises(UserError, match="found a model with labels, which may overlap"):
        predict([str(tmp_path / "a.png")], str(labels), None, tmp_path / "three", outputs=Outputs(("values",)))
    with pytest.raises(UserError, match="found a model without values"):
        predict([str(tmp_path / "a.png")], str(classes), None, tmp_path / "three", outputs=Outputs(("values",)))
    assert not (tmp_path / "three").exists()


def test_one_image_alone_has_the_files_that_the_command_writes_byte_for_byte_or_none(tmp_path, monkeypatch):
    model, kinds = save(tmp_path / "model"), Outputs(("mask", "probs", "overlay", "measurements"))
    for name, size in (("a", (30, 45)), ("b", (64, 33)), ("c", (30, 45))):
        write(tmp_path / f"in/{name}.png", size)
    predict([str(tmp_path / "in")], str(model), None, tmp_path / "out", outputs=kinds)
    predictor = Predictor(find_model(str(model)))
    for name in "abc":
        written = write_outputs(predictor, tmp_path / f"in/{name}.png", tmp_path / "alone", name, kinds)
        assert written == kinds.paths(predictor.about, tmp_path / "alone", name)
        for path in written:
            assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "alone")).read_bytes()

    def broken(*_, **__):
        raise OSError("no")

    monkeypatch.setattr(module, "overlay", broken)
    with pytest.raises(OSError, match="no"):
        write_outputs(predictor, tmp_path / "in/a.png", tmp_path / "torn", "a", kinds)
    assert not [path for path in (tmp_path / "torn").rglob("*") if path.is_file()]


def test_more_objects_than_16_bits_are_refused_and_the_image_is_named(tmp_path, monkeypatch):
    model = save(tmp_path / "model")
    two_squares(tmp_path / "a.png")
    monkeypatch.setattr(large, "MAX_OBJECTS", 1)
    with pytest.raises(UserError, match=r"(?s)1 of 1 .*a\.png: found more than 1 objects"):
        predict([str(tmp_path / "a.png")], str(model), None, tmp_path / "out", outputs=Outputs(("labels",)))


def test_a_model_that_parts_objects_writes_them_beside_the_mask_unless_something_else_is_asked_for(
    tmp_path, monkeypatch, capsys
):
    model, image = tmp_path / "model", tmp_path / "in/a.png"
    model.mkdir()
    separation = {"separation": {"L1": {"seed": 0.5, "smallest_px": 3}}}
    Trained(parting_network(), None, separation).save(model / "model.safetensors")
    numbers = write_touching(image)
    predict([str(image)], str(model), None, tmp_path / "out")
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("a.*")) == [
        "a.png",
        "labels/a.tif",
    ]
    assert "wrote labels for 1 images" in capsys.readouterr().out
    assert np.array_equal(read(tmp_path / "out/a.png") > 0, numbers > 0)
    labels = tifffile.imread(tmp_path / "out/labels/a.tif")
    assert (labels.dtype, labels.tolist()) == (np.uint16, numbers.tolist())
    with tifffile.TiffFile(tmp_path / "out/labels/a.tif") as file:
        assert not file.pages[0].is_tiled  # pyright: ignore[reportAttributeAccessIssue] - ImageJ opens no tiles
    predictor = Predictor(find_model(str(model)))
    assert np.array_equal(predictor.instances(decode_image(image, 1)), numbers)
    assert predictor.instances(np.stack([decode_image(image, 1)] * 2)).shape == (2, 30, 45)

    kinds = Outputs(("labels", "measurements", "probs", "probs8"))
    monkeypatch.setattr(module, "MAX_OBJECTS", 1)
    predict([str(image)], str(model), None, tmp_path / "more", outputs=kinds)
    assert tifffile.imread(tmp_path / "more/labels/a.tif").dtype == np.uint32
    assert [(row["object"], row["class"], row["area_px"]) for row in table(tmp_path / "more/measurements.csv")] == [
        ("1", "1", "49"),
        ("2", "1", "49"),
    ]
    assert read(tmp_path / "more/probs/a.npy").shape == (3, 30, 45)
    assert not (tmp_path / "more/a.png").exists()

    for name, value in (("SMALL_BYTES", 0), ("WHOLE_PX", 100), ("PARTED_PX", 1000)):
        monkeypatch.setattr(module, name, value)
    with pytest.raises(UserError, match=r"a\.png: found 1,350 pixels; expected at most 1,000 to separate obj"):
        predict([str(image)], str(model), None, tmp_path / "large")
    predict([str(image)], str(model), None, tmp_path / "large", outputs=Outputs(("mask",)))


def test_a_model_of_masks_has_no_instances_to_give(tmp_path):
    with pytest.raises(UserError, match="found a network with only the target mask"):
        Predictor(find_model(str(save(tmp_path / "model")))).instances(np.zeros((8, 8), np.uint8))
