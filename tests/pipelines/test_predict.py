import os

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import unetpp
from pipelines.cli import build_parser
from pipelines.core.outputs import MARKER
from pipelines.predict import predict
from pipelines.prediction import flow
from pipelines.prediction.images import find_images
from pipelines.prediction.opening import read_heads
from pipelines.prediction.record import RECORD
from tests.pipelines.prediction.models import save, write
from unetpp import NestedUNet, UserError
from unetpp.models.model_file import Trained


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model")


def test_masks_have_the_images_sizes_and_lie_on_them(tmp_path, model):
    for name, size in (("a.png", (30, 45)), ("deep/b.tif", (64, 33))):
        write(tmp_path / "in" / name, size)
    predict([str(tmp_path / "in")], str(model), None, tmp_path / "out")
    for name, size in (("a", (30, 45)), ("b", (64, 33))):
        mask = np.array(Image.open(tmp_path / "out" / f"{name}.png"))
        expected = np.zeros(size, np.uint8)
        expected[5:20, 10:30] = 255
        assert np.array_equal(mask, expected)


def test_network_trained_on_resized_images_predicts_on_resized_ones(tmp_path, model):
    from unetpp.models.model_file import load_model

    whole = load_model(model)
    Trained(whole.network, 16).save(model / "model.safetensors")
    image = write(tmp_path / "a.png", (160, 160))
    predict([str(tmp_path / "a.png")], str(model), 1, tmp_path / "out")
    mask = np.array(Image.open(tmp_path / "out" / "a.png"))
    assert mask.shape == (160, 160)
    agree = ((mask > 0) == (image > 0)).mean()
    assert 0.95 < agree < 1  # right, and no finer than a sixteenth


def test_images_of_floats_are_predicted_as_those_of_8_bits_are(tmp_path, model):
    image = write(tmp_path / "in/a.png")
    Image.fromarray(image / np.float32(1000) - 5).save(tmp_path / "in/b.tif")
    predict([str(tmp_path / "in")], str(model), None, tmp_path / "out")
    masks = [np.array(Image.open(tmp_path / f"out/{name}.png")) for name in "ab"]
    assert np.array_equal(masks[0], image)
    assert np.array_equal(masks[0], masks[1])


def test_heads_are_averaged_as_the_text_says(tmp_path, model):
    write(tmp_path / "a.png")
    for heads in ("mean", "1", "1:0.5"):
        predict([str(tmp_path / "a.png")], str(model), None, tmp_path / heads, heads)
        assert (tmp_path / heads / "a.png").is_file()
    assert read_heads("mean") == "mean"
    assert read_heads("2, 4:3") == {2: 1.0, 4: 3.0}
    for wrong in ("all", "1:", "1:-2", "", "L1"):
        with pytest.raises(UserError, match="expected mean, or depths"):
            read_heads(wrong)
    with pytest.raises(UserError, match="expected weights above 0 for some of the depths"):
        predict([str(tmp_path / "a.png")], str(model), None, tmp_path / "out", "3")
    with pytest.raises(UserError, match="pass only one of them"):
        predict([str(tmp_path / "a.png")], str(model), 1, tmp_path / "out", "mean")


def test_labels_that_lie_over_each_other_are_a_mask_file_each(tmp_path, capsys):
    torch.manual_seed(0)
    network = NestedUNet((2, 3), in_channels=1, num_classes=2, multilabel=True).eval()
    with torch.no_grad():
        network.get_parameter("heads.1.weight").zero_()
        network.get_parameter("heads.1.bias").copy_(torch.tensor([5.0, -5.0]))
    trained = Trained(network, None, {"classes": ["cell", "nucleus"]})
    (tmp_path / "model").mkdir()
    trained.save(tmp_path / "model/model.safetensors")
    write(tmp_path / "a.png")
    predict([str(tmp_path / "a.png")], str(tmp_path / "model"), None, tmp_path / "out")
    for label, value in (("cell", 255), ("nucleus", 0)):
        assert np.unique(np.array(Image.open(tmp_path / "out" / label / "a.png"))).tolist() == [value]
    assert f"wrote 1 masks of each label to {tmp_path / 'out/cell'}, " in capsys.readouterr().out


def test_every_value_of_a_mask_is_named_also_that_of_class_0(tmp_path, capsys):
    write(tmp_path / "a.png")
    for background, names, said in ((True, ["car"], "0 background, 1 car"), (False, ["sky", "car"], "0 sky, 1 car")):
        network = NestedUNet((2, 3), in_channels=1, num_classes=2, background=background).eval()
        trained = Trained(network, None, {"classes": names})
        folder = tmp_path / str(background)
        folder.mkdir()
        trained.save(folder / "model.safetensors")
        assert unetpp.load(folder).classes == names
        assert Trained(network, None).names == (["background", "1"] if background else ["0", "1"])
        predict([str(tmp_path / "a.png")], str(folder), None, tmp_path / f"out{background}")
        assert f"wrote 1 masks to {tmp_path / f'out{background}'}: {said}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "", "a\\b"])
def test_a_strangers_model_writes_no_label_outside_the_folder_that_it_was_given(tmp_path, name):
    network = NestedUNet((2, 3), in_channels=1, num_classes=2, multilabel=True).eval()
    (tmp_path / "model").mkdir()
    Trained(network, None, {"classes": ["cell", name]}).save(tmp_path / "model/model.safetensors")
    write(tmp_path / "a.png")
    with pytest.raises(UserError, match="found a label named"):
        predict([str(tmp_path / "a.png")], str(tmp_path / "model"), None, tmp_path / "out/deep")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("num_classes", "classes", "told"),
    [(3, ["cell", "rim"], "0 background, 1 cell, 2 rim"), (2, None, "foreground where not 0")],
)
def test_masks_of_classes_hold_their_indices_and_the_command_says_which_is_which(
    tmp_path, capsys, num_classes, classes, told
):
    network = NestedUNet((2, 3), in_channels=1, num_classes=num_classes).eval()
    with torch.no_grad():
        network.get_parameter("heads.1.weight").zero_()
        network.get_parameter("heads.1.bias").copy_(torch.arange(float(num_classes)))
    (tmp_path / "model").mkdir()
    Trained(network, None, {"classes": classes}).save(tmp_path / "model/model.safetensors")
    write(tmp_path / "a.png")
    predict([str(tmp_path / "a.png")], str(tmp_path / "model"), None, tmp_path / "out")
    assert (np.array(Image.open(tmp_path / "out/a.png")) == num_classes - 1).all()
    assert told in capsys.readouterr().out


def test_files_folders_and_patterns_name_images(tmp_path):
    for name in ("a.png", "b/c.jpg", "b/notes.txt"):
        write(tmp_path / name) if name != "b/notes.txt" else (tmp_path / name).write_text("x")
    names = [path.name for path in find_images([str(tmp_path)])[0]]
    assert names == ["a.png", "c.jpg"]
    names = [path.name for path in find_images([str(tmp_path / "*.png"), str(tmp_path / "a.png")])[0]]
    assert names == ["a.png"]
    for pattern, wanted in (
        ("**/*.jpg", ["c.jpg"]),
        ("**", ["a.png", "c.jpg", "notes.txt"]),
        ("**/b/**/c*", ["c.jpg"]),
    ):
        assert [path.name for path in find_images([str(tmp_path / pattern)])[0]] == wanted
    gifs = [(tmp_path / "*.gif", "no file matches"), (tmp_path / "**/*.gif", "no file matches")]
    for pattern, message in (*gifs, (tmp_path / "b" / "no", "no such file")):
        with pytest.raises(UserError, match=message):
            find_images([str(pattern)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image there"):
        find_images([str(tmp_path / "empty")])


def test_what_links_lead_to_is_predicted_and_what_cannot_be_entered_is_named(tmp_path, model, capsys):
    for name in (
        "in/a.png",
        "in/deep/b.png",
        f"in/{os.fsdecode(b'caf')}\udce9.png",
        f"in/{'x' * 246}.png",
        "disk/c.png",
    ):
        write(tmp_path / name)
    (tmp_path / "in/linked.png").symlink_to("a.png")
    (tmp_path / "in/day 2").symlink_to(tmp_path / "disk")
    (tmp_path / "in/up").symlink_to(".")
    os.mkfifo(tmp_path / "in/pipe.png")
    (tmp_path / "in/.hidden.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"3 of 8 images, links or folders could not be predicted") as caught:
        predict([str(tmp_path / "in")], str(model), None, tmp_path / "out")
    lines = str(caught.value).splitlines()[1:]
    assert lines[0].startswith(
        f"{tmp_path}/in/day 2: found a link that leads out of {tmp_path}/in, to {tmp_path}/disk;"
    )
    assert lines[0].endswith(f": name {tmp_path}/disk itself")
    assert [line.partition(": ")[0] for line in lines[1:]] == [f"{tmp_path}/in/{name}" for name in ("pipe.png", "up")]
    assert "wrote 5 masks" in capsys.readouterr().out
    assert find_images([f"{tmp_path}/in/**/*.png"]) == find_images([str(tmp_path / "in")])
    wanted = {"a.png", "b.png", "linked.png", "caf\udce9.png", f"{'x' * 246}.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == wanted | {MARKER, RECORD}
    with pytest.raises(UserError, match=r"(?s)1 of 2 .*pipe\.png: found a broken link, or a device, pipe or socket"):
        predict([str(tmp_path / f"in/{name}.png") for name in ("pipe", "a")], str(model), None, tmp_path / "out")


def test_broken_image_is_named_and_the_others_are_done(tmp_path, model):
    write(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"1 of 2 images.*\n.*bad\.png"):
        predict([str(tmp_path / "in")], str(model), None, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["good.png"]


def test_what_a_person_has_is_never_replaced_by_a_mask(tmp_path, model, monkeypatch):
    """By the command, as it is typed."""
    before = {name: write(tmp_path / name) for name in ("scans/a.png", "scans/b.png", "hand/b.png")}
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        parsed = build_parser().parse_args(["predict", *arguments, "--model", str(model)])
        try:
            parsed.run(parsed)
        except UserError as error:
            return str(error)
        return ""

    images = ["scans/a.png", "scans/b.png"]
    assert "this output lies in scans, which is read" in run("scans", "--out", "scans/masks")
    assert "this output lies in scans, which is read" in run("sc*", "--out", "scans/deep", "--overwrite")
    assert "this output is scans/a.png, which is read" in run(*images, "--out", "scans", "--overwrite")
    assert "hand/b.png: already exists" in run("scans", "--out", "hand")
    assert "hand/b.png: found a file; expected a folder" in run("scans", "--out", "hand/b.png", "--overwrite")
    assert [path.name for path in (tmp_path / "hand").glob("*.png")] == ["b.png"]
    for name, image in before.items():
        assert np.array_equal(np.array(Image.open(tmp_path / name)), image), name
    # What we wrote is replaced, until somebody corrects it.
    assert [run("scans", "--out", "masks") for _ in range(2)] == ["", ""]
    Image.fromarray(np.full((30, 45), 7, np.uint8)).save(tmp_path / "masks/a.png")
    assert "masks/a.png: already exists" in run("scans", "--out", "masks")
    assert run("scans", "--out", "masks", "--overwrite") == ""
    assert np.array(Image.open(tmp_path / "masks/a.png")).max() == 255


def test_image_that_may_not_be_read_is_named_and_the_others_are_done(tmp_path, model, monkeypatch):
    """By the system's answer: root, who may run this, reads all."""
    for name in "ab":
        write(tmp_path / f"in/{name}.png")
    decode = flow.decode_image

    def refuse(path, channels, **named):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return decode(path, channels, **named)

    monkeypatch.setattr(flow, "decode_image", refuse)
    with pytest.raises(UserError, match=r"1 of 2 images.*\n.*a\.png: cannot be read \(Permission denied\)"):
        predict([str(tmp_path / "in")], str(model), None, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["b.png"]


def test_images_of_one_name_are_refused_before_one_overwrites_the_other(tmp_path, model):
    write(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "b" / "a.png")
    with pytest.raises(UserError, match=r"a\.png, .*a\.png"):
        predict([str(tmp_path / "in")], str(model), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_depth_that_the_model_lacks_is_refused(tmp_path, model):
    write(tmp_path / "a.png")
    with pytest.raises(UserError, match="found 3; expected one of 1, at which the model has a head"):
        predict([str(tmp_path / "a.png")], str(model), 3, tmp_path / "out")


def test_every_command_has_help(capsys):
    for command in ("predict", "doctor", "summary", "mlflow"):
        with pytest.raises(SystemExit) as exit:
            build_parser().parse_args([command, "--help"])
        assert exit.value.code == 0
        assert command in capsys.readouterr().out


def test_what_is_said_of_pages_names_no_setting_that_predict_does_not_read(tmp_path, model):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 30, 45), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match=r"a\.tif: found 2 pages; expected one: save each page as a separate file$"):
        predict([str(tmp_path / "a.tif")], str(model), None, tmp_path / "out")
