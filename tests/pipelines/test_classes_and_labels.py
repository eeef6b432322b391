"""Whole runs of a set of classes with unlabelled pixels, and of one of labels that lie over each other."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipelines.core.params import Params
from pipelines.dataset.fingerprint import read_fingerprint
from pipelines.evaluate import evaluate
from pipelines.ingest import ingest
from pipelines.pages import data_page, depth_page
from pipelines.predict import predict
from pipelines.prepare import prepare
from pipelines.storage.synthetic import UNANNOTATED
from pipelines.training.epochs import epochs
from pipelines.training.results import write_results
from pipelines.training.spec import make_spec
from tests.conftest import REPOSITORY
from tests.pages import Outline
from unetpp.data.arrow_split import Split
from unetpp.data.manifest import read_manifest
from unetpp.network.masks import IGNORE

pytestmark = pytest.mark.slow  # they are trained and measured
NAMES = ("nucleus", "border")
SIZE_PX = 64
# All that a user changes.
TASKS = {
    "classes": {
        "ingest": {"masks": "partial"},
        "prepare": {"num_classes": 3, "classes": NAMES, "ignore": UNANNOTATED},
    },
    "labels": {
        "ingest": {"masks": "labels"},
        "prepare": {"num_classes": 2, "classes": NAMES, "multilabel": True},
    },
}


def params_of(changes: dict, **ours) -> Params:
    """params.yaml with a task's changes, and small numbers for the sake of time."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    values["ingest"]["synthetic"] |= {"num_images": 30, "size_px": SIZE_PX} | changes["ingest"]
    values["prepare"] |= {"size": SIZE_PX, "num_workers": 1} | changes["prepare"] | ours
    values["train"] |= {"epochs": 10, "batch_size": 4, "num_workers": 1, "learning_rate": 5e-3, "warmup_epochs": 1}
    values["train"] |= {"precision": "fp32"}
    values["evaluate"] |= {"latency_rounds": 3, "throughput_batch": 2}
    return Params.model_validate(values)


class Run(NamedTuple):
    folder: Path
    task: str
    report: dict


@pytest.fixture(scope="module", params=TASKS)
def run(request, tmp_path_factory):
    """From images to a report, as the stages do it, in this one process."""
    folder, params, cpu = tmp_path_factory.mktemp(request.param), params_of(TASKS[request.param]), torch.device("cpu")
    ingest(params.ingest, folder / "raw")
    prepare(params.prepare, folder / "raw", folder / "prepared")
    spec = make_spec(params, [8, 12, 16], folder / "prepared")
    *_, state = epochs(spec, cpu)
    write_results(state, spec, "test", folder / "model", folder / "train")
    found = evaluate(folder / "prepared", folder / "model", folder / "evaluate", params.evaluate, cpu)
    return Run(folder, request.param, found)


def planes_of(folder: Path, task: str, id: str) -> np.ndarray:
    """Of the files of an image's masks, read by themselves: where each name is, (2, H, W) bool."""
    if task == "labels":
        return np.stack([np.array(Image.open(folder / name / f"{id}.png")) == 255 for name in NAMES])
    mask = np.array(Image.open(folder / f"{id}.png"))
    return np.stack([mask == 1, mask == 2])


def test_every_class_is_found_far_above_chance(run):
    manifest = read_manifest(run.folder / "prepared")
    found = run.report["classes"]["L2"]
    assert tuple(found) == NAMES
    assert manifest.multilabel == (run.task == "labels")
    known = (1 - manifest.ignored_share) * SIZE_PX**2 * manifest.splits["train"].num_images
    assert manifest.class_pixels is not None
    for name, pixels in zip(NAMES, manifest.class_pixels[1:], strict=True):
        share = pixels / known
        by_chance = share / (2 - share)  # of a guess that takes so many pixels anywhere
        assert found[name] > 3 * by_chance, name


def test_predicted_files_are_those_that_the_report_scored(run, tmp_path):
    """Scores computed from the files on disk alone: predicted ones against those that were ingested."""
    test = Split(run.folder / "prepared/test.arrow")
    images = [str(run.folder / f"raw/images/{id}.png") for id in test.ids]
    predict(images, str(run.folder / "model"), None, tmp_path / "out")
    scores = []
    for id in test.ids:
        true, hat = planes_of(run.folder / "raw/masks", run.task, id), planes_of(tmp_path / "out", run.task, id)
        assert hat.shape == (2, SIZE_PX, SIZE_PX)
        if run.task == "classes":
            hat &= np.array(Image.open(run.folder / f"raw/masks/{id}.png")) != UNANNOTATED
        union = (true | hat).sum(axis=(1, 2))
        scores.append(np.where(union > 0, (true & hat).sum(axis=(1, 2)) / np.maximum(1, union), np.nan))
    expected = [run.report["classes"]["L2"][name] for name in NAMES]
    np.testing.assert_allclose(np.nanmean(scores, axis=0), expected, atol=2e-3)  # images in batches there, alone here


def test_labels_are_predicted_over_each_other_and_classes_never(run, tmp_path, capsys):
    image = next((run.folder / "raw/images").iterdir())
    predict([str(image)], str(run.folder / "model"), None, tmp_path)
    printed = capsys.readouterr().out
    planes = planes_of(tmp_path, run.task, image.stem)
    assert planes.any(axis=(1, 2)).all()
    assert planes.all(axis=0).any() == (run.task == "labels")
    if run.task == "classes":
        assert "0 background, 1 nucleus, 2 border" in printed
    else:
        assert f"{tmp_path / 'nucleus'}, {tmp_path / 'border'}: 255 where the label is" in printed


def test_prepared_masks_are_the_files_in_the_projects_own_numbers(run):
    for split in ("train", "val", "test"):
        prepared = Split(run.folder / f"prepared/{split}.arrow")
        for index, id in enumerate(prepared.ids):
            mask = prepared[index][1]
            nucleus, border = planes_of(run.folder / "raw/masks", run.task, id)
            if run.task == "labels":
                assert np.array_equal(mask, nucleus + 2 * border)
            else:
                raw = np.array(Image.open(run.folder / f"raw/masks/{id}.png"))
                assert np.array_equal(mask, np.where(raw == UNANNOTATED, IGNORE, raw))
                assert (mask == IGNORE).any()


def test_both_pages_name_the_classes(run):
    data = data_page.build_page(read_fingerprint(run.folder / "prepared"), run.folder / "prepared")
    outlines = [Outline(page) for page in (data, depth_page.build_page(run.folder / "evaluate/page"))]
    for outline in outlines:
        assert outline.open == []
        for name in NAMES:
            assert name in outline.text
    assert "IoU per image by class" in outlines[-1].text
    data = Outline(data).text
    assert ("Unlabelled, % of pixels" in data) == (run.task == "classes")
    assert ("Labels may overlap" in data) == (run.task == "labels")
    assert ("train.class_weights" in data) <= (run.task == "classes")  # labels have none


def test_the_fingerprint_adds_up_what_overlaps_and_what_nobody_annotated(run):
    found = json.loads((run.folder / "prepared/fingerprint.json").read_text())
    background, nucleus, border = found["classes"]
    assert [row["name"] for row in (nucleus, border)] == list(NAMES)
    everything = found["splits"]["all"]
    known = everything["pixels"] * (1 - everything["ignored_share"])
    assert background["pixels"] + everything["foreground_px"] == pytest.approx(known, rel=1e-5)
    if run.task == "labels":
        assert nucleus["pixels"] == everything["foreground_px"]  # a border lies on its nucleus
        assert found["masks"]["overlap_share"] == pytest.approx(border["pixels"] / nucleus["pixels"], rel=1e-5)
        assert [row["weight"] for row in found["classes"]] == [None] * 3
    else:
        assert nucleus["pixels"] + border["pixels"] == everything["foreground_px"]
        assert everything["ignored_share"] == pytest.approx(0.2, abs=0.01)
        assert found["masks"]["overlap_share"] == 0


def test_a_class_0_that_counts_has_its_name_and_its_score_from_the_files_to_the_predicted_masks(tmp_path, capsys):
    """And values of files that are no class indices: what a user says of a set of scenes."""
    names, cpu = ["border", "ground", "nucleus"], torch.device("cpu")
    values = {0: "ground", 1: "nucleus", 2: "border", UNANNOTATED: "ignore"}
    ours = {"num_classes": 3, "classes": names, "background": False, "values": values}
    params = params_of({"ingest": {"masks": "partial"}, "prepare": ours})
    ingest(params.ingest, tmp_path / "raw")
    manifest = prepare(params.prepare, tmp_path / "raw", tmp_path / "prepared")
    assert (manifest.classes, manifest.background, manifest.foreground_share) == (names, False, 1)
    test = Split(tmp_path / "prepared/test.arrow")
    raw = np.array(Image.open(tmp_path / f"raw/masks/{test.ids[0]}.png"))
    assert np.array_equal(test[0][1], np.where(raw == UNANNOTATED, IGNORE, (raw + 1) % 3))
    found = json.loads((tmp_path / "prepared/fingerprint.json").read_text())
    assert [row["name"] for row in found["classes"]] == names
    assert sum(row["share"] for row in found["classes"]) == pytest.approx(1, abs=1e-4)
    assert not any("is 0 the background" in line for line in found["findings"]["warnings"])
    one_epoch = params.model_copy(update={"train": params.train.model_copy(update={"epochs": 1})})
    spec = make_spec(one_epoch, [4, 6], tmp_path / "prepared")
    *_, state = epochs(spec, cpu)
    write_results(state, spec, "test", tmp_path / "model", tmp_path / "train")
    report = evaluate(tmp_path / "prepared", tmp_path / "model", tmp_path / "evaluate", params.evaluate, cpu)
    assert list(report["classes"]["L1"]) == list(report["groups"]["class"]) == names
    assert not report["background"]
    assert report["gates"]["L1"][-1]["passed"] is None
    image = tmp_path / f"raw/images/{test.ids[0]}.png"
    predict([str(image)], str(tmp_path / "model"), None, tmp_path / "out")
    assert "0 border, 1 ground, 2 nucleus" in capsys.readouterr().out
    # mIoU as a paper would compute it, from the files.
    counts = np.zeros((3, 3))
    images = [str(tmp_path / f"raw/images/{id}.png") for id in test.ids]
    predict(images, str(tmp_path / "model"), None, tmp_path / "all")
    for id in test.ids:
        true, hat = (np.array(Image.open(tmp_path / f"{folder}/{id}.png")) for folder in ("raw/masks", "all"))
        known = true != UNANNOTATED
        np.add.at(counts, ((true[known] + 1) % 3, hat[known]), 1)
    ious = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    assert report["depths"]["L1"]["miou"] == pytest.approx(ious.mean(), abs=2e-3)
    compared = json.loads((tmp_path / "evaluate/metrics.json").read_text())
    assert compared["miou"] == pytest.approx(ious.mean(), abs=2e-3)
    assert "gates passed" in depth_page.build_page(tmp_path / "evaluate/page")


def test_folders_that_overlap_are_told_where_labels_were_not_asked_for(tmp_path):
    params = params_of(TASKS["labels"], num_classes=3, multilabel=False)
    ingest(params.ingest, tmp_path / "raw")
    manifest = prepare(params.prepare, tmp_path / "raw", tmp_path / "prepared")
    assert not manifest.multilabel
    warnings = json.loads((tmp_path / "prepared/fingerprint.json").read_text())["findings"]["warnings"]
    (line,) = [line for line in warnings if "classes overlap" in line]
    assert line.startswith("In 30 images classes overlap, on ")
    assert line.endswith("to keep all, set prepare.multilabel=true and prepare.num_classes=2.")
