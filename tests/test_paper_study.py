"""The study of the paper's claims: its training runs, its results, and what its page says of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipelines.core.params import load_params
from pipelines.core.tables import read_rows
from pipelines.core.temporary_folders import locked
from pipelines.ingest import ingest
from studies.paper import page, records, run, tables
from tests.pipelines.conftest import Project

CPU = torch.device("cpu")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of small networks on 40 synthetic images, whole and in crops, with its folders under tmp_path."""
    small = run.read_study()
    small["widths"] = {"quarter": [4, 6, 8], "full": [6, 8, 10]}
    shares = {"folder": "raw", "prepare.shares": {"train": 0.4, "val": 0.3, "test": 0.3}}
    small["sets"] = {
        "pets": shares | {"prepare.size": 32},
        "dsb": shares | {"prepare.size": None, "train.crop_px": 32},
    }
    small["recipes"] = {"ours": {"train.warmup_epochs": 0}, "classic": {"init": "torch", "train.learning_rate": 1e-9}}
    plan = {"set": "pets", "recipe": "ours", "scale": "quarter", "epochs": 1, "seeds": [0], "networks": ["unet_pp_ds"]}
    small["runs"] = [plan, plan | {"set": "dsb", "networks": ["unet_L1"]}, plan | {"seeds": [1], "recipe": "classic"}]
    for module in (run, page):
        monkeypatch.setattr(module, "read_study", lambda: small)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(page, "OUT", tmp_path / "paper.md")
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(page, "IMAGES", tmp_path)
    (tmp_path / "project").mkdir()
    ingest(load_params(Project(tmp_path / "project").folder / "params.yaml").ingest, tmp_path / "raw")
    return tmp_path


def start(monkeypatch, study: Path, *more: str) -> None:
    monkeypatch.setattr("sys.argv", ["run", "--data", str(study), "--work", str(study / "data"), *more])
    run.main()


def test_study_is_trained_run_by_run_and_what_has_a_result_is_not_computed_again(study, monkeypatch, capsys):
    start(monkeypatch, study, "--at-most", "1")
    assert "2 of 3 training runs left" in capsys.readouterr().out
    before = records.read("pets", "ours")
    ((one, found),) = before.items()
    assert one == records.Run("quarter", "unet_pp_ds", 0)
    assert list(found["depths"]) == ["L1", "L2", "mean"]
    for row in found["depths"].values():
        assert np.mean(row["images"]) == pytest.approx(row["iou_image"], abs=1e-4)
    tested = read_rows(records.test_of("pets"))
    assert len(tested) == len(found["depths"]["L1"]["images"])
    assert tested[0]["height"] == "64"  # its own size, not the 32 at which the network sees it

    plans = list(run.planned(run.read_study()))
    with locked(study / "data" / f"{plans[1]}.lock"):  # another command is at it
        start(monkeypatch, study)
    assert "1 of 3 training runs left" in capsys.readouterr().out
    start(monkeypatch, study)
    printed = capsys.readouterr().out
    assert "dsb ours quarter unet_L1-0" in printed
    assert "pets" not in printed
    assert "0 of 3 training runs left" in printed
    assert records.read("pets", "ours") == before
    assert next(iter(records.read("dsb", "ours").values()))["params"]["train"]["crop_px"] == 32
    # Trained with a rate of almost nothing, classic's weights are as torch drew them.
    weights = torch.load(study / "data" / f"{plans[2]} init.pt", weights_only=True)
    limit = 1 / np.sqrt(weights["nodes.1_0.conv2.weight"][0].numel())  # uniform within it; Kaiming's normal goes on
    assert 0.9 * limit < weights["nodes.1_0.conv2.weight"].abs().max() <= limit
    start(monkeypatch, study, "--scale", "full", "--sets", "dsb")
    assert {one.scale for one in records.read("dsb", "ours")} == {"quarter", "full"}

    page.main()
    text = (study / "paper.md").read_text()
    assert "`dsb`, full widths: every network" in text
    assert "Nothing: every run of study.yaml has been trained." in text
    assert (study / "paper.png").stat().st_size > 1000


def made(iou: np.ndarray, *depths: str) -> dict:
    """A run's record: an IoU of each image, the same at each depth."""
    keys = ("iou_image", "dice_image", "iou_pixels", "miou")
    row = dict.fromkeys(keys, float(iou.mean())) | {"parameters": 1000, "macs": 10**6, "images": iou.tolist()}
    return {
        "depths": dict.fromkeys(depths or ("L4",), row),
        "epochs": 3,
        "train_loss": 0.125,
        "machine": {"processor": "one of ours"},
    }


RNG = np.random.default_rng(0)
BASE, NOISE = RNG.uniform(0.5, 0.8, 60), RNG.normal(0, 0.1, 60)


def judged(better: list[np.ndarray], worse: list[np.ndarray], block: int = 1) -> tables.Difference:
    runs = {"a": dict(enumerate(map(made, better))), "b": dict(enumerate(map(made, worse)))}
    results = tables.Results(runs, block)
    found = results.compare(results.row("a"), results.row("b"))
    assert found
    return found


def test_claim_holds_does_not_or_is_not_decided_by_its_interval():
    holds, not_so, open_ = (judged([BASE + gain], [BASE]) for gain in (0.05, -0.05, NOISE - NOISE.mean()))
    assert [one.found for one in (holds, not_so, open_)] == ["holds", "does not", "not decided"]
    assert str(holds) == "**holds** +5.0 (+5.0 to +5.0)*"  # of one seed
    results = tables.Results({"a": {0: made(BASE)}, "b": {1: made(BASE)}})
    assert results.compare(results.row("a"), results.row("b")) is None  # no seed in common
    assert results.row("a", "L3") is results.row("c") is None


def test_seeds_that_differ_widen_the_interval_but_not_between_heads_of_one_training():
    alike = judged([BASE + 0.05, BASE + 0.05], [BASE, BASE])
    apart = judged([BASE + 0.05, BASE + 0.25], [BASE, BASE + 0.2])
    assert (alike.found, apart.found) == ("holds", "not decided")
    assert apart.mean == pytest.approx(alike.mean)
    assert not alike.seeds_unknown
    results = tables.Results({"a": {seed: made(BASE + seed, "L1", "L4") for seed in (0, 1)}})
    deep, shallow = results.row("a"), results.row("a", "L1")
    found = results.compare(deep, shallow)
    assert found
    assert (found.low, found.high) == (0, 0)


def test_images_of_one_block_are_one_observation():
    gains = RNG.normal(0.01, 0.02, 8)
    few = judged([BASE[:8] + gains], [BASE[:8]])
    many = judged([np.repeat(BASE[:8] + gains, 50)], [np.repeat(BASE[:8], 50)], block=50)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))


def test_optimal_depth_differs_where_no_depth_is_among_the_best_of_both_sets():
    depths = ("L1", "L2", "L3", "L4")

    def best(*gains: float | np.ndarray) -> list[str]:
        runs = {
            name: {0: made(BASE + gain, depth)} for name, depth, gain in zip(page.ALONE, depths, gains, strict=False)
        }
        return tables.best_depths(tables.Results(runs), page.ALONE)

    level = NOISE - NOISE.mean() - 1e-6
    deep, shallow, both = best(0, 0.1, 0.2, 0.3), best(0.3, 0.2, 0.1, 0), best(0, 0.1, level + 0.3, 0.3)
    assert (deep, shallow, both, best(0, 0.1)) == (["L4"], ["L1"], ["L3", "L4"], [])
    said = [tables.depths_differ({"x": one, "y": deep}) for one in (shallow, both, deep, [])]
    assert said == ["**holds**", "**not decided**", "**does not**", tables.NOT_TRAINED]


def test_gains_differ_by_an_interval_that_knows_both_sets():
    def gain(mean: float) -> tables.Difference:
        return tables.Difference(mean, mean - 0.03, mean + 0.04, 2, False)

    said = tables.gains_differ({"x": gain(0.01), "y": gain(0.11), "z": None, "w": gain(0.05)})
    assert said == "**holds** +10.0 (+5.0 to +15.0); +11.0 on y, +1.0 on x"
    assert tables.gains_differ({"x": gain(0.01), "y": gain(0.05)}).startswith("**not decided** +4.0 (-1.0 to +9.0)")
    assert tables.gains_differ({"x": gain(0.01), "y": None}) == tables.NOT_TRAINED


def test_page_is_true_with_whatever_results_there_are(study):
    page.main()
    text = (study / "paper.md").read_text()
    assert f"differs by data set: {tables.NOT_TRAINED}." in text
    assert "**holds**" not in text.partition("A cell says")[0]
    assert "`pets`, quarter widths: 1 of 1 training runs" in text
    for name, gain in zip(page.ALONE, (-0.2, -0.1, -0.05), strict=False):
        records.add("pets", "ours", records.Run("quarter", name, 0), made(BASE + gain, name[-2:]))
    for seed in (0, 1):
        for name, gain, *found in (
            ("unet", 0.0, "L4"),
            (page.DS, 0.05, "L1", "L4", "mean"),
            ("unet_pp_sum", 0.1, "L4"),
        ):
            records.add("pets", "ours", records.Run("quarter", name, seed), made(BASE + gain, *found))
    records.test_of("dsb").write_text("id,kind,height,width\n" + 30 * "a,b,256,256\n" + 30 * "a,b,360,360\n")
    records.add("dsb", "ours", records.Run("quarter", page.DS, 0), made(BASE, "L1", "L4", "mean"))
    page.main()
    text = (study / "paper.md").read_text()
    assert f"trained alone: IoU | {', '.join(f'{BASE.mean() + gain:.3f}' for gain in (-0.2, -0.1, -0.05, 0))} |" in text
    assert f"| Best depths of these | L4 | {tables.NOT_TRAINED} |" in text
    better = "| UNet++ with deep supervision is better than U-Net | **holds** +5.0 (+5.0 to +5.0) |"
    assert f"{better} {tables.NOT_TRAINED} |" in text
    assert "| The mean of its heads is better than the deepest head | **not decided** +0.0 (+0.0 to +0.0) |" in text
    assert "`train.head_weights` should become `sum`" in text
    dice = (2 * BASE[:30] / (1 + BASE[:30])).mean()
    assert f"a mean Dice of {dice:.4f} on the 30 test images of 256x256" in text
    assert "UNet++, deep supervision 0.125" in text
    assert f"| U-Net L4 | L4 | 2 | {BASE.mean():.4f} ± 0.0000 |" in text
    assert "{" not in text.partition("Run it again")[0]


def test_study_names_only_trainings_that_can_be_set_up():
    from unetpp.network.model import NestedUNet

    study = run.read_study()
    assert set(study["networks"]) == set(page.NAMES)
    plans = list(run.planned(study))
    assert len(plans) == len(set(plans))
    for plan in plans:
        params = run.params_of(study, plan, Path("data"), CPU)
        NestedUNet(run.widths_of(study, plan.run), **params.model.build | {"encoder": None})
    assert yaml.safe_load((run.FOLDER / "dvc.yaml").read_text())["stages"].keys() == {"run", "page"}


def test_imagenet_weights_are_timms_by_name(tmp_path):
    from unetpp.network.encoders import Pyramid, load_weights, read_weights

    pyramid = Pyramid("tf_efficientnet_lite0", 3, 4)
    load_weights(pyramid, read_weights(run.imagenet_weights(tmp_path / "imagenet.pth")), "package")
