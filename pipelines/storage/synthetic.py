"""Seeded images of nuclei in three looks of microscopy, with exact instance masks: the embedded data set.

An image is drawn as light: nuclei with texture, objects that are not nuclei, uneven illumination, the blur of
the optics, then the noise of photons and of the camera. Things that look like nuclei at close range (light
out of focus, streaks of stain, open arcs) make the surroundings of a pixel matter, and so depth.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from pipelines.core.sections.ingest import Synthetic
from pipelines.core.worker_pool import Died, answers
from unetpp.threads import num_cores

KINDS = ("fluorescence", "tissue", "bright-field")
Generator = np.random.Generator
# Sub-pixel bits of OpenCV's drawing functions.
SHIFT = 4


def make_image(index: int, seed: int, size_px: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Image `index` of the dataset `seed`: a function of only these numbers.

    Returns:
        image (H, W) uint8 grey or (H, W, 3) uint8 RGB, instances (H, W) uint16 with 0 = background, kind.
    """
    rng = np.random.default_rng((seed, index))
    kind = KINDS[index % len(KINDS)]
    instances = _draw_instances(rng, size_px)
    draw = {"fluorescence": _fluorescence, "tissue": _tissue, "bright-field": _bright_field}[kind]
    light = draw(rng, instances)
    return np.rint(np.clip(light, 0, 1) * 255).astype(np.uint8), instances, kind


def _draw_instances(rng: Generator, size: int) -> np.ndarray:
    """(H, W) uint16: deformed ellipses, some of them in touching clusters, none overlapping."""
    instances = np.zeros((size, size), np.uint16)
    typical = np.exp(rng.uniform(np.log(3.2), np.log(11)))  # px; each slide has its own magnification
    wanted = rng.uniform(0.06, 0.32) * size**2  # px of foreground
    clustered = rng.uniform(0.2, 0.7)
    placed: list[tuple[np.ndarray, float]] = []
    for _ in range(int(3 * wanted / typical**2) + 20):
        if np.count_nonzero(instances) >= wanted:
            break
        radius = float(np.clip(typical * np.exp(rng.normal(0, 0.28)), 2.5, 14))
        if placed and rng.random() < clustered:
            centre, neighbour = placed[rng.integers(len(placed))]
            angle = rng.uniform(0, 2 * np.pi)
            centre = centre + (radius + neighbour) * 0.97 * np.array([np.cos(angle), np.sin(angle)])
        else:
            centre = rng.uniform(-2, size + 2, 2)
        shape = np.zeros((size, size), np.uint8)
        cv2.fillPoly(shape, [_outline(rng, centre, radius)], 1, shift=SHIFT)
        free = (shape == 1) & (instances == 0)
        # A nucleus that is mostly hidden leaves a sliver, which no annotator would have drawn.
        if free.sum() >= max(8, 0.8 * shape.sum()) and cv2.connectedComponents(free.astype(np.uint8))[0] == 2:
            instances[free] = len(placed) + 1
            placed.append((centre, radius))
    return instances


def _outline(rng: Generator, centre: np.ndarray, radius: float) -> np.ndarray:
    """(32, 1, 2) int32 polygon, in sub-pixels: an ellipse with three slow waves on its rim."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    waves = sum(rng.normal(0, 0.10 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    stretch = np.exp(rng.normal(0, 0.17))
    x = radius * (1 + waves) * np.cos(angles) * stretch
    y = radius * (1 + waves) * np.sin(angles) / stretch
    turn = rng.uniform(0, np.pi)
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1) + centre
    return np.rint(points * 2**SHIFT).astype(np.int32)[:, None]


def _texture(rng: Generator, size: int, scale: float) -> np.ndarray:
    """(H, W) smooth noise of mean 0 and standard deviation 1, with grains of about `scale` px."""
    coarse = rng.normal(size=(max(2, round(size / scale)) + 1,) * 2)
    noise = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def _blur(light: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(light, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def _by_nucleus(rng: Generator, instances: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W): one value per nucleus, 0 on the background."""
    values = rng.uniform(low, high, int(instances.max()) + 1)
    values[0] = 0
    return values[instances]


def _rim(instances: np.ndarray) -> np.ndarray:
    """(H, W) float: how near a pixel of a nucleus is to its edge, 1 at the edge, falling over 1.5 px."""
    depth = np.zeros(instances.shape, np.float32)
    for label in range(1, int(instances.max()) + 1):
        own = instances == label
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        padded = np.pad(own[box].astype(np.uint8), 1)
        depth[box] += cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1] * own[box]
    return np.where(instances > 0, np.exp(-((np.maximum(depth, 1) - 1) ** 2) / 2.2), 0)


def _strokes(rng: Generator, size: int, count: int, length: tuple[float, float], thick: tuple[int, int]) -> np.ndarray:
    """(H, W) in [0, 1]: open, bent strokes such as fibres and folds."""
    canvas = np.zeros((size, size), np.float32)
    for _ in range(count):
        start, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-1.6, 1.6)
        angles = start + np.linspace(0, bend, 20)
        step = rng.uniform(*length) / 20
        points = rng.uniform(0, size, 2) + np.cumsum(step * np.stack([np.cos(angles), np.sin(angles)], 1), axis=0)
        line = np.rint(points * 2**SHIFT).astype(np.int32)[:, None]
        level = rng.uniform(0.4, 1)
        cv2.polylines(canvas, [line], False, level, int(rng.integers(*thick)), cv2.LINE_AA, SHIFT)
    return canvas


def _blobs(rng: Generator, size: int, count: int, low: float, high: float) -> np.ndarray:
    """(H, W) in [0, 1]: deformed discs of radius `low` to `high` px that are not nuclei."""
    canvas = np.zeros((size, size), np.float32)
    for _ in range(count):
        cv2.fillPoly(
            canvas,
            [_outline(rng, rng.uniform(0, size, 2), rng.uniform(low, high))],
            rng.uniform(0.3, 1),
            shift=SHIFT,
        )
    return canvas


def _illumination(rng: Generator, size: int, strength: float) -> np.ndarray:
    """(H, W) around 1: a slope and a bright or dark centre."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    centre = rng.uniform(-0.3, 0.3, 2)
    vignette = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
    return 1 + strength * (rng.uniform(0, 1) * (x * np.cos(angle) + y * np.sin(angle)) - rng.uniform(0, 1) * vignette)


def _expose(rng: Generator, light: np.ndarray, photons: float, camera: float) -> np.ndarray:
    """Photon noise of a full scale of `photons`, then the camera's Gaussian noise."""
    counted = rng.poisson(np.clip(light, 0, 1.5) * photons) / photons
    return counted + rng.normal(0, camera, light.shape)


def _fluorescence(rng: Generator, instances: np.ndarray) -> np.ndarray:
    """(H, W): bright nuclei on dark, some dim; blurred light from other planes and bright specks between."""
    size = len(instances)
    area = (size / 128) ** 2
    inside = instances > 0
    level = _by_nucleus(rng, instances, 0.35, 1.0)
    grains = 1 + 0.16 * _texture(rng, size, 3) + 0.10 * _texture(rng, size, 7)
    light = level * grains * (1 - 0.25 * _rim(instances)) * inside
    # Nuclei out of focus are as bright as dim ones, but have no edge.
    haze = _blur(_blobs(rng, size, rng.poisson(4 * area), 5, 15), rng.uniform(4, 7)) * rng.uniform(0.3, 0.6)
    specks = _blobs(rng, size, rng.poisson(4 * area), 0.8, 1.8) * rng.uniform(0.4, 1.0)
    fibres = _strokes(rng, size, rng.poisson(1.5 * area), (15, 60), (1, 3)) * 0.35
    exposure = rng.uniform(0.25, 0.9)
    background = rng.uniform(0.02, 0.10)
    light = _blur(np.maximum(light, specks + fibres * ~inside) + haze, rng.uniform(0.7, 1.4))
    glow = 0.12 * _blur(light, 6)  # light scattered around bright nuclei
    light = (background + exposure * (light + glow)) * _illumination(rng, size, 0.9)
    return _expose(rng, light, rng.uniform(60, 300), rng.uniform(0.005, 0.025))


def _tissue(rng: Generator, instances: np.ndarray) -> np.ndarray:
    """(H, W, 3): haematoxylin (nuclei, purple) and eosin (the rest, pink), each absorbing by Beer's law."""
    size = len(instances)
    area = (size / 128) ** 2
    inside = instances > 0
    chromatin = _by_nucleus(rng, instances, 0.55, 1.25)
    chromatin = chromatin * (1 + 0.22 * _texture(rng, size, 3)) * (0.82 + 0.3 * _rim(instances)) * inside
    fibres = _blur(_strokes(rng, size, rng.poisson(22 * area), (20, 90), (1, 4)), 0.8)
    gaps = np.clip(_texture(rng, size, 18) - rng.uniform(0.6, 1.6), 0, 1)  # lumen: little stain
    eosin = 0.35 + 0.10 * _texture(rng, size, 14) + 0.07 * _texture(rng, size, 3) + 0.35 * fibres
    eosin = np.clip(eosin * (1 - 0.8 * np.minimum(gaps, 1)), 0.02, None) * np.where(inside, 0.6, 1)
    # Red cells are as round as nuclei, but pink; streaks and smears are as purple, but not round.
    red_cells = _blobs(rng, size, rng.poisson(4 * area), 3, 6) * ~inside
    streaks = _strokes(rng, size, rng.poisson(5 * area), (12, 40), (2, 4)) * ~inside
    smear = np.clip(_texture(rng, size, 22), 0, 2) * rng.uniform(0.02, 0.16)
    haematoxylin = _blur(chromatin + 0.55 * streaks + smear, rng.uniform(0.6, 1.1)) * rng.uniform(0.75, 1.15)
    eosin = _blur(eosin + 0.55 * red_cells, 0.7) * rng.uniform(0.7, 1.2)
    # Absorption of red, green, blue by the two stains, a little different on every slide.
    purple = np.array([0.95, 1.25, 0.50]) * rng.uniform(0.85, 1.15, 3)
    pink = np.array([0.10, 1.00, 0.45]) * rng.uniform(0.85, 1.15, 3)
    light = 0.94 * np.exp(-haematoxylin[:, :, None] * purple - eosin[:, :, None] * pink)  # (H, W, 3)
    light = light * _illumination(rng, size, 0.2)[:, :, None]
    return _expose(rng, light, rng.uniform(250, 900), rng.uniform(0.005, 0.02))


def _bright_field(rng: Generator, instances: np.ndarray) -> np.ndarray:
    """(H, W): dark outlines on light grey; inside, a nucleus is hardly darker than the background."""
    size = len(instances)
    area = (size / 128) ** 2
    inside = instances > 0
    rim = _rim(instances) * _by_nucleus(rng, instances, 0.5, 1.0)
    body = _by_nucleus(rng, instances, -0.01, 0.16) + 0.06 * _texture(rng, size, 3) * inside
    dots = _blobs(rng, size, rng.poisson(30 * area), 0.7, 1.4) * inside  # nucleoli
    halo = _blur(inside.astype(np.float32), 2.5) * ~inside
    # Arcs and folds look like a piece of an outline and enclose nothing.
    arcs = _strokes(rng, size, rng.poisson(5 * area), (10, 45), (1, 3)) * ~inside
    dirt = _blur(_blobs(rng, size, rng.poisson(3 * area), 0.8, 2.5), 0.7) * ~inside
    shade = _blur(_blobs(rng, size, rng.poisson(2 * area), 6, 14), 4)
    contrast = rng.uniform(0.45, 1.0)
    dark = 0.42 * rim + body + 0.22 * dots + 0.40 * arcs + 0.4 * dirt + 0.12 * shade - 0.14 * halo
    light = rng.uniform(0.68, 0.86) - contrast * _blur(dark, rng.uniform(0.6, 1.1))
    light = (light + 0.012 * _texture(rng, size, 5)) * _illumination(rng, size, 0.25)
    return _expose(rng, light, rng.uniform(300, 1200), rng.uniform(0.008, 0.022))


LABELS = ("nucleus", "border")
BORDER_PX = 2
UNANNOTATED = 128  # the value of "partial" masks in unlabelled areas; looks grey
UNANNOTATED_SHARE = 0.2  # of an image, at one of its sides


def make_masks(instances: np.ndarray, masks: str) -> dict[str, np.ndarray]:
    """The mask files of an image, by folder: the instances (H, W) uint16 as they are, or masks derived from them.

    Args:
        masks: "instances"; "classes": one file with 1 inside a nucleus and 2 on its border, the outer 2 px of it, so
            that touching nuclei are separated; "partial": the same, with a strip of UNANNOTATED at a side that the
            nuclei decide; "labels": a file for nuclei and one for their borders, on top of them.
    """
    if masks == "instances":
        return {"masks": instances}
    window = np.ones((2 * BORDER_PX + 1,) * 2, np.uint8)
    alone = cv2.erode(instances, window) == cv2.dilate(instances, window)  # no other number near
    border = (instances > 0) & ~alone
    if masks in ("classes", "partial"):
        classes = (instances > 0).astype(np.uint8) + border
        if masks == "partial":
            turned = np.rot90(classes, int(np.count_nonzero(instances)) % 4)  # a view, of any of the four sides
            turned[: round(UNANNOTATED_SHARE * len(turned))] = UNANNOTATED
        return {"masks": classes}
    planes = zip(LABELS, (instances > 0, border), strict=True)
    return {f"masks/{label}": plane * np.uint8(255) for label, plane in planes}


# Below this total number of pixels, new processes take longer to start than to draw.
PARALLEL_PIXELS = 1000 * 128**2


def write_images(params: Synthetic, num_workers: int, out: Path) -> None:
    """Write the whole dataset as images/ and masks/ into the folder `out`, with at most `num_workers` processes.

    The files are the same, byte for byte, for any number of processes.
    """
    (out / "images").mkdir()
    (out / "masks").mkdir()
    if params.masks == "labels":
        for label in LABELS:
            (out / "masks" / label).mkdir()
    write = partial(_write_image, params, out)
    num_processes = min(num_workers, num_cores())
    if num_processes == 1 or params.num_images * params.size_px**2 < PARALLEL_PIXELS:
        for index in range(params.num_images):
            write(index)
        return
    for index, answer in answers(write, range(params.num_images), num_processes):
        if isinstance(answer, Died):
            raise RuntimeError(f"the process that drew image {index} {answer.how}")


def _write_image(params: Synthetic, out: Path, index: int) -> None:
    image, instances, _ = make_image(index, params.seed, params.size_px)
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # OpenCV writes BGR
    for folder, values in {"images": image, **make_masks(instances, params.masks)}.items():
        path = out / folder / f"nuclei_{index:05d}.png"
        with path.open("wb") as file:  # OpenCV's own writer does not report a full disk
            file.write(cv2.imencode(".png", values)[1].tobytes())
