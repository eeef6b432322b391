"""The generator: a function of seed and index, with exact masks."""

import hashlib

import cv2
import numpy as np
import pytest

from pipelines.core.sections.ingest import Synthetic
from pipelines.dataset.kinds import find_kind
from pipelines.storage import synthetic
from pipelines.storage.synthetic import BORDER_PX, KINDS, LABELS, UNANNOTATED, make_image, make_masks, write_images
from unetpp.files import sha256

# Images 0, 1, 2 of seed 0 at 64x64, then their masks.
DIGESTS = ["62da8cef254c", "b633664b490a", "159ad1a6719c", "c74d816d49aa", "4efcf7a7ab1d", "b90c2a73c7d0"]


def test_an_image_is_a_function_of_seed_and_index_alone():
    first = make_image(5, 3, 96)
    make_image(0, 9, 64)
    again = make_image(5, 3, 96)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    for index, seed in ((6, 3), (5, 4)):
        assert not np.array_equal(first[1], make_image(index, seed, 96)[1])


@pytest.mark.parametrize("size", [32, 96, 200])
def test_images_have_the_size_and_types_that_are_promised(size):
    for index in range(3):
        image, instances, kind = make_image(index, 0, size)
        assert image.shape == ((size, size, 3) if kind == "tissue" else (size, size))
        assert image.dtype == np.uint8
        assert instances.shape == (size, size)
        assert instances.dtype == np.uint16


def test_every_instance_is_one_piece_and_the_labels_have_no_gap():
    for index in range(12):
        instances = make_image(index, 1, 128)[1]
        labels = np.unique(instances)
        assert labels.tolist() == list(range(int(instances.max()) + 1))
        for label in labels[1:]:
            assert cv2.connectedComponents((instances == label).astype(np.uint8))[0] == 2


def test_all_looks_occur_and_are_told_apart_from_the_pixels_alone():
    images = [make_image(index, 0, 96) for index in range(60)]
    assert {kind for _, _, kind in images} == set(KINDS)
    for image, _, kind in images:
        colour = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
        assert find_kind(colour) == kind


def test_nuclei_touch_differ_in_size_and_leave_background():
    sets = [make_image(index, 0, 128)[1] for index in range(40)]
    share = [np.mean(instances > 0) for instances in sets]
    assert min(share) > 0.03
    assert max(share) < 0.5
    areas = np.concatenate([np.bincount(instances.ravel())[1:] for instances in sets])
    assert np.percentile(areas, 95) > 8 * np.percentile(areas, 5)
    clusters = sum(cv2.connectedComponents((instances > 0).astype(np.uint8))[0] - 1 for instances in sets)
    assert clusters < 0.8 * len(areas)


def test_brightness_alone_does_not_find_the_nuclei():
    """The best threshold of each image, chosen with its mask at hand, stays far from a trained network."""
    best = []
    for index in range(30):
        image, instances, kind = make_image(index, 0, 96)
        grey = cv2.GaussianBlur(image if image.ndim == 2 else image[:, :, 0], (0, 0), 1).astype(int)
        truth = instances > 0
        bright = kind == "fluorescence"
        ious = []
        for threshold in range(5, 255, 5):
            found = (grey > threshold) == bright
            ious.append((found & truth).sum() / (found | truth).sum())
        best.append(max(ious))
    assert 0.4 < np.mean(best) < 0.85


def test_the_files_are_the_same_bytes_whatever_the_number_of_processes(tmp_path, params, monkeypatch):
    wanted = params.ingest.synthetic.model_copy(update={"num_images": 70, "size_px": 48})
    monkeypatch.setattr(synthetic, "PARALLEL_PIXELS", 0)
    monkeypatch.setattr(synthetic, "num_cores", lambda: 8)
    hashes = []
    for num_workers in (1, 3):
        out = tmp_path / str(num_workers)
        out.mkdir()
        write_images(wanted, num_workers, out)
        hashes.append({path.relative_to(out).as_posix(): sha256(path) for path in out.rglob("*.png")})
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 140


def test_a_seed_gives_the_images_of_the_first_release(tmp_path):
    """Written by version 0.1.0: other bytes would be another data set under the same params."""
    write_images(Synthetic(num_images=3, size_px=64, seed=0, masks="instances"), 1, tmp_path)
    images = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(tmp_path.rglob("*.png"))]
    digests = [hashlib.sha256(image.tobytes()).hexdigest()[:12] for image in images if image is not None]
    assert digests == DIGESTS


def test_classes_are_the_inside_and_the_border_of_every_nucleus_and_labels_lie_over_each_other():
    instances = make_image(4, 2, 128)[1]
    classes = make_masks(instances, "classes")["masks"]
    labels = make_masks(instances, "labels")
    assert list(labels) == [f"masks/{label}" for label in LABELS]
    nucleus, border = (plane > 0 for plane in labels.values())
    assert np.array_equal(nucleus, instances > 0)
    assert np.array_equal(classes, np.where(border, 2, nucleus))
    assert not (border & ~nucleus).any()
    for number in range(1, int(instances.max()) + 1):
        padded = np.pad(instances == number, BORDER_PX, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * BORDER_PX + 1,) * 2)
        inside = windows.all(axis=(2, 3))  # nothing else within 2 px; what lies beyond the image is not known
        assert np.array_equal(inside, (instances == number) & (classes == 1))


def test_partial_masks_are_classes_of_which_a_side_is_unannotated():
    sides = set()
    for index in range(8):
        instances = make_image(index, 2, 50)[1]
        classes, partial = (make_masks(instances, masks)["masks"] for masks in ("classes", "partial"))
        unknown = partial == UNANNOTATED
        assert np.array_equal(partial[~unknown], classes[~unknown])
        assert unknown.sum() == 10 * 50
        corners = (unknown[:10].all(), unknown[-10:].all(), unknown[:, :10].all(), unknown[:, -10:].all())
        assert sum(corners) == 1
        sides.add(corners)
    assert len(sides) > 2


@pytest.mark.parametrize(("masks", "folders"), [("classes", {"masks"}), ("labels", {"masks/nucleus", "masks/border"})])
def test_masks_of_classes_and_labels_are_written_as_prepare_reads_them(tmp_path, masks, folders):
    write_images(Synthetic(num_images=2, size_px=48, seed=0, masks=masks), 1, tmp_path)
    found = {path.parent.relative_to(tmp_path).as_posix() for path in (tmp_path / "masks").rglob("*.png")}
    assert found == folders
