"""Near-duplicates: the same picture is found however it was saved; dim, empty and blank ones are not alike."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.core.params import load_params
from pipelines.dataset import near_duplicates
from pipelines.dataset.near_duplicates import SIDE, Looks, find_duplicates, hash_turned, look_at, turned
from pipelines.dataset.splits import join
from pipelines.storage.synthetic import make_image
from tests.conftest import REPOSITORY
from unetpp.images.decode import decode_image

NEAR = load_params(REPOSITORY / "params.yaml").prepare.near_duplicates
assert NEAR is not None
# ImageHash 4.3.2: str(phash(...)) of images 0 to 5 of seed 0 at 96x96, as grey at 32x32.
IMAGEHASH = [
    "e11ee1ee85385ac5",
    "862c93f9c9aa91ea",
    "a306facd44330ee7",
    "8e5a98f633616335",
    "c28b2ac495a79377",
    "c3ddb5204dfb0aa4",
]


def colour(image):
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


@cache
def picture(index, size=96):
    return colour(make_image(index, 0, size)[0])


def empty_looks(number):
    with TemporaryDirectory() as folder:
        looks = Looks(number, Path(folder))
        assert list(Path(folder).iterdir()) == []
    return looks


def looks_of(images):
    looks = empty_looks(len(images))
    for index, image in enumerate(images):
        looks[index] = look_at(np.ascontiguousarray(image))
    return looks


def find(images, near=NEAR):
    return [pair[:2] for pair in find_duplicates(looks_of(images), near.distance, near.correlation)]


def test_the_hash_is_that_of_imagehash_and_of_each_flip_and_turn():
    for index, known in enumerate(IMAGEHASH):
        small = cv2.resize(cv2.cvtColor(picture(index), cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
        hashes = hash_turned(small)
        assert f"{hashes[0]:016x}" == known
        assert [hash_turned(np.ascontiguousarray(one))[0] for one in turned(small)] == list(hashes)


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def noisy(image):
    noise = np.random.default_rng(0).normal(0, 0.3 * image.std(), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def shaded(image):
    y, x = np.indices(image.shape[:2]) / np.array(image.shape[:2])[:, None, None] - 0.5
    return (image * (1 - 0.5 * (x**2 + y**2))[:, :, None]).astype(np.uint8)


CHANGES = {
    "the same": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "a quarter turn": lambda image: np.rot90(image),
    "mirrored and turned": lambda image: np.rot90(image[:, ::-1], 3),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "JPEG": lambda image: jpeg(image, 40),
    "grey": lambda image: colour(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)),
    "brighter": lambda image: np.clip(image * 0.6 + 80, 0, 255).astype(np.uint8),
    "dimmed to 25 levels": lambda image: image // 10,
    "16 bits, the lowest 12": lambda image: image.astype(np.uint16) * 16,
    "noise": noisy,
    "shading": shaded,
    "another gamma": lambda image: (255 * (image / 255) ** 0.6).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_of_each_of_sixty_images_is_found_and_nothing_else(change):
    images = [picture(index) for index in range(60)]
    found = find([*images, *(change(image) for image in images)])
    assert set(found) <= {(n, n + 60) for n in range(60)}
    assert len(found) >= 57


def test_different_images_are_not_alike():
    assert find([picture(index, 48) for index in range(500)]) == []


def fields(level, noise, number=150, size=96, dtype: type[np.unsignedinteger] = np.uint8):
    """Empty fields under one uneven lamp."""
    rng = np.random.default_rng(0)
    y, x = np.indices((size, size)) / size - 0.5
    lamp = level * (1 - 0.6 * (x**2 + y**2))
    return [
        colour(np.clip(np.rint(lamp + rng.normal(0, noise, lamp.shape)), 0, None).astype(dtype)) for _ in range(number)
    ]


@pytest.mark.parametrize(
    "images",
    [fields(2, 0.8), fields(12, 3), fields(180, 3), fields(300, 12, dtype=np.uint16), fields(12, 3, 60, 256)],
    ids=["nearly black", "dark", "bright", "16 bits", "large"],
)
def test_empty_fields_are_not_alike_because_one_lamp_lit_them(images):
    assert find(images) == []


def discs(number, rng, size=128):
    """Through the round stop of one camera: an even disc with smooth shades and dark strokes, another in each."""
    y, x = np.indices((size, size)) - size / 2
    for _ in range(number):
        light = 100 + 10 * cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), 10) * 20
        for _ in range(14):
            way = np.cumsum(rng.normal(0, 5, (20, 2)) + rng.normal(0, 4, 2), axis=0) + rng.uniform(0, size, 2)
            cv2.polylines(light, [way.astype(np.int32)], False, 65, int(rng.integers(1, 3)))
        yield np.clip(light * (x**2 + y**2 < (0.43 * size) ** 2) + rng.normal(0, 3, light.shape), 0, 255).astype(
            np.uint8
        )


def cells(number, rng, size=128):
    """Cut out one by one, so each has a bright ellipse in the middle."""
    y, x = np.indices((size, size)) - size / 2
    for _ in range(number):
        (a, b), turn = rng.uniform(0.14, 0.24, 2) * size, rng.uniform(0, np.pi)
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        inside = 1 / (1 + np.exp((np.hypot(u / a, v / b) - 1) * 15))
        grain = 1 + cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), 2) * 2
        yield np.clip(10 + 120 * inside * grain + rng.normal(0, 4, inside.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("draw", [discs, cells])
def test_pictures_that_share_a_frame_or_a_place_are_not_alike(draw):
    images = [colour(image) for image in draw(100, np.random.default_rng(0))]
    pairs = find([*images, *(image[::-1] for image in images[:20])])
    assert len(set(pairs) & {(n, n + 100) for n in range(20)}) == 20
    assert len(pairs) <= 22  # of 7140


@pytest.mark.parametrize("level", [0, 1, 200, 255])
def test_blank_pictures_are_no_pictures(level):
    images = [np.full((50, 40, 3), level, np.uint8)] * 5
    assert find(images) == []
    assert looks_of(images).same_pixels() == []


def test_the_same_pixels_are_told_from_nearly_the_same():
    image = picture(0)
    other = image.copy()
    other[3, 3, 0] ^= 1
    assert looks_of([image, other, image.copy(), image[:, ::-1], image.astype(np.uint16)]).same_pixels() == [(0, 2)]


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_the_pairs_are_those_that_comparing_each_with_each_finds(data):
    """On crowded hashes: a few pictures, each many times, with more or less noise."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    distance, correlation = data.draw(st.integers(0, 15)), data.draw(st.floats(0.3, 0.99))
    number, kinds = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 10))
    looks = empty_looks(number)
    templates = rng.normal(size=(kinds, 8, 8))
    for n in range(number):
        small = templates[rng.integers(kinds)] + rng.uniform(0, 0.8) * rng.normal(size=(8, 8))
        small = turned(cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))[rng.integers(8)]
        small = np.rint(small / abs(small).max() * 127).astype(np.int8) * (rng.random() > 0.1)  # some are blank
        looks.hashes[n], looks.small[n] = hash_turned(small) * small.any(), small.ravel()
    wanted = {}
    for one in range(number):
        for other in range(one + 1, number):
            for a, b, turns in ((one, other, turned), (other, one, turned)):
                for bits, flat in zip(looks.hashes[b], turns(looks.small[b].reshape(SIDE, SIDE)), strict=True):
                    x, y = looks.small[a].astype(float), flat.ravel().astype(float)
                    if not x.any() or not y.any() or int(looks.hashes[a, 0] ^ bits).bit_count() > distance:
                        continue
                    value = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
                    if value >= correlation:
                        wanted[one, other] = max(value, wanted.get((one, other), 0))
    found = find_duplicates(looks, distance, correlation)
    assert [pair[:2] for pair in found] == sorted(wanted)
    assert [pair[3] for pair in found] == pytest.approx([wanted[pair[:2]] for pair in found], abs=1e-5)


def test_a_long_still_series_is_one_group_without_a_pair_for_each_two(monkeypatch):
    monkeypatch.setattr(near_duplicates, "BLOCK", 2**10)
    rng = np.random.default_rng(0)
    scene = picture(1).astype(int)
    series = [np.clip(scene + rng.normal(0, 1, scene.shape), 0, 255).astype(np.uint8) for _ in range(700)]
    others = [picture(index) for index in range(2, 12)]
    pairs = find([*series[:350], *others, *series[350:]])
    assert len(pairs) < 5000 < 700 * 699 / 2
    members = join([str(n) for n in range(710)], pairs)
    assert len(members[0]) == 700
    assert all(len(members[350 + n]) == 1 for n in range(10))


@pytest.mark.shared_data
def test_in_the_real_set_the_one_pair_of_neighbouring_slices_is_found_and_nothing_else(shared_data):
    """Every fifth image, and all of the four sections of one kind of embryo, of which two are next to each other."""
    embryo = ("20b20ab049372d18", "cb4df20a83b2f38b", "a102535b0e88374b", "f29fd9c52e04403c")
    folder = shared_data / "dsb2018/images"
    paths = sorted({*sorted(folder.iterdir())[::5], *(folder / f"{id}.png" for id in embryo)})
    pairs = find([decode_image(path, 3) for path in paths])
    assert [(paths[one].stem, paths[other].stem) for one, other in pairs] == [embryo[:2]]


@pytest.mark.shared_data
def test_a_turned_jpeg_of_each_real_image_is_found(shared_data, tmp_path):
    paths = sorted((shared_data / "dsb2018/images").iterdir())[::12]
    images = [decode_image(path, 3) for path in paths]
    copies = []
    for image in images:
        Image.fromarray(np.rot90(image)).save(tmp_path / "copy.jpg", quality=40)
        copies.append(decode_image(tmp_path / "copy.jpg", 3))
    assert find([*images, *copies]) == [(n, n + len(images)) for n in range(len(images))]
