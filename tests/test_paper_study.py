"""The study of the paper's claims: its patches, its results, and what its page says of them."""

import numpy as np
import pytest
import torch
import yaml

from studies.paper import page, records, run, tables
from tests.pipelines.conftest import Project


def test_patches_cover_every_pixel_and_stay_with_their_image():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 255, (70, 45, 3), np.uint8), rng.integers(0, 2, (70, 45), np.uint8)
    seen = np.zeros((70, 45), int)
    for id, part, part_mask in run.patches("x", image, mask, {"size_px": 32, "stride_px": 20}):
        y, x = map(int, id.split("@")[1].split(","))
        assert np.array_equal(part, image[y : y + 32, x : x + 32])
        assert np.array_equal(part_mask, mask[y : y + 32, x : x + 32])
        seen[y : y + 32, x : x + 32] += 1
    assert seen.min() >= 1
    [(_, part, part_mask)] = run.patches("x", image[:20, :20], mask[:20, :20], {"size_px": 32, "stride_px": 20})
    assert part.shape == (32, 32, 3)
    assert part_mask[20:].sum() == part_mask[:, 20:].sum() == 0


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of two networks and two seeds on 20 synthetic images, with its folders under tmp_path."""
    small = run.read_study()
    small["seeds"] = [0, 1]
    small["widths"] = {"half": [4, 6, 8]}
    small["protocols"]["resize"]["size"] = 32
    small["protocols"] = {"resize": small["protocols"]["resize"] | {"shares": {"train": 0.4, "val": 0.3, "test": 0.3}}}
    small["recipes"] = {"ours": {"train": {"warmup_epochs": 0}}}
    small["protocols"]["resize_2"] = small["protocols"]["resize"] | {"salt": "two"}
    small["runs"] = [{"protocol": "resize", "recipe": "ours", "scale": "half", "epochs": 1, "networks": None}]
    small["runs"].append(small["runs"][0] | {"protocol": "resize_2", "networks": ["unet"], "seeds": [1]})
    wanted = ("unet_L1", "unet_L2", "unet_L3", "unet", "unet_pp_ds", "unet_pp")
    small["networks"] = {name: small["networks"][name] for name in wanted}
    monkeypatch.setattr(run, "read_study", lambda: small)
    monkeypatch.setattr(page, "read_study", lambda: small)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    from pipelines.core.params import load_params
    from pipelines.ingest import ingest

    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    ingest(load_params(project.folder / "params.yaml").ingest, tmp_path / "raw")
    return tmp_path


def start(monkeypatch, study, *more):
    arguments = ["run", "--data", str(study / "raw"), "--work", str(study / "data"), *more]
    monkeypatch.setattr("sys.argv", arguments)
    run.main()


def test_what_has_a_result_is_not_computed_again(study, monkeypatch, capsys):
    start(monkeypatch, study, "--networks", "unet_pp_ds", "--seeds", "0")
    one = records.Run("half", "unet_pp_ds", 0)
    found = records.read("resize", "ours")
    assert list(found) == [one]
    before = found[one]
    assert set(before["depths"]) == set(before["images"]) == {"L1", "L2", "mean"}
    for depth, row in before["depths"].items():
        assert np.mean(before["images"][depth]) == pytest.approx(row["iou_image"], abs=1e-4)
    assert 0 < before["rim_share"] < 1
    assert before["patches"] == [1] * len(before["images"]["L1"])  # whole images
    assert not list((study / "results").rglob("*.running"))
    facts = records.read_test("resize")
    assert facts
    kinds, best = facts
    assert len(kinds) == len(best) == len(before["images"]["L1"])
    capsys.readouterr()
    # A command that was killed leaves its claim behind; it holds nobody up.
    (study / "results/resize/ours-half-unet-0.running").write_text("999999999")
    start(monkeypatch, study, "--networks", "unet_pp_ds", "unet", "--seeds", "0")
    printed = capsys.readouterr().out
    assert "half unet-0" in printed
    assert "unet_pp_ds" not in printed
    again = records.read("resize", "ours")
    assert set(again) == {one, records.Run("half", "unet", 0)}
    assert again[one] == before


def test_classic_begins_with_weights_as_torch_draws_them(study, monkeypatch):
    small = run.read_study()
    small["recipes"]["classic"] = {"init": "torch", "train": {"learning_rate": 1e-9, "warmup_epochs": 0}}
    small["runs"] = [small["runs"][0] | {"recipe": "classic", "networks": ["unet"]}]
    start(monkeypatch, study)
    weights = [torch.load(study / f"data/resize/init-half-unet-{seed}.pt", weights_only=True) for seed in (0, 1)]
    name = "nodes.1_0.conv2.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    limit = 1 / np.sqrt(weights[0][name][0].numel())  # torch draws uniformly within it; Kaiming's normal goes on
    assert 0.9 * limit < weights[0][name].abs().max() <= limit
    found = records.read("resize", "classic")
    small["recipes"]["classic"].pop("init")
    records.table_of("resize", "classic").unlink()
    start(monkeypatch, study)
    for one, row in records.read("resize", "classic").items():
        assert row["depths"] != found[one]["depths"]


def test_another_split_has_other_images_and_the_seeds_that_its_run_names(study):
    planned = list(run.planned(run.read_study(), [0, 1]))
    assert [(seed, name) for protocol, *_, seed, name in planned if protocol == "resize_2"] == [(1, "unet")]
    ids = []
    for name, protocol in run.read_study()["protocols"].items():
        run.prepare_protocol(study / "raw", protocol, run.load_params(run.ROOT / "params.yaml").prepare, study / name)
        ids.append(set(run.Split(study / name / "test.arrow").ids))
    assert ids[0] != ids[1]


def test_patches_of_an_image_are_one_observation(study, monkeypatch):
    small = run.read_study()
    small["protocols"]["patches"] = small["protocols"]["resize"] | {
        "size": None,
        "tile": {"size_px": 32, "stride_px": 32},
    }
    small["runs"] = [small["runs"][0] | {"protocol": "patches", "networks": ["unet_L1"]}]
    start(monkeypatch, study, "--seeds", "0")
    (found,) = records.read("patches", "ours").values()
    ids = [id.split("@")[0] for id in run.Split(study / "data/patches/test.arrow").ids]
    assert len(found["patches"]) == len(set(ids)) < len(ids) == sum(found["patches"]) == len(found["images"]["L1"])

    # Eight images of which each has one difference, in all of its patches: no more is known than of eight images.
    rng = np.random.default_rng(0)
    base, gains = rng.uniform(0.5, 0.8, 8), rng.normal(0.01, 0.02, 8)
    few = [tables.Row("", [result(each)], "L1") for each in (base + gains, base)]
    many = [
        tables.Row("", [result(np.repeat(each, 50)) | {"patches": [50] * 8}], "L1") for each in (base + gains, base)
    ]
    assert tables.difference(*many) == pytest.approx(tables.difference(*few))


def test_rim_is_the_foreground_beside_background_and_not_the_edge_of_the_image(tmp_path):
    square, corner = np.zeros((2, 12, 12), np.uint8)
    square[3:8, 3:8] = 1  # 5 x 5, of which 16 are rim
    corner[:4, :4] = 1  # 4 x 4 in the corner, of which 7 are rim
    with run.SplitWriter(tmp_path / "test.arrow") as writer:
        for id, mask in (("a", square), ("b", corner), ("c", np.zeros_like(square))):
            writer.add(id, "kind", np.zeros((12, 12, 3), np.uint8), mask)
    assert run.rim_share(run.Split(tmp_path / "test.arrow")) == pytest.approx((16 / 25 + 7 / 16) / 2)


def test_best_threshold_is_of_either_side_and_of_each_image(tmp_path):
    image, mask = np.full((12, 12, 3), 100, np.uint8), np.zeros((12, 12), np.uint8)
    mask[2:6, 2:6] = 1
    bright, dark, blurred = image.copy(), image.copy(), image.copy()
    bright[2:6, 2:6], dark[2:6, 2:6], blurred[2:6, 2:10] = 200, 20, 200  # the last: half of what is bright is nucleus
    with run.SplitWriter(tmp_path / "test.arrow") as writer:
        for id, pixels in (("a", bright), ("b", dark), ("c", blurred)):
            writer.add(id, f"kind {id}", pixels, mask)
        writer.add("d", "kind a", image, np.zeros_like(mask))
    found = run.describe_test(run.Split(tmp_path / "test.arrow"))
    assert found == (["kind a", "kind b", "kind c", "kind a"], [1.0, 1.0, 0.5, 1.0])


def result(iou: np.ndarray, depths=("L1", "L2", "mean")) -> dict:
    row = {"iou_image": float(iou.mean()), "iou_pixels": 0.5, "iou_paper": 0.6, "parameters": 1000, "macs": 10**6}
    machine = {"device": "cpu", "processor": "one of ours", "threads": 2, "precision": "fp32"}
    return {
        "depths": dict.fromkeys(depths, row),
        "images": dict.fromkeys(depths, iou.tolist()),
        "epochs": 3,
        "train_loss": 0.125,
        "machine": machine,
    }


def test_page_states_what_holds_what_does_not_and_what_is_missing(study, monkeypatch):
    rng = np.random.default_rng(0)
    base = rng.uniform(0.6, 0.9, 60)
    for seed in (0, 1):
        noise = rng.normal(0, 0.01, 60)
        for name, gain in (("unet", 0.0), ("unet_pp_ds", 0.05), ("unet_pp", 0.08)):
            depths = ("L1", "L2", "mean") if name.endswith("ds") else ("L2",)
            found = result(base + gain + noise, depths) | {"rim_share": 0.49}
            records.add("resize", "ours", records.Run("half", name, seed), found)
    records.add("resize_2", "ours", records.Run("half", "unet", 1), result(base - 0.1, ("L2",)))
    # A recipe by which one network is trained.
    records.add("resize", "alone", records.Run("half", "unet_pp_ds", 0), result(base))
    records.write_test("resize", ["tissue"] * 20 + ["fluorescence"] * 40, [0.7] * 20 + [0.85] * 40)
    small = run.read_study()
    small["runs"].append(small["runs"][0] | {"recipe": "alone", "networks": ["unet_pp_ds"]})
    monkeypatch.setattr(page, "OUT", study / "paper.md")
    monkeypatch.setattr(page, "ROOT", study)
    monkeypatch.setattr(page, "IMAGES", study)
    page.main()
    text = (study / "paper.md").read_text()
    for words in ("U-Net L4 0.125", "49 % of the foreground", "yet: U-Net L1, U-Net L2, U-Net L3", "6 of 12 trainings"):
        assert words in text
    assert "Embedded against isolated" not in text  # its networks are not among those to be trained
    assert f"{base.mean() + 0.05:.2f}" in text  # the table's mean, from the files
    assert "`resize_2`, recipe" not in text.partition("## Planned and not trained yet")[2]
    _, _, beside = text.partition("## Recipes and widths beside one another")
    assert f"| `alone`, half widths | 1 | {base.mean():.4f} |" in beside
    _, _, by_kind = text.partition("## By kind of image")
    assert "mask | 0.8000 | 0.850 | 0.700 |" in by_kind
    of_kinds = f"| {base.mean():.4f} | {base[20:].mean():.3f} | {base[:20].mean():.3f} |"
    assert f"| UNet++, deep supervision, `alone`, half {of_kinds}" in by_kind
    _, _, luck = text.partition("## How much the split matters")
    assert f"| `resize_2` | 1 | 60 | {base.mean() - 0.1:.4f} |" in luck
    assert "Over 2 splits: " in luck
    assert "UNet++" not in luck  # which has one split alone
    assert (study / "paper.png").stat().st_size > 1000
    assert "1.000 to 1.000" in text  # they are made of the same noise
    rows = {name: tables.Row(name, [result(base + gain)], "L1") for name, gain in (("a", 0.0), ("b", 0.05))}
    rows["c"] = tables.Row("c", [result(base + rng.normal(0, 0.1, 60))], "L1")
    holds, opposite, undecided = (tables.Verdict(f"{a} is better", rows[a], rows[b]) for a, b in ("ba", "ab", "ca"))
    for verdict, words in ((holds, "holds** (+5.00"), (opposite, "the opposite holds"), (undecided, "not decided")):
        assert words in str(verdict)
    short = tables.summary({("p", "r", "half"): [opposite], ("p", "r", "full"): [undecided], ("q", "r", "half"): []})
    assert short[0].count("|") == 4  # a column for what has a verdict
    assert short[2] == "| a is better | the opposite holds (-5.00) |  |"
    assert short[3].startswith("| c is better |  | not decided (")
    assert "the opposite holds (-3.00)" in text.partition("Make it again")[0]
    assert "{summary}" not in text


def test_study_names_only_networks_that_can_be_built():
    from unetpp.network.model import NestedUNet

    study = run.read_study()
    assert set(study["networks"]) == set(page.NAMES)
    for name in study["networks"]:
        for scale in study["widths"]:
            widths, model = run.network_of(study, name, scale)
            NestedUNet(widths, **model)
    assert yaml.safe_load((run.FOLDER / "dvc.yaml").read_text())["stages"].keys() == {"run", "page"}
