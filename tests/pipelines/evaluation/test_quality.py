"""Laws of what is measured image by image: perfect masks are perfect, and each class stands for itself."""

import numpy as np
import pytest
import torch
from torch import nn

import unetpp
from pipelines.evaluation.predictor import Answer, Predictor, batches
from pipelines.evaluation.quality import choose_thresholds, measure_quality, score_batch
from pipelines.evaluation.scores import by_class, by_kind, by_size, image_rows, resample, summarise
from unetpp.data.arrow_split import Split, SplitWriter
from unetpp.data.instances import pack
from unetpp.models.model_file import Trained
from unetpp.network.masks import FOR_INSTANCES, IGNORE, MASK
from unetpp.network.model import NestedUNet
from unetpp.scores import metrics
from unetpp.scores.boundaries import Boundary, compare_boundaries
from unetpp.scores.calibration import THRESHOLDS
from unetpp.scores.object_matching import Objects, match_objects

CPU = torch.device("cpu")
SIZES = ((16, 16), (20, 24), (16, 16), (12, 40))  # of which all depths are answered in one pass


class Told(nn.Module):
    """Knows the truth: it is written in the image's first channels, a plane for each class or label."""

    depth, depths, in_channels = 2, (1, 2), 3

    def __init__(
        self,
        num_classes: int = 1,
        multilabel: bool = False,
        wrong: float = 0.0,
        sure: float = 20.0,
        background: bool = True,
        targets: tuple[str, ...] = MASK,
    ):
        super().__init__()
        self.encoder = None
        self.num_classes, self.multilabel, self.wrong, self.sure = num_classes, multilabel, wrong, sure
        self.task = num_classes, multilabel, background
        self.targets, self.num_outputs = targets, num_classes + len(targets) - 1

    def config(self):
        keys = ("num_classes", "multilabel", "background")
        config = {"widths": [1, 1, 1], "in_channels": 3, "targets": self.targets}
        return dict(zip(keys, self.task, strict=True)) | config

    def forward(self, image):
        planes = image[:, : self.num_outputs]
        middle = (planes.amin(dim=(2, 3), keepdim=True) + planes.amax(dim=(2, 3), keepdim=True)) / 2
        logits = torch.where(planes > middle, 1.0, -1.0) * self.sure
        return logits * (1 - 2 * self.wrong), logits  # the first head may be wrong everywhere


def write_split(path, masks, kinds=None, task="binary"):
    """A split of these masks (H, W), each shown to `Told` in the image."""
    with SplitWriter(path) as writer:
        for index, mask in enumerate(masks):
            known = np.where(mask == IGNORE, 0, mask)
            planes = [known > 0] * 3 if task == "binary" else [known == k for k in range(3)]
            if task == "labels":
                planes = [known >> k & 1 for k in range(3)]
            image = (np.stack(planes, axis=-1) * 255).astype(np.uint8)
            writer.add(f"image_{index}", (kinds or "abab")[index % 4], image, mask.astype(np.uint8))
    return Split(path)


def squares(values=(1, 1, 1, 1)):
    masks = []
    for (height, width), value in zip(SIZES, values, strict=True):
        mask = np.zeros((height, width), np.uint8)
        mask[2:6, 2:8], mask[8:11, 5:12] = 1, value
        masks.append(mask)
    return masks


def predictor(network) -> Predictor:
    return Predictor(Trained(network, None), CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_classes", "task", "values"),
    [(1, "binary", (1, 1, 1, 1)), (3, "classes", (2, 1, 2, 2)), (3, "labels", (2, 4, 3, 7))],
)
def test_a_perfect_network_is_perfect_in_everything(tmp_path, num_classes, task, values):
    split = write_split(tmp_path / "test.arrow", squares(values), task=task)
    predict = predictor(Told(num_classes, task == "labels"))
    quality, true_objects = measure_quality(predict, split, 2, 1.0)
    assert set(quality) == {"L1", "L2", "mean"}
    thresholds = choose_thresholds(predict, split, 2)
    rows = summarise(quality, resample(quality, list("aabb")), thresholds, "L2")
    for row in rows.values():
        perfect = {
            key: value for key, value in row.items() if key not in ("hd95_px", "ece", "threshold") and "diff" not in key
        }
        if task == "classes":
            assert perfect.pop("iou_image_at_threshold") is None
            assert row["threshold"] is None
        else:
            assert row["threshold"] == 0.5
        assert set(perfect.values()) == {1.0}
        assert row["hd95_px"] == row["difference_iou"] == row["difference_iou_high"] == 0
        assert row["ece"] == pytest.approx(0, abs=1e-6)
    sizes = by_size(quality, true_objects, None)
    assert sum(size["num_objects"] for size in sizes.values()) == len(true_objects.diameters_px())
    assert {size["L1"]["object_recall"] for size in sizes.values() if size["num_objects"]} == {1.0}


def test_scores_of_an_image_are_those_of_its_own_mask_whatever_its_batch(tmp_path):
    rng = np.random.default_rng(0)
    masks = [(rng.random(size) < 0.4).astype(np.uint8) for size in SIZES]
    split = write_split(tmp_path / "test.arrow", masks)
    torch.manual_seed(0)
    predict = Predictor(Trained(NestedUNet([2, 4, 8]).eval(), 16), CPU)
    quality, true_objects = measure_quality(predict, split, 8, 1.0)
    for name, each in quality.items():
        for index in range(len(split)):
            image, mask = split[index]
            mask_hat = predict([image])[name]
            assert torch.equal(each.counts[index], metrics.confusion(mask_hat, torch.tensor(mask)[None], 1)[0])
            hat = mask_hat[0].numpy() > 0
            boundary = compare_boundaries(Boundary.of(hat), Boundary.of(mask > 0), 1.0)
            matches = match_objects(Objects.of(hat), Objects.of(mask > 0))
            expected = (boundary.f1, boundary.hd95_px, matches.f1, matches.average_precision)
            assert tuple(values[index, 0] for values in each.shapes.values()) == pytest.approx(expected)
    assert len(np.concatenate(true_objects.areas)) == sum(len(Objects.of(mask > 0).areas) for mask in masks)


def test_a_wrong_head_is_wrong_and_leaves_the_other_as_it_is(tmp_path):
    split = write_split(tmp_path / "test.arrow", squares())
    quality, true_objects = measure_quality(predictor(Told(wrong=1.0)), split, 2, 1.0)
    rows = summarise(quality, resample(quality, list("abcd")), dict.fromkeys(quality), "L2")
    assert rows["L1"]["iou_image"] == rows["L1"]["precision"] == rows["L1"]["object_f1"] == 0
    assert rows["L1"]["ece"] == pytest.approx(1, abs=1e-6)
    assert rows["L1"]["difference_iou"] == rows["L1"]["difference_iou_high"] == -1
    assert rows["L2"]["iou_image"] == rows["L2"]["dsb_ap"] == 1
    assert {size["L1"]["object_recall"] for size in by_size(quality, true_objects, None).values()} - {None} == {0}


def touching(ignored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A mask of three squares, of which two touch, and the numbers of all."""
    mask, numbers = np.zeros((24, 32), np.uint8), np.zeros((24, 32), np.uint8)
    for number, (row, column) in enumerate(((2, 2), (2, 10), (14, 20)), 1):
        mask[row : row + 8, column : column + 8], numbers[row : row + 8, column : column + 8] = 1, number
    if ignored:
        mask[14:18, 20:28] = IGNORE
        numbers[mask == IGNORE] = 0
    return mask, numbers


def write_touching(path, ignored: bool = False, numbered: bool = True):
    """A split of two such images; the first channel shows the mask, the others where boundaries and middles are."""
    mask, numbers = touching(ignored)
    middle = np.zeros_like(mask, bool)
    for row, column in ((2, 2), (2, 10), (14, 20)):
        middle[row + 2 : row + 6, column + 2 : column + 6] = True
    shown = np.stack([mask == 1, ~middle, middle], axis=-1) * np.uint8(255)
    with SplitWriter(path, instances=numbered) as writer:
        for id in "ab":
            writer.add(id, "", shown, mask, pack(numbers) if numbered else b"")
    return Split(path)


@pytest.mark.parametrize("ignored", [False, True])
def test_touching_objects_are_told_apart_by_numbers_and_by_who_learns_it(tmp_path, ignored):
    split = write_touching(tmp_path / "numbered", ignored)
    masks, true_objects = measure_quality(predictor(Told()), split, 2, 1.0)
    assert (len(true_objects.diameters_px()), true_objects.ways) == (6, {"numbers"})
    # Of three squares the mask finds two: one is whole, and the pair is none of the two that it is of.
    assert masks["L2"].per_image()["object_f1"].tolist() == pytest.approx([2 / 5] * 2)
    assert masks["L2"].per_image()["dsb_ap"].tolist() == pytest.approx([1 / 4] * 2)
    parted, _ = measure_quality(predictor(Told(targets=FOR_INSTANCES)), split, 2, 1.0)
    assert set(parted) == {"L1", "L2", "mean"}
    for each in parted.values():
        assert each.per_image()["object_f1"].tolist() == each.per_image()["dsb_ap"].tolist() == [1, 1]
        assert np.concatenate(each.best_iou).tolist() == [1] * 6
    rows = summarise(parted, resample(parted, ["a", "b"]), dict.fromkeys(parted), "L2")
    assert rows["L1"]["dsb_ap_low"] == rows["L1"]["dsb_ap_high"] == 1
    assert rows["L1"]["difference_ap"] == rows["L1"]["difference_ap_low"] == 0
    assert image_rows(parted, split, ["a", "b"])[0]["ap_L1"] == 1
    # Where nobody numbered them, connected pixels are all that is known.
    _, plain = measure_quality(predictor(Told()), write_touching(tmp_path / "plain", numbered=False), 2, 1.0)
    assert (len(plain.diameters_px()), plain.ways) == (4, {"components"})


def test_what_is_found_in_foreground_without_a_number_does_not_count(tmp_path):
    mask, numbers = touching()
    numbers[numbers == 3] = 0
    image = np.stack([mask * np.uint8(255)] * 3, axis=-1)
    with SplitWriter(tmp_path / "crowd", instances=True) as writer:
        writer.add("a", "", image, mask, pack(numbers))
    split = Split(tmp_path / "crowd")
    quality, true_objects = measure_quality(predictor(Told()), split, 2, 1.0)
    assert len(true_objects.diameters_px()) == 2
    assert quality["L2"].per_image()["object_f1"].tolist() == [0]  # the pair is found as one
    assert [len(one) for one in quality["L2"].best_iou] == [2]
    numbers[numbers == 2] = 1
    with SplitWriter(tmp_path / "one", instances=True) as writer:
        writer.add("a", "", image, mask, pack(numbers))
    one = Split(tmp_path / "one")
    assert measure_quality(predictor(Told()), one, 2, 1.0)[0]["L2"].per_image()["dsb_ap"].tolist() == [1]
    (batch,) = batches(one, 2)
    found = score_batch(np.asarray(batch.mask), [Objects.of(mask > 0).numbers], batch, one, (1, False, True))
    assert found[0].tolist() == [1, 1]


def test_images_of_one_object_or_none_do_not_say_how_objects_are_known(tmp_path):
    mask, numbers = touching()
    single = np.zeros_like(mask)
    single[2:6, 2:6] = 1
    for numbered, ways in ((True, {"numbers"}), (False, set())):
        with SplitWriter(tmp_path / f"{numbered}", instances=numbered) as writer:
            for id, one in (("a", np.zeros_like(mask)), ("b", single), *[("c", mask)] * numbered):
                image = np.stack([one * np.uint8(255)] * 3, axis=-1)
                writer.add(id, "", image, one, pack(numbers) if id == "c" else b"")
        split = Split(tmp_path / f"{numbered}")
        assert measure_quality(predictor(Told()), split, 2, 1.0)[1].ways == ways


def test_classes_are_scored_where_they_occur_and_none_where_they_never_do(tmp_path):
    split = write_split(tmp_path / "test.arrow", squares((1, 2, 1, 1)), task="classes")
    network = Told(3)
    network.num_classes = 3
    quality, _ = measure_quality(predictor(network), split, 2, 1.0)
    found = by_class(quality, ["one", "two"])
    assert found["two"]["L1"]["iou_image"] == found["two"]["L1"]["object_f1"] == 1
    assert np.isnan(quality["L1"].shapes["boundary_f1"][:, 1]).tolist() == [True, False, True, True]
    split = write_split(tmp_path / "only.arrow", squares((1, 1, 1, 1)), task="classes")
    found = by_class(measure_quality(predictor(network), split, 2, 1.0)[0], ["one", "two"])
    assert set(found["two"]["L1"].values()) == {None}


def test_a_class_0_that_is_no_background_counts_as_the_others_do(tmp_path):
    split = write_split(tmp_path / "test.arrow", squares((1, 2, 1, 2)), task="classes")
    plain = measure_quality(predictor(Told(3, wrong=1.0)), split, 2, 1.0)[0]
    quality, true_objects = measure_quality(predictor(Told(3, wrong=1.0, background=False)), split, 2, 1.0)
    rows = summarise(quality, resample(quality, list("abcd")), dict.fromkeys(quality), "L2")
    assert rows["L1"]["iou_image"] == rows["L1"]["miou"] == rows["L1"]["recall"] == 0
    assert {rows["L2"][key] for key in ("iou_image", "miou", "iou_paper", "boundary_f1", "object_f1")} == {1.0}
    found = by_class(quality, ["sky", "one", "two"])
    assert [found[name]["L2"]["iou_image"] for name in found] == [1, 1, 1]
    assert found["sky"]["L1"]["iou_image"] == 0
    assert len(true_objects.diameters_px()) == 12  # the sky of each image is one
    assert quality["L2"].bins[:, 0].sum() == 1.5 * plain["L2"].bins[:, 0].sum()  # calibration of 3 channels, not 2
    assert quality["L2"].by_threshold is None


def test_outlines_that_are_all_ignored_are_not_measured_and_objects_are(tmp_path):
    """As in a trimap: between the pet and the background lie unlabelled pixels."""
    trimap, plain = np.zeros((24, 24), np.uint8), np.zeros((24, 24), np.uint8)
    trimap[4:16, :16], trimap[6:14, :14] = IGNORE, 1  # it touches the image's edge, which is no outline
    plain[6:14, 6:14] = 1
    split = write_split(tmp_path / "a", [trimap, trimap])
    quality, _ = measure_quality(predictor(Told(wrong=1.0)), split, 2, 1.0)
    rows = summarise(quality, resample(quality, ["a", "b"]), dict.fromkeys(quality), "L2")
    keys = ("boundary_f1", "boundary_f1_low", "boundary_f1_high", "hd95_px")
    assert [rows["L2"][key] for key in keys] == [None] * 4
    assert [rows["L1"][key] for key in ("boundary_f1", "object_f1")] == [None, 0]
    assert rows["L2"]["object_f1"] == by_class(quality, ["pet"])["pet"]["L2"]["object_f1"] == 1
    assert by_class(quality, ["pet"])["pet"]["L2"]["boundary_f1"] is None
    assert by_kind(quality, split.kinds)["a"]["L2"]["boundary_f1"] is None
    assert image_rows(quality, split, ["a", "b"])[0]["boundary_f1_L2"] is None
    # False alarms in an image without an object are no measurement of outlines either.
    split = write_split(tmp_path / "c", [trimap, np.zeros_like(plain)])
    quality, _ = measure_quality(predictor(Told(wrong=1.0)), split, 2, 1.0)
    rows = summarise(quality, resample(quality, ["a", "b"]), dict.fromkeys(quality), "L2")
    assert [rows[depth]["boundary_f1"] for depth in ("L1", "L2")] == [None, None]
    assert by_class(quality, ["pet"])["pet"]["L1"]["boundary_f1"] is None
    assert by_kind(quality, split.kinds)["a"]["L1"]["boundary_f1"] is None
    # Images that have an outline are the score, with what is in none counting as it did.
    split = write_split(tmp_path / "b", [trimap, plain, np.zeros_like(plain)])
    quality, _ = measure_quality(predictor(Told(wrong=1.0)), split, 2, 1.0)
    rows = summarise(quality, resample(quality, list("abc")), dict.fromkeys(quality), "L2")
    assert rows["L2"]["boundary_f1"] == rows["L2"]["boundary_f1_low"] == 1
    assert 0 < (rows["L1"]["boundary_f1"] or 0) < 1


def test_ignored_pixels_count_in_no_score(tmp_path):
    masks = squares()
    plain = measure_quality(predictor(Told(wrong=0.0)), write_split(tmp_path / "a", masks), 2, 1.0)[0]["L2"]
    for mask in masks:
        mask[:, 9:] = IGNORE
    split = write_split(tmp_path / "b", masks)
    predict = predictor(Told())

    def everything(images):
        ones = torch.ones(len(images), 1, *images[0].shape[:2])
        return [Answer(name, ones, ones) for name in predict.names]

    half = measure_quality(predict, split, 2, 1.0)[0]["L2"]
    assert half.bins[:, 0].sum() == sum(mask.shape[0] * 9 for mask in masks) < plain.bins[:, 0].sum()
    predict.answers = everything  # type: ignore[method-assign]
    full = measure_quality(predict, split, 2, 1.0)[0]["L2"]
    assert full.counts[:, 1, 1].tolist() == [(mask[:, :9] == 0).sum() for mask in masks]


def test_the_threshold_is_val_s_and_its_score_is_test_s(tmp_path):
    """A network of a probability that grows from left to right: the mask says which one is right."""

    class Ramp(Told):
        def forward(self, image):
            probs = torch.linspace(0.025, 0.975, image.shape[-1]).expand(len(image), 1, *image.shape[-2:])
            logits = probs.logit()
            return logits, logits

    val, test = np.zeros((16, 20), np.uint8), np.zeros((16, 20), np.uint8)
    val[:, 14:], test[:, 10:] = 1, 1
    predict = predictor(Ramp())
    thresholds = choose_thresholds(predict, write_split(tmp_path / "val", [val]), 2)
    quality, _ = measure_quality(predict, write_split(tmp_path / "test", [test]), 2, 1.0)
    row = summarise(quality, resample(quality, ["a"]), thresholds, "L2")["L2"]
    chosen = thresholds["L2"]
    assert chosen is not None
    assert THRESHOLDS[chosen] == row["threshold"] == pytest.approx(0.7)
    assert row["iou_image"] == pytest.approx(1)
    assert row["iou_image_at_threshold"] == pytest.approx(0.6)


def test_kinds_and_rows_hold_the_means_of_their_images(tmp_path):
    rng = np.random.default_rng(1)
    masks = [(rng.random(size) < 0.4).astype(np.uint8) for size in SIZES]
    split = write_split(tmp_path / "test.arrow", masks, kinds="abbb")
    torch.manual_seed(0)
    quality, _ = measure_quality(Predictor(Trained(NestedUNet([2, 4, 8]).eval(), 16), CPU), split, 8, 1.0)
    kinds = by_kind(quality, split.kinds)
    rows = image_rows(quality, split, list("wxyz"))
    assert list(kinds) == ["b", "a"]
    assert [kind["num_images"] for kind in kinds.values()] == [3, 1]
    assert list(rows[0])[:4] == ["id", "kind", "group", "height"]
    for score, column in (("iou_image", "iou"), ("boundary_f1", "boundary_f1"), ("object_f1", "object_f1")):
        mean = np.mean([row[f"{column}_L1"] for row in rows if row["kind"] == "b"])
        assert kinds["b"]["L1"][score] == pytest.approx(mean, abs=1e-5)


def test_sizes_are_thirds_of_the_objects_or_those_asked_for(tmp_path):
    mask = np.zeros((40, 40), np.uint8)
    for number, side in enumerate((2, 3, 4, 5, 6, 7)):
        mask[number * 6 + 1 : number * 6 + 1 + min(side, 5), 2 : 2 + side] = 1
    quality, true_objects = measure_quality(predictor(Told()), write_split(tmp_path / "t", [mask]), 1, 1.0)
    thirds = by_size(quality, true_objects, None)
    assert [size["num_objects"] for size in thirds.values()] == [2, 2, 2]
    assert thirds["small"]["to_px"] == thirds["medium"]["from_px"]
    asked = by_size(quality, true_objects, (3.0, 100.0))
    assert [size["num_objects"] for size in asked.values()] == [1, 5, 0]
    assert asked["large"]["L1"] == {"object_recall": None, "object_iou": None}


def test_empty_masks_rightly_predicted_are_perfect_and_have_no_sizes(tmp_path):
    class Nothing(Told):
        def forward(self, image):
            return (image[:, :1] * 0 - 20,) * 2

    split = write_split(tmp_path / "t", [np.zeros((16, 16), np.uint8)] * 2)
    predict = predictor(Nothing())
    quality, true_objects = measure_quality(predict, split, 2, 1.0)
    row = summarise(quality, resample(quality, ["a", "b"]), choose_thresholds(predict, split, 2), "L2")["L1"]
    assert row["iou_image"] == row["object_f1"] == row["boundary_f1"] == row["dsb_ap"] == 1
    assert row["hd95_px"] == 0
    assert row["precision"] is row["recall"] is None
    assert by_size(quality, true_objects, None)["small"]["num_objects"] == 0


def test_batches_hold_one_size_and_every_image_once(tmp_path):
    split = write_split(tmp_path / "test.arrow", squares())
    found = list(batches(split, 8))
    assert sorted(index for batch in found for index in batch.indices) == [0, 1, 2, 3]
    assert all(len({image.shape for image in batch.images}) == 1 for batch in found)
    assert [batch.indices for batch in batches(split, 8, [2, 1])] == [[2], [1]]


@pytest.mark.parametrize(("size", "shape"), [(16, (37, 22)), (None, (13, 10)), (None, (16, 24))])
def test_every_depth_answers_what_prediction_delivers(size, shape):
    torch.manual_seed(0)
    trained = Trained(NestedUNet([2, 4, 8]).eval(), size)
    images = np.random.default_rng(0).integers(0, 255, (2, *shape, 3), dtype=np.uint8)
    answers = list(Predictor(trained, CPU).answers(list(images)))
    predictors = [unetpp.Predictor(trained, 1), unetpp.Predictor(trained), unetpp.Predictor(trained, heads="mean")]
    assert [answer.name for answer in answers] == ["L1", "L2", "mean"]
    for (_, seen, probs), predictor in zip(answers, predictors, strict=True):
        torch.testing.assert_close(probs, torch.from_numpy(predictor.probs(images)))
        assert seen.shape[2:] == ((size, size) if size else shape)


def test_scores_are_at_the_images_own_size_and_beside_them_at_the_networks(tmp_path):
    # A dot that is gone at 16 px: what the network is shown has none, and what a person gets misses it.
    mask = np.zeros((128, 128), np.uint8)
    mask[:64], mask[100:103, 100:103] = 1, 1
    split = write_split(tmp_path / "test.arrow", [mask])
    quality, _ = measure_quality(Predictor(Trained(Told(), 16), CPU), split, 2, 1.0)  # type: ignore[arg-type]
    row = summarise(quality, resample(quality, ["a"]), dict.fromkeys(quality), "L2")["L2"]
    assert row["iou_image_seen"] == 1
    assert row["iou_image"] == pytest.approx(64 * 128 / (64 * 128 + 9))
